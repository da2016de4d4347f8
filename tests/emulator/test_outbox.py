"""A client that does not take what it is sent holds up nobody and is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tokensvc.emulator.outbox import Outbox


class SlowSocket:
    """A client's socket that takes frames only while it is told to."""

    def __init__(self) -> None:
        self.taking = asyncio.Event()
        self.sending = asyncio.Event()
        self.taken: list[str] = []
        self.closed: tuple[int, str] | None = None

    async def iter_data(self, mode: str) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield mode

    async def send_text(self, text: str) -> None:
        self.sending.set()
        await self.taking.wait()
        self.taken.append(text)

    async def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)


async def test_a_client_with_too_many_frames_waiting_is_dropped():
    outbox, socket = Outbox(), SlowSocket()
    for number in range(1_000):
        outbox.send({"n": number})
    socket.taking.set()
    await outbox.serve(socket, lambda _: None)  # type: ignore[arg-type]

    assert socket.closed == (1013, "too slow")
    assert len(socket.taken) <= 64


async def test_a_kick_gets_through_to_a_client_with_a_full_queue():
    outbox, socket = Outbox(), SlowSocket()
    for number in range(64):
        outbox.send({"n": number})
    outbox.close(1008, "kicked")
    outbox.send({"n": "late"})
    socket.taking.set()
    await outbox.serve(socket, lambda _: None)  # type: ignore[arg-type]

    assert socket.closed == (1008, "kicked")
    assert len(socket.taken) == 63


async def test_a_client_that_takes_nothing_is_given_up():
    outbox, socket = Outbox(send_timeout_seconds=0), SlowSocket()
    outbox.send({"n": 1})
    await outbox.serve(socket, lambda _: None)  # type: ignore[arg-type]

    assert socket.sending.is_set()
    assert socket.taken == []


async def test_a_fault_in_a_receiver_is_not_swallowed():
    class Talking(SlowSocket):
        async def iter_data(self, mode: str) -> AsyncIterator[str]:
            yield "hello"

    def broken(text: str) -> None:
        raise LookupError(text)

    with pytest.raises(ExceptionGroup) as caught:
        await Outbox().serve(Talking(), broken)  # type: ignore[arg-type]
    assert caught.group_contains(LookupError, match="hello")
