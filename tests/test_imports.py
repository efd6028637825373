"""Who may import whom: tools -> pretrain -> infty, and inside infty models -> layers -> memory."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infty.memory.contraction import NAMED
from infty.memory.densities import FAMILIES
from infty.memory.signals import SIGNALS

ROOT = Path(__file__).parents[1]
SOURCES = {
    "infty": ROOT / "infty",
    "infty_pretrain": ROOT / "pretrain" / "infty_pretrain",
    "infty_tools": ROOT / "tools" / "infty_tools",
}
UPPER = {
    "infty": {"infty_pretrain", "infty_tools"},
    "infty_pretrain": {"infty_tools"},
    "infty_tools": set(),
}
# Of these parts of infty, what each may not import: everything above it.
INSIDE = {
    "infty.memory": {"infty.layers", "infty.models", "infty.parallel", "infty.data", "infty.hf"},
    "infty.layers": {"infty.models", "infty.data", "infty.hf"},
    "infty.models": {"infty.data", "infty.hf"},
    "infty.parallel": {"infty.layers", "infty.models", "infty.data", "infty.hf"},
    "infty.data": {"infty.layers", "infty.models", "infty.memory", "infty.parallel", "infty.hf"},
}
# Rooms of the training program, likewise.
TRAINING = ("trainer", "evaluator", "evaluation", "monitor", "launch", "signals")
INSIDE |= {
    "infty_pretrain.config": {"infty_pretrain.checkpoint", "infty_pretrain.engine"},
    "infty_pretrain.faults": {
        "infty_pretrain.checkpoint",
        "infty_pretrain.engine",
        *(f"infty_pretrain.{name}" for name in TRAINING),
    },
    "infty_pretrain.engine": {
        "infty_pretrain.checkpoint",
        *(f"infty_pretrain.{name}" for name in TRAINING),
    },
    "infty_pretrain.checkpoint": {f"infty_pretrain.{name}" for name in TRAINING},
}
# What an exported model needs beside the standard library.
CARRIED = {
    "infty.memory": {"torch", "triton", "infty"},
    "infty.hf": {"torch", "triton", "transformers", "safetensors", "infty"},
}
CARRIED_OF_INFTY = (
    "infty.memory",
    "infty.hf",
    "infty.errors",
    "infty.files",
    "infty.ranges",
    "infty.tree",
)

# What a batch script runs, outside the container that may hold everything else.
STANDARD_LIBRARY = (
    "infty.exit_codes",
    "infty_tools.slurm.supervise",
    "infty_tools.slurm.verdict",
    "infty_tools.slurm.controller",
    "infty_tools.slurm.rendezvous",
)
# Rooms of the tools; of these, what each may not import: a room on the same level.
ROOMS = {"infty_tools.slurm": {"infty_tools.doctor"}, "infty_tools.doctor": {"infty_tools.slurm"}}


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, nodes: list[ast.stmt] | None = None) -> set[str]:
    """Dotted names of everything that a file, or these `nodes` of it, imports; `from a import b` counts as a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def below(name: str, parents) -> bool:
    return any(name == p or name.startswith(p + ".") for p in parents)


def test_packages_import_downward():
    found = modules()
    assert len(found) > 40
    wrong = [
        f"{name} imports {i}"
        for name, path in found.items()
        for i in imports(name, path)
        if below(i, UPPER[name.partition(".")[0]])
    ]
    assert not wrong


def test_parts_of_a_package_import_downward():
    wrong = [
        f"{name} imports {i}"
        for name, path in modules().items()
        for part, forbidden in INSIDE.items()
        if below(name, [part])
        for i in imports(name, path)
        if below(i, forbidden)
    ]
    assert not wrong


def needed(name: str, path: Path, found: dict[str, Path]) -> set[str]:
    """The modules that must be there before this one: what it imports outside functions."""
    tree = ast.parse(path.read_text())
    outside = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    named = imports(name, path, outside)
    modules = {i if i in found else i.rpartition(".")[0] for i in named}
    return modules & found.keys() - {name}


def test_no_module_needs_itself():
    """A package may name what its modules hold; its own entry is left out."""
    found = {n: p for n, p in modules().items() if p.name != "__init__.py"}
    graph = {name: needed(name, path, found) for name, path in found.items()}
    assert sum(map(len, graph.values())) > 200
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_rooms_of_the_tools_are_apart():
    wrong = [
        f"{name} imports {i}"
        for name, path in modules().items()
        for room, forbidden in ROOMS.items()
        if below(name, [room])
        for i in imports(name, path)
        if below(i, forbidden)
    ]
    assert not wrong


def test_what_a_batch_script_runs_needs_the_standard_library_alone():
    found = modules()
    wrong = [
        f"{name} imports {i}"
        for name in STANDARD_LIBRARY
        for i in imports(name, found[name])
        if i.partition(".")[0] not in sys.stdlib_module_names and not below(i, STANDARD_LIBRARY)
    ]
    assert not wrong
    for package in ("infty", "infty_tools", "infty_tools.slurm"):
        assert not imports(package, found[package])


@pytest.mark.parametrize("part", CARRIED)
def test_an_exported_model_carries_its_mathematics(part):
    wrong = []
    for name, path in modules().items():
        if below(name, [part]):
            for i in imports(name, path):
                top = i.partition(".")[0]
                allowed = top in CARRIED[part] or top in sys.stdlib_module_names
                if not allowed or (top == "infty" and not below(i, CARRIED_OF_INFTY)):
                    wrong.append(f"{name} imports {i}")
    assert not wrong


def test_parts_of_a_memory_are_asked_what_they_are_not_what_they_are_called():
    """Nothing of a density, a signal or a policy is decided by a comparison with its name, wherever."""
    names = {*FAMILIES, *SIGNALS, *NAMED} - {"learned"}  # positions can be learned, too
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for x in ast.walk(node)
        if (isinstance(x, ast.Constant) and isinstance(x.value, str) and x.value in names)
        or (isinstance(x, ast.Attribute) and x.attr == "contraction")
    ]
    assert not wrong


def test_megatron_is_imported_in_one_place():
    """infty.megatron imports it without the compiler that it would bring in."""
    users = {name for name, path in modules().items() if below_any(imports(name, path), "megatron")}
    assert users == {"infty.megatron"}


def below_any(names: set[str], package: str) -> bool:
    return any(below(name, [package]) for name in names)


def test_relative_imports_are_understood(tmp_path):
    """The checks above would be empty if names were resolved wrongly."""
    path = tmp_path / "a.py"
    path.write_text(
        "from . import b\nfrom ..c import d\nimport e.f\ndef g():\n    from h import i\n"
    )
    assert imports("p.q.a", path) == {"p.q.b", "p.c.d", "e.f", "h.i"}


def test_a_wheel_holds_three_packages(tmp_path):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: a wheel cannot be built without a network")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.partition("/")[0] for n in names if ".dist-info/" not in n} == set(SOURCES)
    missing = [
        name
        for name, path in modules().items()
        if not any(
            n in names for n in (name.replace(".", "/") + s for s in (".py", "/__init__.py"))
        )
    ]
    assert not missing


def test_programs_start_without_what_they_do_not_need():
    """`infty --help` answers at once; a verb imports torch when it runs, and training no compiler."""
    heavy = "torch", "transformers", "deepspeed", "megatron", "matplotlib"
    compilers = "torch._dynamo", "torch._inductor", "transformers", "matplotlib"
    code = f"""
import sys, infty_tools.cli
print([n for n in {heavy} if n in sys.modules])
import infty_pretrain.trainer
print([n for n in {compilers} if n in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]
