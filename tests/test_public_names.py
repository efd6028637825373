"""Tests use public names: what a test reaches is what a user or another module may reach."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
# Names of other libraries that begin with an underline and are meant to be used.
OTHERS = {"_replace", "_exit", "_fixtureinfo", "_no_split_modules", "_skip_keys_device_placement"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OTHERS


def used(node: ast.AST) -> str | None:
    """The private name of something else that a node uses."""
    if isinstance(node, ast.Attribute) and private(node.attr):
        return None if ast.unparse(node.value) in ("self", "cls", "super()") else node.attr
    if isinstance(node, ast.ImportFrom):
        return next((alias.name for alias in node.names if private(alias.name)), None)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        names = [t.rpartition(".")[2] for t in texts if isinstance(t, str)]
        return next((name for name in names if private(name)), None)
    return None


def test_tests_use_public_names():
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno} uses {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (name := used(node))
    ]
    assert not found


def test_private_names_are_seen():
    tree = ast.parse(
        "a._b\nfrom c import _d\npatch.setattr(e, '_f', 1)\npatch.setattr('g._h', 1)\nself._i\nj.k"
    )
    assert sorted(filter(None, map(used, ast.walk(tree)))) == ["_b", "_d", "_f", "_h"]
