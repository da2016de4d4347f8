"""Changes are heard from other replicas; who has lost the feed knows it, and polls go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from tests.callers.support import Clock
from tests.keyring.support import NOW, REGION, RING
from tests.postgres import PASSWORD
from tests.store.support import url_of
from tokensvc.callers import SqlCallerStore
from tokensvc.errors import StoreUnavailableError
from tokensvc.keyring import SqlRingStore
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState
from tokensvc.store.notify import HEARTBEAT_SECONDS, ChangeListener, NoChanges, open_changes
from tokensvc.store.postgresql import DatabaseLimits, connector

LONG = 1e6
"""Seconds of a poll that a test would not live to see."""


class Waits:
    """`sleep` under a test's control: each call waits until the test lets its length pass."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, asyncio.Event]] = []
        self.lengths: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.lengths.append(seconds)
        if seconds < 0.1:
            return  # what a follower gathers
        one = (seconds, asyncio.Event())
        self.waiting.append(one)
        try:
            await one[1].wait()
        finally:
            self.waiting.remove(one)

    def let(self, fits: Callable[[float], bool]) -> None:
        """End the waits whose length fits."""
        for seconds, event in self.waiting:
            if fits(seconds):
                event.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what it waits for is in the database
            await asyncio.sleep(0.005)


