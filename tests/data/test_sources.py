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
    return {
        t.name: t.problem or t.text for s in sources.find(folder) for t in sources.read(s, field)
    }


def test_text_files(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    (tmp_path / "deep/er/b.TXT.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "binary.txt").write_bytes(b"x" * 100_000 + b"\0more")
    (tmp_path / "wide.txt").write_bytes("sixteen bits".encode("utf-16"))
    (tmp_path / "empty.txt").write_bytes(b" \n\t\n")
    packed = gzip.compress(b"some text " * 50)
    (tmp_path / "flipped.txt.gz").write_bytes(
        packed[:-8] + b"\0\0\0\0" + packed[-4:]
    )  # a wrong checksum
    (tmp_path / "not.txt.gz").write_bytes(b"no gzip at all")
    (tmp_path / "notes.md").write_text("other")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == {
        "a.txt": "one\ntwo\nthree",
        "deep/er/b.TXT.gz": "packed",
        "bad.txt": "not UTF-8",
        "binary.txt": "binary",
        "wide.txt": "binary",
        "empty.txt": "empty",
        "flipped.txt.gz": "damaged",
        "not.txt.gz": "damaged",
    }
    assert sources.ignored(tmp_path) == [
        {"name": "gone.txt", "problem": "a link to nothing"},
        {"name": "notes.md", "problem": "of a kind that is not read"},
    ]


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda raw: raw + b"bytes behind it", "bytes after the end of the archive"),
        (lambda raw: raw[:-900], "cut short, kept up to there"),
        (lambda raw: raw + b"\0\0", None),
        (lambda raw: raw + gzip.compress(b"more"), None),
    ],
)
def test_a_packed_text_is_kept_as_far_as_it_can_be_read(tmp_path, change, problem):
    text = "é" + "".join(chr(0x4E00 + byte) for byte in os.urandom(3000))
    (tmp_path / "a.txt.gz").write_bytes(change(gzip.compress(text.encode())))
    [source] = sources.find(tmp_path)
    kept, *more = sources.read(source)
    assert kept.problem is None
    assert [t.problem for t in more] == ([problem] if problem else [])
    if problem and "cut" in problem:
        assert len(kept.text) > 1000 and text.startswith(kept.text)
    else:
        assert kept.text.removesuffix("more") == text


def folders(tmp_path):
    """A folder of books beside one that links lead to."""
    books = tmp_path / "books"
    (books / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (books / "deep/a.txt").write_text("a")
    (tmp_path / "elsewhere/b.txt").write_text("b")
    (books / "linked").symlink_to(tmp_path / "elsewhere")
    (books / "again").symlink_to(books / "deep")
    (books / "deep/above").symlink_to(books)
    return books


def test_links_to_folders_are_followed_once(tmp_path):
    books = folders(tmp_path)
    assert found(books) == {"deep/a.txt": "a", "linked/b.txt": "b"}
    problem = "a link to a folder that is already read"
    assert sources.ignored(books) == [
        {"name": name, "problem": problem} for name in ("again", "deep/above")
    ]


def test_all_that_is_not_read_is_listed(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for name in ("b.txt.xz", "c.parquet", ".d"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/e.pdf").write_bytes(b"x")
    assert [s.name for s in sources.find(tmp_path)] == ["a.txt"]
    kind = "of a kind that is not read"
    assert {
        e["name"]: e["problem"] for e in sources.ignored(tmp_path, frozenset({tmp_path / "output"}))
    } == {"b.txt.xz": kind, "c.parquet": kind, ".d": kind, "pipe.txt": "no regular file"}


def test_a_folder_that_may_not_be_read_is_listed(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [s.name for s in sources.find(tmp_path)] == ["a.txt"]
    assert sources.ignored(tmp_path) == [{"name": "closed", "problem": "not readable"}]


LINES = [
    json.dumps({"text": "first"}).encode(),
    b"",
    b"{not json",
    json.dumps({"other": 1}).encode(),
    b'{"text": "\xe9"}',
    b'{"text": "half \\ud83d of a face"}',
    b'{"text": "nul \\u0000"}',
    b'{"text": "a\\r\\nb"}',
    b"[1]",
    json.dumps({"text": " "}).encode(),
    json.dumps({"text": "last"}).encode(),
    b'{"text": "one", "text": "two"}',
    b'{"text": "one", "more": [{"id": 1, "id": 1}]}',
    b'{"text": null}',
    b'{"text": 1.5}',
    b'{"text": true}',
    b'{"text": ["a"]}',
    b'{"text": {}}',
    b"7",
    b"[" * 100_000,
    b'{"text": "ids", "id": ' + b"9" * 5000 + b"}",
    b"\xef\xbb\xbf" + b'{"text": "marked"}',
]
SAID = {
    1: "first",
    3: "not JSON",
    4: "no field 'text'",
    5: "not UTF-8",
    6: "not UTF-8",
    7: "binary",
    8: "a\nb",
    9: "a list instead of an object",
    10: "empty",
    11: "last",
    12: "key 'text' twice",
    13: "key 'id' twice",
    14: "field 'text' is null",
    15: "field 'text' is a number",
    16: "field 'text' is true or false",
    17: "field 'text' is a list",
    18: "field 'text' is an object",
    19: "a number instead of an object",
    20: "nested too deeply",
    21: "ids",
    22: "marked",
}


@pytest.mark.parametrize(
    "suffix, pack",
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".zst", zstandard.ZstdCompressor().compress),
        (
            ".zst",
            lambda raw: b"".join(
                zstandard.ZstdCompressor().compress(raw[i : i + 50]) for i in range(0, len(raw), 50)
            ),
        ),
    ],
)
def test_json_lines(tmp_path, suffix, pack):
    name = f"books.jsonl{suffix}"
    (tmp_path / name).write_bytes(pack(b"\n".join(LINES)))
    assert found(tmp_path) == {f"{name}:{number}": said for number, said in SAID.items()}


@pytest.mark.parametrize(
    "suffix, pack", [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)]
)
def test_packed_lines_cut_short(tmp_path, suffix, pack):
    """What can be read is kept, and the rest is said to be missing: never a silent end."""
    lines = b"".join(
        json.dumps({"text": os.urandom(2000).hex()}).encode() + b"\n" for _ in range(40)
    )
    (tmp_path / f"x.jsonl{suffix}").write_bytes(pack(lines)[:-300])
    said = list(found(tmp_path).values())
    assert said[-1] == "damaged from here on" and said.count("damaged from here on") == 1


def zst(raw: bytes, window_log: int) -> bytes:
    options = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=window_log, enable_ldm=True
    )
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    return packer.compress(raw) + packer.flush()


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_large_windows_are_unpacked(tmp_path, window_log):
    """As `zstd --long=28` and above make them."""
    (tmp_path / "x.jsonl.zst").write_bytes(zst(b'{"text": "far"}\n', window_log))
    assert found(tmp_path) == {"x.jsonl.zst:1": "far"}


