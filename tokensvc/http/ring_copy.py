"""This process's copy of the key ring: read from the store again and again, replaced as a whole.

The mint reads it without waiting. A copy that could not be renewed for too long signs nothing more: a
key may have been deleted meanwhile, and a token that cannot join must not be handed out.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from tokensvc.keyring.record import KeyRecord, RingState
from tokensvc.keyring.view import RingView

__all__ = ["RingCopy"]

_log = structlog.get_logger(__name__)


class _Rings(Protocol):
    async def load_all(self) -> tuple[RingState, ...]: ...


class RingCopy:
    """The last view that was read; `view` may be called at any time, `refresh` by one after another."""

    def __init__(
        self,
        rings: _Rings,
        load_view: Callable[[], Awaitable[RingView]],
        clock: Callable[[], float],
        *,
        max_age: float,
    ) -> None:
        """Read versions from `rings`, and with `load_view` what changed.

        `clock` gives Unix seconds; `max_age` is in seconds (`TOKENSVC_RING_MAX_AGE`).
        """
        self._max_age = max_age
        self._rings = rings
        self._load_view = load_view
        self._clock = clock
        self._view = RingView([], [])
        self._records: tuple[KeyRecord, ...] = ()
        self._versions: dict[str, int] | None = None
        self._read_at = -math.inf
        self._lock = asyncio.Lock()

    def view(self) -> RingView:
        """Return the ring; one without signing keys where the copy is too old."""
        if self._clock() - self._read_at > self._max_age:
            return self._expired()
        return self._view

    def age(self) -> float:
        """Return the seconds since the copy was last found to be what is stored."""
        return max(0.0, self._clock() - self._read_at)

    async def refresh(self, *, reload: bool = False) -> None:
        """Take over what is stored now; with `reload`, also where its version is known already.

        Raises StoreUnavailableError, and the copy stays as it was.
        """
        async with self._lock:
            asked_at = self._clock()
            rings = await self._rings.load_all()
            versions = {ring.region: ring.version for ring in rings}
            if reload or versions != self._versions:
                # Opening private halves takes work, so it is done only for a ring that changed. A
                # change between the two reads has another version and is seen in the next round.
                self._view = await self._load_view()
                self._versions = versions
                self._records = tuple(key for ring in rings for key in ring.keys)
                _log.info("key_ring_loaded", signing=self._view.regions, versions=versions)
            self._read_at = asked_at

    def _expired(self) -> RingView:
        reason = f"The key ring could not be read for more than {self._max_age:g} seconds."
        return RingView([], self._records, dict.fromkeys(self._view.regions, reason))
