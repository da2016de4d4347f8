"""What the key ring asks of its store; `sql.py` is the one that ships."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tokensvc.errors import RingDamagedError
from tokensvc.keyring.record import KeyRecord, RingState

__all__ = ["RingStore", "Rings", "load_rings"]


class RingStore(Protocol):
    """The stored key rings of one ring id, one per Region.

    Every method raises StoreUnavailableError where the store does not answer or cannot write, and
    RingDamagedError where it holds a row that makes no sense.
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


@dataclass(frozen=True, slots=True)
class Rings:
    """The rings that can be read, ordered by Region, and why the others cannot, by Region."""

    whole: tuple[RingState, ...]
    damaged: dict[str, str] = field(default_factory=dict)


async def load_rings(store: RingStore) -> Rings:
    """Return the rings of all Regions; a damaged one hides no other. Raises StoreUnavailableError."""
    try:
        return Rings(await store.load_all())
    except RingDamagedError:
        # One by one, then: not of one moment any more, but Regions have nothing to do with each other.
        whole: list[RingState] = []
        damaged: dict[str, str] = {}
        for region in sorted(await store.versions()):
            try:
                whole.append(await store.load(region))
            except RingDamagedError as error:
                damaged[region] = error.detail
        return Rings(tuple(whole), damaged)
