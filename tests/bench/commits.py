"""`make bench-commits`: what the ledger's commits cost, by their rows, here and in the database server.

It answers how many rows a second one database takes (`docs/scaling.md`). The database is in a temporary
folder; PostgreSQL waits for the disk as in production (`fsync`, `synchronous_commit`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench.filling import stage, user
from tests.postgres import PostgresServer
from tokensvc.ledger import LedgerRow, LedgerWriter
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions
from tokensvc.tokens.claims import StageEndpoints
from tokensvc.tokens.ids import new_participant_id

SIZES = (1, 8, 64, 512)
ROUNDS = 5
ROUND_SECONDS = 1.5
ENDPOINTS = StageEndpoints("wss://global.events.live-video.net", "https://a.whip.live-video.net")
TICKS = os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def a_row(now: int) -> LedgerRow:
    return LedgerRow(
        new_participant_id(), "participant", stage(), "eu-central-1", user(), "k1",
        "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca11",
        "backend", "local", now, now + 3600, ENDPOINTS,
    )  # fmt: skip


def server_seconds(folder: Path) -> float:
    """Return the processor time of all processes whose data is in `folder`, ended ones included."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                fields = (process / "stat").read_text("ascii").rpartition(")")[2].split()
                total += sum(int(field) for field in fields[11:15])
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it ended meanwhile, or is none of ours
    return total / TICKS


@contextmanager
def databases() -> Iterator[tuple[str, PostgresServer]]:
    """Give the URL of a SQLite database, and a PostgreSQL."""
    server = PostgresServer(durable=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tokensvc-commits-") as folder:
            sqlite = f"sqlite+aiosqlite:///{Path(folder) / 'tokensvc.db'}"
            upgrade(sqlite)
            yield sqlite, server
    finally:
        server.close()


async def measure(name: str, url: str, folder: Path) -> int:
    """Print a line for each size of commit; return how many rows were recorded."""
    engine = open_engine(url)
    transactions = open_transactions(engine)
    writer = LedgerWriter(transactions, clock=time.time)
    writer.start()
    for size in SIZES:
        found: list[tuple[float, float, float]] = []
        for _ in range(ROUNDS):
            rows = [[a_row(int(time.time())) for _ in range(size)] for _ in range(8)]
            spent, served = time.process_time(), server_seconds(folder)
            began, count = time.perf_counter(), 0
            while (took := time.perf_counter() - began) < ROUND_SECONDS:
                await writer.record(rows[count % len(rows)])
                count += 1
            found.append((
                took / count * 1e3,
                (time.process_time() - spent) / (count * size) * 1e6,
                (server_seconds(folder) - served) / (count * size) * 1e6,
            ))  # fmt: skip
        commit, here, there = (median(column) for column in zip(*found, strict=True))
        rate = size / commit * 1e3
        say(f"{name:12}{size:6}{commit:12.2f}{rate:14,.0f}{here:14.1f}{there:14.1f}")
    total = writer.counts()["committed"]
    await writer.aclose()
    await transactions.aclose()
    await engine.dispose()
    return total


def size_of(server: PostgresServer, url: str) -> tuple[int, int]:
    """Return the bytes of the ledger with its indexes, and those written to the log since the start."""
    name = url.rpartition("/")[2]
    tables = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('issued_tokens')"
    logged = "SELECT wal_bytes FROM pg_stat_wal"
    return int(server.sql(tables, database=name)), int(server.sql(logged))


def main() -> int:
    """Print a line for each engine and size of commit."""
    argparse.ArgumentParser(prog="make bench-commits", description=__doc__).parse_args()
    say(
        f"{'':12}{'rows':>6}{'ms a commit':>12}{'rows/s':>14}{'us a row here':>14}{'in server':>14}"
    )
    with databases() as (sqlite, server):
        rows = asyncio.run(measure("SQLite", sqlite, Path("/no/server")))
        database = Path(sqlite.partition(":///")[2])
        say(f"SQLite: {database.stat().st_size / rows:,.0f} bytes a row in the file")
        url = server.database()
        stored, logged = size_of(server, url)
        rows = asyncio.run(measure("PostgreSQL", url, server.folder))
        then, logged_then = size_of(server, url)
        say(
            f"PostgreSQL: {(then - stored) / rows:,.0f} bytes a row in the table and its indexes,"
            f" {(logged_then - logged) / rows:,.0f} in the log"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
