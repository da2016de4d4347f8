"""PostgreSQL's error codes (SQLSTATE), in words that an operator can act on.

https://www.postgresql.org/docs/current/errcodes-appendix.html; the first two characters are the class.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RETRIED", "SERVER_IS_GONE", "VALUE_CLASSES", "in_words"]

RETRIED: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the server has rolled back, and the same may work now."""

SERVER_IS_GONE: Final = frozenset({"25006", "57P01", "57P02", "57P03"})
"""A standby that takes no writes, or a server that goes down or comes up: connect anew."""

VALUE_CLASSES: Final = ("22", "23")
"""Data exception and integrity violation: the value is at fault. Their messages repeat it."""

_WORDS: Final = {
    "25006": "The database is read-only: a standby, or set so.",
    "25P03": "The database ended a transaction that stood idle.",
    "3D000": "There is no such database.",
    "40001": "The database ended the transaction in favour of another one.",
    "40P01": "The database ended the transaction in favour of another one.",
    "42501": "The database user may not do that.",
    "53100": "The disk that holds the database is full.",
    "53200": "The database is out of memory.",
    "53300": "The database has too many connections.",
    "53400": "A limit of the database's own settings is exceeded.",
    "55P03": "The database is locked by another transaction.",
    "57014": "The database took too long for a statement.",
    "57P01": "The database is shutting down.",
    "57P02": "The database has crashed and recovers.",
    "57P03": "The database is starting, or shutting down.",
    "58030": "The disk that holds the database fails.",
    "XX001": "The database is damaged.",
    "XX002": "The database is damaged.",
}
_CLASSES: Final = {
    "08": "The connection to the database was lost.",
    "28": "The database refuses the user or the password.",
}


def in_words(sqlstate: str | None) -> str:
    """Return what a code means; None is an error of the connection itself."""
    if sqlstate is None:
        return _CLASSES["08"]
    return (
        _WORDS.get(sqlstate) or _CLASSES.get(sqlstate[:2]) or "The database refuses the statement."
    )
