"""The bounds of IVS tokens, each with its source. Numbers live here and nowhere else.

[D] IVS Real-Time User Guide, "Distribute Tokens" and "Service Quotas"; [M] the API model
(botocore, `ivs-realtime`, 2020-07-14).
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ALGORITHM",
    "CAPABILITIES",
    "DEFAULT_DURATION_MINUTES",
    "MAX_ARN_CHARS",
    "MAX_ATTRIBUTES_BYTES",
    "MAX_CONNECTION_DURATION_MINUTES",
    "MAX_CONNECTION_TTL_SECONDS",
    "MAX_DURATION_MINUTES",
    "MAX_ENDPOINT_CHARS",
    "MAX_PARTICIPANT_TTL_SECONDS",
    "MAX_ROLE_CHARS",
    "MAX_TOKEN_CHARS",
    "MAX_TOKEN_ID_CHARS",
    "MAX_USER_ID_CHARS",
    "MIN_DURATION_MINUTES",
    "REGIONS",
    "SIGNATURE_BYTES",
    "TOKEN_VERSION",
]

ALGORITHM: Final = "ES384"
"""ECDSA over P-384 with SHA-384, the only algorithm IVS documents [D]."""

SIGNATURE_BYTES: Final = 96
"""R || S, 48 bytes each (RFC 7518 section 3.4)."""

TOKEN_VERSION: Final = "1.0"
"""The `version` claim [D]. The web SDK reads its minor part as flags, so it is never anything else."""

CAPABILITIES: Final = ("PUBLISH", "SUBSCRIBE")
"""IVS's ParticipantTokenCapability [M], in IVS's order."""

MIN_DURATION_MINUTES: Final = 1
DEFAULT_DURATION_MINUTES: Final = 720
MAX_DURATION_MINUTES: Final = 20_160
"""14 days, in minutes [M]."""

MAX_CONNECTION_DURATION_MINUTES: Final = 40_320
"""28 days, in minutes [D]."""

MAX_PARTICIPANT_TTL_SECONDS: Final = 1_209_600
"""`exp` is at most this far behind `iat` in a participant token: 14 days [D]."""

MAX_CONNECTION_TTL_SECONDS: Final = 2_419_200
"""`exp` is at most this far behind `iat` in a connection token: 28 days [D]."""

MAX_USER_ID_CHARS: Final = 128
"""Characters (code points) of a user id [M]."""

MAX_ATTRIBUTES_BYTES: Final = 1024
"""Bytes of UTF-8 of all attribute keys and values together: "1 KB total" [D, M]."""

MAX_ROLE_CHARS: Final = 64
"""Characters of a role's name; our own bound, IVS knows no roles."""

MAX_TOKEN_ID_CHARS: Final = 64
"""Characters of `jti`, which is the participant id [D]."""

MAX_ARN_CHARS: Final = 128
"""Characters of a stage's or public key's ARN [M]."""

MAX_ENDPOINT_CHARS: Final = 2048
"""Characters of a stage endpoint [M]."""

MAX_TOKEN_CHARS: Final = 16_384
"""What inspection reads at most. The largest participant token measured is about 6,800
characters; the web SDK's own bound for the tokens of one connection is this number."""

REGIONS: Final = (
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-south-1",
    "eu-central-1",
    "eu-west-1",
    "us-east-1",
    "us-west-2",
)
"""The Regions that have IVS Real-Time [D, M]."""
