"""The ledger's partitions on PostgreSQL: one for each day (UTC) on which tokens expire.

They are made ahead, further than any token lives, and dropped as a whole once all their tokens have
been expired long enough: dropping a day costs what dropping a file does, however many rows it has,
and leaves no dead rows behind. A row that finds no partition of its day goes to the default partition,
and from there to its day's when that is made.

A partition is made beside the table and then attached, since ATTACH lets writers go on, as CREATE TABLE
... PARTITION OF does not. It and DROP wait at most a second for the locks they need, as whoever comes
after them waits behind them; where that is not enough, the next sweep tries again.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, MetaData, text

from tokensvc.store.tables import issued_tokens
from tokensvc.tokens.limits import MAX_CONNECTION_TTL_SECONDS

__all__ = [
    "add_missing_partitions",
    "add_partition",
    "default_partition",
    "drop_partition",
    "expired_partitions",
    "missing_partitions",
]

_PREFIX: Final = "issued_tokens_"
_DEFAULT: Final = "issued_tokens_default"
default_partition: Final = issued_tokens.to_metadata(MetaData(), name=_DEFAULT)
"""What no day's partition takes; PostgreSQL only."""
_DAY_SECONDS: Final = 86_400
_DAYS_AHEAD: Final = MAX_CONNECTION_TTL_SECONDS // _DAY_SECONDS + 2
"""No token lives longer than 28 days; and a day for clocks and sweeps that are late."""

_LOCK: Final = 7_046_029_255
"""Names the advisory lock that whoever changes partitions holds."""

_PARTITIONS: Final = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'issued_tokens'::regclass"
)


def missing_partitions(connection: Connection, now: float) -> list[date]:
    """Return the days, from today on, for which there is no partition yet."""
    known = set(_days(connection))
    today = _day_of(now)
    ahead = (today + timedelta(days=number) for number in range(_DAYS_AHEAD))
    return [day for day in ahead if day not in known]


def expired_partitions(connection: Connection, before: float) -> list[date]:
    """Return the days whose tokens have all expired by `before` (Unix seconds), oldest first."""
    return sorted(day for day in _days(connection) if _end(day) <= before)


def add_missing_partitions(connection: Connection, now: float) -> None:
    """Make the partitions of today and all days ahead, in a transaction of the caller's."""
    for day in missing_partitions(connection, now):
        _add(connection, day)


def add_partition(connection: Connection, day: date) -> bool:
    """Make the partition of a day, with the rows of that day that stand in the default partition.

    False where another replica is at it, or was sooner.
    """
    if not _may_change(connection) or day in _days(connection):
        return False
    _add(connection, day)
    return True


def drop_partition(connection: Connection, day: date) -> bool:
    """Drop the partition of a day with all its rows; False where another replica is at it, or was."""
    if not _may_change(connection) or day not in _days(connection):
        return False
    connection.execute(text(f"DROP TABLE {_name(day)}"))
    return True


def _may_change(connection: Connection) -> bool:
    connection.execute(text("SET LOCAL lock_timeout = '1s'"))
    query = text("SELECT pg_try_advisory_xact_lock(:lock)")
    return bool(connection.execute(query, {"lock": _LOCK}).scalar_one())


def _add(connection: Connection, day: date) -> None:
    # Names and numbers of our own making; DDL takes no parameters.
    name, start, end = _name(day), _start(day), _end(day)
    connection.execute(
        text(
            f"CREATE TABLE {name}"
            " (LIKE issued_tokens INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)"
        )
    )
    # The lock that ATTACH takes; taken now, nothing comes in between the move and that.
    connection.execute(text(f"LOCK TABLE {_DEFAULT} IN ACCESS EXCLUSIVE MODE"))
    connection.execute(
        text(
            f"WITH moved AS (DELETE FROM {_DEFAULT}"  # noqa: S608 - as above
            f" WHERE exp >= {start} AND exp < {end} RETURNING *)"
            f" INSERT INTO {name} SELECT * FROM moved"
        )
    )
    connection.execute(
        text(
            f"ALTER TABLE issued_tokens ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"
        )
    )


def _days(connection: Connection) -> list[date]:
    names = connection.execute(_PARTITIONS).scalars()
    return [
        datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").replace(tzinfo=UTC).date()
        for name in names
        if name != _DEFAULT
    ]


def _name(day: date) -> str:
    return f"{_PREFIX}{day:%Y%m%d}"


def _day_of(moment: float) -> date:
    return datetime.fromtimestamp(moment, UTC).date()


def _start(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _end(day: date) -> int:
    return _start(day) + _DAY_SECONDS
