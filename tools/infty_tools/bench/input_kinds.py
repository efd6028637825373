"""What `infty bench inputs` gives to which command: one function a kind of input."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from infty.errors import UserError
from infty_tools.bench import input_mutations as mutations
from infty_tools.bench.input_trials import Trial, carry_out

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little.\n"
MODEL = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "segment_length": 8,
    "stm_length": 8,
    "vocab_multiple": 8,
    "memory": {"basis": 16, "bins": 16},
}


class Inputs:
    """Books, a dataset, a run's folder and an export, small and right: each made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _make(self, name: str, arguments: list[str]) -> Path:
        """What a command makes at `name`; it has to end right. Raises UserError."""
        if not (self.folder / name).exists():
            place = self.folder / f"making-{name}"
            place.mkdir()
            ending = carry_out(Trial(arguments, place), place / "inputs")
            if ending.outcome != "right":
                raise UserError(
                    f"infty {' '.join(arguments)} failed ({ending.outcome}): {ending.said}"
                )
        return self.folder / name

    def books(self) -> Path:
        folder = self.folder / "books"
        if not folder.exists():
            folder.mkdir()
            for i in range(3):
                lines = [
                    f"{TEXT}Chapter {i} {k}: {chr(97 + k % 26) * (k % 7)} {k * k}\n"
                    for k in range(60)
                ]
                (folder / f"book {i}.txt").write_text("".join(lines))
            records = [json.dumps({"text": TEXT * 3, "id": i}) for i in range(3)]
            (folder / "more.jsonl").write_text("\n".join(records) + "\n")
        return folder

    def dataset(self) -> Path:
        return self._make(
            "data",
            [
                "prepare",
                "--input",
                str(self.books()),
                "--output",
                str(self.folder / "data"),
                "--vocab-size",
                "330",
                "--workers",
                "1",
            ],
        )

    def config(self) -> dict[str, Any]:
        """A run's config as plain values, every key in it."""
        from infty_pretrain import config as configs

        values = {
            "run": {"folder": str(self.folder / "run"), "steps": 2},
            "data": {"train": str(self.dataset() / "train")},
            "model": MODEL,
            "batch": {"lanes": 2, "window_segments": 3},
            "logging": {"tensorboard": False},
        }
        return configs.from_dict(values).to_dict()

    def run(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config()))
        return self._make("run", ["pretrain", "--config", str(path)])

    def export(self) -> Path:
        return self._make(
            "model",
            ["export", "--checkpoint", str(self.run()), "--output", str(self.folder / "model")],
        )


def config(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """A YAML file with odd values or broken text, for the verbs that read one."""
    values = inputs.config()
    done = [mutations.mutate_values(values, chance) for _ in range(chance.choice((0, 1, 1, 1, 2)))]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=chance.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )
    if not done or chance.random() < 0.3:
        text, change = mutations.mutate_bytes(text, chance)
        done.append(change)
    path = place / "inputs" / "config.yaml"
    path.write_bytes(text)
    verb = chance.choice(READERS)
    return Trial([*verb, "--config", str(path)], place, mutation=f"{verb[0]}: {'; '.join(done)}")


READERS = (
    ["pretrain", "--dry-run"],
    ["pretrain", "--dry-run"],
    ["plan", "--gpus-per-node", "1"],
    ["submit", "--dry-run", "--gpus-per-node", "1"],
)


