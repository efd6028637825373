"""Products that leave out zeros, against products with the whole matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infty.memory import bands, regression, tiles
from infty.memory.bands import Band

F64 = torch.float64


def dense(band: Band, columns: int) -> torch.Tensor:
    """The matrices of a band, one entry at a time: [b, g, P, columns]."""
    b, g, P, k = band.entries.shape
    out = torch.zeros(b, g, P, columns, dtype=F64)
    for i in range(k):
        out.scatter_add_(3, (band.first + i).unsqueeze(-1), band.entries[..., i : i + 1])
    return out


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(1, 3),
    heads=st.integers(1, 3),
    shared=st.booleans(),
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_a_band_is_its_matrix(b, heads, shared, rows, columns, width, seed):
    g, width, groups = (
        torch.Generator().manual_seed(seed),
        min(width, columns),
        1 if shared else heads,
    )
    first = torch.randint(0, columns - width + 1, (b, groups, rows), generator=g).sort(-1).values
    band = Band(first, torch.randn(b, groups, rows, width, generator=g, dtype=F64))
    x = torch.randn(b, heads, columns, 3, generator=g, dtype=F64, requires_grad=True)
    y = torch.randn(b, heads, rows, 3, generator=g, dtype=F64, requires_grad=True)
    matrix = dense(band, columns)
    there, back = bands.multiply(band, x), bands.multiply_transposed(band, y, columns)
    torch.testing.assert_close(there, matrix @ x)
    torch.testing.assert_close(back, matrix.mT @ y)
    for got, wanted, of in ((there, matrix @ x, x), (back, matrix.mT @ y, y)):
        into = torch.randn(got.shape, generator=g, dtype=F64)
        torch.testing.assert_close(
            *(torch.autograd.grad((z * into).sum(), of)[0] for z in (got, wanted))
        )


@pytest.mark.parametrize(
    ("size", "points", "count"), [(128, 256, 8), (300, 650, 7), (64, 90, 64), (40, 50, 3)]
)
def test_tiles_are_their_operator(size, points, count):
    operator = regression.cast(regression.grid_write(size, (0.75 / size,), 0.5, points), F64)
    there, back = tiles.cut(operator.T, count), tiles.cut(operator, count)
    x = torch.randn(2, 3, points, 4, dtype=F64, requires_grad=True)
    got, wanted = tiles.multiply(there, back, x), operator.T @ x
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    into = torch.randn_like(got)
    torch.testing.assert_close(
        *(torch.autograd.grad((z * into).sum(), x)[0] for z in (got, wanted))
    )


def test_tiles_leave_out_most_of_a_narrow_operator():
    for matrix in tiles.grid_write(512, (0.75 / 512,), 0.5, 1024, torch.float32):
        assert matrix.operations < 0.35 * 512 * 1024
    wide, _ = tiles.grid_write(64, (0.05,), 0.5, 128, torch.float32)
    assert wide.operations == 64 * 128  # nothing to leave out: one tile


def test_rows_of_zeros_are_rows_of_zeros():
    operator = torch.zeros(40, 60)
    operator[:20, :5] = 1
    matrix = tiles.cut(operator, 4)
    assert matrix.operations == 40 * 5
    ones = torch.ones(60, 2)
    assert torch.equal(tiles.multiply(matrix, tiles.cut(operator.T, 4), ones), operator @ ones)
