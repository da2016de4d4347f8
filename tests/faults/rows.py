"""The faults of docs/faults.md that can be had in the process of a test, each as it comes about there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.pool.base import _ConnectionFairy

from tests.faults.world import World
from tests.http.held import Held
from tokensvc.errors import StoreUnavailableError
from tokensvc.http.issued_watch import STUCK_SECONDS
from tokensvc.keyring import create_master_key
from tokensvc.keyring.observer import _SETTLED_SECONDS
from tokensvc.revocation.bans import MAX_AGE_SECONDS
from tokensvc.store.transactions import _ThreadTransactions

__all__ = ["ROWS", "Row"]

ALL_CALLS: Final = 1_000_000
HOST: Final = "ivs.test"
WRITES: Final = ("INSERT", "UPDATE", "DELETE")

Inject = Callable[[World, pytest.MonkeyPatch], AbstractAsyncContextManager[None]]


def _nothing(_: object) -> None:
    """Prepare nothing, and damage nothing."""


@dataclass(frozen=True)
class Row:
    """A fault: what the service runs with, what is done before it starts, and how it comes about."""

    inject: Inject
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[pytest.MonkeyPatch], None] = _nothing
    damage: Callable[[Path], None] = _nothing
    cured: bool = True
    """Whether the service is well by itself once the fault is over."""


@contextlib.asynccontextmanager
async def no_fault(world: World, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    await world.let_pass(1)
    yield


@contextlib.asynccontextmanager
async def store_slow(world: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Let commits of tokens last; whoever else writes waits his turn, and it comes."""
    run = _ThreadTransactions.run
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def run_slowly(
        self: _ThreadTransactions, operation: str, work: Callable[..., Any], **how: bool
    ) -> Any:
        if operation == "record tokens":
            waits.set()
            await goes_on.wait()
        return await run(self, operation, work, **how)

    with patch.context() as slow:
        slow.setattr(_ThreadTransactions, "run", run_slowly)
        first = asyncio.create_task(world.ask("mint"))
        await waits.wait()
        await world.let_pass(STUCK_SECONDS + 0.1)
        yield
        goes_on.set()
        # What was taken before is answered, late.
        assert await first == "201"


