"""docs/configuration.md is what the code says of its keys."""

from __future__ import annotations

from pathlib import Path

from infty_tools import reference

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_the_page_is_current_and_says_what_every_key_is_for():
    """Otherwise: python -m infty_tools.reference > docs/configuration.md"""
    made = reference.page()
    assert made == PAGE.read_text(encoding="utf-8"), (
        test_the_page_is_current_and_says_what_every_key_is_for.__doc__
    )
    assert (
        "| `lr` | 0.0003 | Peak learning rate. Range: a number above 0 and at most 100. |" in made
    )