def test_what_zstd_cannot_unpack_is_named(tmp_path):
    """A window beyond the library's limit, a dictionary, other bytes behind the end; none of them is damage."""
    raw = b'{"text": "one"}\n'
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(35 - 10) << 3])  # a window of 2^35 bytes
    (tmp_path / "window.jsonl.zst").write_bytes(header + b"\x01\0\0")
    words = zstandard.train_dictionary(
        2000, [b"%d some words %d" % (i, i * i) for i in range(2000)]
    )
    (tmp_path / "words.jsonl.zst").write_bytes(
        zstandard.ZstdCompressor(dict_data=words).compress(raw)
    )
    (tmp_path / "after.jsonl.zst").write_bytes(zst(raw, 20) + b"bytes behind it")
    (tmp_path / "none.jsonl.zst").write_bytes(b"no archive at all")
    (tmp_path / "after.jsonl.gz").write_bytes(gzip.compress(raw) + b"bytes behind it")
    said = found(tmp_path)
    assert "window of more than the 2 GiB" in said.pop("window.jsonl.zst:1")
    assert "dictionary" in said.pop("words.jsonl.zst:1")
    after = "bytes after the end of the archive"
    assert said == {
        "after.jsonl.zst:1": "one",
        "after.jsonl.zst:2": after,
        "none.jsonl.zst:1": "damaged from here on",
        "after.jsonl.gz:1": "one",
        "after.jsonl.gz:2": after,
    }


def test_one_file_and_another_field(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "words"}\n')
    assert found(tmp_path / "x.jsonl", "body") == {"x.jsonl:1": "words"}


def test_no_input(tmp_path):
    with pytest.raises(UserError, match=r"--input .*none does not exist"):
        sources.find(tmp_path / "none")
    with pytest.raises(UserError, match=r"--validation .* holds no .txt"):
        sources.find(tmp_path, "--validation")
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="several datasets"):
        sources.find(tmp_path)
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UserError, match=r"holds no \.txt"):
        sources.find(tmp_path / "a.pdf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert found(tmp_path) == {"a.txt": "not readable"}


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is not None, reason="datasets is installed"
)
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
    with pyarrow.ipc.new_stream(
        str(tmp_path / "pg/data-00000-of-00001.arrow"), table.schema
    ) as stream:
        stream.write_table(table)
    (tmp_path / "pg/dataset_info.json").write_text("{}")
    (tmp_path / "pg/state.json").write_text(
        json.dumps(
            {
                "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
                "_fingerprint": "0",
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            }
        )
    )
    parts = sources.find(tmp_path / "pg")
    assert [p.rows for p in parts] == [(0, 256), (256, 300)]
    assert found(tmp_path / "pg") == {f"pg:{i}": f"book {i}" for i in range(300)}
    with pytest.raises(UserError, match="no column 'body'"):
        found(tmp_path / "pg", "body")


def test_a_dictionary_of_datasets_is_explained(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"give one of them, .*/train\|test"):
        sources.find(tmp_path)
