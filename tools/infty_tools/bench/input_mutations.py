"""What `infty bench inputs` does to values, texts, JSON and files: chosen at random, told in words."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_WORDS = (
    "-1",
    "0",
    "1",
    "2",
    "7",
    "-0.0",
    "0.5",
    "1e-4",
    "1e6",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "999999999999999999999999999999",
    "4294967296",
    "9223372036854775808",
    "0x10",
    "010",
    "1_000",
    "1:30",
    "2024",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "false",
    "null",
    "~",
    "",
    " ",
    "''",
    '"',
    "[]",
    "[1]",
    "[a, b, c]",
    "[[1]]",
    "{}",
    "{a: 1}",
    "? [a]\n: 1",
    "&a [*a]",
    "*a",
    "<<",
    "{<<: 1}",
    "{<<: {lr: 1}}",
    "!!python/object:os.system x",
    "!!binary x",
    "!!int x",
    "!!set {a}",
    "- a",
    "a: b: c",
    "%",
    "@x",
    "|",
    ">",
    "#",
    "x" * 5000,
    "é",
    "日本語",
    "\u2028",
    "\u0000",
    "\x1b[31m",
    "\ud800",
    "\udcff",
    "../..",
    "/",
    "/dev/null",
    ".",
    "--help",
    "-",
    "=",
    "5 gigs",
    "5GB",
    "10B",
)
"""Values of options and config keys: numbers at the edges, words YAML reads otherwise, broken syntax, no text."""
ODD_JSON = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2.5,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "../..",
    [],
    [None],
    [1, "a"],
    {},
    {"a": 1},
)
SNIPPETS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\t",
    b"\n\n\n",
    b"<eos>",
    b"<unk>",
    b"<s>",
    b"</s>",
    b"{",
    b"}",
    b"[",
    b"? [a]\n: 1\n",
    b"- a\n",
    b"*a\n",
    b"run: 1\n",
    b"model:\n",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b'"text": "a", "text": "b"',
    b"nan",
    b"1e999",
    "日本語".encode(),
    "\u2581".encode(),
    "\u0e01".encode() * 50,
)


def odd_word(chance: random.Random) -> str:
    """An odd value as it is typed."""
    return chance.choice(ODD_WORDS)


def mutate_bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A content with one change, and the change in words."""
    place = chance.randrange(len(content) + 1)
    size = chance.choice((1, 2, 8, 64, 512))
    kind = chance.choice(("cut", "flip", "insert", "delete", "repeat", "zeros", "empty", "random"))
    if kind == "cut":
        return content[:place], f"cut at {place}"
    if kind == "flip" and content:
        place = place % len(content)
        flipped = content[place] ^ (1 << chance.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :], f"bit flipped at {place}"
    if kind == "insert":
        snippet = chance.choice(SNIPPETS)
        return content[:place] + snippet + content[place:], f"{snippet[:20]!r} inserted at {place}"
    if kind == "delete":
        return content[:place] + content[place + size :], f"{size} deleted at {place}"
    if kind == "repeat":
        return content[: place + size] + content[place:], f"{size} repeated at {place}"
    if kind == "zeros":
        return content[:place] + bytes(size) + content[place + size :], f"{size} zeros at {place}"
    if kind == "random":
        return content[:place] + chance.randbytes(size) + content[
            place + size :
        ], f"{size} random at {place}"
    return b"", "emptied"


def mutate_json(text: str, chance: random.Random) -> tuple[str, str]:
    """JSON with one key repeated, dropped, added, or set to an odd value; unchanged JSON if it is no object."""
    values = json.loads(text)
    if not isinstance(values, dict) or not values:
        return json.dumps(chance.choice(ODD_JSON)), "replaced by another value"
    key = chance.choice(sorted(values))
    odd = chance.choice(ODD_JSON)
    kind = chance.choice(("repeat", "drop", "set", "set", "set", "add"))
    if kind == "repeat":
        again = json.dumps({key: odd})[1:-1]
        return text.rstrip()[:-1] + f", {again}}}", f"{key} given again as {odd!r}"
    if kind == "drop":
        return json.dumps({k: v for k, v in values.items() if k != key}), f"{key} dropped"
    if kind == "add":
        return json.dumps(values | {"another": odd}), "a key added"
    inner = values[key]
    if isinstance(inner, dict) and inner and chance.random() < 0.7:
        below = chance.choice(sorted(inner))
        return json.dumps(values | {key: inner | {below: odd}}), f"{key}.{below} set to {odd!r}"
    return json.dumps(values | {key: odd}), f"{key} set to {odd!r}"


def mutate_file(path: Path, chance: random.Random) -> str:
    """Change a file in place, as its kind allows; returns the change in words."""
    if chance.random() < 0.2:
        kind, change = chance.choice(sorted(REPLACEMENTS.items()))
        path.unlink()
        change(path)
        return f"{path.name}: {kind}"
    if path.suffix == ".json" and chance.random() < 0.7 and _is_json(path):
        text, done = mutate_json(path.read_text(encoding="utf-8"), chance)
        path.write_text(text, encoding="utf-8")
    else:
        content, done = mutate_bytes(path.read_bytes(), chance)
        path.write_bytes(content)
    return f"{path.name}: {done}"


def _is_json(path: Path) -> bool:
    """Not where the file has been changed before."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


REPLACEMENTS: dict[str, Callable[[Path], Any]] = {
    "removed": lambda path: None,
    "a folder in its place": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nothing-here"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a named pipe": lambda path: os.mkfifo(path),
}


def mutate_folder(folder: Path, chance: random.Random) -> str:
    """Change one or two things below a folder; returns the changes in words."""
    if chance.random() < 0.05:
        shutil.rmtree(folder)
        folder.write_text("a file where a folder is expected")
        return f"{folder.name}: a file in its place"
    done = []
    for _ in range(chance.choice((1, 1, 2))):
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if files:
            done.append(mutate_file(chance.choice(files), chance))
    return "; ".join(done)


def mutate_values(values: dict[str, Any], chance: random.Random) -> str:
    """Set a key of nested sections to something odd, drop or misname it, in place; returns the change in words."""
    section, path = values, []
    while True:
        key = chance.choice(sorted(section))
        path.append(key)
        if not isinstance(section[key], dict) or not section[key] or chance.random() < 0.1:
            break
        section = section[key]
    name = ".".join(path)
    kind = chance.choice(("set", "set", "set", "drop", "rename"))
    if kind == "drop":
        del section[key]
        return f"{name} dropped"
    if kind == "rename":
        section[key + "x"] = section.pop(key)
        return f"{name} misnamed"
    section[key] = chance.choice(ODD_JSON) if chance.random() < 0.5 else odd_word(chance)
    return f"{name} set to {str(section[key])[:40]!r}"
