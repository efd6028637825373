"""A folder is there whole, or as it was before."""

from __future__ import annotations

import pytest

from infty import files


def names(folder) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_replaces_the_one_before_when_it_is_complete(tmp_path):
    output = tmp_path / "output"
    for text in ("one", "two"):
        with files.whole_folder(output) as partial:
            (partial / "file").write_text(text)
            before = names(tmp_path).get("output/file")
            assert before == ("one" if text == "two" else None)
        assert names(tmp_path) == {"output/file": text}


def test_what_fails_leaves_nothing_and_changes_nothing(tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "file").write_text("one")
    (tmp_path / "output.partial").mkdir()  # of an attempt that was killed
    with pytest.raises(OSError, match="full"), files.whole_folder(output) as partial:
        assert not list(partial.iterdir())
        (partial / "file").write_text("two")
        raise OSError("full")
    assert [p.name for p in tmp_path.iterdir()] == ["output"]
    assert names(output) == {"file": "one"}
