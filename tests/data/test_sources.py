"""What is found in a folder, and what is said of documents that cannot be used."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os

import pytest
import zstandard

from infty.data import sources
from infty.errors import UserError


def found(folder, field: str = "text") -> dict[str, str]:
    """name: problem or text, of every document."""
    return {t.name: t.problem or t.text for s in sources.find(folder) for t in sources.read(s, field)}


def test_text_files(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    (tmp_path / "deep/er/b.TXT.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "binary.txt").write_bytes(b"x" * 100_000 + b"\0more")
    (tmp_path / "wide.txt").write_bytes("sixteen bits".encode("utf-16"))
    (tmp_path / "empty.txt").write_bytes(b" \n\t\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-900])
    (tmp_path / "flipped.txt.gz").write_bytes(bytes(b ^ 255 if i > 20 else b for i, b in
                                                    enumerate(gzip.compress(b"some text " * 50))))
    (tmp_path / "not.txt.gz").write_bytes(b"no gzip at all")
    (tmp_path / "notes.md").write_text("other")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == {
        "a.txt": "one\ntwo\nthree", "deep/er/b.TXT.gz": "packed", "bad.txt": "not UTF-8", "binary.txt": "binary",
        "wide.txt": "binary", "empty.txt": "empty", "cut.txt.gz": "damaged", "flipped.txt.gz": "damaged",
        "not.txt.gz": "damaged"}
    assert sources.ignored(tmp_path) == ["gone.txt", "notes.md"]


LINES = [json.dumps({"text": "first"}).encode(), b"", b"{not json", json.dumps({"other": 1}).encode(),
         b'{"text": "\xe9"}', b'{"text": "half \\ud83d of a face"}', b'{"text": "nul \\u0000"}',
         b'{"text": "a\\r\\nb"}', b"[1]", json.dumps({"text": " "}).encode(), json.dumps({"text": "last"}).encode()]
SAID = {1: "first", 3: "not JSON", 4: "no field 'text'", 5: "not UTF-8", 6: "not UTF-8", 7: "binary", 8: "a\nb",
        9: "no field 'text'", 10: "empty", 11: "last"}


@pytest.mark.parametrize("suffix, pack", [
    ("", bytes), (".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress),
    (".zst", lambda raw: b"".join(zstandard.ZstdCompressor().compress(raw[i:i + 50]) for i in range(0, len(raw), 50)))])
def test_json_lines(tmp_path, suffix, pack):
    name = f"books.jsonl{suffix}"
    (tmp_path / name).write_bytes(pack(b"\n".join(LINES)))
    assert found(tmp_path) == {f"{name}:{number}": said for number, said in SAID.items()}


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)])
def test_packed_lines_cut_short(tmp_path, suffix, pack):
    """What can be read is kept, and the rest is said to be missing: never a silent end."""
    lines = b"".join(json.dumps({"text": os.urandom(2000).hex()}).encode() + b"\n" for _ in range(40))
    (tmp_path / f"x.jsonl{suffix}").write_bytes(pack(lines)[:-300])
    said = list(found(tmp_path).values())
    assert said[-1] == "damaged from here on" and said.count("damaged from here on") == 1


def test_one_file_and_another_field(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "words"}\n')
    assert found(tmp_path / "x.jsonl", "body") == {"x.jsonl:1": "words"}


def test_no_input(tmp_path):
    with pytest.raises(UserError, match=r"--input .*none does not exist"):
        sources.find(tmp_path / "none")
    with pytest.raises(UserError, match=r"--validation .* holds no .txt"):
        sources.find(tmp_path, "--validation")
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UserError, match=r"holds no \.txt"):
        sources.find(tmp_path / "a.pdf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert found(tmp_path) == {"a.txt": "not readable"}


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_a_hugging_face_dataset_needs_its_library(tmp_path):
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="pip install datasets"):
        sources.find(tmp_path)


def test_a_hugging_face_dataset(tmp_path):
    pytest.importorskip("datasets", reason="the datasets library is not installed")
    import pyarrow

    (tmp_path / "pg").mkdir()  # what save_to_disk writes
    table = pyarrow.table({"text": [f"book {i}" for i in range(300)], "id": list(range(300))})
    with pyarrow.ipc.new_stream(str(tmp_path / "pg/data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "pg/dataset_info.json").write_text("{}")
    (tmp_path / "pg/state.json").write_text(json.dumps({
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}))
    parts = sources.find(tmp_path / "pg")
    assert [p.rows for p in parts] == [(0, 256), (256, 300)]
    assert found(tmp_path / "pg") == {f"pg:{i}": f"book {i}" for i in range(300)}
    with pytest.raises(UserError, match="no column 'body'"):
        found(tmp_path / "pg", "body")


def test_a_dictionary_of_datasets_is_explained(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"give one of them, .*/train\|test"):
        sources.find(tmp_path)
