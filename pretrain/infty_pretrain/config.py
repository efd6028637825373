"""The configuration of a run: typed sections, read from YAML with overrides from the command line.

An unknown key is an error that names the nearest valid one, and everything that can be known to be wrong is refused
here, before any process group starts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from infty.config import ModelConfig
from infty.errors import UserError
from infty_pretrain import curriculum, origin, typed
from infty_pretrain.agreement import check_agreement
from infty_pretrain.memory_sections import with_memories
from infty_pretrain.ranges import check_ranges


@dataclass(frozen=True)
class RunConfig:
    folder: Path = Path("runs/run")
    """Everything the run writes: checkpoints, logs, its resolved config."""
    seed: int = 1
    """Where initial weights, dropout and the order of the documents are drawn from."""
    steps: int | None = None
    """Length of the run in optimizer steps; or give `tokens`."""
    tokens: int | None = None
    """Length of the run in tokens read, rounded up to whole steps."""
    minutes: float | None = None
    """Stop by itself, with a checkpoint, after this much time; the next start goes on."""
    stall_minutes: float | None = 30.0
    """End a run of several processes that has not moved for this long (a step, a window of an evaluation, a copy for a
    checkpoint), telling who waits for whom, with the status that asks to be started again; null: wait for ever."""


@dataclass(frozen=True)
class InitConfig:
    from_: Path | None = None
    """Begin with the weights of this checkpoint (made by `infty adapt`, or a run's), with a fresh optimizer. Its model
    is this run's, wherever `model:` does not say otherwise."""


@dataclass(frozen=True)
class DataConfig:
    train: Path = Path("data/train")
    """A folder made by `infty prepare`."""
    validation: Path | None = None
    """Another such folder, read by evaluations while training; left out: there are none."""


@dataclass(frozen=True)
class BatchConfig:
    lanes: int = 8
    """Rows of the global batch, each an endless reading of whole documents."""
    window_segments: int = 4
    """Segments of a lane that one step sees [S]; gradients flow inside a window."""
    window_stages: dict[int, int] | None = None
    """Shorter windows first, as segments: steps. {2: 500, 4: 500}: 500 steps with windows of 2 segments, 500 of 4, then
    of `window_segments`. Every lane reads on across stages, so later steps read more tokens than the first."""
    part_segments: int | None = None
    """Segments of a window that go through the model at once; the activations of one such part are kept, and computed
    again in the backward pass. Gradients flow through the whole window all the same. Left out: the window at once."""
    micro_batch: int | None = None
    """Lanes of a rank that go through the model at once; left out: all of them. Fewer: gradients accumulate."""


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-4
    """Peak learning rate."""
    memory_lr: float | None = None
    """Learning rate of the long-term memory's parameters; left out: `lr`."""
    gate_lr: float | None = None
    """Learning rate of the memories' gates, which begin at zero; left out: that of the memories. Gates do not decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    eps: float = 1e-8
    """Added to the denominator of AdamW's update."""
    weight_decay: float = 0.1
    """Of matrices; biases, norms and gates do not decay."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises to its peak."""
    min_ratio: float = 0.1
    """Learning rate at the end, as a share of the peak."""


@dataclass(frozen=True)
class ParallelConfig:
    tensor: int = 1
    """Ranks that share every layer's heads and widths."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed partitions over data-parallel ranks: 1 optimizer, 2 + gradients, 3 + parameters."""
    sequence: bool = False
    """Split the residual stream over the tensor-parallel ranks, too."""
    recompute: bool = False
    """Recompute activations in the backward pass instead of keeping them."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 500
    """Steps between checkpoints; one is always written at the end and on a stop."""
    keep_last: int = 2
    """How many of these to keep."""
    keep_every: int | None = None
    """Also keep, for good, those at multiples of this many steps."""
    minutes: float | None = None
    """Also write one when this much time has passed since the last, and keep it only until the next of any kind."""
    overlap: bool = True
    """Write while training goes on; it stands still only while its state is copied to host memory, which must hold
    that copy (12 bytes a parameter, shared out over the ranks, and the lanes of a rank)."""
    memory: Literal["save", "reset", "replay"] = "save"
    """The lanes' memories: saved with the checkpoint; emptied at resume; or rebuilt at resume by reading the current
    documents again from their start."""


@dataclass(frozen=True)
class LoggingConfig:
    every: int = 10
    """Steps between log lines."""
    tensorboard: bool = True
    """Write `tensorboard/` in the run's folder."""
    pictures: int | None = 500
    """Steps between pictures of the memories, of which there is one at the end, too; null: none."""
    peak_tflops: float | None = None
    """Peak speed of one device, for the MFU; left out: known for common GPUs, measured on a CPU."""


@dataclass(frozen=True)
class EvaluationConfig:
    every: int | None = None
    """Steps between evaluations on data.validation; left out: none while training."""
    windows: int = 8
    """Windows of each lane read in such an evaluation."""


@dataclass(frozen=True)
class FaultsConfig:
    """What a run does about a step that would do harm. A skipped step leaves weights and optimizer untouched; the data
    goes on."""

    spike_sigma: float | None = 6.0
    """Skip a step whose loss lies more than this many standard deviations above the mean of recent ones; null: never.
    Ordinary noise stays below 4; what ruins a run is tens away."""
    spike_window: int = 100
    """Losses of how many steps that mean and deviation are taken from; the rule begins when half of them are seen."""
    patience: int = 20
    """Give up after this many skipped steps without one taken between them."""
    quarantine: bool = True
    """Read a lane whose numbers are not finite as nothing in that step and empty its memory; false: skip the whole
    step instead."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    init: InitConfig = field(default_factory=InitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: Literal["everything", "memory", "memory+lora"] = "everything"
    """What learns: the whole model; its memories alone; or these and the low-rank updates of `model.lora`. What does
    not learn keeps its bits, and has no gradient and no optimizer state."""
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations in a step; masters, moments and memories are float32 always."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_agreement(self)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the longest windows: of every step, unless there are `batch.window_stages`."""
        return self.batch.window_segments * self._tokens_per_segment

    @property
    def total_steps(self) -> int:
        return (
            self.run.steps
            if self.run.steps is not None
            else curriculum.steps_to_read(
                self.batch, -(-self.run.tokens // self._tokens_per_segment)
            )
        )

    @property
    def total_tokens(self) -> int:
        """Tokens that the whole run reads, padding among them."""
        return curriculum.segments_read(self.batch, self.total_steps) * self._tokens_per_segment

    @property
    def _tokens_per_segment(self) -> int:
        """Of one segment in every lane."""
        return self.batch.lanes * self.model.segment_length

    def check_layout(self, world: int) -> None:
        """Refuse a number of processes that this config cannot be spread over. Raises UserError."""
        tensor, lanes = self.parallel.tensor, self.batch.lanes
        if world % tensor:
            raise UserError(
                f"parallel.tensor: {tensor} does not divide the {world} process(es) of this run. Start a "
                f"multiple of {tensor} processes (torchrun --nproc-per-node {tensor} ...), or set "
                "parallel.tensor=1"
            )
        data = world // tensor
        if lanes % data:
            raise UserError(
                f"batch.lanes: {lanes} lanes cannot be shared evenly by {data} data-parallel ranks"
            )
        if self.batch.micro_batch and (lanes // data) % self.batch.micro_batch:
            raise UserError(
                f"batch.micro_batch: {self.batch.micro_batch} does not divide the {lanes // data} lanes "
                "of a rank"
            )

    def micro_batches(self, data_ranks: int) -> int:
        """Forward passes a rank makes in one step."""
        lanes = self.batch.lanes // data_ranks
        return lanes // (self.batch.micro_batch or lanes)

    def with_vocab(self, vocab_size: int) -> Config:
        """Take the vocabulary from the dataset's tokenizer. Raises UserError if the config names another size."""
        given = self.model.vocab_size
        if given is not None and self.init.from_ is not None and vocab_size < given:
            return self  # pretrained embeddings may have rows to spare
        if given is not None and given != vocab_size:
            raise UserError(
                f"model.vocab_size is {given}, but the tokenizer of data.train has {vocab_size} tokens: "
                "leave model.vocab_size out, or give the dataset that belongs to this model"
            )
        return dataclasses.replace(
            self, model=dataclasses.replace(self.model, vocab_size=vocab_size)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        return _plain(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply overrides such as `optimizer.lr=1e-4`. Raises UserError."""
    return from_dict(written(path, overrides), str(path))


def written(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The values of a YAML file and of overrides, as they were written: text, or None. Raises UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config at {path}")
    values = typed.read_yaml_file(path) or {}
    if not isinstance(values, dict):
        raise UserError(
            f"{path} must hold sections (run:, model:, data:, ...), not a {type(values).__name__}"
        )
    change(values, overrides or [])
    return values


def change(values: dict[str, Any], overrides: list[str]) -> None:
    """Put overrides such as `optimizer.lr=1e-4` into plain values. Raises UserError."""
    for text in overrides:
        _override(values, text)


def from_dict(values: dict[str, Any], source: str = "config") -> Config:
    """Build and validate a config from plain values. Raises UserError naming the key.

    `model.memory.preset` names the memory that the section's other keys change (infty.memory.presets).
    """
    values = origin.with_its_model(typed.pythonic(values))
    typed.check_keys(Config, values, source)
    return typed.validated(Config, with_memories(values, source), source)


def differences(old: Config, new: Config) -> list[str]:
    """What a later config says otherwise, as `section.key: old -> new`; the run's folder may move."""
    before, after = typed.flat(old.to_dict()), typed.flat(new.to_dict())
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key != "run.folder"
    ]


def _override(values: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(
            f"{text!r} is not an override: write section.key=value, such as optimizer.lr=1e-4"
        )
    *sections, name = key.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[name] = typed.read_yaml(value, f"the value of {text!r}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            typed.written_name(f): _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
