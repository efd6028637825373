"""Marks by what a test uses: whatever it calls, directly, by helpers or by fixtures, is looked through for processes.

`multiprocess`: starts processes. `slurm`: uses the cluster of `support.slurm_cluster`. A test that starts a process
all the same without the mark (a part of the product does so on its behalf) fails and says so: `STARTERS` lacks a name.
"""

from __future__ import annotations

import inspect
import multiprocessing.process
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
# Names in a test's code that start processes: modules, and what in the product does.
STARTERS = {
    "subprocess",
    "processes",
    "multiprocessing",
    "Workers",
    "run_alone",
    "prepare",
    "Harness",
    "Exporter",
    "League",
    "bench_faults",
    "bench_layouts",
    "bench",
}


def of(item: pytest.Function) -> set[str]:
    """Names of the marks that a test gets."""
    names, seen = set(), set()
    fixtures = item._fixtureinfo
    for fixture in fixtures.names_closure:
        for definition in fixtures.name2fixturedefs.get(fixture, ()):
            names |= set(_names(definition.func, seen))
    function = getattr(item.function, "hypothesis", None)
    names |= set(_names(function.inner_test if function else item.function, seen))
    if hasattr(item, "callspec"):
        for value in item.callspec.params.values():
            names |= set(_names(value, seen))
    marks = {"multiprocess"} if names & STARTERS else set()
    return marks | ({"multiprocess", "slurm"} if "slurm_cluster" in names else set())


def _names(thing: Any, seen: set[int]) -> Iterator[str]:
    """Names that a function, or the methods of a class, of the tests uses; and those of what it calls in the tests."""
    if id(thing) in seen or isinstance(thing, ModuleType) or not _is_of_tests(thing):
        return
    seen.add(id(thing))
    if inspect.isclass(thing):
        for method in vars(thing).values():
            yield from _names(method, seen)
        return
    function = inspect.unwrap(thing)
    used = set(_of_code(function.__code__))
    yield from used
    for name in used & function.__globals__.keys():
        found = function.__globals__[name]
        if isinstance(found, ModuleType):  # a module of helpers: those that are named
            for attribute in used & vars(found).keys() if _is_of_tests(found) else ():
                yield from _names(getattr(found, attribute), seen)
        else:
            yield from _names(found, seen)


def _of_code(code: CodeType) -> Iterator[str]:
    """Names that the code uses, and its texts: the words of a command, such as `bench`."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _of_code(inner)
        elif isinstance(inner, str):
            yield inner
        elif isinstance(inner, tuple):
            yield from (word for word in inner if isinstance(word, str))


def _is_of_tests(thing: Any) -> bool:
    if isinstance(thing, ModuleType):
        file = getattr(thing, "__file__", None)
    elif inspect.isfunction(thing) or inspect.isclass(thing):
        file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    else:
        return False
    return file not in (None, __file__) and Path(file).is_relative_to(TESTS)


class Watch:
    """Notes Python processes that are started, by `subprocess` or by `multiprocessing`."""

    def __init__(self) -> None:
        self.started: list[str] = []
        sys.addaudithook(self._heard)
        plain: Callable = multiprocessing.process.BaseProcess.start

        def start(process: multiprocessing.process.BaseProcess) -> None:
            self.started.append(process.name)
            plain(process)

        multiprocessing.process.BaseProcess.start = start

    def _heard(self, event: str, arguments: tuple) -> None:
        # Libraries ask the system for this and that (ldconfig, lscpu, a compiler): no processes of ours.
        if event == "subprocess.Popen" and "python" in Path(str(arguments[0])).name:
            self.started.append(str(arguments[1])[:200])
