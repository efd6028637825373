"""Matrix products that round as another machine's do: the order of a sum depends on the shapes and on the place.

A BLAS picks its kernel by the shape of a product, and works on the edges of a matrix with other kernels than inside.
Which shapes and which edges differs from one machine to the next, so a test that passes here may count on what is not
promised (docs/exactness.md). Under `AnotherBlas` two products of different shapes round differently, and so do equal
rows in different places; the same product done twice is still the same to the bit, and a sum that is exact stays so.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# The two factors' places among the arguments.
FACTORS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.mv.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


class AnotherBlas(TorchDispatchMode):
    """While it is active, dense products sum in an order that depends on shapes and places."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FACTORS:
            return _product(func, args, kwargs)
        if func in (aten.linear.default, aten.matmul.default):  # seen whole in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        return func(*args, **kwargs)


def _product(func, args, kwargs):
    left, right = FACTORS[func]
    a, b = args[left], args[right]
    usual = func(*args, **kwargs)
    inner = a.shape[-1]
    if (
        inner < 2
        or a.layout != torch.strided
        or b.layout != torch.strided
        or not usual.is_floating_point()
    ):
        return usual
    shift = 1 + sum(a.shape + b.shape) % (inner - 1)
    rolled = list(args)
    rolled[left] = a.roll(shift, -1)
    rolled[right] = b.roll(shift, 0 if b.ndim == 1 else -2)
    other = func(*rolled, **kwargs)
    place = torch.arange(usual.numel(), device=usual.device).view(usual.shape)
    return torch.where((place * 2654435761 + sum(a.shape) * 40503) % 7 < 3, usual, other)
