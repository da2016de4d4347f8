"""The phases of a key's life and the only ways from one to the next, as pure functions.

GENERATED -> STANDBY -> ACTIVE -> RETIRING -> DELETED. Nothing here does I/O, looks at a clock or holds
a plain key; each function returns a new record or raises IllegalKeyStateError.

What a phase means:
- GENERATED: the pair exists here, its private half sealed; IVS may or may not know the public half.
- STANDBY: IVS knows the public half under `arn`; the key does not sign yet.
- ACTIVE: the one key of its Region that signs; it has passed a self-check.
- RETIRING: signs no more, but living tokens still need its public half.
- DELETED: IVS no longer knows it, and its private half is destroyed.
"""

from __future__ import annotations

from dataclasses import replace

from tokensvc.keyring.record import IllegalKeyStateError, KeyPhase, KeyRecord

__all__ = ["activate", "delete", "stand_by"]


def stand_by(key: KeyRecord, *, arn: str, now: float) -> KeyRecord:
    """IVS holds the public half under `arn`, imported or found again at `now` (Unix seconds)."""
    # A second import would give the key a second ARN, and one of the three slots for nothing.
    if key.phase is not KeyPhase.GENERATED:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase} and was imported before")
    return replace(key, phase=KeyPhase.STANDBY, arn=arn, imported_at=now)


def activate(key: KeyRecord, *, checked_at: float, now: float) -> KeyRecord:
    """The key signs from `now` on; its self-check succeeded at `checked_at` (both Unix seconds)."""
    # A deleted or retiring key that signed again would hand out tokens nobody can join with.
    if key.phase is not KeyPhase.STANDBY:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase}; only a STANDBY key may sign")
    # A check that was made before the import compared with something else than what IVS holds.
    if key.imported_at is None or not key.imported_at <= checked_at <= now:
        raise IllegalKeyStateError(
            f"key {key.key_id} was not checked between its import and its activation"
        )
    return replace(key, phase=KeyPhase.ACTIVE, checked_at=checked_at, activated_at=now)


def delete(key: KeyRecord, *, now: float) -> KeyRecord:
    """IVS does not know the key as of `now` (Unix seconds); its private half goes with this."""
    if key.phase is KeyPhase.DELETED:
        raise IllegalKeyStateError(f"key {key.key_id} is DELETED already")
    # Whether IVS has a key that was never seen imported is not known; it is found out by importing.
    if key.phase is KeyPhase.GENERATED:
        raise IllegalKeyStateError(f"key {key.key_id} is GENERATED; IVS may hold it unseen")
    return replace(key, phase=KeyPhase.DELETED, sealed_private_key=None, deleted_at=now)
