"""The page that `infty report` writes: self-contained, and readable in a browser on a phone and on a desktop."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from infty_tools.report import reading
from infty_tools.report.charts import Axes, Line, lines
from infty_tools.report.page import page
from infty_tools.report.summary import summary
from support.told_run import write_evaluation, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
WIDTHS = (360, 1280)


def written(*folders) -> str:
    names = reading.names(folders)
    return page(summary([reading.read(*both) for both in zip(folders, names)]))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The page of two runs, one of which has a name that would be markup."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / "<img src=x onerror=alert(1)>$1$"), write_run(folder / "second")]
    write_evaluation(runs[1] / "figures.json")
    return written(*runs)


class References(HTMLParser):
    """Everything in a page that a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.elements: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.found.append(tag)
        for name, value in attrs:
            local = (value or "").startswith(("#", "data:image/png;base64,"))
            if name in ("src", "href", "xlink:href", "srcset") and not local:
                self.found.append(f"{name}={value}")
            if name.startswith("on"):
                self.found.append(name)


def test_the_page_asks_for_nothing(two):
    page = References(two)
    assert page.found == []
    assert "@import" not in two
    assert set(re.findall(r"url\((.)", two)) <= {"#"}, "the charts refer to themselves only"
    assert page.elements.count("svg") == 13


def test_an_empty_run_has_a_page(tmp_path):
    text = written(write_run(tmp_path / "new", steps=0))
    assert "nothing was trained yet" in text and "No step was recorded yet." in text
    assert "<svg" not in text


def test_the_same_curve_gives_the_same_chart():
    curve = Line("a", [(1.0, 2.0), (2.0, 3.0)], "#000000")
    first, second = (lines("Loss", [curve], Axes("step", "loss")).svg for _ in range(2))
    assert first == second and first.startswith("<svg") and 'aria-label="Loss"' in first


MEASURE = """
const found = {};
for (const frame of document.querySelectorAll('iframe')) {
  const inside = frame.contentDocument;
  const charts = [...inside.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect());
  const sizes = [...inside.querySelectorAll('figure svg text')].map(text => {
    const way = text.getScreenCTM();
    return parseFloat(inside.defaultView.getComputedStyle(text).fontSize) * Math.hypot(way.a, way.b);
  });
  found[frame.width] = {
    wide: inside.documentElement.scrollWidth,
    charts: charts.map(box => [box.width, box.height, box.right]),
    smallest: Math.min(...sizes),
    columns: new Set(charts.map(box => Math.round(box.left))).size,
  };
}
document.body.textContent = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def seen(two, tmp_path_factory):
    """What a browser makes of the page in frames of each width; and what it says on its console."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("browser")
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(two)}"></iframe>'
        for width in WIDTHS
    )
    script = f"<script>window.addEventListener('load', () => {{{MEASURE}}})</script>"
    path = folder / "frames.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frames}{script}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(html.unescape(re.search(r"\{.*\}", done.stdout)[0]))
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_all_charts_and_nothing_sticks_out(seen, width):
    found = seen[0][str(width)]
    assert found["wide"] <= width
    assert len(found["charts"]) == 13
    for chart_width, height, right in found["charts"]:
        assert 280 <= chart_width <= 480 and 120 <= height <= 600 and right <= width
    assert found["smallest"] >= 9, "letters that can be read on a phone"
    assert found["columns"] == (1 if width == 360 else 3)


def test_the_browser_has_nothing_to_complain_of(seen):
    assert seen[1] == []
