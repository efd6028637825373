"""docs/configuration.md: every key of a run's config, from the dataclasses that read it.

    python -m infty_tools.reference > docs/configuration.md

The text of a key is the docstring under its field, its default the field's, and its range the one
that the config is checked with.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from infty import config as model
from infty.errors import UserError
from infty.memory import config as memory
from infty.memory import sections
from infty.memory.config import LEFT_OUT
from infty.memory.presets import PRESETS
from infty.memory.rope_scaling import RopeScaling
from infty.memory_kinds import KINDS
from infty.ranges import Range
from infty_pretrain import config, typed
from infty_pretrain.ranges import RANGES

HEAD = """# Configuration

Made from the code by `python -m infty_tools.reference > docs/configuration.md`; a test says when that is due. A config
is a YAML file with these sections; every key can also be given on the command line, `section.key=value`, which wins. An
unknown key is refused and the nearest one named. `null` and leaving a key out are the same where the default is null.
"""
MEMORY = """
## model.memory, model.memories

One section in `model.memory`, and any number of further ones by name in `model.memories`. What each is worth:
[results.md](results.md); how the continuous memory works: [memory.md](memory.md).
`preset` names a memory whose keys the others change: {presets}.
"""
MEMORY_RANGES: dict[str, dict[str, Range]] = {
    "continuous": memory.RANGES,
    "compressive": sections.COMPRESSIVE,
    "continuation": sections.CONTINUATION,
}


def page() -> str:
    """The whole page. Raises UserError for a key that nothing is said about."""
    parts = [HEAD]
    top = {"train", "precision"}
    parts += ["\n## Keys of no section\n\n", _table(config.Config, {}, only=top)]
    for field in dataclasses.fields(config.Config):
        if field.name in top:
            continue
        kind = typing.get_type_hints(config.Config)[field.name]
        accepted = model.RANGES if field.name == "model" else RANGES.get(field.name, {})
        parts += [f"\n## {field.name}\n\n", _said(kind), _table(kind, accepted)]
        if field.name == "model":
            parts += ["\n### model.rope_scaling\n\n", _table(RopeScaling, {})]
            parts.append(MEMORY.format(presets=", ".join(f"`{name}`" for name in PRESETS)))
            for name, found in KINDS.items():
                parts += [f"\n### kind: {name}\n\n", _said(found.section)]
                parts.append(_table(found.section, MEMORY_RANGES.get(name, {})))
    return "".join(parts)


def _said(kind: type) -> str:
    """What the section's class says of itself, unless dataclasses made it up."""
    text = " ".join((kind.__doc__ or "").split())
    return "" if text.startswith(f"{kind.__name__}(") or not text else f"{text}\n\n"


def _table(kind: type, accepted: dict[str, Range], only: set[str] | None = None) -> str:
    rows = ["| key | default | what it is for |\n", "|---|---|---|\n"]
    texts = dict(_texts(kind))
    for field in dataclasses.fields(kind):
        if only is not None and field.name not in only:
            continue
        if field.name not in texts:
            raise UserError(
                f"{kind.__name__}.{field.name} has no docstring under it: say what the key is for"
            )
        text = texts[field.name]
        values = _choices(typing.get_type_hints(kind)[field.name])
        if len(values) > 1:
            text += f" One of {', '.join(values)}."
        if field.name in accepted:
            text += f" Range: {accepted[field.name]}."
        rows.append(
            f"| `{typed.written_name(field)}` | {_default(field)} | {text} |\n".replace("||", "|")
        )
    return "".join(rows)


def _texts(kind: type) -> Iterator[tuple[str, str]]:
    """The docstrings under the fields of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    for field, after in itertools.pairwise(body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and is_text:
            yield field.target.id, " ".join(after.value.value.split()).replace("|", "\\|")


def _choices(kind: Any) -> list[str]:
    """The words that a key may be."""
    if typing.get_origin(kind) is typing.Literal:
        return [f"`{word}`" for word in typing.get_args(kind)]
    return [word for inner in typing.get_args(kind) for word in _choices(inner)]


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return (
            "(needed)" if field.default_factory is dataclasses.MISSING else "a `continuous` memory"
        )
    if field.default is None or field.default is LEFT_OUT:
        return "null"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, tuple):
        return str(list(field.default))
    return str(field.default)


if __name__ == "__main__":
    print(page(), end="")
