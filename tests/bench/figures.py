"""What was measured: figures by section, kept as JSON, so that a run may be made in pieces.

A section is a letter of the list in `docs/performance.md`. Measuring one again replaces what it had.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["PER_SECOND", "Figure", "Report"]

PER_SECOND = "1/s"


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: a value for each round, and where that says something, a ratio.

    A ratio is to AWS-LC's raw signatures a second on the same core, measured in the same round. `x` is
    where the figure stands in a plot: rows in the ledger, or requests a second.
    """

    section: str
    name: str
    unit: str
    rounds: Sequence[float]
    ratios: Sequence[float] = ()
    x: float | None = None

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        return median(self.ratios) if self.ratios else None


@dataclass(slots=True)
class Report:
    """Figures, and under which circumstances each section was measured."""

    figures: list[Figure] = field(default_factory=list)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def replace(
        self, section: str, figures: Iterable[Figure], circumstances: dict[str, Any]
    ) -> None:
        """Put in what a section gave, in place of what it had."""
        others = [figure for figure in self.figures if figure.section != section]
        self.figures = sorted([*others, *figures], key=lambda figure: figure.section)
        self.sections = dict(sorted({**self.sections, section: circumstances}.items()))

    def find(self, section: str, name: str) -> Figure | None:
        """Return a figure, or None where it was not measured."""
        for figure in self.figures:
            if (figure.section, figure.name) == (section, name):
                return figure
        return None

    def of(self, section: str) -> list[Figure]:
        """Return a section's figures in the order in which they were taken."""
        return [figure for figure in self.figures if figure.section == section]

    @classmethod
    def load(cls, path: Path) -> Report:
        """Return what `path` has; nothing where there is no such file."""
        if not path.exists():
            return cls()
        kept = json.loads(path.read_text("utf-8"))
        return cls([Figure(**figure) for figure in kept["figures"]], kept["sections"])

    def save(self, path: Path) -> None:
        """Write what `load` reads: a line for each figure, numbers to six digits."""
        figures = ",\n".join(f"  {json.dumps(_plain(figure))}" for figure in self.figures)
        sections = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(said)}" for name, said in self.sections.items()
        )
        text = f'{{"sections": {{\n{sections}\n}},\n"figures": [\n{figures}\n]}}\n'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _plain(figure: Figure) -> dict[str, Any]:
    plain = asdict(figure)
    for name in ("rounds", "ratios"):
        plain[name] = [float(f"{value:.6g}") for value in plain[name]]
    return {name: value for name, value in plain.items() if value not in (None, [])}
