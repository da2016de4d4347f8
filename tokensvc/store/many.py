"""Questions about many ids, some hundred of them in one statement.

One for each id takes a batch seconds. One for all of them would hold the event loop while its rows are read,
and SQLite takes 32,766 parameters at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import ARRAY, Column, ColumnElement, Text, any_, bindparam

__all__ = ["IDS_PER_STATEMENT", "Pace", "in_pieces", "is_one_of"]

IDS_PER_STATEMENT: Final = 200
"""What the driver does of their rows in one go holds the event loop for less than a millisecond."""

T = TypeVar("T")


class Pace(Protocol):
    """When to let others run; work on many things breathes between two of them."""

    def spent(self) -> bool:
        """Tell whether it is time to `breathe`."""
        ...

    async def breathe(self) -> None:
        """Let others run."""
        ...


def in_pieces(ids: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut ids into pieces of one statement."""
    for start in range(0, len(ids), IDS_PER_STATEMENT):
        yield ids[start : start + IDS_PER_STATEMENT]


def is_one_of(column: Column[Any], name: str, dialect: str) -> ColumnElement[bool]:
    """Return the condition that a column of text has one of the values of the parameter `name`, a list.

    On PostgreSQL they are one array, so that one prepared statement does for any number of them.
    """
    if dialect == "postgresql":
        return column == any_(bindparam(name, type_=ARRAY(Text)))
    return column.in_(bindparam(name, expanding=True))
