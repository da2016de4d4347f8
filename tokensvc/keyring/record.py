"""What is known of a key, and of the ring of one Region, as values that cannot be wrong.

A record whose fields contradict its phase, and a ring with two ACTIVE keys, cannot be constructed:
what the store, a rotator or an operator hands over is checked here, once, wherever it came from. The
private half is here only sealed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn

__all__ = [
    "IllegalKeyStateError",
    "KeyPhase",
    "KeyRecord",
    "RingState",
    "check_ring_id",
    "key_name",
    "key_tags",
]

KEY_ID_TAG: Final = "tokensvc:key"
RING_ID_TAG: Final = "tokensvc:ring"
_RING_ID: Final = re.compile(r"[a-zA-Z0-9-]{1,64}", re.ASCII)


class IllegalKeyStateError(ValueError):
    """A record, ring or transition that must not exist; a fault of ours or of the stored row."""


class KeyPhase(StrEnum):
    """Where a key is in its life; `phases.py` says what each means."""

    GENERATED = "GENERATED"
    STANDBY = "STANDBY"
    ACTIVE = "ACTIVE"
    RETIRING = "RETIRING"
    DELETED = "DELETED"


_IMPORTED: Final = frozenset({KeyPhase.STANDBY, KeyPhase.ACTIVE, KeyPhase.RETIRING})
_CHECKED: Final = frozenset({KeyPhase.ACTIVE, KeyPhase.RETIRING})


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key of one Region. Times are Unix seconds; None is "not yet".

    `name` is its name in IVS. Raises IllegalKeyStateError where the fields contradict the phase.
    """

    key_id: str
    region: str
    phase: KeyPhase
    name: str
    public_key_pem: str
    sealed_private_key: bytes | None = field(repr=False)
    created_at: float
    arn: str | None = None
    imported_at: float | None = None
    checked_at: float | None = None
    activated_at: float | None = None
    deleted_at: float | None = None

    def __post_init__(self) -> None:
        if self.phase is KeyPhase.GENERATED and self.arn is not None:
            raise IllegalKeyStateError(f"key {self.key_id} is GENERATED and has an ARN")
        if self.phase in _IMPORTED and (self.arn is None or self.imported_at is None):
            raise IllegalKeyStateError(f"key {self.key_id} is {self.phase} without an ARN")
        if self.phase in _CHECKED and (self.checked_at is None or self.activated_at is None):
            raise IllegalKeyStateError(f"key {self.key_id} is {self.phase} without a self-check")
        # What must not be used again must not be there to be used.
        if (self.phase is KeyPhase.DELETED) is not (self.sealed_private_key is None):
            raise IllegalKeyStateError(
                f"key {self.key_id} is {self.phase}; a private half is kept until DELETED, "
                "and not after"
            )
        if self.arn is not None:
            try:
                arn = PublicKeyArn.parse(self.arn)
            except InvalidArnError as error:
                raise IllegalKeyStateError(f"key {self.key_id}: {error}") from error
            if arn.region != self.region:
                raise IllegalKeyStateError(
                    f"key {self.key_id} is of {self.region}, its ARN of {arn.region}"
                )


@dataclass(frozen=True, slots=True)
class RingState:
    """The keys of one Region at one version; version 0 is a ring that was never stored.

    Raises IllegalKeyStateError for a key of another Region, a key or an ARN given twice, and for
    more than one ACTIVE key.
    """

    region: str
    version: int
    keys: tuple[KeyRecord, ...] = ()

    def __post_init__(self) -> None:
        if any(key.region != self.region for key in self.keys):
            raise IllegalKeyStateError(f"the ring of {self.region} holds another Region's key")
        if len({key.key_id for key in self.keys}) != len(self.keys):
            raise IllegalKeyStateError(f"the ring of {self.region} holds a key twice")
        arns = [key.arn for key in self.keys if key.arn is not None]
        if len(set(arns)) != len(arns):
            raise IllegalKeyStateError(f"the ring of {self.region} holds an ARN twice")
        if len(self.in_phase(KeyPhase.ACTIVE)) > 1:
            raise IllegalKeyStateError(f"the ring of {self.region} holds two ACTIVE keys")

    def in_phase(self, phase: KeyPhase) -> tuple[KeyRecord, ...]:
        """Return the keys in `phase`, oldest first."""
        found = (key for key in self.keys if key.phase is phase)
        return tuple(sorted(found, key=lambda key: (key.created_at, key.key_id)))

    @property
    def active(self) -> KeyRecord | None:
        """The key that signs, if there is one."""
        return next(iter(self.in_phase(KeyPhase.ACTIVE)), None)

    def with_key(self, key: KeyRecord) -> tuple[KeyRecord, ...]:
        """Return the keys with `key` added, or in the place of the record with its id."""
        others = tuple(other for other in self.keys if other.key_id != key.key_id)
        return (*others, key)

    def successor(self, keys: tuple[KeyRecord, ...]) -> Self:
        """Return the next version, holding `keys`.

        Raises IllegalKeyStateError where a key would vanish that is not DELETED, which also means
        that nothing ever replaces a ring by an empty one.
        """
        kept = {key.key_id for key in keys}
        for key in self.keys:
            if key.key_id not in kept and (key.phase is not KeyPhase.DELETED or not keys):
                raise IllegalKeyStateError(f"key {key.key_id} is {key.phase} and would vanish")
        return type(self)(self.region, self.version + 1, keys)


def check_ring_id(ring_id: str) -> str:
    """Return `ring_id` if it can stand in key names and tags: 1 to 64 of `[a-zA-Z0-9-]`.

    Raises ValueError. IVS takes `_` in names too, but two ring ids must not become one name.
    """
    if _RING_ID.fullmatch(ring_id) is None:
        raise ValueError("a ring id is 1 to 64 characters of a-z, A-Z, 0-9 and -")
    return ring_id


def key_name(ring_id: str, key_id: str) -> str:
    """Return the name under which a key is imported; IVS takes 128 of `[a-zA-Z0-9-_]`."""
    return f"tokensvc-{ring_id}-{key_id}"


def key_tags(ring_id: str, key_id: str) -> dict[str, str]:
    """Return the tags that say whose key it is; a key without them is never touched."""
    return {RING_ID_TAG: ring_id, KEY_ID_TAG: key_id}
