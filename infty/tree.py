"""One kind of nested value for all state: names lead to tensors, or to what is known of a tensor (`Field`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infty.errors import UserError


@dataclass(frozen=True)
class Field:
    """What is declared of one tensor of a lane's state: everything but its values."""

    shape: tuple[int, ...]
    """One lane's, on this rank: without the dimension of lanes, which is dimension 0 of the tensor."""
    dtype: torch.dtype
    split: bool = False
    """Whether dimension 1 of the tensor holds this tensor-parallel rank's share of the heads. Otherwise it is equal
    on all ranks of the group."""
    reset: float | int = 0
    """What every element is when a document begins."""

    def fresh(self, lanes: int, device: torch.device | str = "cpu") -> Tensor:
        """The tensor of lanes that have read nothing: [lanes, *shape]."""
        return torch.full((lanes, *self.shape), self.reset, dtype=self.dtype, device=device)

    @property
    def bytes(self) -> int:
        """Of one lane, on this rank."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Tree:
    """A nested mapping from names to leaves that is never changed: `tree["memories"]["gist"]["written"]`.

    Not a dict on purpose: DeepSpeed rewrites the dicts that a module is called with, and would look for gradients in
    them, while state carries none from window to window.
    """

    __slots__ = ("_branches",)

    def __init__(self, branches: Mapping[str, Any]) -> None:
        """Branches are leaves, trees or mappings, which become trees."""
        self._branches = {
            name: Tree(x) if isinstance(x, Mapping) else x for name, x in branches.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._branches[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._branches)

    def __contains__(self, name: str) -> bool:
        return name in self._branches

    def __len__(self) -> int:
        return len(self._branches)

    def __repr__(self) -> str:
        return f"Tree({self._branches!r})"

    def keys(self) -> Iterator[str]:
        """With `__getitem__`, what `dict(tree)` and `f(**tree)` need."""
        return iter(self._branches)

    def map(self, f: Callable[[Any], Any]) -> Tree:
        """Apply f to every leaf: `.map(lambda x: x[2:4])` selects lanes 2 and 3 of a state."""
        return Tree(
            {name: x.map(f) if isinstance(x, Tree) else f(x) for name, x in self._branches.items()}
        )

    def zip(self, f: Callable[..., Any], *others: Tree) -> Tree:
        """Apply f to the leaves of the same name. Raises UserError where names differ."""
        for other in others:
            _same_names(self._branches, other)
        return Tree(
            {
                name: x.zip(f, *(other[name] for other in others))
                if isinstance(x, Tree)
                else f(x, *(other[name] for other in others))
                for name, x in self._branches.items()
            }
        )

    def replace(self, **branches: Any) -> Tree:
        """The tree with some of its branches exchanged or added."""
        return Tree(self._branches | branches)

    def named(self, prefix: str = "") -> dict[str, Any]:
        """Every leaf by its dotted name, as checkpoints hold them: `layers.3.memories.gist.written`."""
        out: dict[str, Any] = {}
        for name, x in self._branches.items():
            if isinstance(x, Tree):
                out |= x.named(f"{prefix}{name}.")
            else:
                out[prefix + name] = x
        return out

    def from_named(self, leaves: Mapping[str, Any]) -> Tree:
        """A tree of this one's shape with the leaves of a mapping that `named` made. Raises UserError."""
        _same_names(self.named(), leaves)
        return self._from_named(leaves, "")

    def _from_named(self, leaves: Mapping[str, Any], prefix: str) -> Tree:
        return Tree(
            {
                name: x._from_named(leaves, f"{prefix}{name}.")
                if isinstance(x, Tree)
                else leaves[prefix + name]
                for name, x in self._branches.items()
            }
        )

    def where(self, lanes: Tensor, other: Tree) -> Tree:
        """These tensors in the lanes of `lanes` (bool [b]), the other tree's elsewhere, to the bit."""
        return self.zip(lambda x, y: torch.where(_wide(lanes, x), x, y), other)


def fresh(fields: Tree, lanes: int, device: torch.device | str = "cpu") -> Tree:
    """The state of lanes that have read nothing, from the fields that declare it."""
    return fields.map(lambda field: field.fresh(lanes, device))


def reset(state: Tree, fields: Tree, lanes: Tensor) -> Tree:
    """Begin a document in `lanes` (bool [b]): nothing of an earlier one stays there, not even a NaN."""
    return state.zip(lambda x, field: torch.where(_wide(lanes, x), field.reset, x), fields)


def _wide(lanes: Tensor, x: Tensor) -> Tensor:
    return lanes.to(x.device).view(-1, *[1] * (x.dim() - 1))


def _same_names(ours: Mapping[str, Any], theirs: Any) -> None:
    odd = sorted(set(ours) ^ set(theirs))
    if odd:
        raise UserError(
            f"the saved memory does not belong to this model: {', '.join(odd[:4])} differ"
        )
