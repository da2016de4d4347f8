"""The figures as a table of text."""

from __future__ import annotations

from tests.bench.figures import Report

__all__ = ["text_table", "value_text"]


def text_table(report: Report) -> str:
    """Return all figures, one a line: median, lowest and highest round, ratio."""
    lines = [f"{'':74}{'median':>10}{'from':>10}{'to':>10}  {'':4}{'ratio':>7}"]
    for figure in report.figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        low, high = (value_text(bound) for bound in (min(figure.rounds), max(figure.rounds)))
        lines.append(
            f"({figure.section}) {figure.name[:70]:70}{value_text(figure.value):>10}{low:>10}{high:>10}"
            f"  {figure.unit:4}{ratio:>7}"
        )
    return "\n".join(lines)


def value_text(value: float) -> str:
    """Return three digits or more of a number, and no digit that says nothing."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
