"""The table of docs/faults.md, as it stands there."""

from __future__ import annotations

from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Final

from tests.faults.asking import COLUMNS

__all__ = ["TABLE", "read_table"]

PATH: Final = Path(__file__).parents[2] / "docs/faults.md"


def read_table(text: str) -> dict[str, dict[str, str]]:
    """Return the outcomes by fault and column; raises where the table is not what it should be."""
    start = dropwhile(lambda line: not line.startswith("| fault | mint "), text.splitlines())
    lines = takewhile(lambda line: line.startswith("|"), start)
    head, _, *rows = (
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines
    )
    assert head == ["fault", *COLUMNS]
    assert all(len(row) == len(head) and all(row) for row in rows)
    table = {name: dict(zip(COLUMNS, cells, strict=True)) for name, *cells in rows}
    assert len(table) == len(rows)
    return table


TABLE: Final = read_table(PATH.read_text("utf-8"))