def override(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """Changes to a config that is right, on the command line."""
    values = inputs.config()
    path = place / "inputs" / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    keys = sorted(_leaves(values))
    changes = [
        f"{chance.choice(keys)}={mutations.odd_word(chance)}"
        for _ in range(chance.choice((1, 1, 2)))
    ]
    if chance.random() < 0.1:
        changes.append(mutations.odd_word(chance))
    changes = [typed(change) for change in changes]
    verb = chance.choice(READERS)
    return Trial(
        [*verb, "--config", str(path), *changes], place, mutation=f"{verb[0]}: {changes!r:.200}"
    )


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
    return found


def typed(word: str) -> str:
    """A word as the command line can give it: no NUL, and of lone surrogates those that stand for bytes."""
    return word.replace("\0", "").replace("\ud800", "\udce9")


def arguments(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """Odd values of the options of every verb that ends soon."""
    from typer.main import get_command

    from infty_tools.cli import app

    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(inputs.config()))
    out = place / "out"
    dataset = str(inputs.dataset() / "train")
    verbs = {
        "prepare": (
            [
                "--input",
                str(inputs.books()),
                "--output",
                str(out),
                "--workers",
                "1",
                "--vocab-size",
                "330",
            ],
            (out / "train", out / "validation"),
        ),
        "inspect": ([dataset], ()),
        "plan": (["--config", str(path)], ()),
        "submit": (["--config", str(path), "--dry-run"], ()),
        "evaluate": (
            [
                str(inputs.run()),
                "--data",
                dataset,
                "--tokens",
                "64",
                "--output",
                str(out / "figures.json"),
            ],
            (out / "figures.json",),
        ),
        "generate": (
            ["--model", str(place / "no model"), "--prompt", "Call me", "--max-new-tokens", "2"],
            (),
        ),
    }
    verb = chance.choice(sorted(verbs))
    given, made = verbs[verb]
    options = [o for o in get_command(app).commands[verb].params if o.param_type_name == "option"]
    option = chance.choice([o for o in options if o.name != "help"])
    word = typed(mutations.odd_word(chance))
    change = [option.opts[0]] if getattr(option, "is_flag", False) else [f"{option.opts[0]}={word}"]
    if chance.random() < 0.1:
        change.append(typed(mutations.odd_word(chance)))
    return Trial([verb, *given, *change], place, made, f"{verb} {change!r:.200}")


def texts(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """Books with damaged text, JSON lines and archives, for `prepare`."""
    import gzip

    folder = place / "inputs" / "books"
    shutil.copytree(inputs.books(), folder)
    done = []
    if chance.random() < 0.3:
        packed = folder / "packed.txt.gz"
        packed.write_bytes(gzip.compress((TEXT * 20).encode()))
        done.append(mutations.mutate_file(packed, chance))
    done.append(mutations.mutate_folder(folder, chance))
    out = place / "out"
    return Trial(
        [
            "prepare",
            "--input",
            str(folder),
            "--output",
            str(out),
            "--workers",
            "1",
            "--vocab-size",
            "330",
        ],
        place,
        (out / "train", out / "validation"),
        "; ".join(done),
    )


def datasets(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """A damaged dataset, for the verbs that open one."""
    folder = place / "inputs" / "data"
    shutil.copytree(inputs.dataset() / "train", folder)
    done = mutations.mutate_folder(folder, chance)
    values = inputs.config()
    values["data"]["train"] = str(folder)
    path = place / "inputs" / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    verb = chance.choice(
        (
            ["inspect", str(folder)],
            ["inspect", str(folder), "--verify"],
            ["pretrain", "--dry-run", "--config", str(path)],
            [
                "evaluate",
                str(inputs.run()),
                "--data",
                str(folder),
                "--tokens",
                "64",
            ],
        )
    )
    return Trial(verb, place, mutation=f"{verb[0]}: {done}")


def checkpoints(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """A damaged checkpoint, or an edited one whose manifest agrees, for `evaluate` and `export`."""
    run = place / "inputs" / "run"
    shutil.copytree(inputs.run(), run)
    checkpoint = max((run / "checkpoints").glob("step-*"))
    done = mutations.mutate_folder(checkpoint, chance)
    if chance.random() < 0.6:
        done += _agree(checkpoint)
    given = str(chance.choice((run, checkpoint)))
    out = place / "out"
    if chance.random() < 0.05:
        return Trial(
            ["export", "--checkpoint", given, "--output", str(out)],
            place,
            (out,),
            f"export: {done}",
        )
    data = str(inputs.dataset() / "train")
    return Trial(
        [
            "evaluate",
            given,
            "--data",
            data,
            "--tokens",
            "32",
            "--output",
            str(out / "figures.json"),
        ],
        place,
        (out / "figures.json",),
        f"evaluate: {done}",
    )


def _agree(checkpoint: Path) -> str:
    """Make the manifest say what the files are, as someone who edits them on purpose could."""
    manifest = checkpoint / "manifest.json"
    if not manifest.is_file():
        return ""
    try:
        values = json.loads(manifest.read_text())
        for name, entry in values["files"].items():
            content = (checkpoint / name).read_bytes() if (checkpoint / name).is_file() else b""
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        manifest.write_text(json.dumps(values))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return ""
    return " (and the manifest agrees)"


def exports(inputs: Inputs, place: Path, chance: random.Random) -> Trial:
    """A damaged or edited exported folder, for `generate`."""
    model = place / "inputs" / "model"
    shutil.copytree(inputs.export(), model)
    done = mutations.mutate_folder(model, chance)
    return Trial(
        [
            "generate",
            "--model",
            str(model),
            "--prompt",
            "Call me",
            "--max-new-tokens",
            "2",
            "--seed",
            "1",
        ],
        place,
        mutation=done,
    )


KINDS: dict[str, Callable[[Inputs, Path, random.Random], Trial]] = {
    "config": config,
    "override": override,
    "arguments": arguments,
    "texts": texts,
    "datasets": datasets,
    "checkpoints": checkpoints,
    "exports": exports,
}
