"""Figures in the docs are those of the data beside them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean

import pytest

from infty_tools import pictures

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "results.md").read_text()
DEMO = json.loads((DOCS / "results" / "demo.json").read_text())


@pytest.mark.parametrize("system", DEMO["systems"])
def test_the_demo(system):
    row = next(
        line
        for line in PAGE.splitlines()
        if line.startswith(f"| {DEMO['systems'][system]['what']} |")
    )
    figures = [float(x) for x in re.findall(r"(?<![\w.])\d+\.\d+", row.split("|", 2)[2])]
    perplexities = [run["perplexity"] for run in DEMO["systems"][system]["runs"]]
    baseline = {run["seed"]: run["perplexity"] for run in DEMO["systems"]["none"]["runs"]}
    ratios = [run["perplexity"] / baseline[run["seed"]] for run in DEMO["systems"][system]["runs"]]
    assert figures[: len(perplexities)] == [round(x, 1) for x in perplexities]
    assert figures[len(perplexities)] == round(fmean(ratios), 2)


def table(data: str, page: str = PAGE) -> list[list[str]]:
    """The rows, cell by cell, of the table of a page whose figures are those of docs/results/`data`."""
    lines = page.split(f"<!-- figures of docs/results/{data};")[1].splitlines()[3:]
    rows = lines[: lines.index("")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize(
    ("data", "other"), [("novels.json", "none"), ("transformer-xl.json", "transformer-xl")]
)
def test_novels(data, other):
    systems = json.loads((DOCS / "results" / data).read_text())["systems"]
    plain, memory = systems[other], systems["continuation"]
    curves = {
        f"{a['from']:,} to {a['to']:,}": (math.exp(a["nll"]), math.exp(b["nll"]))
        for a, b in zip(plain["by_position"], memory["by_position"])
    }
    curves["all"] = plain["perplexity"], memory["perplexity"]
    for place, without, with_memory, ratio in table(data):
        a, b = curves[place]
        assert (without, with_memory, ratio) == (f"{a:.2f}", f"{b:.2f}", f"{b / a:.3f}")


def test_past_2048_tokens():
    systems = json.loads((DOCS / "results" / "transformer-xl.json").read_text())["systems"]
    nats = {
        name: sum(x["nll"] * x["tokens"] for x in system["by_position"] if x["from"] >= 2048)
        / sum(x["tokens"] for x in system["by_position"] if x["from"] >= 2048)
        for name, system in systems.items()
    }
    ratio = math.exp(nats["continuation"] - nats["transformer-xl"])
    assert f"Past 2,048 tokens it is {ratio:.3f} of".replace("0.", ".") in PAGE
    cost = {name: f"{x['training_flops_a_token'] / 1e6:.1f}" for name, x in systems.items()}
    assert f"costs it {cost['transformer-xl']} MFLOPs" in PAGE
    assert f"the\nmodel with the memory {cost['continuation']}" in PAGE


def test_recall():
    systems = json.loads((DOCS / "results" / "recall.json").read_text())["systems"]
    found = {row["system"]: row for row in systems}
    rows = table("recall.json")
    assert {row[0] for row in rows} == found.keys()
    for name, state, *shares, seeds in rows:
        row = found[name]
        assert state == f"{row['state_floats']:,}" and seeds == str(len(row["seeds"]))
        assert shares == [f"{100 * row['right'][n]['mean']:.1f} %" for n in ("1", "2", "4")]
    longer = json.loads((DOCS / "results" / "recall.json").read_text())["at_1200_steps"]["right"]
    right = {name: f"{100 * shares['1']:.1f} %" for name, shares in longer.items()}
    text = " ".join(PAGE.split())
    assert f"full attention gets {right['full-attention']} of them" in text
    assert f"`associative` {right['associative']} and" in text
    assert f"in the last layer alone, {right['continuation']}" in text


def test_room():
    found = json.loads((DOCS / "results" / "room.json").read_text())["facts_in_every"]
    every = {"every segment": found["1"], "every eighth": found["8"]}
    rows = table("room.json")
    assert len(rows) == sum(map(len, every.values()))
    for where, weight, share, tokens, right, worst, rest in rows:
        row = next(r for r in every[where] if r["weight"] == float(weight))
        assert (share, right) == (f"{100 * row['share']:.1f} %", f"{100 * row['found']:.1f} %")
        assert worst == f"{100 * min(row['by_age']):.0f} %"
        assert (tokens, rest) == (f"{row['tokens']:.3f}", f"{row['rest']:.3f}")


def test_the_demo_by_position():
    found = json.loads((DOCS / "results" / "demo-positions.json").read_text())["models"]
    curves = [next(iter(model["memory"].values()))["by_position"] for model in found]
    figures = {
        f"{a['from']:,} to {a['to']:,}": [f"{a['nll']:.3f}", f"{b['nll']:.3f}"]
        for a, b in zip(*curves)
    }
    for place, *nats in table("demo-positions.json"):
        assert figures[place] == nats


def test_sorting():
    found = json.loads((DOCS / "results" / "sorting.json").read_text())
    rows = table("sorting.json")
    assert [row[0] for row in rows] == list(found["accuracy"])
    for name, _, *figures in rows:
        row = found["accuracy"][name]
        off = f"{row['off']:.1%}".replace("%", " %") if "off" in row else ""
        loss = f"{row['loss']:.3f}".removeprefix("0")
        assert figures == [f"{row['on']:.1%}".replace("%", " %"), off, loss]
    for name, shares in zip(
        ("Transformer-XL", "compressive", "∞-former"), found["paper"]["accuracy"].values()
    ):
        assert f"{name} {' / '.join(f'{100 * share:.0f}' for share in shares)} %" in PAGE


def test_what_is_said_of_them_elsewhere():
    """The overview's and the README's ratios, cut to two digits as the tables have them."""
    means = {}
    for name, system in DEMO["systems"].items():
        plain = {run["seed"]: run["perplexity"] for run in DEMO["systems"]["none"]["runs"]}
        means[name] = fmean(run["perplexity"] / plain[run["seed"]] for run in system["runs"])
    novels = json.loads((DOCS / "results" / "novels.json").read_text())["systems"]
    ratio = novels["continuation"]["perplexity"] / novels["none"]["perplexity"]
    demo, books = (f"{x:.2f}".removeprefix("0") for x in (means["continuation"], ratio))
    assert f"perplexity {demo} of that without a memory" in PAGE and f"| 1 | {books} |" in PAGE
    readme = (DOCS.parent / "README.md").read_text()
    assert f"to {demo} of it (three seeds) and on novels to {books} (one seed)" in " ".join(
        readme.split()
    )


def test_every_result_says_how_it_was_made():
    for path in sorted((DOCS / "results").glob("*.json")):
        assert {"command", "machine"} <= json.loads(path.read_text()).keys(), path.name
        assert f"(results/{path.name})" in PAGE


def test_pictures_are_drawn_from_the_product(tmp_path):
    """All that pages show, and nothing else; each small."""
    pictures.draw(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "pictures").iterdir()}
    pages = "".join(page.read_text() for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"))
    for name in drawn:
        assert f"pictures/{name})" in pages, name
        assert (DOCS / "pictures" / name).stat().st_size < 40_000


def test_a_pretrained_model():
    systems = json.loads((DOCS / "results" / "adapt.json").read_text())["systems"]
    rows = table("adapt.json", (DOCS / "adapting.md").read_text())
    assert [row[0] for row in rows] == [row["what"] for row in systems.values()]
    for (_, *cells), row in zip(rows, systems.values()):
        ends = " to ".join(f"{x:.3f}" for x in row["ratio_interval"])
        assert cells == [f"{row['perplexity']:.2f}", f"{row['ratio']:.3f}", ends]
    assert systems["untrained"]["nll"] == systems["window"]["nll"]


def test_steps_of_training():
    found = json.loads((DOCS / "results" / "train.json").read_text())
    systems = found["sizes"]["demo"]["systems"]
    page = (DOCS / "performance.md").read_text()
    lines = page.split("<!-- figures of docs/results/train.json -->")[1].splitlines()[3:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]
    rows = rows[: rows.index([""])]
    assert [row[0] for row in rows] == list(systems)
    for name, parameters, *milliseconds, tokens, speed in rows:
        row = systems[name]
        assert parameters == f"{row['parameters']:,}"
        seconds = [row["seconds"][key] for key in ("least", "median", "most")]
        assert milliseconds == [f"{1000 * x:,.0f}" for x in seconds]
        assert (tokens, speed) == (f"{row['tokens_per_second']:,.0f}", f"{row['speed']:.2f}")
