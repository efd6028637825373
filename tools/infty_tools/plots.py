"""Drawing: matplotlib where it is installed, and PNG files that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infty import files
from infty.errors import UserError

DPI = 80


def pyplot(instead: str = "leave the plots out") -> Any:
    """matplotlib.pyplot, drawing into files. Raises UserError where matplotlib is missing, which says what to do
    `instead` of installing it."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            f"plots need matplotlib, which is not installed ({error}): pip install 'infty[plots]', or "
            f"{instead}"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plain_numbers(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as they are: 90, not 9 x 10^1."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG and close it. The same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    pyplot().close(figure)
