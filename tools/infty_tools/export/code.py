"""The code that an exported model carries: the transformers model and the memory's mathematics, beside its weights.

transformers loads such code from one flat folder, so `infty.memory.basis` becomes `memory_basis.py` and imports
between the files become relative.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

ROOT = "infty.hf.modeling_infty"
# Packages that only some machines have. transformers refuses code that imports what is missing, except in a `try`.
OPTIONAL = ("triton",)
# transformers copies the files that it finds in imports of one form only, wherever they stand.
NAMED = """
if TYPE_CHECKING:  # never run: each line makes transformers take a file along that another file imports
{lines}
"""


def write_code(folder: Path) -> list[str]:
    """Write the model's code and all it imports from infty into a folder; return the files' names."""
    sources, waiting = {}, [ROOT]
    while waiting:
        module = waiting.pop()
        if module in sources:
            continue
        text, used = flatten(_source(module))
        sources[module] = text
        waiting += used
    others = sorted(flat_name(m) for m in sources if m != ROOT)
    lines = "\n".join(f"    from .{name} import __doc__  # noqa" for name in others)
    sources[ROOT] = sources[ROOT].replace(
        "from typing import ", "from typing import TYPE_CHECKING, ", 1
    )
    sources[ROOT] += NAMED.format(lines=lines)
    for module, text in sources.items():
        (folder / f"{flat_name(module)}.py").write_text(text, encoding="utf-8")
    return sorted(f"{flat_name(m)}.py" for m in sources)


def flat_name(module: str) -> str:
    """infty.memory.kernels.blocked -> memory_kernels_blocked; infty.hf.cache_infty -> cache_infty."""
    if module.count(".") > 1:
        module = module.removeprefix("infty.").removeprefix("hf.")
    return module.replace(".", "_")


def flatten(text: str) -> tuple[str, list[str]]:
    """A module's source with its imports from infty made relative and flat, and the modules they name."""
    lines, used = text.splitlines(keepends=True), []
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in sorted(imports, key=lambda n: -n.lineno):
        indent, package = " " * node.col_offset, _package(node)
        new, names = [], []
        if package in OPTIONAL:
            inner = "".join(f"    {line}" for line in lines[node.lineno - 1 : node.end_lineno])
            lines[node.lineno - 1 : node.end_lineno] = [
                f"{indent}try:\n{inner}{indent}finally:\n{indent}    pass\n"
            ]
        if package != "infty" or isinstance(node, ast.Import):
            continue
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            if _exists(module):
                new.append(
                    f"{indent}from . import {flat_name(module)} as {alias.asname or alias.name}\n"
                )
                used.append(module)
            else:
                names.append(alias.name + (f" as {alias.asname}" if alias.asname else ""))
        if names:
            new.append(f"{indent}from .{flat_name(node.module)} import {', '.join(names)}\n")
            used.append(node.module)
        lines[node.lineno - 1 : node.end_lineno] = new
    return "".join(lines), used


def _package(node: ast.Import | ast.ImportFrom) -> str:
    """What an import takes its names from: `torch` in `from torch.nn import functional`."""
    name = node.names[0].name if isinstance(node, ast.Import) else "" if node.level else node.module
    return name.split(".")[0]


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> str:
    return Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
