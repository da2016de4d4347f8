"""Pictures show what was measured: they come of the JSON beside them, and the same JSON gives the same."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench.figures import PER_SECOND, Figure, Report
from tests.bench.flame_graph import draw as draw_flames
from tests.bench.flame_graph import read_stacks
from tests.bench.pictures import NotMeasuredError, draw, source_of

DOCS = Path(__file__).parents[2] / "docs"
LARGEST = 300_000
"""Bytes of a picture in the repository."""


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    report = Report()
    report.replace(
        "h",
        [
            Figure(
                "h", f"{rows:,} rows: one mint a request", PER_SECOND, [5e3, 6e3], [0.4, 0.5], rows
            )
            for rows in (10_000, 100_000)
        ],
        {},
    )
    report.replace(
        "e",
        [Figure("e", "taken as 100 %", PER_SECOND, [6e3])]
        + [
            Figure("e", f"{percent} % load: {label}", "ms", [1.0, 2.0], x=60.0 * percent)
            for percent in (10, 50)
            for label in ("p50", "p99", "p99.9", "p99 of the load's own lateness")
        ],
        {},
    )
    report.save(tmp_path / "bench.json")
    return tmp_path / "bench.json"


def test_the_same_figures_give_the_same_pictures(figures: Path, tmp_path: Path):
    once, again = (draw(figures, tmp_path / name) for name in ("once", "again"))
    assert [path.name for path in once] == ["throughput.svg", "latency.svg"]
    for one, other in zip(once, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert ET.parse(one).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert source_of(figures) in one.read_text("utf-8")


def test_a_picture_of_what_was_not_measured_is_not_drawn(tmp_path: Path):
    Report().save(tmp_path / "bench.json")
    with pytest.raises(NotMeasuredError):
        draw(tmp_path / "bench.json", tmp_path)


@pytest.mark.parametrize("name", ["throughput.svg", "latency.svg"])
def test_the_pictures_in_the_documents_are_of_the_figures_beside_them(name: str):
    figures = DOCS / "pictures" / "bench.json"
    assert source_of(figures) in (DOCS / "pictures" / name).read_text("utf-8")


def test_every_picture_of_the_documents_is_there_small_and_shown():
    shown = re.findall(r"\]\(pictures/([\w.]+)\)", (DOCS / "performance.md").read_text("utf-8"))
    pictures = {path.name: path.stat().st_size for path in (DOCS / "pictures").glob("*.svg")}
    assert set(pictures) == set(shown)
    assert {name: size for name, size in pictures.items() if size > LARGEST} == {}


STACKS = """\
thread (11): MainThread;Runner.run (asyncio/runners.py:86);mint (a.py:1);EC.sign (awscrt/crypto.py:3) 30
thread (11): MainThread;main (c.py:1);Runner.run (asyncio/runners.py:86);mint (a.py:1) 10
thread (12): store-writer;run (t.py:1);WorkThread._serve (tokensvc/store/work_thread.py:76);commit (b.py:2) 20
thread (12): store-writer;run (t.py:1);WorkThread._serve (tokensvc/store/work_thread.py:72) 93
thread (14): uvloop_0;run (t.py:1);_worker (concurrent/futures/thread.py:58);seldom (c.py:3) 1
thread (13): audit;run (t.py:1);Condition.wait (threading.py:295) 100
"""


def test_a_flame_graph_shares_out_processor_time_among_the_stacks_that_work():
    root = read_stacks(STACKS, {11: 4.0, 12: 1.0, 13: 0.0, 14: 0.5})
    assert root.seconds == pytest.approx(5.5)
    loop, commits, other = root.calls.values()
    assert (other.name, other.seconds, other.calls) == ("uvloop_0", pytest.approx(0.5), {})
    assert (loop.name, loop.seconds) == ("event loop", pytest.approx(4.0))
    (mint,) = loop.calls.values()
    assert (mint.name, mint.seconds) == ("mint (a.py)", pytest.approx(4.0))
    assert mint.calls["EC.sign (awscrt/crypto.py)"].seconds == pytest.approx(3.0)
    assert (commits.name, commits.seconds) == ("thread that commits", pytest.approx(1.0))
    assert list(commits.calls) == ["commit (b.py)"]


def test_a_flame_graph_draws_every_frame_as_wide_as_its_share():
    svg = ET.fromstring(draw_flames(read_stacks(STACKS, {11: 4.0, 12: 1.0}), "a title"))
    space = "{http://www.w3.org/2000/svg}"
    widths = {}
    for group in svg.iter(f"{space}g"):
        name, box = group.find(f"{space}title"), group.find(f"{space}rect")
        assert name is not None
        assert box is not None
        widths[name.text] = float(box.attrib["width"])
    assert widths == {
        "all: 100.0%": 1199.6,
        "event loop: 80.0%": 959.6,
        "mint (a.py): 80.0%": 959.6,
        "EC.sign (awscrt/crypto.py): 60.0%": 719.6,
        "thread that commits: 20.0%": 239.6,
        "commit (b.py): 20.0%": 239.6,
    }
