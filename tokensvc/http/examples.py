"""The examples in `/schema`; a test sends the requests, so they are not only to be looked at."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BATCH",
    "BATCH_ANSWER",
    "CONNECTION",
    "CONNECTION_ANSWER",
    "EXCHANGE",
    "INSPECT",
    "INSPECTION",
    "ISSUED",
    "MINT",
    "STAGE_ARN",
]

STAGE_ARN: Final = "arn:aws:ivs:eu-central-1:123456789012:stage/abcdABCDefgh"
_KEY_ARN: Final = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941"

MINT: Final[dict[str, object]] = {
    "smallest": {"stageArn": STAGE_ARN},
    "everything": {
        "stageArn": STAGE_ARN,
        "userId": "ana",
        "duration": 60,
        "capabilities": ["SUBSCRIBE"],
        "attributes": {"team": "blue", "displayName": "Ana \N{ARTIST PALETTE}"},
        "issuer": "auto",
    },
}

_ISSUED: Final[dict[str, object]] = {
    "token": "<header>.<payload>.<signature>",
    "participantId": "Zr3mQx8KcT1b",
    "userId": "ana",
    "attributes": {"team": "blue"},
    "capabilities": ["PUBLISH", "SUBSCRIBE"],
    "duration": 60,
    "expirationTime": "2026-09-01T12:00:00Z",
    "issuer": "local",
    "keyArn": _KEY_ARN,
    "exchangeable": True,
}
ISSUED: Final[dict[str, object]] = {
    "local": _ISSUED,
    "fallback": {**_ISSUED, "issuer": "ivs", "keyArn": None, "exchangeable": False},
}

EXCHANGE: Final[dict[str, object]] = {
    "mute": {
        "participantId": "Zr3mQx8KcT1b",
        "capabilities": ["SUBSCRIBE"],
        "attributes": {"team": "blue", "muted": "true"},
    }
}
CONNECTION: Final[dict[str, object]] = {
    "a Region": {"region": "eu-central-1", "duration": 1440},
    "a stage's account": {"stageArn": STAGE_ARN, "userId": "ana"},
}
CONNECTION_ANSWER: Final[dict[str, object]] = {
    "token": {
        "token": "<header>.<payload>.<signature>",
        "tokenId": "c7yq2lqf5v3o6x4mdk2a",
        "region": "eu-central-1",
        "accountId": "123456789012",
        "duration": 1440,
        "expirationTime": "2026-09-02T12:00:00Z",
        "keyArn": _KEY_ARN,
    }
}

BATCH: Final[dict[str, object]] = {
    "one stage": {
        "defaults": {"stageArn": STAGE_ARN, "duration": 60},
        "tokens": [{"userId": "ana"}, {"userId": "bo", "capabilities": ["SUBSCRIBE"]}],
    }
}
BATCH_ANSWER: Final[dict[str, object]] = {
    "in part": {
        "tokens": [
            _ISSUED,
            {
                "problem": {
                    "type": "urn:tokensvc:problem:stage_not_found",
                    "title": "Stage not found",
                    "status": 404,
                    "detail": "Amazon IVS knows no such stage.",
                    "code": "stage_not_found",
                    "requestId": "4f1c9a0b7d2e",
                    "errors": [
                        {
                            "field": "tokens[1].stageArn",
                            "code": "stage_not_found",
                            "detail": "names a stage that does not exist",
                        }
                    ],
                }
            },
        ],
        "issued": 1,
        "failed": 1,
    }
}

INSPECT: Final[dict[str, object]] = {"a token": {"token": "<header>.<payload>.<signature>"}}
INSPECTION: Final[dict[str, object]] = {
    "expired": {
        "acceptable": False,
        "kind": "participant",
        "signature": "valid",
        "header": {"alg": "ES384", "typ": "JWT", "kid": _KEY_ARN},
        "claims": {"exp": 1_780_000_000},
        "findings": [
            {
                "code": "expired",
                "where": "exp",
                "detail": "expired 90 s ago",
                "severity": "refused",
            }
        ],
    }
}
