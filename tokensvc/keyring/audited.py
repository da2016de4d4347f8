"""A ring store whose every change is told: each key that came, and each that changed its phase."""

from __future__ import annotations

from typing import Protocol

from tokensvc.keyring.record import KeyRecord, RingState
from tokensvc.keyring.store import RingStore

__all__ = ["AuditedRingStore", "Recorder"]


class Recorder(Protocol):
    """Takes audit records; never waits, never raises."""

    def action(
        self,
        action: str,
        *,
        who: str | None,
        outcome: str = ...,
        user_id: str | None = ...,
        **about: object,
    ) -> None:
        """Record one action of `who`."""
        ...


class AuditedRingStore:
    """`rings`, with what was saved told to `recorder`, whoever asked for it.

    Most changes are the rotation's own. Where a request led to one, both records have its id.
    """

    def __init__(self, rings: RingStore, recorder: Recorder) -> None:
        self._rings = rings
        self._recorder = recorder

    async def load(self, region: str) -> RingState:
        """Return the ring of `region`, as RingStore does."""
        return await self._rings.load(region)

    async def load_all(self) -> tuple[RingState, ...]:
        """Return the rings of all Regions, as RingStore does."""
        return await self._rings.load_all()

    async def versions(self) -> dict[str, int]:
        """Return the version of each Region's ring, as RingStore does."""
        return await self._rings.versions()

    async def save(self, state: RingState, keys: tuple[KeyRecord, ...]) -> RingState:
        """Replace the keys of `state`, as RingStore does, and tell what that changed."""
        saved = await self._rings.save(state, keys)
        before = {key.key_id: key.phase for key in state.keys}
        for key in saved.keys:
            was = before.get(key.key_id)
            if key.phase is not was:
                self._recorder.action(
                    "key.phase",
                    who="key ring",
                    region=saved.region,
                    keyId=key.key_id,
                    keyArn=key.arn,
                    phase=key.phase.value,
                    was=None if was is None else was.value,
                )
        return saved
