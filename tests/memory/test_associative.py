"""The gated delta rule, a segment at a time, against the recurrence token by token in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infty.memory.associative import segment_map, unit


def recurrence(
    S: Tensor, keys: Tensor, values: Tensor, strength: Tensor, log_decay: Tensor
) -> Tensor:
    """S_t = alpha_t (I - beta_t k k^T) S_{t-1} + beta_t k v^T, as the formula says."""
    eye = torch.eye(keys.shape[-1], dtype=keys.dtype)
    for t in range(keys.shape[-2]):
        k = keys[..., t, :, None]
        v = values[..., t, None, :]
        beta = strength[..., t, None, None]
        S = log_decay[..., t, None, None].exp() * (eye - beta * k @ k.mT) @ S + beta * k @ v
    return S


def tokens(length: int, dtype: torch.dtype, alike: float = 0.0) -> tuple[Tensor, ...]:
    """S, keys, values, strengths and log decays of two lanes of three heads; `alike`: the share of one common key."""
    g = torch.Generator().manual_seed(length)
    keys = torch.randn(2, 3, length, 8, generator=g, dtype=torch.float64)
    keys = unit((1 - alike) * keys + alike * keys[..., :1, :])
    values = torch.randn(2, 3, length, 5, generator=g, dtype=torch.float64)
    strength = torch.rand(2, 3, length, generator=g, dtype=torch.float64)
    decay = -0.1 * torch.rand(2, 3, length, generator=g, dtype=torch.float64)
    S = torch.randn(2, 3, 8, 5, generator=g, dtype=torch.float64)
    return tuple(x.to(dtype) for x in (S, keys, values, strength, decay))


@pytest.mark.parametrize("length", [1, 2, 33, 256])
@pytest.mark.parametrize("alike", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_a_segment_is_its_tokens_one_after_another(length, alike, dtype, tolerance):
    """Also where keys are alike or one and the same, so that the triangular system is far from the identity."""
    S, *written = tokens(length, dtype, alike)
    M, C = segment_map(*written)
    expected = recurrence(S.double(), *(x.double() for x in written))
    assert ((M @ S + C).double() - expected).norm() < tolerance * expected.norm()


def test_gradients_are_those_of_the_recurrence():
    everything = [x.requires_grad_() for x in tokens(17, torch.float64)]
    S, *written = everything
    M, C = segment_map(*written)
    into = torch.randn_like(C)
    ours = torch.autograd.grad(((M @ S + C) * into).sum(), everything)
    wanted = torch.autograd.grad((recurrence(*everything) * into).sum(), everything)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_by_finite_differences():
    _, *written = tokens(6, torch.float64)
    assert torch.autograd.gradcheck(segment_map, [x.requires_grad_() for x in written])


def test_what_is_written_is_answered_and_can_be_replaced():
    """At strength 1 without decay a key's answer is the last value told, however much else is told to other keys."""
    keys = torch.eye(8, dtype=torch.float64)[[0, 1, 2, 0, 3]]
    values = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    _, S = segment_map(
        keys, values, torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    )
    assert S[:4, 0].tolist() == [4.0, 2.0, 3.0, 5.0]


def test_an_empty_key_is_no_key():
    assert not unit(torch.zeros(3)).any()
