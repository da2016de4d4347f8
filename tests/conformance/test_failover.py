"""The database is killed, restarted, and comes back: nothing answered is lost, and all goes on by itself.

The server waits for its disk here, as it does in production, so that what a kill -9 leaves is what a
crash of the machine's programs leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest

from tests.callers.support import Clock
from tests.ledger.support import NOW, row
from tests.postgres import PASSWORD, USER, PostgresServer
from tokensvc.errors import StoreUnavailableError, TokenServiceError
from tokensvc.ledger import Claim, IdempotencyStore, Ledger, LedgerWriter, idempotency_ref
from tokensvc.revocation import Ban, BanList, BanStore
from tokensvc.store import DatabaseLimits, open_engine
from tokensvc.store.leases import LeaseStore
from tokensvc.store.notify import ChangeListener
from tokensvc.store.postgresql import connector
from tokensvc.store.transactions import open_transactions

LIMITS = DatabaseLimits(pool_size=3, connect_timeout=1.0, statement_timeout=5.0)
BOUND_SECONDS = 30.0
"""Far more than a refusal takes, far less than for ever: on a busy machine as well."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(durable=True)
    yield server
    server.close()


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    if not server.running:
        server.start()
    url = server.database()
    yield url
    if not server.running:
        server.start()
    server.release(url)


