"""What is known of a key, and of the ring of one Region, as values that cannot be wrong.

A record whose fields contradict its phase, and a ring with two ACTIVE keys, cannot be constructed:
what the store, a rotator or an operator hands over is checked here, once, wherever it came from. The
private half is here only sealed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn

__all__ = [
    "DeleteReason",
    "IllegalKeyStateError",
    "KeyPhase",
    "KeyRecord",
    "RingState",
    "check_ring_id",
    "is_tagged",
    "key_name",
    "key_tags",
    "tagged_key_id",
]

KEY_ID_TAG: Final = "tokensvc:key"
RING_ID_TAG: Final = "tokensvc:ring"
OWNER_TAG: Final = "tokensvc:owner"
_KEY_ID: Final = re.compile(r"[a-z0-9]{1,32}", re.ASCII)
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


class DeleteReason(StrEnum):
    """Why a key's public half is to be no more, or is no more, at IVS."""

    DRAINED = "DRAINED"
    """The last token it may have signed has expired."""

    COMPROMISED = "COMPROMISED"
    """An operator says so; living tokens die with it."""

    GONE = "GONE"
    """Somebody else deleted it at IVS."""


_IMPORTED: Final = frozenset({KeyPhase.STANDBY, KeyPhase.ACTIVE, KeyPhase.RETIRING})
# Only these may ever sign again; nobody else needs a private half, so nobody else has one.
_HOLDS_PRIVATE_KEY: Final = frozenset({KeyPhase.GENERATED, KeyPhase.STANDBY, KeyPhase.ACTIVE})


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key of one Region. Times are Unix seconds; None is "not yet".

    `name` is its name in IVS. `checked_at` is its last successful self-check. `longest_ttl` is the
    longest life, in seconds, of a token that it may sign or may have signed. `delete_reason` on a
    RETIRING key is the stored decision to delete it at IVS: without one, nobody may.

    Raises IllegalKeyStateError where the fields contradict the phase.
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
    longest_ttl: float | None = None
    retired_at: float | None = None
    delete_reason: DeleteReason | None = None
    deleted_at: float | None = None

    def __post_init__(self) -> None:
        phase = self.phase
        if phase is KeyPhase.GENERATED and self.arn is not None:
            raise self._wrong("and has an ARN")
        if phase in _IMPORTED and (self.arn is None or self.imported_at is None):
            raise self._wrong("without an ARN")
        if phase is KeyPhase.ACTIVE and (self.checked_at is None or self.activated_at is None):
            raise self._wrong("without a self-check")
        if phase is KeyPhase.ACTIVE and self.longest_ttl is None:
            raise self._wrong("without a bound on its tokens' life")
        if phase is KeyPhase.RETIRING and self.retired_at is None:
            raise self._wrong("without the time since when")
        # What must not be used again must not be there to be used.
        if (phase in _HOLDS_PRIVATE_KEY) is (self.sealed_private_key is None):
            raise self._wrong("; a private half is kept while the key may sign, and not after")
        if phase in _HOLDS_PRIVATE_KEY and self.delete_reason is not None:
            raise self._wrong("and is to be deleted")
        if phase is KeyPhase.DELETED and (self.delete_reason is None or self.deleted_at is None):
            raise self._wrong("without when and why")
        if self.arn is not None:
            try:
                arn = PublicKeyArn.parse(self.arn)
            except InvalidArnError as error:
                raise IllegalKeyStateError(f"key {self.key_id}: {error}") from error
            if arn.region != self.region:
                raise IllegalKeyStateError(
                    f"key {self.key_id} is of {self.region}, its ARN of {arn.region}"
                )

    def _wrong(self, what: str) -> IllegalKeyStateError:
        joint = "" if what.startswith(";") else " "
        return IllegalKeyStateError(f"key {self.key_id} is {self.phase}{joint}{what}")


@dataclass(frozen=True, slots=True)
class RingState:
    """The keys of one Region at one version; version 0 is a ring that was never stored.

    `owner` is random, made by the store with the ring, and tells this ring from one that another
    database keeps under the same ring id; it is empty at version 0.

    Raises IllegalKeyStateError for a key of another Region, a key or an ARN given twice, and for
    more than one ACTIVE key.
    """

    region: str
    version: int
    keys: tuple[KeyRecord, ...] = ()
    owner: str = ""

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

    def key(self, key_id: str) -> KeyRecord | None:
        """Return the key with this id, if the ring has it."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    @property
    def account(self) -> str | None:
        """The AWS account that holds its keys; None for a ring without keys at IVS."""
        arns = (key.arn for key in self.keys if key.arn is not None)
        return next((PublicKeyArn.parse(arn).account for arn in arns), None)

    def with_keys(self, *keys: KeyRecord) -> tuple[KeyRecord, ...]:
        """Return the keys with `keys` added, or each in the place of the record with its id."""
        new = {key.key_id for key in keys}
        return (*(other for other in self.keys if other.key_id not in new), *keys)

    def successor(self, keys: tuple[KeyRecord, ...]) -> Self:
        """Return the next version, holding `keys`.

        Raises IllegalKeyStateError where a key would vanish that is not DELETED, which also means
        that nothing ever replaces a ring by an empty one.
        """
        kept = {key.key_id for key in keys}
        for key in self.keys:
            if key.key_id not in kept and (key.phase is not KeyPhase.DELETED or not keys):
                raise IllegalKeyStateError(f"key {key.key_id} is {key.phase} and would vanish")
        return type(self)(self.region, self.version + 1, keys, self.owner)


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


def key_tags(ring_id: str, owner: str, key_id: str) -> dict[str, str]:
    """Return the tags that say whose key it is; a key without them is never touched.

    Two deployments that share a ring id by mistake differ in `owner`, and leave each other's keys
    alone.
    """
    return {RING_ID_TAG: ring_id, OWNER_TAG: owner, KEY_ID_TAG: key_id}


def is_tagged(tags: Mapping[str, str]) -> bool:
    """Tell whether the tags are those of any ring of this program."""
    return RING_ID_TAG in tags


def tagged_key_id(ring_id: str, owner: str, tags: Mapping[str, str]) -> str | None:
    """Return the key id in `tags` where they are this ring's, else None."""
    if not owner or tags.get(RING_ID_TAG) != ring_id or tags.get(OWNER_TAG) != owner:
        return None
    key_id = tags.get(KEY_ID_TAG, "")
    return key_id if _KEY_ID.fullmatch(key_id) else None
