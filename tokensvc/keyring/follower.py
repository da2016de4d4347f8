"""Keeps this process's view of the ring young, and stops it from signing where it cannot.

The mint reads the view without waiting. A view that could not be renewed for too long signs nothing:
the key may have been deleted meanwhile, and a token that cannot join must not be handed out. That
bound is what `RotationPolicy.settle` counts on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from tokensvc.keyring.view import RingView

__all__ = ["RingFollower", "ViewSource"]

_NEVER: Final = -math.inf

_log = structlog.get_logger(__name__)


class ViewSource(Protocol):
    """Where views come from: `RingManager`."""

    async def versions(self) -> Mapping[str, int]:
        """Return the stored version of each Region's ring; raises StoreUnavailableError."""
        ...

    async def load_view(self) -> RingView:
        """Return the stored ring; raises StoreUnavailableError."""
        ...


class RingFollower:
    """Holds the last view; `view` may be called at any time, `refresh` by one after another."""

    def __init__(self, source: ViewSource, *, clock: Callable[[], float], max_age: float) -> None:
        """Read from `source`; stop signing with a view older than `max_age` seconds.

        `clock` gives seconds and should be one that nobody sets (`time.monotonic`).
        """
        self._source = source
        self._clock = clock
        self._max_age = max_age
        self._view = RingView([], [])
        self._too_old: RingView | None = None
        self._distrusted: dict[str, str] = {}
        self._trusted: RingView | None = None
        self._versions: Mapping[str, int] | None = None
        self._read_at = _NEVER
        self._lock = asyncio.Lock()

    def view(self) -> RingView:
        """Return the ring; one that signs nowhere where it was not read for `max_age` seconds.

        A key that is not trusted signs nothing either.
        """
        if not self._distrusted and self._clock() - self._read_at <= self._max_age:
            return self._view  # as nearly always
        view = self.as_read()
        if not self._distrusted or view is not self._view:
            return view
        if self._trusted is None:
            self._trusted = view.without_keys(self._distrusted)
        return self._trusted

    def trust(self, arn: str, *, unless: str | None = None) -> None:
        """Let a key sign, or not: `unless` is why not, in words. Holds until it is said otherwise."""
        if self._distrusted.get(arn) == unless:
            return
        if unless is None:
            del self._distrusted[arn]
        else:
            self._distrusted[arn] = unless
        self._trusted = None

    def as_read(self) -> RingView:
        """Return the ring with the keys in it that are not trusted: for whoever tests them."""
        if self._clock() - self._read_at <= self._max_age:
            return self._view
        if self._too_old is None:
            _log.error("key_ring_view_too_old", age_seconds=self.age(), max_age=self._max_age)
            self._too_old = self._view.without_signing(
                f"The key ring could not be read for more than {self._max_age:g} seconds."
            )
        return self._too_old

    def age(self) -> float:
        """Return the seconds since the view was last known to be what is stored."""
        return max(0.0, self._clock() - self._read_at)

    async def refresh(self, *, reload: bool = False) -> None:
        """Take over what is stored now; with `reload`, also where its version is known already.

        Raises StoreUnavailableError, and the view stays as it was and grows older.
        """
        async with self._lock:
            # As of when it was asked, not answered: what happened in between is not in the view.
            asked_at = self._clock()
            versions = await self._source.versions()
            # A key that did not open (a key manager that was down) may open now.
            if reload or versions != self._versions or self._view.reasons:
                # A change between the two reads has another version, and is seen the next time.
                self._view = await self._source.load_view()
                self._trusted = None
                if versions != self._versions:
                    _log.info(
                        "key_ring_loaded", signing=self._view.regions, versions=dict(versions)
                    )
                self._versions = dict(versions)
            self._too_old = None
            self._read_at = asked_at
