"""Group commit: requests wait together for one commit that carries all their rows.

While one commit is under way, what arrives gathers, and is the next one's batch. So a lone mint waits
for one commit and a thousand at once share it. One writer per process; the database orders writers.

`durable` (the default): `record` returns when the rows are on disk. `relaxed`: it returns at once, and
a crash loses what has not been committed: what is queued and the commit under way, which takes some
10 ms on an idle disk and never more than MAX_RECORD_SECONDS; rows are then missing from every answer
about living tokens. Rows with a claim on an idempotency key wait in either mode.

Those who record a few rows go first, and batches in pieces beside them: a commit of a thousand rows
would be ten milliseconds for all who ask for one token meanwhile.

Nothing grows without bound: a full queue refuses with LedgerBusyError, and rows older than
MAX_RECORD_SECONDS are refused whether or not they were committed: once a key has stopped signing
everywhere, and that time has passed, no token of it can be handed out that the ledger does not hold, and
its latest expiry is final (`keyring/drain.py`).
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal, TypeAlias

import msgspec
import structlog
from cachetools import LRUCache
from sqlalchemy import Connection

from tokensvc.errors import (
    LedgerBusyError,
    StoreRefusedError,
    StoreUnavailableError,
    TokenServiceError,
)
from tokensvc.ledger.company import Company
from tokensvc.ledger.idempotency import Claim, StoredAnswer, claim_all
from tokensvc.ledger.row import LedgerRow, endpoints_id
from tokensvc.ledger.waiting import Waiter
from tokensvc.store.inserts import Insertion, insert_absent
from tokensvc.store.tables import issued_tokens, stage_endpoints
from tokensvc.store.transactions import Transactions
from tokensvc.tokens.claims import StageEndpoints

__all__ = [
    "COLUMNS",
    "GATHER_SECONDS",
    "MAX_RECORD_SECONDS",
    "SHED_AFTER_SECONDS",
    "Durability",
    "LedgerWriter",
    "Waiter",
]

Durability: TypeAlias = Literal["durable", "relaxed"]

MAX_RECORD_SECONDS: Final = 15.0
"""No `record` succeeds later than this after its call; the commit of a row may still come later."""

MAX_WAITING_ROWS: Final = 20_000
MAX_ROWS_PER_COMMIT: Final = 2_000

FEW_ROWS: Final = 16
"""Who records no more than this goes first; the others are large batches, which take longer anyway."""

BULK_ROWS: Final = 100
"""A batch of more is recorded in pieces of this, unless one claim is for all of it."""

BULK_ROWS_PER_COMMIT: Final = 500
BULK_ROWS_IN_COMPANY: Final = 25
"""Of batches, and of a piece of one, where somebody records a few rows: a longer commit is one that they
would wait for."""

GATHER_SECONDS: Final = 0.005
"""A commit waits no longer than this for more rows; as much as it takes itself on a good disk."""

ANSWERS_IN_A_ROW: Final = 64
"""Of those that one commit was for; each may be a whole request that is answered. Then others run."""

RETRY_AFTER_SECONDS: Final = 1.0
SHED_AFTER_SECONDS: Final = 2.0
"""While the oldest row has waited longer, no more are taken: they would only wait longer still."""

COLUMNS: Final = (*LedgerRow._fields[:-1], "endpoints_id")
ALIKE: Final = ("kind", "region", "key_id", "key_arn", "issuer")
"""What is the same in all rows of a commit, but for a few other keys."""

_log = structlog.get_logger(__name__)


class _Entry(msgspec.Struct, eq=False):
    rows: Sequence[LedgerRow]
    claim: Claim | None
    answer: Waiter | None
    """None where nobody waits."""
    queued_at: float

    def refuse(self, error: Exception) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class LedgerWriter:
    """The one writer of a process; belongs to one event loop.

    `clock` gives Unix seconds; `monotonic`, seconds of a clock that never steps, for ages.
    """

    def __init__(
        self,
        transactions: Transactions,
        *,
        clock: Callable[[], float],
        durability: Durability = "durable",
        max_waiting_rows: int = MAX_WAITING_ROWS,
        max_rows_per_commit: int = MAX_ROWS_PER_COMMIT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transactions = transactions
        self._clock = clock
        self._durability = durability
        self._max_waiting = max_waiting_rows
        self._max_rows = max_rows_per_commit
        self._monotonic = monotonic
        self.company = Company(monotonic)
        self._queue: deque[_Entry] = deque()
        self._bulk: deque[_Entry] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._stored_endpoints: LRUCache[str, bool] = LRUCache(maxsize=10_000)
        self._under_way_since: float | None = None
        self._failed_at: float | None = None
        self._counts = {"committed": 0, "commits": 0, "refused": 0, "lost": 0}

    @property
    def waiting_rows(self) -> int:
        """Rows that no commit has taken yet."""
        return self._waiting

    def counts(self) -> Mapping[str, int]:
        """Return totals: rows `committed`, `refused` (their requests failed) and `lost`; `commits`."""
        return dict(self._counts)

    def oldest_wait(self) -> float:
        """Return for how many seconds the oldest row that is not committed has waited; 0 for none."""
        now = self._monotonic()
        return max(0.0, now - self._oldest(now))

    def _oldest(self, now: float) -> float:
        """Return since when the oldest row that is not committed has waited; `now` for none."""
        oldest = now if self._under_way_since is None else self._under_way_since
        for queue in (self._queue, self._bulk):
            if queue and queue[0].queued_at < oldest:
                oldest = queue[0].queued_at
        return oldest

    def failed_ago(self) -> float | None:
        """Return the seconds since the database last failed a commit; None after one that succeeded."""
        return None if self._failed_at is None else max(0.0, self._monotonic() - self._failed_at)

    def has_ended(self) -> bool:
        """Tell whether it has ended by a fault of its own: nothing is recorded any more."""
        return self._task is not None and self._task.done() and not self._closing

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="ledger-writer")

    async def aclose(self) -> None:
        """Commit what is queued, then stop; `record` refuses from now on."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        for queue in (self._queue, self._bulk):
            for entry in queue:
                entry.refuse(_stopped())
            queue.clear()

    async def record(self, rows: Sequence[LedgerRow], claim: Claim | None = None) -> str | None:
        """Record what is about to be handed out.

        Returns None, after the commit (`durable`) or at once (`relaxed`). With a `claim` whose key
        another request has taken meanwhile, nothing of `rows` is stored, and that request's result is
        returned: answer that instead.

        Raises LedgerBusyError (`retry_after` seconds), StoreUnavailableError, StoreRefusedError and
        IdempotencyConflictError; then no token must be handed out. Of more than
        BULK_ROWS_IN_COMPANY without a claim some may be recorded then; otherwise none is.
        """
        count = len(rows)
        now = self._room_for(count)
        size = BULK_ROWS_IN_COMPANY if self.company.was_here else BULK_ROWS
        if count > size and claim is None:
            pieces = [rows[start : start + size] for start in range(0, count, size)]
            await _all_of([self._promise(piece, None, now) for piece in pieces])
            return None
        answer = self._promise(rows, claim, now)
        return None if answer is None else await answer

    def record_for(self, waiter: Waiter, row: LedgerRow, claim: Claim | None = None) -> None:
        """Record one row as `record` does, and tell `waiter`: without a task that waits.

        Where nobody has to wait (`relaxed`), it is told before this returns. Raises what `record` raises
        at once, LedgerBusyError and StoreUnavailableError; then it is not told.
        """
        now = self._room_for(1)
        if self._durability == "durable" or claim is not None:
            self._enter((row,), claim, waiter, now)
        else:
            self._enter((row,), None, None, now)
            waiter.set_result(None)

    def _room_for(self, count: int) -> float:
        """Return the time; raises where as many rows cannot wait for a commit now."""
        if self._closing:
            raise _stopped()
        now = self._monotonic()
        if now - self._oldest(now) > SHED_AFTER_SECONDS or (
            self._waiting + count > self._max_waiting and self._waiting
        ):
            raise LedgerBusyError(
                "Too many tokens wait to be recorded.",
                retry_after=RETRY_AFTER_SECONDS,
                waiting=self._waiting,
            )
        return now

    def _promise(
        self, rows: Sequence[LedgerRow], claim: Claim | None, now: float
    ) -> asyncio.Future[str | None] | None:
        waits = self._durability == "durable" or claim is not None
        answer = asyncio.get_running_loop().create_future() if waits else None
        self._enter(rows, claim, answer, now)
        return answer

    def _enter(
        self, rows: Sequence[LedgerRow], claim: Claim | None, answer: Waiter | None, now: float
    ) -> None:
        count = len(rows)
        if count <= FEW_ROWS:
            queue = self._queue
            self.company.came(now)
        else:
            queue = self._bulk
        queue.append(_Entry(rows, claim, answer, now))
        self._waiting += count
        if not self._wake.is_set():
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._gather()
            batch = self._take()
            if batch:
                self._under_way_since = min(entry.queued_at for entry in batch)
                try:
                    await self._commit(batch)
                finally:
                    self._under_way_since = None
            if not self._queue:
                self.company.is_served()
            if batch:
                continue
            if self._queue or self._bulk:
                await asyncio.sleep(0)  # so many were too late that others are to run first
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _gather(self) -> None:
        """Let requests that are about to record their rows do so, as long as every turn brings some.

        A commit costs as much as signing some tokens, so one for all of them is better for each. Where
        little is asked for this is one turn of the event loop.
        """
        until = self._monotonic() + GATHER_SECONDS
        seen = -1
        while seen < self._waiting < self._max_rows:
            seen = self._waiting
            await asyncio.sleep(0)
            if self._monotonic() >= until:
                return

    def _take(self) -> list[_Entry]:
        # Batches have their part of every commit, however many come one by one.
        few = self._take_from(self._queue, self._max_rows)
        left = self._max_rows - _count(few)
        most = BULK_ROWS_IN_COMPANY if self.company.was_here else BULK_ROWS_PER_COMMIT
        return few + self._take_from(self._bulk, min(left, most))

    def _take_from(self, queue: deque[_Entry], at_most: int) -> list[_Entry]:
        """Take entries of `at_most` rows together, or one of more; none where many were too late."""
        batch: list[_Entry] = []
        count = refused = 0
        last = self._monotonic() - MAX_RECORD_SECONDS
        while queue and (not batch or count + len(queue[0].rows) <= at_most):
            entry = queue.popleft()
            self._waiting -= len(entry.rows)
            if entry.answer is not None and entry.answer.done():
                continue  # its request was cancelled, so its tokens go nowhere
            if entry.queued_at < last and self._too_late(entry):
                refused += 1
                if refused == ANSWERS_IN_A_ROW:
                    break
                continue
            batch.append(entry)
            count += len(entry.rows)
        return batch

    async def _commit(self, batch: list[_Entry]) -> None:
        """Commit a batch; where one value is at fault, halve until it stands alone."""
        try:
            late = await self._store(batch)
        except StoreRefusedError as error:
            if len(batch) == 1:
                await self._fail(batch, error)
                return
            middle = len(batch) // 2
            await self._commit(batch[:middle])
            await self._commit(batch[middle:])
        except TokenServiceError as error:
            self._failed_at = self._monotonic()
            await self._fail(batch, error)
        except Exception as error:  # noqa: BLE001 - the writer must outlive whatever one batch holds
            _log.exception("ledger_commit_failed", rows=_count(batch))
            self._failed_at = self._monotonic()
            failure = StoreUnavailableError("The ledger could not be written.")
            failure.__cause__ = error
            await self._fail(batch, failure)
        else:
            self._failed_at = None
            self._counts["commits"] += 1
            last = self._monotonic() - MAX_RECORD_SECONDS
            for number, entry in enumerate(batch, start=1):
                self._answer(entry, late, last)
                if number % ANSWERS_IN_A_ROW == 0:
                    await asyncio.sleep(0)
                    last = self._monotonic() - MAX_RECORD_SECONDS

    async def _store(self, batch: list[_Entry]) -> dict[Claim, StoredAnswer]:
        names: dict[StageEndpoints, str] = {}
        rows = [[_values(row, names) for row in entry.rows] for entry in batch]
        new_endpoints = {
            name: pair for pair, name in names.items() if name not in self._stored_endpoints
        }
        claims = [entry.claim for entry in batch if entry.claim is not None]
        if not claims and not new_endpoints:
            all_rows = list(chain.from_iterable(rows))
            await self._transactions.run("record tokens", _insertion(all_rows))
            return {}
        now = self._clock()

        def work(connection: Connection) -> dict[Claim, StoredAnswer]:
            late = claim_all(connection, claims, now) if claims else {}
            if new_endpoints:
                insert_absent(connection, stage_endpoints, _endpoint_rows(new_endpoints))
            values = [
                row
                for entry, of_entry in zip(batch, rows, strict=True)
                if entry.claim is None or entry.claim not in late
                for row in of_entry
            ]
            if values:
                _insertion(values)(connection)
            return late

        late = await self._transactions.run("record tokens", work)
        self._stored_endpoints.update(dict.fromkeys(new_endpoints, True))
        return late

    def _answer(self, entry: _Entry, late: Mapping[Claim, StoredAnswer], last: float) -> None:
        """Tell who waits for `entry`, unless it was queued before `last` and so is too late."""
        if entry.claim is not None and entry.claim in late:
            try:
                standing = late[entry.claim].to(entry.claim.ref)
            except TokenServiceError as error:
                entry.refuse(error)
                return
            if entry.answer is not None and not entry.answer.done():
                entry.answer.set_result(standing)
            return
        self._counts["committed"] += len(entry.rows)
        if entry.queued_at < last and self._too_late(entry):
            return
        if entry.answer is not None and not entry.answer.done():
            entry.answer.set_result(None)

    def _too_late(self, entry: _Entry) -> bool:
        if entry.answer is None:
            return False
        entry.refuse(
            StoreUnavailableError(
                "The database did not record the token in time.", retry_after=RETRY_AFTER_SECONDS
            )
        )
        self._counts["refused"] += len(entry.rows)
        return True

    async def _fail(self, batch: Sequence[_Entry], error: TokenServiceError) -> None:
        lost = sum(len(entry.rows) for entry in batch if entry.answer is None)
        self._counts["lost"] += lost
        self._counts["refused"] += _count(batch) - lost
        _log.error(
            "ledger_rows_refused",
            rows=_count(batch),
            lost=lost,
            code=error.code,
            detail=error.detail,
            **error.context,
        )
        for number, entry in enumerate(batch, start=1):
            # Each waiter gets an error of its own: a shared one would gather all their tracebacks.
            entry.refuse(copy.copy(error))
            if number % ANSWERS_IN_A_ROW == 0:
                await asyncio.sleep(0)


