"""What a model looked at, as one HTML file without anything from elsewhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template

from infty import files
from infty_tools.look.reading import Look
from infty_tools.look.terminal import WHAT_WEIGHTS_ARE

TEMPLATE = Path(__file__).with_name("page.html")
STEPS = 127
"""A weight is kept as a whole number of steps of the largest of its row."""


def write(look: Look, title: str, path: Path) -> None:
    """Write the page."""
    data = json.dumps(plain(look)).replace("<", "\\u003c")
    text = Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True).render(
        title=title, data=data, note=WHAT_WEIGHTS_ARE
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def plain(look: Look) -> dict[str, Any]:
    """What the page draws: of every source int8 weights [written tokens, heads, passages + 1] and
    what a step of each row is worth."""
    sources = []
    for source in look.sources:
        weights = torch.stack(source.weights[: len(look.written)])
        step = weights.abs().amax(-1).clamp(min=1e-30) / STEPS
        whole = (weights / step[..., None]).round().to(torch.int8)
        sources.append(
            {
                "layer": source.layer,
                "name": source.name,
                "heads": weights.shape[1],
                "steps": [[float(f"{x:.3g}") for x in row] for row in step.tolist()],
                "weights": base64.b64encode(whole.numpy().tobytes()).decode(),
                "share": [round(x, 4) for x in source.share[: len(look.written)]],
                "room": None
                if source.room is None
                else [round(x, 5) for x in source.room.tolist()],
            }
        )
    passages = look.passages
    return {
        "question": look.question,
        "written": look.written,
        "tokens": passages.tokens,
        "size": passages.size,
        "passages": [
            {"line": line, "text": text} for line, text in zip(passages.lines, passages.texts)
        ],
        "sources": sources,
        "unmeasured": [f"layer {source.layer}, {source.name}" for source in look.unmeasured],
    }
