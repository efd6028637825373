"""Reading the documents with every model, in every mode of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor

from infty.data.answers import Answers
from infty.data.documents import Documents
from infty_pretrain import evaluation, memory_modes
from infty_pretrain.launch import Launch, connect
from infty_tools.evaluate.answers import AnswerTally
from infty_tools.evaluate.data import limited, text_bytes
from infty_tools.evaluate.models import Opened, check_paths, open_models
from infty_tools.evaluate.results import NO_MEMORY, Result, compared
from infty_tools.options import printable


@dataclass(frozen=True)
class Request:
    """What was asked for; see the options of `infty evaluate`."""

    models: Sequence[Path]
    data: Path
    modes: Sequence[str]
    lanes: int
    documents: int | None = None
    tokens: int | None = None
    window: int | None = None
    stride: int | None = None


def run(request: Request, launch: Launch) -> dict[str, Any]:
    """Everything that was found, as plain values, on rank 0; nothing on the others. Raises UserError."""
    check_paths(request.models)
    whole = Documents.open(request.data)
    answers = Answers.open(request.data, whole.lengths)
    documents = limited(whole, request.documents, request.tokens)
    opened = open_models(request.models, documents, request.window, request.stride)
    sizes = text_bytes(documents) if launch.rank == 0 else None
    tensor = max(model.tensor for model in opened)
    device = connect(launch, tensor if launch.world % tensor == 0 else 1)
    results = []
    for path, name, model in zip(request.models, names(request.models), opened):
        result = Result(path, name, model.description)
        _read(result, model, request, documents, answers, device, launch.rank != 0)
        results.append(result)
    return _found(results, documents, sizes, request) if launch.rank == 0 else {}


def names(paths: Sequence[Path]) -> list[str]:
    """A short name for each model: the last part of its path, or all of it where two end alike."""
    short = [path.name for path in paths]
    alone = [bool(name) and short.count(name) == 1 for name in short]
    return [printable(name if one else path) for name, one, path in zip(short, alone, paths)]


def _read(
    result: Result,
    opened: Opened,
    request: Request,
    documents: Documents,
    answers: Answers | None,
    device: str,
    silent: bool,
) -> None:
    modes = request.modes if opened.remembers else (NO_MEMORY,)
    model = opened.load(device)
    with Progress(disable=silent, transient=True) as progress:
        for mode in modes:
            task = progress.add_task(f"{result.name}, memory {mode}", total=None)
            beside = None
            if answers is not None:
                beside = result.answers[mode] = AnswerTally(answers, documents.lengths, device)
            result.tallies[mode] = evaluation.evaluate(
                model if mode == NO_MEMORY else memory_modes.reading(model, mode, documents),
                documents,
                lanes=min(request.lanes, len(documents)),
                beside=beside,
                progress=lambda done, total, task=task: progress.update(
                    task, completed=done, total=total
                ),
            )


def _found(
    results: list[Result], documents: Documents, sizes: Tensor | None, request: Request
) -> dict[str, Any]:
    first, *others = results
    return {
        "data": {
            "path": str(request.data),
            "fingerprint": documents.fingerprint,
            "documents": len(documents),
            "tokens": int(documents.lengths.sum()),
            "first_tokens_only": request.tokens,
        },
        "models": [result.figures(documents, sizes) for result in results],
        "comparisons": [compared(first, other) for other in others],
    }
