"""What the key ring asks of its store; `sql.py` is the one that ships."""

from __future__ import annotations

from typing import Protocol

from tokensvc.keyring.record import KeyRecord, RingState

__all__ = ["RingStore"]


class RingStore(Protocol):
    """The stored key rings of one ring id, one per Region.

    Every method raises StoreUnavailableError where the store does not answer, cannot write, or
    holds a row that makes no sense.
    """

    async def load(self, region: str) -> RingState:
        """Return the ring of `region`; version 0 and no keys where there is none."""
        ...

    async def load_all(self) -> tuple[RingState, ...]:
        """Return the rings of all Regions, as of one moment, ordered by Region."""
        ...

    async def versions(self) -> dict[str, int]:
        """Return the version of each Region's ring: a small read that says whether to read more."""
        ...

    async def save(self, state: RingState, keys: tuple[KeyRecord, ...]) -> RingState:
        """Replace the keys of `state`, as it was loaded, and return what is stored now.

        The first save gives the ring its `owner`. All or nothing. Raises RingConflictError, with
        nothing written, where the stored version is no longer the one of `state`; and
        IllegalKeyStateError as `RingState.successor` does.
        After StoreUnavailableError it may have been written: load again.
        """
        ...
