"""Typed values from YAML: every value is read by the type of the key it is for, and nothing is dropped.

YAML 1.1 guesses types from spelling: `off` is false, 2024 a number, 1:30 ninety, 010 eight, 1e-4 text. Here a scalar
stays the text that was written, and the key's type says what it means: `sticky: off` is the word, `run.folder: 2024` a
folder, `optimizer.lr: 1e-4` a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import keyword
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from infty.errors import UserError
from infty.ranges import shown


class _Loader(yaml.SafeLoader):
    """Scalars stay text, except a plain null; a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, which would keep the last of two keys. Raises yaml.constructor.ConstructorError."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                problem = f"the key in line {line} is a list or a section: a key is a word"
                raise yaml.constructor.ConstructorError(None, None, problem, None)
            if key.value in first and key.tag != MERGE:
                problem = f"the key '{key.value}' is given twice: in line {first[key.value]} and in line {line}"
                raise yaml.constructor.ConstructorError(None, None, problem, None)
            first[key.value] = line
        return super().construct_mapping(node, deep)


MERGE = "tag:yaml.org,2002:merge"
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(MERGE, re.compile(r"<<$"), ["<"])

TAG = "tag:yaml.org,2002:"
# No other tag (!!set, !!timestamp, !!python/...) means anything in a config. What is read whole (deep) cannot hold
# itself by an alias.
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.construct_undefined,
    f"{TAG}null": yaml.SafeLoader.construct_yaml_null,
    **{
        f"{TAG}{name}": yaml.SafeLoader.construct_yaml_str
        for name in ("str", "int", "float", "bool")
    },
    f"{TAG}seq": lambda loader, node: loader.construct_sequence(node, deep=True),
    f"{TAG}map": lambda loader, node: loader.construct_mapping(node, deep=True),
}


def read_yaml(text: str, source: str) -> Any:
    """What a YAML text holds, its scalars as text or None. Raises UserError."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{source} is not valid YAML: it is nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source} is not valid YAML: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """What is wrong and where, in one line: PyYAML writes an excerpt in several."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character #x{error.character:04x} at position {error.position} is not allowed"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    context = f"{error.context}, " if getattr(error, "context", None) else ""
    return context + " ".join(str(getattr(error, "problem", None) or error).split()) + place


def read_yaml_file(path: Path) -> Any:
    """What a YAML file holds, as `read_yaml`. Raises UserError."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not valid YAML: it is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from (error)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def validated(kind: type, values: Any, source: str, prefix: str = "") -> Any:
    """A dataclass from plain values, keys and types checked. Raises UserError naming the keys.

    `prefix` is what the dataclass is called in `source`, such as `model.memory.`.
    """
    check_keys(kind, values, f"{source}: {prefix.rstrip('.')}" if prefix else source)
    try:
        return pydantic.TypeAdapter(kind).validate_python(by_type(kind, values))
    except UserError as error:  # every memory's section speaks of itself as model.memory
        named = prefix if prefix.startswith("model.memories.") else "model.memory."
        raise UserError(str(error).replace("model.memory.", named, 1)) from error
    except pydantic.ValidationError as error:
        lines = [f"{prefix}{_key(problem)}: {_problem(problem)}" for problem in error.errors()]
        raise UserError(f"{source}: " + "; ".join(dict.fromkeys(lines))) from error


def value_of(hint: Any, value: Any, source: str, key: str) -> Any:
    """One value by the type of its key. Raises UserError naming the key."""
    try:
        return pydantic.TypeAdapter(hint).validate_python(by_type(hint, value))
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {key}: {_problem(error.errors()[0])}") from error


# What a value must be, by the beginning of what pydantic calls the problem.
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section",
    "dataclass": "a section",
}


def _problem(problem: Mapping[str, Any]) -> str:
    """A problem that pydantic found, in the words in which `infty.ranges.check` tells of a number out of its range."""
    kind = problem["type"]
    wanted = WANTED.get(kind.partition("_")[0])
    if kind == "literal_error":
        wanted = problem["ctx"]["expected"].replace("'", "")
    value = shown(problem["input"])
    return f"{value} must be {wanted}" if wanted else f"{value}: {problem['msg']}"


def _key(problem: Mapping[str, Any]) -> str:
    """Where a problem is, of pydantic's path of keys, positions and steps of its own."""
    steps = ("function", "constrained")
    return ".".join(str(part) for part in problem["loc"] if not str(part).startswith(steps))


def by_type(hint: Any, value: Any) -> Any:
    """The value with text made the whole number that its key wants, where it is written as one in another way: 1e6,
    2_000, 0x10. (Everything else that a text may stand for pydantic reads by itself.)"""
    kind = dataclass_of(hint)
    if kind is not None and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        return {
            key: by_type(hints[key], inner) if key in hints else inner
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        inner = next((x for x in _options(hint) if typing.get_origin(x) in (tuple, list)), None)
        return (
            [by_type(typing.get_args(inner)[0], x) for x in value] if inner is not None else value
        )
    if isinstance(value, (int, float)) and not isinstance(
        value, bool
    ):  # from Python or JSON: a folder called 2024
        return str(value) if Path in _options(hint) or _options(hint)[0] is str else value
    if isinstance(value, str) and int in _options(hint):
        return _whole(value)
    if isinstance(value, str) and {float, str} <= set(
        _options(hint)
    ):  # a number, or a word for one
        return _real(value)
    if isinstance(value, str):  # one of a few numbers, such as a ZeRO stage
        literals = [option for option in _options(hint) if typing.get_origin(option) is Literal]
        words = [word for literal in literals for word in typing.get_args(literal)]
        return next((x for x in words if not isinstance(x, str) and str(x) == value), value)
    return value


def _whole(text: str) -> Any:
    plain = text.strip().replace("_", "")
    try:
        if re.fullmatch(r"[-+]?0[xo][0-9a-fA-F]+", plain):
            return int(plain, 0)
        number = float(plain)
    except ValueError:
        return text
    return int(number) if re.search(r"[eE]", plain) and number.is_integer() else text


def _real(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def check_keys(kind: type, values: Any, where: str) -> None:
    """Raise UserError for a key that `kind` does not have, at any depth, naming the nearest that it has."""
    if not isinstance(values, dict):
        return
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in names:
            written = [written_name(f) for f in dataclasses.fields(kind)]
            near = difflib.get_close_matches(str(key), written, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(written)}"
            raise UserError(f"{where}: unknown key '{key}'; {hint}")
        inner = dataclass_of(hints[key])
        if inner is not None:
            check_keys(inner, value, f"{where}: {key}" if ":" not in where else f"{where}.{key}")


def written_name(field: dataclasses.Field) -> str:
    """A field's key in a config: `from` is a word of Python, so its field is called from_."""
    return field.name.rstrip("_")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as `section.key: value`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        out |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return out


def pythonic(values: Any) -> Any:
    """A config's values, with keys that are words of Python called as their fields are (`written_name`)."""
    if not isinstance(values, dict):
        return values
    return {
        section: {_field_name(key): value for key, value in inner.items()}
        if isinstance(inner, dict)
        else inner
        for section, inner in values.items()
    }


def _field_name(key: Any) -> Any:
    return f"{key}_" if isinstance(key, str) and keyword.iskeyword(key) else key


def dataclass_of(hint: Any) -> type | None:
    """The dataclass in a type hint, through Optional."""
    return next((x for x in _options(hint) if dataclasses.is_dataclass(x)), None)


def _options(hint: Any) -> tuple[Any, ...]:
    """What a type hint admits, through unions."""
    return (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
