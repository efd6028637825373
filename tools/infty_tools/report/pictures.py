"""The memory's pictures, as the run recorded them last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infty_tools.report.charts import Chart


def pictures(runs: list[dict[str, Any]]) -> Iterator[Chart]:
    """Charts of every run's last pictures."""
    yield from ()
