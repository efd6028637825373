"""Ridge regression of samples onto the basis, solved once in float64: the operators of every write.

B = G^T x with G = F^T (F F^T + lambda I)^-1 and F = [psi(t_1) ... psi(t_P)]. The signal is taken to be zero
outside [0, 1]: the sample positions are continued half a unit to both sides, with zeros there, and the rows
of G that belong to those zeros are dropped. F F^T + lambda I has a condition number of about 5e5 for the
paper's basis of 512, so that a float32 inverse is off by a percent: hence float64 and a Cholesky factorisation.
Every function is cached by its arguments, so that the layers of a model share one solution.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from infty.memory.basis import CPU, gaussian, placement


@lru_cache(maxsize=64)
def first_write(size: int, widths: tuple[float, ...], ridge: float, length: int) -> Tensor:
    """G of `length` tokens that fill an empty memory, at (i - 1/2) / length: float64 [length, N]."""
    inside = centers_of_cells(length)
    # Continued with the same spacing to half a unit either side (paper: l/2 points each, (l-1)/2 for odd l).
    beyond = torch.arange(length // 2, dtype=torch.float64, device=CPU)
    left, right = -(beyond.flip(0) + 0.5) / length, 1 + (beyond + 0.5) / length
    return ridge_operator(size, widths, ridge, left, inside, right)


@lru_cache(maxsize=64)
def later_write(
    size: int, widths: tuple[float, ...], ridge: float, samples: int, length: int, keep: float
) -> Tensor:
    """G of the paper's later writes: old sample i at i*keep/M, new token i at keep + (1-keep)*i/L.

    Returns float64 [M + L, N]; the first M rows belong to the old signal. The zeros outside lie where the
    paper's code has them.
    """
    old = torch.arange(1, samples + 1, dtype=torch.float64, device=CPU) * keep / samples
    new = keep + (1 - keep) * torch.arange(1, length + 1, dtype=torch.float64, device=CPU) / length
    shift = 1 / (2 * length + samples)
    around = torch.linspace(
        -0.5 + shift, 1.5 - shift, 2 * (length + samples), dtype=torch.float64, device=CPU
    )
    return ridge_operator(
        size, widths, ridge, around[around < 0], torch.cat([old, new]), around[around > 1]
    )


@lru_cache(maxsize=16)
def grid_write(size: int, widths: tuple[float, ...], ridge: float, points: int) -> Tensor:
    """G of a fixed grid of `points` cells over [0, 1], sampled at their centres: float64 [points, N].

    It depends on nothing but the configuration, so that one G serves every share kept for the old signal.
    """
    return first_write(size, widths, ridge, points)


def ridge_operator(
    size: int, widths: tuple[float, ...], ridge: float, left: Tensor, inside: Tensor, right: Tensor
) -> Tensor:
    """Rows of G for the samples `inside`, with zeros assumed at `left` and `right`: float64 [inside, N]."""
    positions = torch.cat([left, inside, right])
    psi = gaussian(positions, *placement(size, widths))
    gram = psi.T @ psi + ridge * torch.eye(size, dtype=torch.float64, device=CPU)
    solved = torch.cholesky_solve(
        psi[len(left) : len(left) + len(inside)].T, torch.linalg.cholesky(gram)
    )
    return solved.T.contiguous()


def centers_of_cells(cells: int) -> Tensor:
    """(i - 1/2) / cells for i = 1..cells, float64."""
    return (torch.arange(cells, dtype=torch.float64, device=CPU) + 0.5) / cells


def cast(operator: Tensor, dtype: torch.dtype) -> Tensor:
    """The operator in a working precision, with what is far below its rounding set to zero.

    Operators decay exponentially away from their diagonal, down to denormal numbers, which slow a CPU's matrix
    products by more than ten times.
    """
    negligible = operator.abs() < 1e-3 * torch.finfo(dtype).eps * operator.abs().max()
    return operator.masked_fill(negligible, 0).to(dtype)
