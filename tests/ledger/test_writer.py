"""The ledger's writer: what it answers, what it refuses, and what a fault of the database costs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.ledger.support import NOW, STAGE, make, row
from tokensvc.errors import LedgerBusyError, StoreUnavailableError
from tokensvc.ledger import Claim, Ledger, idempotency_ref
from tokensvc.ledger.company import MOMENT_SECONDS
from tokensvc.ledger.writer import (
    ANSWERS_IN_A_ROW,
    BULK_ROWS,
    BULK_ROWS_IN_COMPANY,
    BULK_ROWS_PER_COMMIT,
    FEW_ROWS,
    GATHER_SECONDS,
    MAX_RECORD_SECONDS,
)
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions
from tokensvc.tokens.limits import MAX_CONNECTION_TTL_SECONDS


async def test_what_arrives_during_a_commit_is_the_next_commit(transactions, age):
    writer = make(transactions, age)
    writer.start()
    transactions.open.clear()
    first = asyncio.create_task(writer.record([row()]))
    await transactions.begun.wait()
    others = [asyncio.create_task(writer.record([row()])) for _ in range(50)]
    await asyncio.sleep(0)
    assert writer.waiting_rows == 50
    transactions.open.set()
    await asyncio.gather(first, *others)
    assert transactions.operations == 2
    assert writer.counts() == {"committed": 51, "commits": 2, "refused": 0, "lost": 0}
    await writer.aclose()


async def test_who_comes_turn_by_turn_shares_a_commit_though_nobody_waits_long(transactions, age):
    writer = make(transactions, age)
    writer.start()

    async def after(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await writer.record([row()])

    await asyncio.gather(*(after(turns) for turns in range(10)))
    assert writer.counts()["commits"] == 1

    async def late(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        age.seconds += GATHER_SECONDS / 4
        await writer.record([row()])

    await asyncio.gather(*(late(turns) for turns in range(12)))
    assert writer.counts()["commits"] > 2
    await writer.aclose()


async def test_a_commit_takes_no_more_rows_than_its_bound_and_no_request_is_split(
    transactions, age
):
    writer = make(transactions, age, max_rows_per_commit=10)
    waiting = [asyncio.create_task(writer.record([row()] * 4)) for _ in range(5)]
    big = asyncio.create_task(writer.record([row()] * 30))
    await asyncio.sleep(0)
    writer.start()
    await asyncio.gather(*waiting, big)
    # Two of the small ones each time, and the big one beside the first.
    assert transactions.operations == 3
    await writer.aclose()


@pytest.mark.parametrize(
    ("somebody_was_here", "piece"), [(True, BULK_ROWS_IN_COMPANY), (False, BULK_ROWS)]
)
async def test_a_large_batch_is_recorded_in_pieces_beside_those_who_come_one_by_one(
    transactions, age, somebody_was_here, piece
):
    writer = make(transactions, age)
    requests = [[row()], [row() for _ in range(1000)]]
    if not somebody_was_here:
        requests.reverse()
    waiting = [asyncio.create_task(writer.record(rows)) for rows in requests]
    await asyncio.sleep(0)
    one, batch = waiting if somebody_was_here else reversed(waiting)
    assert writer.waiting_rows == 1001
    transactions.open.clear()
    writer.start()
    await transactions.begun.wait()
    transactions.open.set()
    assert await one is None
    assert writer.counts()["committed"] <= 1 + 2 * piece
    assert not batch.done()
    assert await batch is None
    commits = 1000 // piece
    assert writer.counts() == {"committed": 1001, "commits": commits, "refused": 0, "lost": 0}
    await writer.aclose()


async def test_batches_among_themselves_share_large_commits(transactions, age):
    writer = make(transactions, age)
    batches = [asyncio.create_task(writer.record([row()] * 100)) for _ in range(10)]
    await asyncio.sleep(0)
    writer.start()
    await asyncio.gather(*batches)
    assert writer.counts()["commits"] == 1000 // BULK_ROWS_PER_COMMIT
    await writer.aclose()


async def test_it_is_known_who_waits_and_who_was_here_a_moment_ago(transactions, age):
    writer = make(transactions, age)
    company = writer.company
    age.seconds = 100.0
    writer.start()
    await writer.record([row()] * (FEW_ROWS + 1))
    assert not company.is_waiting
    assert not company.was_here
    transactions.open.clear()
    transactions.begun.clear()
    one = asyncio.create_task(writer.record([row()]))
    await transactions.begun.wait()
    assert company.is_waiting
    assert company.was_here
    transactions.open.set()
    await one
    assert not company.is_waiting
    assert company.was_here
    age.seconds += 2 * MOMENT_SECONDS
    assert not company.was_here
    await writer.aclose()


async def test_a_batch_of_which_one_piece_fails_fails_once_all_are_known(transactions, age):
    writer = make(transactions, age)
    rows = [row() for _ in range(1000)]
    batch = asyncio.create_task(writer.record(rows))
    await asyncio.sleep(0)
    transactions.fault, transactions.faulty = StoreUnavailableError("the disk is full"), {2}
    writer.start()
    with pytest.raises(StoreUnavailableError, match="disk is full"):
        await batch
    assert writer.waiting_rows == 0
    assert writer.counts()["refused"] == BULK_ROWS_PER_COMMIT
    assert writer.counts()["committed"] == 1000 - BULK_ROWS_PER_COMMIT
    await writer.aclose()


async def test_a_batch_whose_request_is_gone_is_not_recorded(transactions, age):
    writer = make(transactions, age)
    rows = [row() for _ in range(1000)]
    batch = asyncio.create_task(writer.record(rows))
    await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    writer.start()
    await writer.record([row()])
    await writer.aclose()
    assert writer.counts()["committed"] == 1


async def test_durable_waits_for_the_commit_and_relaxed_does_not(transactions, age):
    transactions.open.clear()
    durable = make(transactions, age)
    durable.start()
    waits = asyncio.create_task(durable.record([row()]))
    await transactions.begun.wait()
    assert not waits.done()
    relaxed = make(transactions, age, durability="relaxed")
    relaxed.start()
    assert await relaxed.record([row()]) is None
    claim = Claim(idempotency_ref("c", "r", "k", b""), "{}", NOW + 1)
    claimed = asyncio.create_task(relaxed.record([row()], claim))
    await asyncio.sleep(0)
    assert not claimed.done()
    transactions.open.set()
    await asyncio.gather(waits, claimed)
    await durable.aclose()
    await relaxed.aclose()


async def test_a_full_queue_refuses_with_a_time_to_come_back(transactions, age):
    writer = make(transactions, age, max_waiting_rows=3)
    held = [asyncio.create_task(writer.record([row()] * 2)) for _ in range(1)]
    await asyncio.sleep(0)
    with pytest.raises(LedgerBusyError) as refused:
        await writer.record([row()] * 2)
    assert refused.value.retry_after == 1.0
    writer.start()
    await asyncio.gather(*held)
    await writer.record([row()] * 5)  # larger than the queue, but alone in it
    await writer.aclose()


@pytest.mark.parametrize("fault", [StoreUnavailableError("full"), RuntimeError("unforeseen")])
async def test_a_failed_commit_fails_exactly_those_who_wait_for_it(transactions, age, fault):
    writer = make(transactions, age)
    writer.start()
    transactions.fault = fault
    failed = [asyncio.create_task(writer.record([row()])) for _ in range(3)]
    results = await asyncio.gather(*failed, return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailableError] * 3
    assert len({id(result) for result in results}) == 3
    transactions.fault = None
    await writer.record([row()])
    assert writer.counts() == {"committed": 1, "commits": 1, "refused": 3, "lost": 0}
    await writer.aclose()


async def test_relaxed_rows_that_a_failed_commit_loses_are_counted(transactions, age):
    writer = make(transactions, age, durability="relaxed")
    transactions.fault = StoreUnavailableError("full")
    await writer.record([row(), row()])
    writer.start()
    await writer.aclose()
    assert writer.counts()["lost"] == 2


async def test_a_cancelled_request_is_left_out_and_harms_nobody(transactions, age):
    writer = make(transactions, age)
    cancelled = asyncio.create_task(writer.record([row()] * 9))
    stays = asyncio.create_task(writer.record([row()]))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    writer.start()
    await stays
    assert writer.counts()["committed"] == 1
    assert writer.waiting_rows == 0
    transactions.open.clear()
    transactions.begun.clear()
    under_way = asyncio.create_task(writer.record([row()]))
    await transactions.begun.wait()
    under_way.cancel()
    transactions.open.set()
    await writer.record([row()])
    await writer.aclose()


async def test_what_waited_too_long_is_refused_though_it_may_be_committed(transactions, age):
    writer = make(transactions, age)
    queued = asyncio.create_task(writer.record([row()]))
    await asyncio.sleep(0)
    age.seconds = MAX_RECORD_SECONDS + 1
    writer.start()
    with pytest.raises(StoreUnavailableError):
        await queued
    assert transactions.operations == 0
    transactions.open.clear()
    slow = asyncio.create_task(writer.record([row()]))
    await transactions.begun.wait()
    age.seconds += MAX_RECORD_SECONDS + 1
    transactions.open.set()
    with pytest.raises(StoreUnavailableError):
        await slow
    await writer.aclose()


class Turns:
    """A waiter that notes in which turn of the event loop it was told, and what."""

    def __init__(self) -> None:
        self.now = 0
        self.told: list[tuple[int, str]] = []

    def done(self) -> bool:
        return False

    def set_result(self, _: str | None) -> None:
        self.told.append((self.now, "recorded"))

    def set_exception(self, error: Exception) -> None:
        self.told.append((self.now, type(error).__name__))

    async def count(self) -> None:
        while True:
            self.now += 1
            await asyncio.sleep(0)


@pytest.mark.parametrize("outcome", ["recorded", "failed", "too late"])
async def test_others_run_while_many_are_told(transactions, age, outcome):
    writer = make(transactions, age)
    turns = Turns()
    count = 3 * ANSWERS_IN_A_ROW + 1
    for _ in range(count):
        writer.record_for(turns, row())
    if outcome == "failed":
        transactions.fault = StoreUnavailableError("full")
    elif outcome == "too late":
        age.seconds = MAX_RECORD_SECONDS + 1
    counting = asyncio.create_task(turns.count())
    writer.start()
    await writer.aclose()
    counting.cancel()
    assert len(turns.told) == count
    told = "recorded" if outcome == "recorded" else "StoreUnavailableError"
    assert {what for _, what in turns.told} == {told}
    in_turn = Counter(turn for turn, _ in turns.told)
    assert max(in_turn.values()) == ANSWERS_IN_A_ROW
    assert len(in_turn) == 4
    assert writer.waiting_rows == 0


async def test_at_shutdown_what_is_queued_is_committed_and_what_comes_is_refused(transactions, age):
    writer = make(transactions, age, max_rows_per_commit=2)
    writer.start()
    queued = [asyncio.create_task(writer.record([row()])) for _ in range(7)]
    await asyncio.sleep(0)
    await writer.aclose()
    assert await asyncio.gather(*queued) == [None] * 7
    with pytest.raises(StoreUnavailableError):
        await writer.record([row()])


async def test_a_writer_that_never_started_refuses_at_shutdown(transactions, age):
    writer = make(transactions, age)
    queued = asyncio.create_task(writer.record([row()]))
    await asyncio.sleep(0)
    await writer.aclose()
    with pytest.raises(StoreUnavailableError):
        await queued


# --- faults of a real database ----------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(f"sqlite+aiosqlite:///{path}")
    yield engine
    await engine.dispose()


@pytest.fixture
async def real(engine: AsyncEngine) -> AsyncIterator[Any]:
    transactions = open_transactions(engine)
    yield transactions
    await transactions.aclose()


async def test_a_full_disk_refuses_clearly_and_what_was_answered_stays(engine, real, age):
    writer = make(real, age)
    writer.start()
    await writer.record([row("before")])

    def fill(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await real.run("fill the disk", fill)
    with pytest.raises(StoreUnavailableError, match="full"):
        await writer.record([row() for _ in range(1000)])
    await real.run(
        "free the disk",
        lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1000000"),
    )
    await writer.record([row("after")])
    found = (await Ledger(engine).living(NOW)).tokens
    assert [token.token_id for token in found] == ["before", "after"]
    await writer.aclose()


async def test_a_locked_database_refuses_clearly_and_is_used_again_when_free(
    path, engine, real, age
):
    writer = make(real, age)
    writer.start()
    await real.run(
        "be impatient", lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout = 1")
    )
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        await writer.record([row()])
    other.execute("ROLLBACK")
    other.close()
    await writer.record([row("after")])
    assert await Ledger(engine).count_living(NOW) == 1
    await writer.aclose()


async def test_a_read_only_database_refuses_clearly(engine, real, age):
    writer = make(real, age)
    writer.start()
    await real.run(
        "write no more", lambda connection: connection.exec_driver_sql("PRAGMA query_only = ON")
    )
    with pytest.raises(StoreUnavailableError, match="read-only"):
        await writer.record([row()])
    await writer.aclose()


async def test_a_damaged_file_refuses_clearly(path, engine, real, age):
    writer = make(real, age)
    writer.start()
    await writer.record([row()])
    await real.run("settle", lambda connection: connection.exec_driver_sql("PRAGMA cache_size = 0"))
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await writer.record([row() for _ in range(10)])
    await writer.aclose()


async def test_damaged_rows_hide_no_other_of_any_page(engine, real, age):
    writer = make(real, age)
    writer.start()
    await writer.record([row(f"p{n}", exp=NOW + 1 + n) for n in range(10)])
    for damage in ("exp = 'garbage' WHERE token_id IN ('p3', 'p4')", "iat = '?'", "kind = '?'"):
        await real.run(
            "damage",
            lambda connection, damage=damage: connection.exec_driver_sql(
                f"UPDATE issued_tokens SET {damage}"
            ),
        )
    ledger = Ledger(engine)
    for limit in range(1, 12):
        seen: list[str] = []
        cursor = None
        while True:
            page = await ledger.living(NOW, stage_arn=STAGE, limit=limit, cursor=cursor)
            seen += [token.token_id for token in page.tokens]
            cursor = page.next_cursor
            if cursor is None:
                assert page.tokens[-1].exp == NOW + MAX_CONNECTION_TTL_SECONDS
                break
        whole = [f"p{n}" for n in (0, 1, 2, 5, 6, 7, 8, 9)]
        assert seen == [*whole, "p3", "p4"][: len(seen)], "those without an expiry come last"
        assert len(seen) >= len(whole) + min(limit, 2)
    (token, *_) = (await ledger.living(NOW, stage_arn=STAGE)).tokens
    assert (token.kind, token.iat, token.exp) == ("participant", 0, NOW + 1)
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await ledger.latest("p0")
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await ledger.latest_expiry("k1")
    assert await ledger.last_expiries(["p3", "p5"]) == {"p5": NOW + 6}
    await writer.aclose()


async def test_no_row_holds_more_than_the_ledger_says(engine, real, age):
    """A token is never stored: there is no column that could hold one."""
    writer = make(real, age)
    writer.start()
    await writer.record([row("p1")])
    async with engine.connect() as connection:
        stored = (await connection.exec_driver_sql("SELECT * FROM issued_tokens")).mappings().one()
    assert set(stored) == {
        "row_id", "token_id", "kind", "stage_arn", "region", "user_id", "key_id", "key_arn",
        "caller_id", "issuer", "iat", "exp", "endpoints_id", "disconnected_at",
    }  # fmt: skip
    await writer.aclose()
