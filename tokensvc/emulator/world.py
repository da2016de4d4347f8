"""The state of the stand-in: stages, public keys, tags and issued tokens of one account.

Everything is addressed by ARN, which names its Region. Belongs to one event loop and does no I/O;
whoever changes something calls `changed`, so that the state file follows.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.errors import (
    ConflictError,
    ResourceNotFoundError,
    ServiceQuotaExceededError,
    ValidationError,
)
from tokensvc.emulator.records import IssuedToken, PublicKeyRecord, StageRecord

__all__ = ["MAX_PUBLIC_KEYS", "MAX_STAGES", "MAX_TAGS", "World"]

MAX_PUBLIC_KEYS: Final = 3
"""Public keys a Region; not adjustable (User Guide, "Service Quotas")."""

MAX_STAGES: Final = 1000
"""Stages a Region, by default (User Guide, "Service Quotas")."""

MAX_TAGS: Final = 50
"""Tags of a stage or public key (API model)."""

_STAGE_ID_CHARS: Final = 12
_ALPHANUMERIC: Final = string.ascii_letters + string.digits


class World:
    """Stages, public keys and issued tokens of one account, in all Regions."""

    def __init__(self, config: EmulatorConfig, clock: Callable[[], float]) -> None:
        """Start empty; `clock` gives Unix seconds, to which `clock_offset` is added."""
        self.config = config
        self.clock_offset = 0.0
        self.key_visible_after = 0.0
        """Seconds from an import to the key's being seen; a fault that a test asks for."""
        self._clock = clock
        self._stages: dict[str, StageRecord] = {}
        self._public_keys: dict[str, PublicKeyRecord] = {}
        self._issued: dict[str, IssuedToken] = {}
        self._listeners: list[Callable[[], None]] = []

    def now(self) -> float:
        """Return the emulator's time in Unix seconds."""
        return self._clock() + self.clock_offset

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after every change; it must not block."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Say that something that is kept has changed."""
        for listener in self._listeners:
            listener()

    # Stages

    def stage(self, arn: str) -> StageRecord | None:
        """Return the stage, or None where there is none or it was deleted."""
        return self._stages.get(arn)

    def stages(self, region: str) -> list[StageRecord]:
        """Return the Region's stages, oldest first."""
        return [stage for stage in self._stages.values() if stage.region == region]

    def create_stage(
        self,
        region: str,
        *,
        name: str = "",
        tags: Mapping[str, str] | None = None,
        recording: dict[str, Any] | None = None,
    ) -> StageRecord:
        """Create a stage. Raises ServiceQuotaExceededError."""
        self._check_quota(self.stages(region), MAX_STAGES, "stages")
        stage_id = "".join(secrets.choice(_ALPHANUMERIC) for _ in range(_STAGE_ID_CHARS))
        stage = StageRecord(
            arn=f"arn:aws:ivs:{region}:{self.config.account}:stage/{stage_id}",
            region=region,
            id=stage_id,
            whip_url=f"https://{secrets.token_hex(6)}.global-bm.whip.live-video.net",
            created_at=self.now(),
            name=name,
            tags=dict(tags or {}),
            recording=recording,
        )
        self._stages[stage.arn] = stage
        self.changed()
        return stage

    def update_stage(self, arn: str, changes: Mapping[str, Any]) -> StageRecord:
        """Replace fields of the stage. Raises ResourceNotFoundError."""
        stage = replace(self._known_stage(arn), **changes)
        self._stages[arn] = stage
        self.changed()
        return stage

    def delete_stage(self, arn: str) -> None:
        """Delete the stage. Raises ResourceNotFoundError."""
        del self._stages[self._known_stage(arn).arn]
        self.changed()

    def _known_stage(self, arn: str) -> StageRecord:
        stage = self._stages.get(arn)
        if stage is None:
            raise ResourceNotFoundError(f"Resource: {arn} not found")
        return stage

    # Public keys

    def public_key(self, arn: str) -> PublicKeyRecord | None:
        """Return the key, or None where it was not imported, was deleted, or is not visible yet."""
        key = self._public_keys.get(arn)
        return key if key is not None and key.visible_at <= self.now() else None

    def public_keys(self, region: str) -> list[PublicKeyRecord]:
        """Return the Region's visible keys, oldest first."""
        now = self.now()
        return [key for key in self._keys_of(region) if key.visible_at <= now]

    def import_public_key(
        self,
        region: str,
        *,
        public_key_pem: str,
        fingerprint: str,
        name: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> PublicKeyRecord:
        """Import a key, which is known as the same key by its `fingerprint`.

        Raises ConflictError for a key that is there already, ServiceQuotaExceededError.
        """
        keys = self._keys_of(region)
        if any(key.fingerprint == fingerprint for key in keys):
            raise ConflictError("A public key with the same material already exists")
        self._check_quota(keys, MAX_PUBLIC_KEYS, "public keys")
        now = self.now()
        key = PublicKeyRecord(
            arn=f"arn:aws:ivs:{region}:{self.config.account}:public-key/{uuid.uuid4()}",
            region=region,
            public_key_pem=public_key_pem,
            fingerprint=fingerprint,
            created_at=now,
            visible_at=now + self.key_visible_after,
            name=name,
            tags=dict(tags or {}),
        )
        self._public_keys[key.arn] = key
        self.changed()
        return key

    def delete_public_key(self, arn: str) -> None:
        """Delete the key. Raises ResourceNotFoundError, also for one that is not visible yet."""
        if self.public_key(arn) is None:
            raise ResourceNotFoundError(f"Resource: {arn} not found")
        del self._public_keys[arn]
        self.changed()

    def _keys_of(self, region: str) -> list[PublicKeyRecord]:
        return [key for key in self._public_keys.values() if key.region == region]

    # Tags

    def tags(self, arn: str) -> dict[str, str]:
        """Return the tags of a stage or public key. Raises ResourceNotFoundError."""
        record = self.stage(arn) or self.public_key(arn)
        if record is None:
            raise ResourceNotFoundError(f"Resource: {arn} not found")
        return record.tags

    def tag(self, arn: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags. Raises ResourceNotFoundError, ValidationError above 50."""
        merged = self.tags(arn) | dict(tags)
        if len(merged) > MAX_TAGS:
            raise ValidationError(f"A resource has at most {MAX_TAGS} tags")
        self._set_tags(arn, merged)

    def untag(self, arn: str, names: Iterable[str]) -> None:
        """Take tags away; those that are not there are no error. Raises ResourceNotFoundError."""
        gone = set(names)
        left = {name: value for name, value in self.tags(arn).items() if name not in gone}
        self._set_tags(arn, left)

    def _set_tags(self, arn: str, tags: dict[str, str]) -> None:
        stage = self._stages.get(arn)
        if stage is not None:
            self._stages[arn] = replace(stage, tags=tags)
        else:
            self._public_keys[arn] = replace(self._public_keys[arn], tags=tags)
        self.changed()

    # Issued tokens

    def issued_token(self, text: str) -> IssuedToken | None:
        """Return what a token of CreateParticipantToken stands for, expired or not; else None."""
        return self._issued.get(_token_hash(text))

    def remember_token(self, text: str, issued: IssuedToken) -> None:
        """Keep what a token stands for, under its hash; forgets expired and surplus ones."""
        now = self.now()
        surplus = len(self._issued) + 1 - self.config.max_issued_tokens
        for token_hash, old in list(islice(self._issued.items(), max(surplus, 16))):
            if surplus > 0 or old.expires_at < now:
                del self._issued[token_hash]
                surplus -= 1
        self._issued[_token_hash(text)] = issued
        self.changed()

    # State file

    def snapshot(
        self,
    ) -> tuple[dict[str, StageRecord], dict[str, PublicKeyRecord], dict[str, IssuedToken]]:
        """Return copies of stages and keys by ARN, and of issued tokens by hash, oldest first."""
        return dict(self._stages), dict(self._public_keys), dict(self._issued)

    def restore(
        self,
        stages: Mapping[str, StageRecord],
        public_keys: Mapping[str, PublicKeyRecord],
        issued: Mapping[str, IssuedToken],
    ) -> None:
        """Take over a snapshot in place of what is here."""
        self._stages, self._public_keys = dict(stages), dict(public_keys)
        self._issued = dict(issued)

    def _check_quota(self, present: list[Any], limit: int, what: str) -> None:
        if self.config.enforce_quotas and len(present) >= limit:
            raise ServiceQuotaExceededError(f"The limit of {limit} {what} per Region is reached")


def _token_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
