"""`make pictures`: plots of what `make bench` wrote, from the same JSON.

Points are medians, bars go from the lowest to the highest round. The files are the same bytes for the same
figures, so a picture changes only with what it shows.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter

from tests.bench.figures import Figure, Report

__all__ = ["NotMeasuredError", "draw", "source_of"]

_INK, _PALE = "#1b1f24", "#8c959f"
_COLOURS = ("#1f6feb", "#bf5b04", "#a40e26")
_INCHES = (7.2, 4.2)
_GOAL_MS = 5.0
_STYLE = {
    "svg.hashsalt": "tokensvc",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": "#d8dee4",
}


class NotMeasuredError(Exception):
    """The JSON lacks what a picture shows."""


def throughput(axes: Axes, report: Report) -> str:
    """Draw mints a second against living rows; returns the title."""
    mints = _by_x([one for one in report.of("h") if one.name.endswith("rows: one mint a request")])
    few = mints[0].ratio
    assert few is not None
    rows = [figure.x or 0.0 for figure in mints]
    axes.axhspan(few * 0.9, few * 1.1, color="#ddf4ff", label="within 10 % of the smallest ledger")
    ratios = [figure.ratios for figure in mints]
    _line(axes, rows, ratios, _COLOURS[0], "one mint a request, everything on")
    for x, figure in zip(rows, mints, strict=True):
        axes.annotate(
            f"{figure.value:,.0f}/s", (x, figure.ratio or 0.0), (5, 5), ha="left",
            textcoords="offset points", color=_COLOURS[0],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_xticks(rows, [f"{x:,.0f}" for x in rows])
    axes.minorticks_off()
    axes.set_ylim(0, max(max(one) for one in ratios) * 1.3)
    axes.set_xlabel("living tokens in the ledger (SQLite, durable)")
    axes.set_ylabel("mints for one raw P-384 signature of the same core")
    return "Throughput against live rows: one worker on one core"


def latency(axes: Axes, report: Report) -> str:
    """Draw latency against load; returns the title."""
    full = report.find("e", "taken as 100 %")
    if full is None:
        raise NotMeasuredError("latency under load is not there")
    for label, colour in zip(("p50", "p99", "p99.9"), _COLOURS, strict=True):
        found = _by_x([one for one in report.of("e") if one.name.endswith(f"% load: {label}")])
        _line(axes, _percent(found, full), [one.rounds for one in found], colour, label)
    late = _by_x(
        [
            one
            for one in report.of("e")
            if one.name.endswith("% load: p99 of the load's own lateness")
        ]
    )
    axes.plot(
        _percent(late, full), [one.value for one in late], ":", color=_PALE,
        label="of which the load generator's own lateness, p99",
    )  # fmt: skip
    beside = report.find("e", "50 % load, a batch of 1,000 every second: p99")
    if beside:
        axes.plot(
            _percent([beside], full), [beside.value], "D", color=_COLOURS[1], fillstyle="none",
            label="p99 with a batch of 1,000 every second beside",
        )  # fmt: skip
    axes.axhline(_GOAL_MS, color=_INK, linewidth=0.8, linestyle="--")
    axes.annotate(
        "goal for p99 at 50 %: 5 ms",
        (100, _GOAL_MS),
        (-2, 3),
        ha="right",
        textcoords="offset points",
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        f"load, in percent of the {full.value:,.0f} mints a second that the worker takes"
    )
    axes.set_ylabel("milliseconds from when a request was due")
    return "Latency against load: single mints at random moments, everything on"


_PICTURES: dict[str, tuple[str, Callable[[Axes, Report], str]]] = {
    "throughput.svg": ("h", throughput),
    "latency.svg": ("e", latency),
}
"""By file: the section that it shows, and what draws it."""


def draw(figures: Path, folder: Path) -> list[Path]:
    """Draw the figures of a JSON file, every picture into `folder`; returns the pictures' files.

    Each names the figures that it was drawn from. Raises NotMeasuredError.
    """
    report = Report.load(figures)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for name, (section, fill) in _PICTURES.items():
            picture = Picture(_INCHES, layout="constrained")
            axes = picture.add_subplot()
            axes.grid(axis="y", linewidth=0.6)
            axes.set_axisbelow(True)
            picture.suptitle(fill(axes, report), x=0.01, ha="left", fontsize=10, color=_INK)
            axes.set_title(_circumstances(report, section), loc="left", fontsize=7, color=_PALE)
            picture.legend(loc="outside lower center", ncols=3, frameon=False)
            picture.savefig(
                folder / name,
                format="svg",
                metadata={"Date": None, "Creator": "make pictures", "Source": source_of(figures)},
            )
            written.append(folder / name)
    return written


def source_of(figures: Path) -> str:
    """Return what a picture says of the figures that it was drawn from."""
    return f"{figures.name}, SHA-256 {hashlib.sha256(figures.read_bytes()).hexdigest()}"


def _circumstances(report: Report, section: str) -> str:
    said = report.sections.get(section, {})
    return "; ".join(
        f"{label} {said[name]}"
        for name, label in (
            ("processor", "processor"), ("cores", "cores"), ("python", "Python"), ("at", "measured"),
            ("rounds", "rounds"), ("load_average", "load average before"),
        )
        if name in said
    )  # fmt: skip


def _by_x(figures: Sequence[Figure]) -> list[Figure]:
    placed = sorted((one for one in figures if one.x is not None), key=lambda one: one.x or 0.0)
    if not placed:
        raise NotMeasuredError("figures for a picture are not there")
    return placed


def _percent(figures: Sequence[Figure], full: Figure) -> list[float]:
    return [100 * (figure.x or 0.0) / full.value for figure in figures]


def _line(
    axes: Axes, x: Sequence[float], rounds: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    middle = [median(one) for one in rounds]
    below = [value - min(one) for value, one in zip(middle, rounds, strict=True)]
    above = [max(one) - value for value, one in zip(middle, rounds, strict=True)]
    axes.errorbar(
        x, middle, (below, above), fmt="o-", color=colour, label=label, markersize=4, linewidth=1.4,
        elinewidth=0.8, capsize=2,
    )  # fmt: skip


def main() -> int:
    """Draw; ends with 1 where the JSON lacks something."""
    parser = argparse.ArgumentParser(prog="make pictures", description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what make bench wrote")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    options = parser.parse_args()
    try:
        written = draw(options.json, options.folder)
    except NotMeasuredError as error:
        sys.stderr.write(f"{options.json}: {error}; make bench measures it\n")
        return 1
    for path in written:
        sys.stdout.write(f"{path} ({path.stat().st_size:,} bytes)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
