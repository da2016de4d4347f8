"""What the stand-in remembers: stages, public keys, and tokens that it issued itself.

Records are immutable and replaced as a whole, so that a snapshot for the state file is a copy of
dictionaries. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["IssuedToken", "PublicKeyRecord", "StageRecord"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage; `id` is the part of the ARN behind `stage/`, which is a token's `topic`."""

    arn: str
    region: str
    id: str
    whip_url: str
    created_at: float
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    recording: dict[str, Any] | None = None
    """`autoParticipantRecordingConfiguration` as it was given."""


@dataclass(frozen=True, slots=True)
class PublicKeyRecord:
    """An imported public key; `arn` is the `kid` of tokens signed with its private half."""

    arn: str
    region: str
    public_key_pem: str
    fingerprint: str
    created_at: float
    visible_at: float
    """From when on reads and the events socket see it."""

    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """What a token of CreateParticipantToken or CreateStage stands for; the token itself is not kept."""

    stage_arn: str
    participant_id: str
    capabilities: tuple[str, ...]
    issued_at: float
    expires_at: float
    user_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
