"""What a continuous memory is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from infty import ranges
from infty.errors import UserError
from infty.memory import contraction
from infty.memory.contraction import Policy
from infty.memory.densities import FAMILIES
from infty.memory.reading import Density
from infty.memory.room import ROOMS
from infty.memory.signals import SIGNALS, Signal
from infty.ranges import Range, whole

T = TypeVar("T")
if TYPE_CHECKING:
    LeftOut = Annotated[T, "may be left out"]
else:
    LeftOut = T | None
"""The type of a field that a config may leave out (null) and that is always filled in once the dataclass is made."""
LEFT_OUT: Any = None

PER_LAYER = (
    "basis",
    "widths",
    "ridge",
    "contraction",
    "sticky",
    "samples",
    "bins",
    "explore",
    "attention_span",
)
"""What may differ from layer to layer."""
WARPS = ("off", "quantile", "multinomial")
RANGES: dict[str, Range] = {
    "basis": whole(1, 2**16),
    "widths": Range(0, 10, above=True),
    "ridge": Range(0, 1e6, above=True),
    "contraction": Range(0, 1, above=True, below=True, words=contraction.NAMED.keys()),
    "sticky_seed": whole(0, 2**31 - 1),
    "bins": whole(2, 2**16),
    "explore": Range(0, 1),
    "attention_span": whole(1, 10**6),
    "samples": whole(2, 2**20),
    "sigma_floor": Range(0, 1, above=True),
    "kl_weight": Range(0, 1e6),
    "kl_sigma": Range(0, 10, above=True),
}


@dataclass(frozen=True)
class MemoryConfig:
    """The long-term memory of one model. Symbols in brackets are those of the paper (arXiv 2109.00301)."""

    kind: Literal["continuous"] = "continuous"
    """Which memory; left out: this one."""
    basis: int = 512
    """Number of Gaussian basis functions [N]; a multiple of the number of widths."""
    widths: LeftOut[tuple[float, ...]] = LEFT_OUT
    """Widths s of the basis functions; every centre carries one function of each. Left out: one, 0.75 / basis."""
    ridge: float = 0.5
    """Ridge penalty of the regression [lambda]."""
    signal: str = "heads"
    """What is stored: `heads`, each head's own keys and values; `hidden`, its slice of the hidden state (the paper)."""
    content: Literal["normed", "residual"] = "normed"
    """With `signal: hidden`: the layer's input after its first norm, or before it (the paper)."""
    contraction: float | str = "uniform"
    """Share of [0, 1] kept for the old signal at each write: a constant [tau], or a policy. `learned` starts
    as `uniform`; each layer then learns how much more room new tokens get than an even share (needs `backprop`)."""
    room: Literal["even", "salience", "surprise"] = "even"
    """How a segment's tokens share out its room: evenly, by a learned weight each, from their hidden states, or by
    their losses, as the layer's input predicts them; under `uniform` and `learned` an old token keeps room by that
    weight, too. (Not with a constant contraction.)"""
    sticky: Literal["off", "quantile", "multinomial"] | None = None
    """Where old samples are taken: evenly, at quantiles of past attention, or drawn from it (the paper, for a constant
    contraction). Left out: `quantile` for `uniform` and `learned`; `off` for a constant contraction and `doubling`,
    which rewrite so much at once that a warp which follows attention amplifies rounding errors, and for a density that
    local attention reads, which is not known when the signal is written."""
    sticky_heads: Literal["shared", "per_head"] = "shared"
    """One density of past attention for the layer, or one for each head (needs `signal: heads`)."""
    sticky_seed: int = 0
    """With `sticky: multinomial`: what the draws follow from, beside the layer and the number of writes."""
    bins: int = 128
    """Bins of the density of past attention [D]."""
    explore: float = 0.1
    """Uniform mass mixed into that density, so that nothing unread vanishes at once. With a policy, attention
    decides only about the room that new tokens take, of which this share is taken evenly."""
    attention_span: int | None = None
    """With a policy: segments over which past attention is averaged, each part of it moving with what was read. Shorter
    spans react faster, and let the feedback from attention to warp to attention amplify rounding errors; left
    out: an eighth of the number of basis functions."""
    samples: int | None = None
    """Samples of the signal taken at each write [M]; left out: two for each basis function."""
    precision: Literal["float32", "float64"] = "float32"
    """Arithmetic of a write. The basis is ill-conditioned: float32 costs about 5e-5 of what is read back."""
    density: str = "gaussian"
    """The family of read densities: `gaussian` (the paper), `truncated`, `sparsemax` or `gibbs`; or `joint`, where
    local attention reads the signal in its own softmax."""
    maps: Literal["per_head", "shared"] = "per_head"
    """The maps from scores to the density's mean and variance: one a head, or one a layer (the paper)."""
    map_bias: bool = True
    """Give the maps a bias, so that densities start inside [0, 1]. The paper has none."""
    sigma_floor: float = 1e-6
    """Added to the variance of every read density."""
    sigma_clamp: bool = False
    """Take sigma_floor as a lower bound of the variance (the paper) instead of adding it."""
    gate: bool = False
    """With `signal: hidden`: new tokens pass a gate sigmoid(conv over 3 tokens) first (the paper)."""
    output_gate: bool = False
    """Scale each head's output by a learned gate that starts at zero: a memory added to a trained model."""
    backprop: bool = True
    """Let gradients flow through the memory from segment to segment inside a window."""
    kl_weight: float = 0.0
    """Weight of the divergence of read densities from a prior of standard deviation `kl_sigma`."""
    kl_sigma: float = 0.05
    """Standard deviation of that prior [sigma_0]."""
    layers: tuple[int, ...] | None = None
    """Layers (from 0) that have it; left out: all."""
    overrides: dict[int, dict[str, Any]] | None = None
    """What is different in some layers, such as {0: {basis: 128, contraction: 0.75}}; these keys can differ: basis,
    widths, ridge, contraction, sticky, samples, bins, explore, attention_span."""

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot work, naming the key as it is written in a config."""
        ranges.check(self, RANGES, "model.memory.")
        for key, known in (("density", tuple(FAMILIES)), ("signal", tuple(SIGNALS))):
            value = getattr(self, key)
            _require(value in known, key, f"'{value}' is not one of {', '.join(known)}")
        if self.widths is None:
            # As narrow as the centres are close: the regression is well-conditioned and all N functions count.
            object.__setattr__(self, "widths", (0.75 / self.basis,))
        if self.sticky is None:
            object.__setattr__(self, "sticky", self._usual_warp())
        _require(
            self.basis % max(1, len(self.widths)) == 0,
            "basis",
            f"{self.basis} is not a positive multiple of the number of widths ({len(self.widths)})",
        )
        _require(len(self.widths) > 0, "widths", "need at least one")
        _require(
            self.sticky in WARPS, "sticky", f"'{self.sticky}' is not one of {', '.join(WARPS)}"
        )
        _require(self.room in ROOMS, "room", f"'{self.room}' is not one of {', '.join(ROOMS)}")
        for part in (self.signal_kind, self.family, self.policy):
            for key, problem in part.refused(self):
                _require(False, key, problem)
        self._validate_overrides()

    def _usual_warp(self) -> str:
        return "off" if self.family.attends else self.policy.warp

    def _validate_overrides(self) -> None:
        if self.overrides is None:
            return
        # JSON knows only text as keys, and only lists.
        values = {
            int(layer): {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
            for layer, changes in self.overrides.items()
        }
        object.__setattr__(self, "overrides", values)
        for layer, changes in values.items():
            wrong = [key for key in changes if key not in PER_LAYER]
            _require(
                not wrong,
                f"overrides.{layer}",
                f"{', '.join(wrong)} cannot differ between layers; these can: {', '.join(PER_LAYER)}",
            )
            try:
                self.of(layer)
            except UserError as error:
                inner = str(error).removeprefix("model.memory.")
                raise UserError(f"model.memory.overrides.{layer}.{inner}") from error
            except TypeError as error:
                raise UserError(
                    f"model.memory.overrides.{layer}: a value is of the wrong kind ({error})"
                ) from error

    def check(self, model: Any) -> None:
        """Refuse a model (`infty.config.ModelConfig`) that cannot have this memory. Raises UserError."""
        _require(
            not self.family.attends or model.positions != "relative",
            "density",
            f"{self.density} has no place for the signal among relative positions",
        )
        _require(
            self.signal_kind.of_attention or model.heads * model.head_size == model.hidden_size,
            "signal",
            f"{self.signal} shares the hidden state out over the heads: needs heads {model.heads} x head_size "
            f"{model.head_size} = hidden_size {model.hidden_size}",
        )
        _require(
            self.room != "surprise" or model.segment_length > 1,
            "room",
            "'surprise' needs segments of at least two tokens (model.segment_length)",
        )
        wrong = [i for i in self.overrides or () if not 0 <= i < model.layers]
        _require(
            not wrong,
            "overrides",
            f"{wrong} are not layers of a model with layers 0 to {model.layers - 1}",
        )
        idle = [i for i in self.overrides or () if self.layers is not None and i not in self.layers]
        _require(
            not idle,
            "overrides",
            f"layers {idle} have no memory to change: they are not in memory.layers",
        )

    @property
    def family(self) -> type[Density]:
        """The family of read densities that `density` names."""
        return FAMILIES[self.density]

    @property
    def signal_kind(self) -> Signal:
        """What `signal` names."""
        return SIGNALS[self.signal]

    @property
    def policy(self) -> Policy:
        """What `contraction` names."""
        return contraction.policy(self.contraction)

    @property
    def learns_to_write(self) -> bool:
        """Whether parameters of the memory are trained only where a window reads what it has written."""
        return self.gate or self.room == "salience"

    @property
    def learns_places(self) -> bool:
        """Whether gradients reach the places where the old signal is sampled, at each write."""
        return self.policy.learned or (self.room == "salience" and self.policy.weighs)

    @property
    def silent(self) -> bool:
        """Whether a fresh memory changes nothing: behind an output gate, which starts at zero."""
        return self.output_gate and not self.family.attends

    @property
    def everywhere(self) -> bool:
        """Yes: where `layers` is left out, all layers have one."""
        return True

    def of(self, layer: int) -> MemoryConfig:
        """The memory of one layer: this one, changed by the layer's overrides. Raises UserError."""
        if self.overrides is None:
            return self
        changes = dict(self.overrides.get(layer, {}))
        if "basis" in changes and "widths" not in changes and self.widths == (0.75 / self.basis,):
            changes["widths"] = None  # left out: as narrow as the layer's own centres are close
        if (
            "contraction" in changes
            and "sticky" not in changes
            and self.sticky == self._usual_warp()
        ):
            changes["sticky"] = None  # left out: the one for the layer's own contraction
        return dataclasses.replace(self, overrides=None, **changes)


def _require(condition: bool, key: str, problem: str) -> None:
    if not condition:
        raise UserError(f"model.memory.{key}: {problem}")
