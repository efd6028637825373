"""JSON that somebody may have edited is read by one reader, which loses nothing: a key given twice is an error."""

from __future__ import annotations

import ast
import json
import shutil
import time
from pathlib import Path

import pytest

from infty import files
from infty.data import sources
from infty.data.record import RECORD
from infty.data.tokenizer import Tokenizer
from infty.data.workplace import REPORT
from infty.errors import UserError
from infty_tools.export.exporter import check_free
from support.small_data import request, run, write_books

ROOT = Path(__file__).parents[1]
# Functions that read what this run, or a process that it started, has just written.
OWN = {
    "parse_json",
    "_outline",  # a cache's key
    "_with_reading_steps",  # a library's object
    "_ephemeral",  # whether a checkpoint of this run goes; what is resumed from is read by Reader
    "forget_after",  # metrics of this run
    "_others",  # what ranks told each other
    "_config",  # likewise, of a model
    "options",  # as a file that is written of it will be read
    "run_alone",
    "convert_config",
}


def plain_readers() -> set[str]:
    """The product's functions that call json.loads or json.load; benches read what they have written."""
    found = set()
    for package in ("infty", "pretrain", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent.name == "bench" or path.name == "demo.py":
                continue
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef):
                    calls = (call for call in ast.walk(function) if isinstance(call, ast.Call))
                    if any(ast.unparse(call.func).startswith("json.load") for call in calls):
                        found.add(function.name)
    return found


def test_there_is_one_reader_of_json():
    assert plain_readers() <= OWN, "read it with infty.files.read_json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}', "^the key 'c' is given twice$"),
        ("[" * 100_000, "^it is nested too deeply$"),
        ("{", "^Expecting"),
        (b'{"a": "\xff"}', "utf-8"),
    ],
)
def test_what_cannot_be_read_whole_is_an_error(text, said):
    with pytest.raises(ValueError, match=said):
        files.parse_json(text)


def test_a_large_vocabulary_is_read_about_as_fast_as_by_the_library():
    text = json.dumps({f"token {i}": i for i in range(100_000)})

    def seconds(read) -> float:
        begun = time.process_time()
        read(text)
        return time.process_time() - begun

    assert min(seconds(files.parse_json) for _ in range(3)) < 4 * seconds(json.loads) + 0.05


def twice(path: Path) -> None:
    """Give the first key of an object in a file a second time."""
    text = path.read_text()
    first = next(iter(json.loads(text)))
    path.write_text("{" + f"{json.dumps(first)}: 0, " + text.lstrip()[1:])


def test_of_a_tokenizer_and_of_what_lies_beside_it(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2}, "unk_token": "a"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    note = tmp_path / "tokenizer_config.json"
    note.write_text('{"eos_token": "b"}')
    assert Tokenizer.load(path).end_token == "b"
    twice(note)
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json.*'eos_token' is given twice.*--end"
    ):
        Tokenizer.load(path)
    assert Tokenizer.load(path, "b").end_token == "b"
    note.unlink()
    path.write_text(path.read_text().replace('"a": 0', '"a": 1, "a": 0'))
    with pytest.raises(UserError, match=r"tokenizer\.json.*'a' is given twice"):
        Tokenizer.load(path, "b")


def test_of_an_export_that_would_be_replaced(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "infty"}')
    check_free(tmp_path, force=True)
    twice(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"'model_type' is given twice.*leaving it alone"):
        check_free(tmp_path, force=True)


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json"])
def test_of_a_hugging_face_dataset(tmp_path, name):
    for other in ("dataset_info.json", "state.json"):
        (tmp_path / other).write_text('{"_data_files": []}')
    twice(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is damaged .*'_data_files' is given twice"):
        sources.find(tmp_path)


def test_of_what_infty_prepare_has_made(tmp_path):
    write_books(tmp_path / "books", 3)
    run(request(tmp_path))
    for name, said in ((RECORD, "has no .* that can be read"), (REPORT, "is not infty's")):
        whole = tmp_path / "kept"
        shutil.copyfile(tmp_path / "data" / name, whole)
        twice(tmp_path / "data" / name)
        with pytest.raises(UserError, match=said):
            run(request(tmp_path))
        shutil.copyfile(whole, tmp_path / "data" / name)
