"""What uvicorn's protocol and its cycles, one for each request, are given in place of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["CycleTransport", "ShortCycle"]


class CycleTransport:
    """A connection as one of uvicorn's cycles sees it, which closes it after the last answer."""

    __slots__ = ("_end", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, end: Callable[[], None]) -> None:
        self._end = end
        self.is_closing = transport.is_closing
        self.write = transport.write

    def close(self) -> None:
        """End the connection in the way that what is left of the request needs."""
        self._end()


class ShortCycle:
    """What uvicorn's protocol wants to know of a request that it does not answer itself.

    `message_event`, which it sets when a connection ends, is this object: the body is there already,
    and nobody waits for it.
    """

    __slots__ = ("disconnected", "keep_alive", "response_complete")

    def __init__(self) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False

    @property
    def message_event(self) -> ShortCycle:
        """Stand in for the event that says that there is more of the body."""
        return self

    def set(self) -> None:
        """Do nothing."""