async def _all_of(answers: Sequence[asyncio.Future[str | None] | None]) -> None:
    """Wait for the answers to all pieces of a batch; raises the first error, once all are known."""
    awaited = [answer for answer in answers if answer is not None]
    try:
        if awaited:
            await asyncio.wait(awaited)
    except asyncio.CancelledError:
        for answer in awaited:
            answer.cancel()
        raise
    errors = [error for answer in awaited if (error := answer.exception()) is not None]
    if errors:
        raise errors[0]


def _stopped() -> StoreUnavailableError:
    return StoreUnavailableError("The service is shutting down.", retry_after=RETRY_AFTER_SECONDS)


def _count(batch: Sequence[_Entry]) -> int:
    return sum(len(entry.rows) for entry in batch)


def _values(row: LedgerRow, names: dict[StageEndpoints, str]) -> tuple[object, ...]:
    """Return the row as it is stored; `names` gets the names of its endpoints."""
    pair = row.endpoints
    if pair is None:
        return row
    name = names.get(pair)
    if name is None:
        name = names[pair] = endpoints_id(pair)
    return (*row[:-1], name)


def _insertion(rows: Sequence[Sequence[object]]) -> Insertion:
    return Insertion(issued_tokens, COLUMNS, rows, ALIKE)


def _endpoint_rows(endpoints: Mapping[str, StageEndpoints]) -> list[dict[str, object]]:
    return [
        {"endpoints_id": name, "events_url": pair.events, "whip_url": pair.whip}
        for name, pair in endpoints.items()
    ]
