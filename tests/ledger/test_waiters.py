"""Rows recorded for those who are told without a task of their own: `LedgerWriter.record_for`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from tests.ledger.support import NOW, Age, Transactions, make, row
from tokensvc.errors import (
    IdempotencyConflictError,
    LedgerBusyError,
    StoreRefusedError,
    StoreUnavailableError,
)
from tokensvc.ledger import Claim, LedgerRow, LedgerWriter, idempotency_ref
from tokensvc.ledger.idempotency import StoredAnswer
from tokensvc.ledger.writer import MAX_RECORD_SECONDS, SHED_AFTER_SECONDS
from tokensvc.store.inserts import Insertion

BAD = "refused"


class Waiting:
    """Notes what it is told."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.told: list[object] = []
        self.claim: Claim | None = None

    def done(self) -> bool:
        return self.gone

    def set_result(self, result: str | None) -> None:
        self.told.append(result)

    def set_exception(self, error: Exception) -> None:
        self.told.append(error)


class Picky(Transactions):
    """A database that takes no row of one user."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[object] = []

    async def run(self, operation: str, work: Callable[[Connection], Any]) -> Any:
        assert isinstance(work, Insertion)
        if any(BAD in values for values in work.rows):
            self.operations += 1
            raise StoreRefusedError("A value cannot be stored.")
        await super().run(operation, work)
        self.stored += [values[0] for values in work.rows]


def told_once(waiting: Waiting, kind: type[Exception]) -> Exception:
    (error,) = waiting.told
    assert type(error) is kind
    return error


async def test_durable_tells_after_the_commit_and_not_before(transactions: Transactions, age: Age):
    writer = make(transactions, age)
    writer.start()
    transactions.open.clear()
    waiting = Waiting()
    writer.record_for(waiting, row())
    assert writer.waiting_rows == 1
    await transactions.begun.wait()
    assert waiting.told == []
    transactions.open.set()
    await writer.aclose()
    assert waiting.told == [None]
    assert writer.counts() == {"committed": 1, "commits": 1, "refused": 0, "lost": 0}


async def test_relaxed_tells_at_once_and_the_row_follows(transactions: Transactions, age: Age):
    writer = make(transactions, age, durability="relaxed")
    waiting = Waiting()
    writer.record_for(waiting, row())
    assert waiting.told == [None]
    assert writer.waiting_rows == 1
    writer.start()
    await writer.aclose()
    assert waiting.told == [None]
    assert writer.counts()["committed"] == 1


@pytest.mark.parametrize("durability", ["durable", "relaxed"])
async def test_with_a_claim_everybody_waits_for_the_commit(
    transactions: Transactions, age: Age, durability: str
):
    writer = make(transactions, age, durability=durability)
    claims = [Claim(idempotency_ref("c", "r", key, b""), "{}", NOW + 1) for key in ("new", "late")]
    late = StoredAnswer(claims[1].ref.request_sha256, '"before"')
    other = idempotency_ref("c", "r", "late", b"other")
    transactions.late = {claims[1]: late, Claim(other, "{}", NOW + 1): late}
    waiting = [Waiting() for _ in range(3)]
    for one, claim in zip(waiting, transactions.late.keys() | {claims[0]}, strict=True):
        writer.record_for(one, row(), claim)
        one.claim = claim
    assert [one.told for one in waiting] == [[], [], []]
    writer.start()
    await writer.aclose()
    told = {one.claim: one.told for one in waiting}
    assert told[claims[0]] == [None]
    assert told[claims[1]] == ['"before"']
    told_once(next(one for one in waiting if one.claim.ref == other), IdempotencyConflictError)


async def test_a_relaxed_row_that_is_lost_is_counted_and_told_to_nobody(
    transactions: Transactions, age: Age
):
    writer = make(transactions, age, durability="relaxed")
    waiting = Waiting()
    writer.record_for(waiting, row())
    transactions.fault = StoreUnavailableError("full")
    writer.start()
    await writer.aclose()
    assert waiting.told == [None]
    assert writer.counts() == {"committed": 0, "commits": 0, "refused": 0, "lost": 1}


async def _full(writer: LedgerWriter, _: Age) -> None:
    for _number in range(2):
        writer.record_for(Waiting(), row())


async def _shedding(writer: LedgerWriter, age: Age) -> None:
    writer.record_for(Waiting(), row())
    age.seconds += SHED_AFTER_SECONDS + 0.1


async def _closing(writer: LedgerWriter, _: Age) -> None:
    await writer.aclose()


@pytest.mark.parametrize("durability", ["durable", "relaxed"])
@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (_full, LedgerBusyError),
        (_shedding, LedgerBusyError),
        (_closing, StoreUnavailableError),
    ],
)
async def test_what_is_not_taken_is_raised_and_not_told(
    transactions: Transactions, age: Age, happens: Any, error: type[Exception], durability: str
):
    writer = make(transactions, age, durability=durability, max_waiting_rows=2)
    await happens(writer, age)
    before = writer.waiting_rows
    waiting = Waiting()
    with pytest.raises(error) as raised:
        writer.record_for(waiting, row())
    assert raised.value.retry_after == 1.0  # type: ignore[attr-defined]
    assert waiting.told == []
    assert writer.waiting_rows == before
    writer.start()
    await writer.aclose()
    assert waiting.told == []


@pytest.mark.parametrize("at", [0, 3, 6])
async def test_a_row_that_is_refused_fails_alone(age: Age, at: int):
    transactions = Picky()
    writer = make(transactions, age)
    # Their endpoints are stored, so that what is refused is the rows.
    good = [row(f"p{number}", endpoints=None) for number in range(7)]
    rows: list[LedgerRow] = [*good[:at], row(BAD, endpoints=None), *good[at:]]
    waiting = {one.token_id: Waiting() for one in rows}
    for one in rows:
        writer.record_for(waiting[one.token_id], one)
    writer.start()
    await writer.aclose()
    told_once(waiting.pop(BAD), StoreRefusedError)
    assert [one.told for one in waiting.values()] == [[None]] * 7
    assert sorted(map(str, transactions.stored)) == [f"p{number}" for number in range(7)]
    assert writer.counts()["refused"] == 1
    assert writer.counts()["committed"] == 7


@pytest.mark.parametrize("fault", [StoreUnavailableError("full"), RuntimeError("unforeseen")])
async def test_a_failed_commit_tells_each_an_error_of_its_own(
    transactions: Transactions, age: Age, fault: Exception
):
    writer = make(transactions, age)
    transactions.fault = fault
    waiting = [Waiting() for _ in range(3)]
    for one in waiting:
        writer.record_for(one, row())
    writer.start()
    await writer.aclose()
    assert len({id(told_once(one, StoreUnavailableError)) for one in waiting}) == 3


async def test_who_waited_too_long_in_the_queue_is_told_and_not_recorded(
    transactions: Transactions, age: Age
):
    writer = make(transactions, age)
    late = Waiting()
    writer.record_for(late, row())
    age.seconds = MAX_RECORD_SECONDS + 1
    writer.start()
    await writer.aclose()
    told_once(late, StoreUnavailableError)
    assert transactions.operations == 0


@pytest.mark.parametrize(("seconds", "in_time"), [(0.0, True), (0.5, False)])
async def test_who_waited_too_long_for_the_commit_is_refused_whatever_it_did(
    transactions: Transactions, age: Age, seconds: float, in_time: bool
):
    writer = make(transactions, age)
    writer.start()
    transactions.open.clear()
    waiting = Waiting()
    writer.record_for(waiting, row())
    await transactions.begun.wait()
    age.seconds = MAX_RECORD_SECONDS + seconds
    transactions.open.set()
    await writer.aclose()
    assert transactions.operations == 1
    if in_time:
        assert waiting.told == [None]
    else:
        told_once(waiting, StoreUnavailableError)


async def test_who_waits_no_more_is_told_nothing(transactions: Transactions, age: Age):
    writer = make(transactions, age)
    writer.start()
    gone, stays = Waiting(gone=True), Waiting()
    writer.record_for(gone, row())
    writer.record_for(stays, row())
    await writer.aclose()
    assert gone.told == []
    assert stays.told == [None]
    assert writer.counts()["committed"] == 1


async def test_at_the_end_all_who_are_queued_are_told(transactions: Transactions, age: Age):
    writer = make(transactions, age, max_rows_per_commit=2)
    writer.start()
    waiting = [Waiting() for _ in range(7)]
    for one in waiting:
        writer.record_for(one, row())
    await writer.aclose()
    assert [one.told for one in waiting] == [[None]] * 7


async def test_a_writer_that_never_started_refuses_them_at_the_end(
    transactions: Transactions, age: Age
):
    writer = make(transactions, age)
    waiting = Waiting()
    writer.record_for(waiting, row())
    await writer.aclose()
    told_once(waiting, StoreUnavailableError)


async def test_those_who_wait_in_a_task_and_those_without_share_a_commit(
    transactions: Transactions, age: Age
):
    writer = make(transactions, age)
    order: list[str] = []

    class Noting(Waiting):
        def set_result(self, result: str | None) -> None:
            super().set_result(result)
            order.append("without")

    async def record() -> None:
        await writer.record([row()])
        order.append("task")

    task = asyncio.create_task(record())
    await asyncio.sleep(0)
    writer.record_for(Noting(), row())
    writer.start()
    await task
    await writer.aclose()
    assert sorted(order) == ["task", "without"]
    assert writer.counts()["commits"] == 1
