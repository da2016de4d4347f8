"""Figures are kept as they were measured, and say truly which goals were reached."""

from __future__ import annotations

from pathlib import Path

from tests.bench.figures import PER_SECOND, Figure, Report
from tests.bench.goals import goals_text
from tests.bench.table import text_table

MINT = "one mint a request"


def a_report() -> Report:
    report = Report()
    report.replace(
        "c", [Figure("c", MINT, PER_SECOND, [5000.0, 9000.0, 7000.0], [0.4, 0.7, 0.51])], {"at": 1}
    )
    return report


def said(report: Report, goal: str) -> str:
    (line,) = (line for line in goals_text(report).splitlines() if line.startswith(goal))
    return " ".join(line.removeprefix(goal).split())


def test_a_report_that_is_read_again_is_the_same(tmp_path: Path):
    report = a_report()
    report.replace("h", [Figure("h", "10,000 rows", "ms", [1.5], x=10_000.0)], {"at": 2})
    report.save(tmp_path / "new" / "bench.json")
    again = Report.load(tmp_path / "new" / "bench.json")
    assert [(one.section, one.name, one.unit, one.x) for one in again.figures] == [
        ("c", MINT, PER_SECOND, None),
        ("h", "10,000 rows", "ms", 10_000.0),
    ]
    assert text_table(again) == text_table(report)
    assert again.sections == {"c": {"at": 1}, "h": {"at": 2}}


def test_measuring_a_section_again_replaces_it_and_nothing_else():
    report = a_report()
    report.replace("a", [Figure("a", "raw", PER_SECOND, [1.0])], {})
    report.replace("c", [Figure("c", "another", PER_SECOND, [2.0])], {})
    assert [(one.section, one.name) for one in report.figures] == [("a", "raw"), ("c", "another")]


def test_a_goal_is_judged_by_the_median_of_the_rounds_ratios():
    report = a_report()
    assert said(report, "(c) one mint a request, to a raw signature") == ">= 0.5 0.51 reached"
    assert said(report, "(c) the same, beyond") == ">= 0.6 0.51 MISSED"
    assert said(report, "(i) start to ready, s") == "< 2 not measured"
    report.replace("i", [Figure("i", "start to ready", "s", [2.0])], {})
    assert said(report, "(i) start to ready, s") == "< 2 2.00 MISSED"


def test_the_comparison_with_node_is_with_its_fastest_server():
    report = Report()
    ours = Figure("j", "tokensvc", PER_SECOND, [7500.0, 5000.0], [0.5, 0.5])
    slow = Figure("j", "Node, express + jsonwebtoken", PER_SECOND, [625.0, 625.0], [0.1, 0.1])
    fast = Figure("j", "Node, fastify + fast-jwt", PER_SECOND, [1250.0, 2500.0], [0.1, 0.1])
    go = Figure("j", "Go, net/http", PER_SECOND, [3000.0, 3000.0], [0.3, 0.3])
    absent = Figure("j", "Node, other: not measured, there is no node", PER_SECOND, [0.0])
    report.replace("j", [ours, slow, fast, go, absent], {})
    # Each round with its own: 6 times and 2 times.
    assert said(report, "(c) the same, to the best on Node") == ">= 4 4.00 reached"


def test_ten_million_rows_are_held_against_ten_thousand_round_by_round():
    report = Report()
    few = Figure("h", f"10,000 rows: {MINT}", PER_SECOND, [4000.0, 5000.0, 2000.0], [0.5] * 3)
    many = Figure("h", f"10,000,000 rows: {MINT}", PER_SECOND, [4000.0, 4000.0, 1900.0], [0.5] * 3)
    report.replace("h", [few, many], {})
    assert (
        said(report, "(h) mints with 10^7 living rows, to those with 10^4") == ">= 0.9 0.95 reached"
    )
