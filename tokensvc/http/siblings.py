"""Word of a ban among the workers of one `serve`, which are one replica to whoever asks it.

Each worker has a list of bans of its own, and reads twice a second what changed. A ban has to hold in the
replica that took it before it is answered, so the worker that stored it tells the others, over sockets
that their parent made, and waits until each has read it. One that does not answer, since it has died or
is just being started, holds the answer up for `WAIT_SECONDS` at most: by then it has read the ban by itself.

What is said is only how far the bans have got. A message that is lost costs that wait and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import structlog

from tokensvc.errors import TokenServiceError

__all__ = ["WAIT_SECONDS", "BanReader", "Siblings", "Wires"]

WAIT_SECONDS: Final = 1.0
MESSAGES_AT_ONCE: Final = 256

_MESSAGE: Final = struct.Struct("!cHq")
"""What is said, by which worker, and the version of the bans that it is about."""
_READ_THIS: Final = b"?"
_HAVE_READ: Final = b"!"

_log = structlog.get_logger(__name__)


class BanReader(Protocol):
    """A worker's list of bans."""

    @property
    def version(self) -> int:
        """Up to which version the bans are known."""
        ...

    async def refresh(self) -> None:
        """Read what changed; raises StoreUnavailableError."""
        ...


class Wires:
    """One socket for each worker, to be made before them and handed to each; may be pickled for that.

    They stay open in the parent, so that a worker that takes the place of a dead one has its socket.
    """

    def __init__(self, count: int) -> None:
        """Make the sockets of `count` workers."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        for end in (end for pair in pairs for end in pair):
            end.setblocking(False)
        self.inboxes: Sequence[socket.socket] = [inbox for inbox, _ in pairs]
        self.outboxes: Sequence[socket.socket] = [outbox for _, outbox in pairs]

    def close(self) -> None:
        """Close all of them, in this process."""
        for end in (*self.inboxes, *self.outboxes):
            end.close()


class Siblings:
    """The other workers, as worker number `own` sees them; belongs to one event loop."""

    def __init__(self, wires: Wires, own: int) -> None:
        self._own = own
        self._inbox = wires.inboxes[own]
        self._outboxes = {
            number: outbox for number, outbox in enumerate(wires.outboxes) if number != own
        }
        self._told: list[_Told] = []
        self._asked: dict[int, int] = {}
        self._answering: asyncio.Task[None] | None = None

    async def tell(self, version: int) -> None:
        """Return when every sibling has read the bans up to `version`, or after WAIT_SECONDS."""
        told = _Told(version, set(self._outboxes), asyncio.get_running_loop().create_future())
        self._told.append(told)
        try:
            for number in self._outboxes:
                self._say(number, _READ_THIS, version)
            async with asyncio.timeout(WAIT_SECONDS):
                await told.done
        except TimeoutError:
            _log.warning("workers_not_told", workers=sorted(told.missing), version=version)
        finally:
            self._told.remove(told)

    @asynccontextmanager
    async def answering(self, bans: BanReader) -> AsyncIterator[None]:
        """Inside, read the bans whenever a sibling says so, and tell it."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._inbox, self._hear, bans)
        try:
            yield
        finally:
            loop.remove_reader(self._inbox)
            if self._answering is not None:
                self._answering.cancel()
                await asyncio.wait([self._answering])

    def _hear(self, bans: BanReader) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                said, number, version = _MESSAGE.unpack(self._inbox.recv(_MESSAGE.size))
            except BlockingIOError:
                break
            if said == _READ_THIS:
                self._asked[number] = max(version, self._asked.get(number, version))
            else:
                for told in self._told:
                    told.has_read(number, version)
        if self._asked and self._answering is None:
            self._answering = asyncio.create_task(self._answer(bans), name="bans of siblings")

    async def _answer(self, bans: BanReader) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                try:
                    if bans.version < max(asked.values()):
                        await bans.refresh()
                except Exception as error:  # noqa: BLE001 - not answered, and read at the next poll
                    foreseen = isinstance(error, TokenServiceError)
                    _log.warning(
                        "bans_not_refreshed",
                        reason=str(error),
                        exc_info=None if foreseen else error,
                    )
                else:
                    for number in asked:
                        self._say(number, _HAVE_READ, bans.version)
        finally:
            self._answering = None

    def _say(self, number: int, what: bytes, version: int) -> None:
        outbox = self._outboxes.get(number)
        if outbox is not None:
            # A full socket is that of a worker which does not run.
            with contextlib.suppress(BlockingIOError):
                outbox.send(_MESSAGE.pack(what, self._own, version))


class _Told:
    def __init__(self, version: int, missing: set[int], done: asyncio.Future[None]) -> None:
        self._version = version
        self.missing = missing
        self.done = done

    def has_read(self, number: int, version: int) -> None:
        if version >= self._version:
            self.missing.discard(number)
        if not self.missing and not self.done.done():
            self.done.set_result(None)
