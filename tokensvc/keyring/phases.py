"""The phases of a key's life and the only ways from one to the next, as pure functions.

GENERATED -> STANDBY -> ACTIVE -> RETIRING -> DELETED. Nothing here does I/O, looks at a clock or holds
a plain key; each function returns a new record or raises IllegalKeyStateError.

What a phase means:
- GENERATED: the pair exists here, its private half sealed; IVS may or may not know the public half.
- STANDBY: IVS knows the public half under `arn`; the key does not sign yet.
- ACTIVE: the one key of its Region that signs; it has passed a self-check.
- RETIRING: signs no more and has no private half, but living tokens still need its public half. With
  a `delete_reason` it is condemned: deleting it at IVS is decided, stored, and may be done.
- DELETED: IVS no longer knows it.

A key is deleted in two writes, `condemn` and `delete`, with the call to IVS between them. So a delete
under living tokens needs a stored COMPROMISED, and a process that dies in between leaves a record
that says what is to be done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokensvc.keyring.record import DeleteReason, IllegalKeyStateError, KeyPhase, KeyRecord

__all__ = [
    "Drained",
    "activate",
    "adopt",
    "adopt_orphan",
    "checked",
    "condemn",
    "delete",
    "extend",
    "gone",
    "invalidate",
    "retire",
    "stand_by",
]


@dataclass(frozen=True, slots=True)
class Drained:
    """The evidence that no token of a key lives: at `since` (Unix seconds) the last had expired.

    Made by `drain.py` only.
    """

    key_id: str
    since: float


def stand_by(key: KeyRecord, *, arn: str, now: float) -> KeyRecord:
    """IVS holds the public half under `arn`, imported or found again at `now` (Unix seconds)."""
    # A second import would give the key a second ARN, and one of the three slots for nothing.
    if key.phase is not KeyPhase.GENERATED:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase} and was imported before")
    return replace(key, phase=KeyPhase.STANDBY, arn=arn, imported_at=now)


def checked(key: KeyRecord, *, now: float) -> KeyRecord:
    """The self-check against what IVS holds under the key's ARN succeeded at `now`."""
    if key.phase is not KeyPhase.STANDBY:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase}; a STANDBY key is checked")
    # A check that was made before the import compared with something else than what IVS holds.
    if key.imported_at is None or now < key.imported_at:
        raise IllegalKeyStateError(f"key {key.key_id} was checked before its import")
    return replace(key, checked_at=now)


def activate(key: KeyRecord, *, longest_ttl: float, now: float) -> KeyRecord:
    """The key signs from `now` on, tokens of at most `longest_ttl` seconds."""
    # A deleted or retiring key that signed again would hand out tokens nobody can join with.
    if key.phase is not KeyPhase.STANDBY:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase}; only a STANDBY key may sign")
    if key.checked_at is None:
        raise IllegalKeyStateError(f"key {key.key_id} has not passed a self-check")
    if longest_ttl <= 0:
        raise IllegalKeyStateError(f"key {key.key_id} would sign tokens of {longest_ttl} s")
    return replace(key, phase=KeyPhase.ACTIVE, activated_at=now, longest_ttl=longest_ttl)


def extend(key: KeyRecord, *, longest_ttl: float) -> KeyRecord:
    """The key may sign longer tokens than before."""
    if key.phase is not KeyPhase.ACTIVE or key.longest_ttl is None:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase} and signs nothing")
    # Tokens of the old length live on, whatever the settings say now.
    if longest_ttl <= key.longest_ttl:
        raise IllegalKeyStateError(f"key {key.key_id} may sign {key.longest_ttl} s already")
    return replace(key, longest_ttl=longest_ttl)


def retire(key: KeyRecord, *, now: float) -> KeyRecord:
    """The key signs no more; its tokens live on."""
    if key.phase is not KeyPhase.ACTIVE:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase}; only an ACTIVE key retires")
    return replace(key, phase=KeyPhase.RETIRING, sealed_private_key=None, retired_at=now)