@dataclass
class Replica:
    """A process's writer and ledger, with the tokens that it has answered."""

    url: str
    answered: list[str] = field(default_factory=list)
    refused: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self.engine = open_engine(self.url, LIMITS)
        self.transactions = open_transactions(self.engine)
        self.writer = LedgerWriter(self.transactions, clock=lambda: NOW)
        self.writer.start()
        self.ledger = Ledger(self.engine)

    async def mint(self) -> bool:
        """Record a token; note it as answered, or its request as refused."""
        started = time.monotonic()
        made = row()
        try:
            await self.writer.record([made])
        except TokenServiceError:
            self.refused += 1
            return False
        else:
            self.answered.append(made.token_id)
            return True
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)

    async def recovered(self) -> None:
        """Mint until one is answered, as callers do that try again."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not await self.mint():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self.writer.aclose()
        await self.engine.dispose()


@pytest.fixture
async def replicas(url: str) -> AsyncIterator[list[Replica]]:
    replicas = [Replica(url) for _ in range(3)]
    yield replicas
    for replica in replicas:
        await replica.close()


class Load:
    """Mints on every replica, some at a time, until it is told to end."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self._ending = False

    async def __aenter__(self) -> Load:
        self._tasks = [
            asyncio.create_task(self._mint(replica)) for replica in self._replicas for _ in range(8)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _mint(self, replica: Replica) -> None:
        while not self._ending:
            if not await replica.mint():
                await asyncio.sleep(0.02)

    async def answers(self, more: int) -> None:
        """Wait until every replica has answered so many more."""
        wanted = [len(replica.answered) + more for replica in self._replicas]
        async with asyncio.timeout(BOUND_SECONDS):
            while any(len(r.answered) < n for r, n in zip(self._replicas, wanted, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def refusals(self) -> None:
        """Wait until every replica has refused something."""
        wanted = [replica.refused + 1 for replica in self._replicas]
        async with asyncio.timeout(BOUND_SECONDS):
            while any(r.refused < n for r, n in zip(self._replicas, wanted, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def stored(replica: Replica) -> set[str]:
    found: set[str] = set()
    cursor = None
    while True:
        page = await replica.ledger.living(NOW, cursor=cursor, limit=1000)
        found |= {token.token_id for token in page.tokens}
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("way", ["kill", "stop"])
async def test_a_server_that_ends_during_writes_loses_nothing_answered(server, replicas, way):
    async with Load(replicas) as load:
        for _ in range(2):
            await load.answers(20)
            await asyncio.to_thread(getattr(server, way))
            await load.refusals()
            await asyncio.to_thread(server.start)
            await load.answers(20)
    answered = {token for replica in replicas for token in replica.answered}
    assert answered <= await stored(replicas[0])
    assert max(replica.slowest for replica in replicas) < BOUND_SECONDS


async def test_while_the_server_is_down_every_request_fails_and_says_when_to_come_back(
    server, replicas
):
    replica = replicas[0]
    await replica.recovered()
    await asyncio.to_thread(server.kill)
    claims = IdempotencyStore(replica.engine)
    ref = idempotency_ref("backend", "POST /v1/tokens", "key", b"{}")
    leases = LeaseStore(replica.engine, replica.transactions)
    for _ in range(2):
        for work in (
            replica.writer.record([row()]),
            replica.writer.record([row()], Claim(ref, "{}", NOW + 60)),
            replica.ledger.latest("p1"),
            claims.find(ref, NOW),
            leases.take("work", "holder", seconds=10, now=NOW),
        ):
            with pytest.raises(StoreUnavailableError) as caught:
                async with asyncio.timeout(BOUND_SECONDS):
                    await work
            assert caught.value.retry_after is not None
    await asyncio.to_thread(server.start)
    await replica.recovered()


async def test_of_an_idempotent_request_that_is_cut_off_one_outcome_stands(server, replicas):
    """Tried again until it is answered, on any replica: one token, whichever try has made it."""
    refs = [idempotency_ref("backend", "mint", f"key{n}", b"{}") for n in range(12)]
    made: dict[int, set[str]] = {n: set() for n in range(12)}

    async def ask(number: int) -> None:
        attempt = 0
        while True:
            replica = replicas[attempt % len(replicas)]
            attempt += 1
            name = f"p{number}-{attempt}"
            try:
                standing = await replica.writer.record(
                    [row(name)], Claim(refs[number], name, NOW + 60)
                )
            except TokenServiceError:
                await asyncio.sleep(0.02)
            else:
                made[number].add(standing or name)
                if attempt > 40:
                    return

    asking = asyncio.gather(*(ask(number) for number in range(12)))
    await asyncio.sleep(0)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(BOUND_SECONDS * 2):
        await asking
    assert all(len(names) == 1 for names in made.values())
    recorded = await stored(replicas[0])
    for number, names in made.items():
        assert {name for name in recorded if name.startswith(f"p{number}-")} == names


async def test_a_ban_that_was_answered_is_known_to_all_after_a_crash(server, replicas):
    clock = Clock(NOW)

    def store(replica: Replica) -> BanStore:
        return BanStore(replica.engine, replica.transactions, clock)

    ban = Ban("b1", "user", None, "alice", None, None, "", None, NOW)
    added = await store(replicas[0]).add(ban)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    for replica in replicas:
        bans = BanList(store(replica), clock)
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                try:
                    await bans.refresh()
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0.02)
        assert bans.check(None, "alice", None, NOW) == added


async def test_the_feed_of_changes_comes_back_by_itself(server, url):
    clock = Clock(NOW)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))

    listener = ChangeListener(connector(url, LIMITS), clock=clock, sleep=sleep, luck=lambda: 0.5)
    task = asyncio.create_task(listener.run())

    async def until_lost(lost: bool) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            while (listener.lost_for() > 0) is not lost:
                clock.now += 1
                await asyncio.sleep(0.01)

    await until_lost(lost=False)
    await asyncio.to_thread(server.kill)
    await until_lost(lost=True)
    await asyncio.to_thread(server.start)
    await until_lost(lost=False)
    task.cancel()
    await asyncio.wait([task])


async def test_when_a_standby_takes_over_nothing_answered_is_lost_and_it_is_found(server):
    """The primary waits for its standby (`synchronous_standby_names`), and then it is gone for good."""
    server.sql("SELECT 1") if server.running else server.start()
    primary_url = server.database()
    name = primary_url.rpartition("/")[2]
    standby = await asyncio.to_thread(lambda: PostgresServer(durable=True, primary=server))
    try:
        server.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        server.sql("SELECT pg_reload_conf()")
        async with asyncio.timeout(BOUND_SECONDS):
            while server.sql("SELECT sync_state FROM pg_stat_replication") != "sync":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        hosts = f"127.0.0.1:{server.port},127.0.0.1:{standby.port}"
        url = f"postgresql://{USER}:{PASSWORD}@{hosts}/{name}?target_session_attrs=read-write"
        replicas = [Replica(url) for _ in range(2)]
        async with Load(replicas) as load:
            await load.answers(20)
            await asyncio.to_thread(server.kill)
            await load.refusals()
            await asyncio.to_thread(standby.promote)
            await load.answers(20)
        answered = {token for replica in replicas for token in replica.answered}
        assert answered <= await stored(replicas[0])
        for replica in replicas:
            await replica.close()
    finally:
        standby.close()
        if server.running:
            await asyncio.to_thread(server.kill)
        # Without this the primary would wait for its standby for ever.
        configuration = server.data / "postgresql.auto.conf"
        configuration.write_text("")
        await asyncio.to_thread(server.start)
        server.release(primary_url)
