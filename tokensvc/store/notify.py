"""Word of a change in another process, so that a replica need not wait for its next poll.

A trigger of the database (migration 0005) notifies the channel `tokensvc` of every change of a feed
(`callers`, `bans`) and of a ring (`rings`), in the transaction of the change. A replica listens on a
connection of its own. What it hears only ends the wait for the next poll: the poll is what reads, and it
goes on where nothing is heard. So a lost notification costs the length of a poll and nothing else, and
how old a view is, and when it is too old, stays the follower's own business.

The connection is tested every few seconds, since one that a network has cut says nothing. When it is
lost, it is opened anew, with pauses that grow up to 5 seconds, for ever; then everybody polls once, as
changes may have been missed. On SQLite there is nothing to listen to: its polls are cheap, and local.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

import structlog

from tokensvc.errors import TokenServiceError
from tokensvc.store.postgresql import DatabaseLimits, connector, is_postgresql

__all__ = ["CHANNEL", "ChangeListener", "Changes", "NoChanges", "open_changes"]

CHANNEL: Final = "tokensvc"
HEARTBEAT_SECONDS: Final = 5.0
FIRST_DELAY_SECONDS: Final = 0.1
LAST_DELAY_SECONDS: Final = 5.0
GATHER_SECONDS: Final = 0.02
"""Between two polls of a follower at least, however many changes there are."""

Sleep: TypeAlias = Callable[[float], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Changes(Protocol):
    """Where followers learn of changes; `callers`, `bans` and `rings` are the feeds there are."""

    def sleep_for(self, feed: str) -> Sleep:
        """Return a `sleep` for one follower, which ends early when the feed changes."""
        ...

    def lost_for(self) -> float:
        """Return for how many seconds nothing could be heard; 0 while all is well."""
        ...

    async def run(self) -> None:
        """Listen until cancelled."""
        ...


def open_changes(
    url: str,
    limits: DatabaseLimits | None = None,
    *,
    clock: Callable[[], float],
    sleep: Sleep = asyncio.sleep,
) -> Changes:
    """Return what tells of changes of the database at `url`; nothing connects yet.

    `clock` gives seconds of a clock that nobody sets. Raises ConfigurationError as `open_engine` does.
    """
    if not is_postgresql(url):
        return NoChanges(sleep)
    return ChangeListener(
        connector(url, limits or DatabaseLimits()), clock=clock, sleep=sleep, luck=random.random
    )


class NoChanges:
    """Tells nothing: each poll comes in its own time."""

    def __init__(self, sleep: Sleep) -> None:
        self._sleep = sleep

    def sleep_for(self, feed: str) -> Sleep:  # noqa: ARG002 - see Changes
        """Return the plain `sleep`."""
        return self._sleep

    def lost_for(self) -> float:
        """Return 0: there is nothing to lose."""
        return 0.0

    async def run(self) -> None:
        """Return at once."""


class ChangeListener:
    """Listens on a connection of its own; belongs to one event loop.

    `connect` opens an asyncpg connection, or raises a TokenServiceError. `luck` gives numbers from 0 to
    1, so that replicas do not all come back at once.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        *,
        clock: Callable[[], float],
        sleep: Sleep,
        luck: Callable[[], float],
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._sleep = sleep
        self._luck = luck
        self._events: dict[str, list[asyncio.Event]] = {}
        self._lost_since: float | None = clock()

    def sleep_for(self, feed: str) -> Sleep:
        """Return a `sleep` that ends early when `feed` changes, or may have changed."""
        changed = asyncio.Event()
        self._events.setdefault(feed, []).append(changed)

        async def sleep(seconds: float) -> None:
            waits = [
                asyncio.ensure_future(self._sleep(seconds)),
                asyncio.ensure_future(changed.wait()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if changed.is_set():
                await self._sleep(min(seconds, GATHER_SECONDS))
                # Before the poll: a change after it began must cause another one.
                changed.clear()

        return sleep

    def lost_for(self) -> float:
        """Return for how many seconds nothing could be heard; 0 while all is well."""
        return 0.0 if self._lost_since is None else max(0.0, self._clock() - self._lost_since)

    async def run(self) -> None:
        """Listen until cancelled; faults are logged, once each time, and outlived."""
        delay = FIRST_DELAY_SECONDS
        reported = False
        while True:
            try:
                await self._listen()
            except Exception as e:  # noqa: BLE001 - a listener that has ended would say that all is well
                if self._lost_since is None:
                    # It had been listening, so this is a new fault.
                    self._lost_since = self._clock()
                    delay, reported = FIRST_DELAY_SECONDS, False
                if not reported:
                    _log.warning(
                        "change_feed_lost",
                        error=type(e).__name__,
                        reason=_reason(e),
                        exc_info=None if isinstance(e, _foreseen()) else e,
                    )
                    reported = True
            await self._sleep(delay * (0.5 + self._luck()))
            delay = min(delay * 2, LAST_DELAY_SECONDS)

    async def _listen(self) -> None:
        """Listen until the connection is lost, which raises."""
        connection = await self._connect()
        try:
            await connection.add_listener(CHANNEL, self._heard)
            lost_for, self._lost_since = self.lost_for(), None
            _log.info("change_feed_listening", lost_seconds=round(lost_for, 1))
            for feed in self._events:
                self._wake(feed)
            while True:
                await self._sleep(HEARTBEAT_SECONDS)
                await connection.execute("SELECT 1", timeout=HEARTBEAT_SECONDS)
        finally:
            # At once and without a word: it is lost, or the process ends.
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, _channel: str, feed: str) -> None:
        self._wake(feed)

    def _wake(self, feed: str) -> None:
        for event in self._events.get(feed, ()):
            event.set()


def _reason(error: Exception) -> str:
    # PostgreSQL's own messages may repeat what the URL holds.
    return error.detail if isinstance(error, TokenServiceError) else ""


def _foreseen() -> tuple[type[Exception], ...]:
    """Return what ends a connection; asked only where there was one, and the driver is loaded."""
    import asyncpg

    return (
        TokenServiceError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    )
