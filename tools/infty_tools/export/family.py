"""What an export keeps of the pretrained model that was adapted: tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from infty import files
from infty.errors import UserError
from infty_pretrain import origin

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class FamilyFiles:
    """The files of the original, as `infty adapt` copied them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    @classmethod
    def of(cls, checkpoint: Path, run: dict[str, Any]) -> FamilyFiles | None:
        """Those of a checkpoint that comes from an adapted model; None for any other. Raises UserError where they are
        gone."""
        named = run.get("original")
        if named is None and "adapted" not in run:
            return None
        found = origin.original_of(checkpoint)
        if found is None and named is not None and Path(named).is_dir():
            found = Path(named)
        if found is None:
            raise UserError(
                f"the tokenizer and settings of the model that was adapted are no longer at "
                f"{named or checkpoint / origin.ORIGINAL}: put that folder back (it is "
                f"'{origin.ORIGINAL}' in what infty adapt made)"
            )
        return cls(found, cls._name(found))

    @staticmethod
    def _name(folder: Path) -> str:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        return f"a pretrained {kind} model"

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def encode(self, text: str) -> list[int]:
        """As the original reads a text, with the tokens that it adds."""
        return self._tokenizer(text)["input_ids"]

    def special_ids(self) -> dict[str, Any]:
        """Ids of the original's config."""
        config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        return {name: getattr(config, name, None) for name in SPECIAL}

    def copy(self, folder: Path) -> None:
        """Copy everything but the original's config into an export."""
        for path in sorted(p for p in self.folder.iterdir() if p.is_file()):
            if path.name != "config.json":
                shutil.copyfile(path, folder / path.name)
        self._name_class(folder / "tokenizer_config.json")

    def _name_class(self, path: Path) -> None:
        """transformers finds a tokenizer's class by the model's type where its file does not name it: here it must."""
        values = files.read_json(path) if path.is_file() else {}
        if "tokenizer_class" not in values:
            values["tokenizer_class"] = type(self._tokenizer).__name__
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