def adopt(
    *,
    key_id: str,
    region: str,
    arn: str,
    name: str,
    public_key_pem: str,
    sealed_private_key: bytes,
    now: float,
) -> KeyRecord:
    """A key made elsewhere, whose halves were checked against what IVS holds at `now`."""
    return KeyRecord(
        key_id=key_id,
        region=region,
        phase=KeyPhase.STANDBY,
        name=name,
        public_key_pem=public_key_pem,
        sealed_private_key=sealed_private_key,
        created_at=now,
        arn=arn,
        imported_at=now,
        checked_at=now,
    )


def adopt_orphan(
    *,
    key_id: str,
    region: str,
    arn: str,
    name: str,
    public_key_pem: str,
    longest_ttl: float,
    now: float,
) -> KeyRecord:
    """A key that IVS holds with our tags and that the store forgot, as a RETIRING one.

    It may have signed until now, under the longest life there is.
    """
    return KeyRecord(
        key_id=key_id,
        region=region,
        phase=KeyPhase.RETIRING,
        name=name,
        public_key_pem=public_key_pem,
        sealed_private_key=None,
        created_at=now,
        arn=arn,
        imported_at=now,
        longest_ttl=longest_ttl,
        retired_at=now,
    )


def condemn(key: KeyRecord, evidence: Drained, *, now: float) -> KeyRecord:
    """The key is to be deleted at IVS, since no token of it lives."""
    if key.phase is not KeyPhase.RETIRING:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase}; a RETIRING key is deleted")
    if evidence.key_id != key.key_id or evidence.since > now:
        raise IllegalKeyStateError(f"key {key.key_id} is not drained")
    if key.delete_reason is not None:
        raise IllegalKeyStateError(f"key {key.key_id} is to be deleted already")
    return replace(key, delete_reason=DeleteReason.DRAINED)


def invalidate(key: KeyRecord, *, now: float) -> KeyRecord:
    """An operator says the key is compromised: it signs no more, and its tokens are to die.

    Its private half goes with this. A key that was never seen imported is DELETED at once; should
    IVS hold it all the same, it is swept as a stray.
    """
    if key.phase is KeyPhase.DELETED:
        raise IllegalKeyStateError(f"key {key.key_id} is DELETED already")
    compromised = DeleteReason.COMPROMISED
    if key.phase is KeyPhase.GENERATED:
        return replace(
            key,
            phase=KeyPhase.DELETED,
            sealed_private_key=None,
            delete_reason=compromised,
            deleted_at=now,
        )
    return replace(
        key,
        phase=KeyPhase.RETIRING,
        sealed_private_key=None,
        retired_at=now if key.retired_at is None else key.retired_at,
        delete_reason=compromised,
    )


def delete(key: KeyRecord, *, now: float) -> KeyRecord:
    """IVS has deleted the key, as was decided before."""
    if key.phase is not KeyPhase.RETIRING or key.delete_reason is None:
        raise IllegalKeyStateError(f"key {key.key_id} is {key.phase} and was not to be deleted")
    return replace(key, phase=KeyPhase.DELETED, deleted_at=now)


def gone(key: KeyRecord, *, now: float) -> KeyRecord:
    """IVS does not know the key as of `now`, and we did not delete it; its private half goes too."""
    if key.phase is KeyPhase.DELETED:
        raise IllegalKeyStateError(f"key {key.key_id} is DELETED already")
    # Whether IVS has a key that was never seen imported is not known; it is found out by importing.
    if key.phase is KeyPhase.GENERATED:
        raise IllegalKeyStateError(f"key {key.key_id} is GENERATED; IVS may hold it unseen")
    return replace(
        key,
        phase=KeyPhase.DELETED,
        sealed_private_key=None,
        delete_reason=key.delete_reason or DeleteReason.GONE,
        deleted_at=now,
    )
