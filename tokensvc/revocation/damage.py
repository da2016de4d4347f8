"""What to do about a stored value of the wrong kind: SQLite keeps any type in any column.

One damaged row must not stop the kicks of others, so what cannot be read is taken for something safe,
and the log tells.
"""

from __future__ import annotations

from typing import TypeVar

import structlog

__all__ = ["is_number", "repaired"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)


def is_number(value: object) -> bool:
    """Tell whether a value that should be a number is one."""
    return isinstance(value, (int, float))


def repaired(row_id: object, column: str, value: T) -> T:
    """Return `value`, which a damaged column is taken for, and log that."""
    _log.error("disconnect_damaged", row=row_id, column=column, taken_as=value)
    return value