@asynccontextmanager
async def listening(listener: ChangeListener) -> AsyncIterator[None]:
    task = asyncio.create_task(listener.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def listener_on(url: str, clock: Clock, waits: Waits) -> ChangeListener:
    return ChangeListener(
        connector(url, DatabaseLimits()), clock=clock, sleep=waits, luck=lambda: 0.5
    )


async def started(sleeping: asyncio.Task[None], waits: Waits) -> None:
    await until(lambda: any(seconds == LONG for seconds, _ in waits.waiting))
    assert not sleeping.done()


async def change_callers(engine: AsyncEngine) -> None:
    await SqlCallerStore(engine, Clock()).add("ana", ["tokens:mint"])


async def change_ring(engine: AsyncEngine) -> None:
    key = KeyRecord(
        key_id="k1",
        region=REGION,
        phase=KeyPhase.GENERATED,
        name="name",
        public_key_pem="pem",
        sealed_private_key=b"sealed",
        created_at=NOW,
    )
    await SqlRingStore(engine, RING, Clock()).save(RingState(REGION, 0), (key,))


async def change_bans(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE feeds SET version = version + 1 WHERE name = 'bans'"))


@pytest.mark.parametrize(
    ("feed", "change", "other"),
    [
        ("callers", change_callers, "bans"),
        ("rings", change_ring, "callers"),
        ("bans", change_bans, "rings"),
    ],
)
async def test_a_change_ends_the_sleep_of_who_follows_it_and_of_nobody_else(
    url, engine, feed, change, other
):
    clock, waits = Clock(), Waits()
    listener = listener_on(url, clock, waits)
    sleep, other_sleep = listener.sleep_for(feed), listener.sleep_for(other)
    async with listening(listener):
        await until(lambda: listener.lost_for() == 0 and listener._lost_since is None)
        for once in (sleep, other_sleep):
            await once(LONG)  # at the start everybody polls once
        follower = asyncio.create_task(sleep(LONG))
        bystander = asyncio.create_task(other_sleep(LONG))
        await started(follower, waits)
        await change(engine)
        await asyncio.wait_for(follower, 20)
        assert not bystander.done()
        bystander.cancel()


async def test_a_change_during_a_poll_causes_another_one(url, engine):
    waits = Waits()
    listener = listener_on(url, Clock(), waits)
    sleep = listener.sleep_for("callers")
    async with listening(listener):
        await until(lambda: listener._lost_since is None)
        await sleep(LONG)
        await change_callers(engine)  # as while a poll is under way: nobody sleeps
        await asyncio.wait_for(sleep(LONG), 20)


async def test_what_is_rolled_back_is_not_heard(url, engine):
    waits = Waits()
    listener = listener_on(url, Clock(), waits)
    callers, bans = listener.sleep_for("callers"), listener.sleep_for("bans")
    async with listening(listener):
        await until(lambda: listener._lost_since is None)
        await callers(LONG)
        await bans(LONG)
        follower = asyncio.create_task(callers(LONG))
        await started(follower, waits)
        async with engine.connect() as connection:
            await connection.execute(text("UPDATE feeds SET version = 9 WHERE name = 'callers'"))
            await connection.rollback()
        await change_bans(engine)
        await asyncio.wait_for(bans(LONG), 20)  # notifications come in the order of commits
        assert not follower.done()
        follower.cancel()


async def test_a_lost_feed_is_known_and_found_again_and_then_everybody_polls(url, postgres):
    clock, waits = Clock(), Waits()
    listener = listener_on(url, clock, waits)
    sleep = listener.sleep_for("bans")
    with capture_logs() as logs:
        async with listening(listener):
            await until(lambda: listener._lost_since is None)
            await sleep(LONG)
            follower = asyncio.create_task(sleep(LONG))
            await started(follower, waits)
            postgres.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{url.rpartition('/')[2]}'"
            )
            waits.let(lambda seconds: seconds == HEARTBEAT_SECONDS)
            await until(lambda: listener._lost_since is not None)
            clock.now += 7
            assert listener.lost_for() == 7
            assert not follower.done()
            await until(lambda: any(s not in (LONG, HEARTBEAT_SECONDS) for s, _ in waits.waiting))
            waits.let(lambda seconds: seconds not in (LONG, HEARTBEAT_SECONDS))
            await asyncio.wait_for(follower, 20)
            assert listener.lost_for() == 0
    assert [log["event"] for log in logs] == [
        "change_feed_listening",
        "change_feed_lost",
        "change_feed_listening",
    ]
    assert PASSWORD not in str(logs)


async def test_the_pauses_grow_to_a_bound_and_the_fault_is_logged_once():
    waits, attempts = Waits(), 0

    async def connect() -> asyncpg.Connection:
        nonlocal attempts
        attempts += 1
        raise StoreUnavailableError("The database refuses connections; it may be down.")

    clock = Clock()
    listener = ChangeListener(connect, clock=clock, sleep=waits, luck=lambda: 0.5)
    with capture_logs() as logs:
        async with listening(listener):
            for number in range(1, 11):
                await until(lambda number=number: attempts == number and bool(waits.waiting))
                waits.let(lambda _: True)
                await until(lambda number=number: attempts > number)
            clock.now += 3
            assert listener.lost_for() == 3
    assert waits.lengths[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [log["event"] for log in logs] == ["change_feed_lost"]


async def test_a_fault_that_nobody_foresaw_does_not_end_the_listening():
    waits, attempts = Waits(), 0

    async def connect() -> asyncpg.Connection:
        nonlocal attempts
        attempts += 1
        raise ZeroDivisionError("a bug of the driver's")

    listener = ChangeListener(connect, clock=Clock(), sleep=waits, luck=lambda: 0.5)
    with capture_logs() as logs:
        async with listening(listener):
            await until(lambda: bool(waits.waiting))
            waits.let(lambda _: True)
            await until(lambda: attempts == 2)
    assert [log["event"] for log in logs] == ["change_feed_lost"]
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)


async def test_a_poll_comes_in_its_time_where_nothing_is_heard():
    waits = Waits()
    listener = ChangeListener(None, clock=Clock(), sleep=waits, luck=lambda: 0.5)  # type: ignore[arg-type]
    follower = asyncio.create_task(listener.sleep_for("bans")(0.5))
    await until(lambda: bool(waits.waiting))
    waits.let(lambda seconds: seconds == 0.5)
    await asyncio.wait_for(follower, 20)


async def test_a_follower_that_is_cancelled_leaves_no_sleep_behind():
    waits = Waits()
    listener = ChangeListener(None, clock=Clock(), sleep=waits, luck=lambda: 0.5)  # type: ignore[arg-type]
    follower = asyncio.create_task(listener.sleep_for("bans")(0.5))
    await until(lambda: bool(waits.waiting))
    follower.cancel()
    await until(lambda: not waits.waiting)
    assert (await asyncio.gather(follower, return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )


async def test_on_sqlite_polls_are_all_there_is(tmp_path):
    waits = Waits()
    changes = open_changes(url_of(tmp_path / "a.db"), clock=Clock(), sleep=waits)
    assert isinstance(changes, NoChanges)
    await changes.run()
    await changes.sleep_for("bans")(0.05)
    assert waits.lengths == [0.05]
    assert changes.lost_for() == 0
