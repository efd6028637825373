"""Making an export: written aside, verified, then renamed. Needs megatron-core's parallel state of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from infty import __version__, files
from infty.data.documents import Documents
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from infty.hf.modeling_infty import InftyForCausalLM
from infty.models.lm import InftyLM
from infty_pretrain import checkpoint as checkpoints
from infty_pretrain import config as configs
from infty_pretrain.evaluator import find_checkpoint
from infty_tools.export import verify as export_verify
from infty_tools.export.card import write_card
from infty_tools.export.code import write_code
from infty_tools.export.dtypes import DTYPES
from infty_tools.export.family import FamilyFiles
from infty_tools.export.merged import Merged
from infty_tools.export.tokenizer import SAMPLES, fast_tokenizer
from infty_tools.export.weights import convert_config, convert_weights

AUTO_MAP = {
    "AutoConfig": "configuration_infty.InftyConfig",
    "AutoModel": "modeling_infty.InftyModel",
    "AutoModelForCausalLM": "modeling_infty.InftyForCausalLM",
}
BOOK_SAMPLE = 20_000  # tokens of the training data on which tokenizers are compared


class Exporter:
    """One checkpoint, checked and ready to be written."""

    def __init__(
        self,
        checkpoint: Path,
        dtype: str = "float32",
        tokenizer: Path | None = None,
        max_shard: str = "5GB",
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
        self.folder, self.dtype, self.max_shard, self.tell = (
            find_checkpoint(checkpoint),
            dtype,
            max_shard,
            tell,
        )
        self.config = configs.load(self.folder / checkpoints.CONFIG)
        self.reader: checkpoints.Reader | Merged = checkpoints.Reader(self.folder)
        if (lora := self.config.model.lora) is not None:
            self.reader = Merged(self.reader, lora)
            model = replace(self.config.model, lora=None)
            self.config = replace(
                self.config, model=model, train="memory" if model.remembers else "everything"
            )
        self.family = FamilyFiles.of(self.folder, self.reader.run)
        self.tokenizer = self._find_tokenizer(tokenizer)
        self._check_shapes()

    def _find_tokenizer(self, given: Path | None) -> Tokenizer:
        run = self.reader.run
        path = given or Path(run["tokenizer"])
        if given is None and not path.exists() and self.family is not None:
            path = self.family.folder
        if given is None and not path.exists():
            raise UserError(f"the run's tokenizer is no longer at {path}: name it with --tokenizer")
        found = Tokenizer.load(path, run.get("end_token"))
        if found.fingerprint != run["tokenizer_fingerprint"]:
            raise UserError(f"{path} is not the tokenizer that {self.folder} was trained with")
        return found

    def _check_shapes(self) -> None:
        with torch.device("meta"):
            twin = InftyForCausalLM(convert_config(self.config.model))
        expected = {n: list(p.shape) for n, p in twin.named_parameters()}
        shapes = (
            (n, torch.empty(self.reader.shape(n), device="meta")) for n in self.reader.names()
        )
        saved = {n: list(t.shape) for n, t in convert_weights(shapes, self.config.model).items()}
        for name in sorted(expected.keys() | saved.keys()):
            if expected.get(name) != saved.get(name):
                raise UserError(
                    f"{self.folder} does not fit its own {checkpoints.CONFIG}: {name} has shape "
                    f"{saved.get(name)} instead of {expected.get(name)}. Was the config edited?"
                )

    def write(self, output: Path, force: bool = False) -> tuple[str, str]:
        """Make `output`: whole or not at all. Returns its size and what was verified, in words. Raises UserError."""
        check_free(output, force)
        with files.whole_folder(output) as partial:
            self._fill(partial)
            report = self.verify(partial)
        return _size(output), report

    def _fill(self, folder: Path) -> None:
        self.tell("converting the tokenizer")
        fast = None if self.family else self._fast_tokenizer()
        self.tell("converting the weights")
        model = self._twin()
        self.tell("writing the weights")
        logging.disable_progress_bar()
        model.save_pretrained(folder, max_shard_size=self.max_shard)
        if fast is not None:
            fast.save_pretrained(folder)
        if self.family is not None:
            self.family.copy(folder)
        names = write_code(folder)
        source = self.family and self.family.name
        end = self.tokenizer.end_token
        write_card(folder, self.config, self.reader.run, self.dtype, names, end, source)
        for path in folder.glob("*.safetensors"):  # written for their owner's eyes only
            path.chmod((folder / "config.json").stat().st_mode)

    def _fast_tokenizer(self) -> PreTrainedTokenizerFast:
        fast = fast_tokenizer(self.tokenizer, self._book_texts())
        # Documents began with their first token in training: no other tool is to add one.
        fast.bos_token = None
        return fast

    def _twin(self) -> InftyForCausalLM:
        """The transformers model with the checkpoint's weights, in the export's dtype."""
        end = self.tokenizer.eos_id
        special = {"eos_token_id": end, "pad_token_id": end}
        config = convert_config(
            self.config.model,
            **(self.family.special_ids() if self.family else special),
            auto_map=AUTO_MAP,
            infty_version=__version__,
        )
        with torch.device("meta"):
            model = InftyForCausalLM(config)
        weights = {
            name: w.to(getattr(torch, self.dtype)).contiguous()
            for name, w in convert_weights(self._parameters(), self.config.model).items()
        }
        model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        model.config.dtype = self.dtype
        return model

    def _parameters(self):
        return ((name, self.reader.parameter(name)) for name in self.reader.names())

    def _book_texts(self) -> list[str]:
        """The beginning of a few training documents, where the dataset is at hand."""
        try:
            documents = Documents.open(self.config.data.train)
        except UserError:
            return []
        return [
            self.tokenizer.decode(
                documents.read(d, 0, min(BOOK_SAMPLE, int(documents.lengths[d]) - 1))
            )
            for d in range(min(3, len(documents.lengths)))
        ]

    def verify(self, folder: Path) -> str:
        self.tell(
            "verifying: loading the export in a process that cannot import infty, deepspeed or megatron"
        )
        tokens = export_verify.tokens(self.config.model)
        got, ids = export_verify.run_alone(folder, tokens, list(SAMPLES))
        self.tell("verifying: comparing with the trained model")
        for text, its in zip(SAMPLES, ids):
            own = self.family.encode(text) if self.family else self.tokenizer.encode(text).tolist()
            if its != own:
                raise UserError(
                    f"the exported tokenizer reads {text[:40]!r} differently. Nothing was exported"
                )
        return export_verify.compare(self.reference(), tokens, got)

    def reference(self) -> InftyLM:
        """The training model, with weights rounded as the export's are, computing in float32."""
        model = InftyLM(self.config.model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(self._rounded(self.reader.parameter(name)))
        return model.eval()

    def _rounded(self, weight: Tensor) -> Tensor:
        return weight.to(getattr(torch, self.dtype)).float()


def check_free(output: Path, force: bool) -> None:
    """Raise UserError unless there is room for an export at `output`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not _is_export(output):
        raise UserError(
            f"{output} exists and is not an exported model; leaving it alone. Name another --output"
        )
    if not force:
        raise UserError(
            f"{output} already holds an exported model: name another --output, or replace it with --force"
        )


def _is_export(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    try:
        config = files.read_json(folder / "config.json")
    except ValueError as error:
        raise UserError(
            f"{folder} exists, and its config.json cannot be read ({error}); leaving it alone. Name another --output"
        ) from error
    return isinstance(config, dict) and config.get("model_type") == "infty"


def _size(folder: Path) -> str:
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return f"{total / 1e9:.2f} GB" if total > 1e9 else f"{total / 1e6:.1f} MB"
