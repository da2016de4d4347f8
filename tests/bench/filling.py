"""Databases as they are after some time: many living tokens, many bans.

SQLite's file is filled by itself, with a cache that holds all of it and in one transaction, since through
the service ten million rows take hours. Indexes are grown row by row, as mints grow them, and not built
afterwards, which would leave them tidier than they ever are.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, update

from tokensvc.ledger.row import endpoints_id
from tokensvc.ledger.writer import COLUMNS
from tokensvc.revocation.ban_store import FEED
from tokensvc.store import open_engine
from tokensvc.store.inserts import insert_rows
from tokensvc.store.tables import bans, feeds, issued_tokens
from tokensvc.store.transactions import open_transactions
from tokensvc.tokens.claims import StageEndpoints
from tokensvc.tokens.ids import new_participant_id

__all__ = [
    "STAGES",
    "USERS",
    "add_bans",
    "add_rows",
    "long_expired",
    "stage",
    "still_due",
    "user",
]

RETENTION_SECONDS = 86_400
"""As a service has it that is not told otherwise."""


USERS, STAGES = 200_000, 1_000
_ENDPOINTS = StageEndpoints("wss://global.events.live-video.net", "https://a.whip.live-video.net")
_CACHE_KIB = 8_000_000
_FIRST_EXPIRY, _LAST_EXPIRY = 6 * 3600, 24 * 3600


def stage() -> str:
    """Return one of the stages, at random."""
    return f"arn:aws:ivs:eu-central-1:123456789012:stage/AbCdEf{random.randrange(STAGES):06d}"


def user() -> str:
    """Return one of the users, at random."""
    return f"player-{random.randrange(USERS)}"


def living(now: int) -> int:
    """Return an expiry of some hours from now, at random."""
    return now + random.randrange(_FIRST_EXPIRY, _LAST_EXPIRY)


def long_expired(now: int) -> int:
    """Return an expiry so long ago that the row should have been deleted three hours ago."""
    return now - RETENTION_SECONDS - 3 * 3600 + random.randrange(600)


def still_due(database: Path) -> int:
    """Count the rows that should have been deleted already, beside a service that runs."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        query = "SELECT count(*) FROM issued_tokens WHERE exp <= ?"
        (count,) = connection.execute(query, (time.time() - RETENTION_SECONDS,)).fetchone()
        return int(count)
    finally:
        connection.close()


def add_rows(database: Path, count: int, expiry: Callable[[int], int] = living) -> None:
    """Add tokens of the key that signs, while no service runs; `expiry` takes the time."""
    connection = sqlite3.connect(database)
    try:
        (key_id, key_arn) = connection.execute(
            "SELECT key_id, arn FROM keys WHERE phase = 'ACTIVE'"
        ).fetchone()
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        marks = ", ".join("?" * len(COLUMNS))
        connection.execute(
            "INSERT OR IGNORE INTO stage_endpoints VALUES (?, ?, ?)",
            (endpoints_id(_ENDPOINTS), _ENDPOINTS.events, _ENDPOINTS.whip),
        )
        connection.executemany(
            f"INSERT INTO issued_tokens ({', '.join(COLUMNS)}) VALUES ({marks})",
            _rows(count, key_id, key_arn, expiry),
        )
        connection.commit()
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    # Otherwise the system writes gigabytes while the service is measured.
    with database.open("rb") as file:
        os.fsync(file.fileno())


def _rows(
    count: int, key_id: str, key_arn: str, expiry: Callable[[int], int]
) -> Iterator[tuple[object, ...]]:
    now, name = int(time.time()), endpoints_id(_ENDPOINTS)
    assert (
        tuple(
            column.name
            for column in issued_tokens.c
            if column.name not in ("row_id", "disconnected_at")
        )
        == COLUMNS
    )
    for _ in range(count):
        yield (
            new_participant_id(), "participant", stage(), "eu-central-1", user(), key_id, key_arn,
            "bench", "local", now, expiry(now), name,
        )  # fmt: skip


def add_bans(database_url: str, stage_arn: str, count: int) -> None:
    """Ban `count` users, whom nobody asks for, from a stage; services read it within a second."""
    asyncio.run(_add_bans(database_url, stage_arn, count))


async def _add_bans(database_url: str, stage_arn: str, count: int) -> None:
    engine = open_engine(database_url)
    transactions = open_transactions(engine)
    await transactions.run("ban", partial(_ban, stage_arn=stage_arn, count=count))
    await transactions.aclose()
    await engine.dispose()


def _ban(connection: Connection, *, stage_arn: str, count: int) -> None:
    columns = (
        "ban_id", "version", "kind", "stage_arn", "user_id", "until", "reason", "created_at",
    )  # fmt: skip
    # Readers ask for what comes after a version, so no two bans have the same.
    raised = update(feeds).where(feeds.c.name == FEED).values(version=feeds.c.version + count)
    last = connection.execute(raised.returning(feeds.c.version)).scalar_one()
    now = time.time()
    rows = [
        (
            new_participant_id(), version, "user_on_stage", stage_arn, f"banned-{version}",
            now + 86_400, "", now,
        )
        for version in range(last - count + 1, last + 1)
    ]  # fmt: skip
    insert_rows(connection, bans, columns, rows)
