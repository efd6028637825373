"""A signal at the centres of its functions, by tiles, against the functions themselves in float64."""

from __future__ import annotations

import pytest
import torch

from infty.memory import MemoryConfig, tiles
from infty.memory.basis import gaussian, placement
from infty.memory.memory import ContinuousMemory


@pytest.mark.parametrize(("size", "width"), [(128, 0.75 / 128), (50, 0.01), (24, 0.2)])
def test_a_signal_at_its_centers(size, width):
    core = ContinuousMemory(MemoryConfig(basis=size, widths=(width,)), 8)
    g = torch.Generator().manual_seed(0)
    coefficients = torch.randn(2, 3, 4, size, 5, generator=g, requires_grad=True)
    found = core.at_centers(coefficients)
    centers, widths = placement(size, (width,))
    psi = gaussian(centers, centers, widths)
    expected = psi @ coefficients.double()
    scale = expected.abs().max()
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=1e-6)
    into = torch.randn(found.shape, generator=g)
    (got,) = torch.autograd.grad((found * into).sum(), coefficients)
    wanted = psi.T @ into.double()
    torch.testing.assert_close(got.double() / scale, wanted / scale, rtol=0, atol=1e-6)


def test_tiles_at_the_centers_leave_out_most_of_a_narrow_basis():
    there, back = tiles.at_centers(512, (0.75 / 512,))
    assert there.operations < 512 * 512 / 6 and back.operations < 512 * 512 / 6