@contextlib.asynccontextmanager
async def store_hangs(_: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Let the thread that writes never come back from a commit."""
    run = _ThreadTransactions._run
    goes_on = threading.Event()

    def hang(
        self: _ThreadTransactions, operation: str, work: Callable[..., Any], may_be_lost: bool
    ) -> Any:
        goes_on.wait()
        return run(self, operation, work, may_be_lost)

    with patch.context() as stuck:
        stuck.setattr(_ThreadTransactions, "_run", hang)
        # 15 s, which nobody here is going to wait.
        stuck.setattr("tokensvc.store.transactions.MAX_SECONDS", 0.05)
        try:
            yield
        finally:
            goes_on.set()


@contextlib.asynccontextmanager
async def store_locked(world: World, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    held = await asyncio.to_thread(Held, world.service)
    try:
        yield
    finally:
        await asyncio.to_thread(held.release)


def _impatient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("tokensvc.store.engine.LOCK_TIMEOUT_SECONDS", 0.02)


@contextlib.contextmanager
def database_fails(patch: pytest.MonkeyPatch, code: int, *, reads: bool) -> Iterator[None]:
    """Let statements fail as SQLite fails; with `reads` all of them, else those that write."""

    def fail(_cursor: object, statement: str, *_: object) -> None:
        if reads or statement.lstrip()[:6].upper() in WRITES:
            error = sqlite3.OperationalError("as injected")
            error.sqlite_errorcode = code
            raise error

    class Cursor(sqlite3.Cursor):
        """What rows of the ledger are inserted by, where that is all of a commit."""

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            fail(self, statement)
            return super().execute(statement, *values)

    cursor = _ConnectionFairy.cursor

    def cursor_that_fails(self: _ConnectionFairy, *given: Any, **named: Any) -> Any:
        if isinstance(self.dbapi_connection, sqlite3.Connection):
            return cursor(self, Cursor)
        return cursor(self, *given, **named)

    names = ("do_execute", "do_executemany", "do_execute_no_params")
    for name in names:
        event.listen(Engine, name, fail)
    try:
        with patch.context() as failing:
            failing.setattr(_ConnectionFairy, "cursor", cursor_that_fails)
            yield
    finally:
        for name in names:
            event.remove(Engine, name, fail)


@contextlib.asynccontextmanager
async def store_down(world: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    with database_fails(patch, sqlite3.SQLITE_IOERR, reads=True):
        await world.let_pass(MAX_AGE_SECONDS + 1)
        yield


@contextlib.asynccontextmanager
async def store_full(world: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    with database_fails(patch, sqlite3.SQLITE_FULL, reads=False):
        await world.let_pass(1)
        yield


def aws(**rule: Any) -> Inject:
    """Let every call to IVS meet a fault of the emulator's."""

    @contextlib.asynccontextmanager
    async def inject(world: World, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
        post = world.emulator.post_faults
        await asyncio.to_thread(post, {"operation": "*", "count": ALL_CALLS, **rule})
        await world.let_pass(1)
        try:
            yield
        finally:
            await asyncio.to_thread(world.emulator.clear_faults)

    return inject


@contextlib.asynccontextmanager
async def aws_refused(world: World, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    await asyncio.to_thread(world.stop_ivs)
    await world.let_pass(1)
    try:
        yield
    finally:
        await asyncio.to_thread(world.start_ivs)


@contextlib.asynccontextmanager
async def dns_gone(world: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    # What is connected already would go on, so it is cut.
    async with aws(kind="drop_before")(world, patch):
        with patch.context() as gone:
            gone.setattr(socket, "getaddrinfo", _resolver({}))
            yield


def _resolver(known: Mapping[str, str]) -> Callable[..., Any]:
    ask = socket.getaddrinfo

    def resolve(host: Any, *others: Any, **named: Any) -> Any:
        if host == HOST and host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(known.get(host, host), *others, **named)

    return resolve


def _with_a_name(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("NO_PROXY", HOST)
    patch.setattr(socket, "getaddrinfo", _resolver({HOST: "127.0.0.1"}))


@contextlib.asynccontextmanager
async def clock_skewed(world: World, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    await asyncio.to_thread(world.emulator.set_clock, -90.0)
    await world.let_pass(1)
    try:
        yield
    finally:
        await asyncio.to_thread(world.emulator.set_clock, 0.0)


@contextlib.asynccontextmanager
async def ring_stale(world: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    with patch.context() as broken:
        broken.setattr("tokensvc.keyring.sql.SqlRingStore.versions", _no_answer)
        await world.let_pass(world.service.settings.ring_max_age + 1)
        yield


async def _no_answer(*_: object) -> Any:
    raise StoreUnavailableError("The disk that holds the database fails.")


def _lose_master_key(data: Path) -> None:
    path = data / "master.key"
    path.rename(data / "lost.key")
    create_master_key(path)


@contextlib.asynccontextmanager
async def key_deleted(world: World, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    keys = (await world.service.get("/v1/keys")).json()["keys"]
    (active,) = (key["arn"] for key in keys if key["phase"] == "ACTIVE")
    delete = world.emulator.world.delete_public_key
    await asyncio.to_thread(world.emulator.run, lambda: delete(active))
    # A key as young as ours may not be listed yet; the first look after that finds it gone.
    await world.let_pass(_SETTLED_SECONDS + 1)
    yield


@contextlib.asynccontextmanager
async def bans_stale(world: World, patch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    with patch.context() as broken:
        broken.setattr("tokensvc.revocation.ban_store.BanStore.version", _no_answer)
        await world.let_pass(MAX_AGE_SECONDS + 1)
        yield


ROWS: Final[Mapping[str, Row]] = {
    "none": Row(no_fault),
    "store slow": Row(store_slow),
    "store hangs": Row(store_hangs),
    "store locked": Row(store_locked, prepare=_impatient),
    "store down": Row(store_down),
    "store full": Row(store_full),
    "AWS slow": Row(aws(kind="delay", seconds=1.0), {"aws_read_timeout": 0.2}),
    "AWS throttling": Row(aws(kind="throttle")),
    "AWS 5xx": Row(aws(kind="error", code="InternalServerException")),
    "AWS refused": Row(aws_refused),
    "DNS gone": Row(dns_gone, {"host": HOST}, _with_a_name),
    "credentials expired": Row(aws(kind="error", code="ExpiredTokenException")),
    "clock skewed": Row(clock_skewed),
    "ring stale": Row(ring_stale),
    "no key": Row(no_fault, damage=_lose_master_key, cured=False),
    "key deleted outside": Row(key_deleted),
    "ban feed stale": Row(bans_stale),
}
