"""What the figures should be, and what they are: a line for each goal of `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.figures import Report

__all__ = ["goals_text"]


@dataclass(frozen=True, slots=True)
class _Goal:
    text: str
    bound: float
    found: Callable[[Report], float | None]
    """What was measured; None where it was not."""
    at_least: bool = True

    def line(self, report: Report) -> str:
        sign = ">=" if self.at_least else "<"
        value = self.found(report)
        if value is None:
            said = f"{'':9}  not measured"
        else:
            reached = value >= self.bound if self.at_least else value < self.bound
            said = f"{value:9.2f}  {'reached' if reached else 'MISSED'}"
        return f"{self.text:66}{sign:>3} {self.bound:<7g}{said}"


def goals_text(report: Report) -> str:
    """Return what was reached of what was aimed at, one a line."""
    return "\n".join(goal.line(report) for goal in _GOALS)


def _ratio(section: str, name: str) -> Callable[[Report], float | None]:
    def found(report: Report) -> float | None:
        figure = report.find(section, name)
        return figure.ratio if figure else None

    return found


def _value(section: str, *names: str) -> Callable[[Report], float | None]:
    """The largest of some figures, all of which must have been measured."""

    def found(report: Report) -> float | None:
        figures = [report.find(section, name) for name in names]
        values = [figure.value for figure in figures if figure]
        return max(values) if len(values) == len(names) else None

    return found


def _rounds_apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many of ours there are for one of theirs: the median of the rounds.

    Both are rates. They were asked in turn, so each round met the same machine: the raw signature, which
    was measured for each by itself, would only add what it varies by.
    """
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def _against_node(report: Report) -> float | None:
    ours = report.find("j", "tokensvc")
    # One that is not there has a figure without ratios, which says so.
    nodes = [one for one in report.of("j") if one.name.startswith("Node,") and one.ratios]
    if ours is None or not nodes:
        return None
    return min(_rounds_apart(ours.rounds, node.rounds) for node in nodes)


def _against_few_rows(report: Report) -> float | None:
    few = report.find("h", "10,000 rows: one mint a request")
    many = report.find("h", "10,000,000 rows: one mint a request")
    return _rounds_apart(many.rounds, few.rounds) if few and many else None


_MINT, _BATCH = "one mint a request", "batches of 100"
_LOOK_UP = "10,000,000 rows: look-up of a user's"
_GOALS = (
    _Goal("(b) mint in process, to a raw signature", 0.90, _ratio("b", "mints in process")),
    _Goal("(c) one mint a request, to a raw signature", 0.50, _ratio("c", _MINT)),
    _Goal("(c) the same, beyond", 0.60, _ratio("c", _MINT)),
    _Goal("(c) the same, to the best on Node", 4.0, _against_node),
    _Goal("(d) batches of 100, a token to a raw signature", 0.85, _ratio("d", _BATCH)),
    _Goal("(d) the same, beyond", 0.92, _ratio("d", _BATCH)),
    _Goal("(h) mints with 10^7 living rows, to those with 10^4", 0.90, _against_few_rows),
    _Goal(
        "(h) look-up of a user's tokens in 10^7 rows, p99 in ms", 5.0,
        _value("h", f"{_LOOK_UP} tokens, p99", f"{_LOOK_UP} on a stage, p99"), at_least=False,
    ),
    _Goal("(e) p99 at 50 % load, ms", 5.0, _value("e", "50 % load: p99"), at_least=False),
    _Goal(
        "(e) p99 at 50 % load, a batch of 1,000 every second beside, ms", 5.0,
        _value("e", "50 % load, a batch of 1,000 every second: p99"), at_least=False,
    ),
    _Goal(
        "(e) p99 at 50 % load, batches of 1,000 without pause beside, ms", 5.0,
        _value("e", "50 % load, one batch of 1,000 after another: p99"), at_least=False,
    ),
    _Goal(
        "(i) memory of a worker at its largest, MB", 150.0,
        _value("i", *(f"memory of a worker, {when}" for when in ("idle", "after (c)", "after (d)"))),
        at_least=False,
    ),
    _Goal("(i) start to ready, s", 2.0, _value("i", "start to ready"), at_least=False),
)  # fmt: skip
