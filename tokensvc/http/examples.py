"""The examples in `/schema`; a test sends the requests, so they are not only to be looked at."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BAN",
    "BANS_ANSWER",
    "BAN_ANSWER",
    "BATCH",
    "BATCH_ANSWER",
    "CONNECTION",
    "CONNECTION_ANSWER",
    "DISCONNECT",
    "DISCONNECT_ACCEPTED",
    "DISCONNECT_PROGRESS",
    "EXCHANGE",
    "INSPECT",
    "INSPECTION",
    "ISSUED",
    "ISSUED_TOKENS",
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

DISCONNECT: Final[dict[str, object]] = {
    "a user, banned for an hour": {
        "stageArn": STAGE_ARN,
        "userId": "mallory",
        "reason": "threats",
        "ban": 3600,
    },
    "a participant": {"stageArn": STAGE_ARN, "participantId": "m5vTq2ZsYh8e"},
    "everybody": {"stageArn": STAGE_ARN, "everybody": True},
}
DISCONNECT_ACCEPTED: Final[dict[str, object]] = {
    "with a ban": {
        "disconnectId": "dis-6e4xvgsdlzqwz5e2p3yt",
        "banId": "ban-lq3hzy2vk5n4x7rjmc2a",
        "expectedCompletion": "2026-09-01T12:00:00.410Z",
    }
}
DISCONNECT_PROGRESS: Final[dict[str, object]] = {
    "one of two": {
        "disconnectId": "dis-6e4xvgsdlzqwz5e2p3yt",
        "kind": "user",
        "region": "eu-central-1",
        "stageArn": STAGE_ARN,
        "userId": "mallory",
        "reason": "threats",
        "banId": "ban-lq3hzy2vk5n4x7rjmc2a",
        "createdAt": "2026-09-01T12:00:00Z",
        "done": False,
        "expectedCompletion": "2026-09-01T13:00:00Z",
        "counts": {
            "pending": 1,
            "disconnected": 1,
            "notConnected": 0,
            "expired": 0,
            "failed": 0,
        },
        "lastError": None,
        "participants": [
            {
                "participantId": "m5vTq2ZsYh8e",
                "tokenId": None,
                "state": "disconnected",
                "attempts": 1,
                "nextAttemptAt": None,
                "lastError": None,
                "updatedAt": "2026-09-01T12:00:00.300Z",
            },
            {
                "participantId": "b4kQy7WmHd2s",
                "tokenId": None,
                "state": "pending",
                "attempts": 1,
                "nextAttemptAt": "2026-09-01T12:00:04Z",
                "lastError": "not_connected",
                "updatedAt": "2026-09-01T12:00:00.500Z",
            },
        ],
        "nextCursor": None,
    }
}

BAN: Final[dict[str, object]] = {
    "a user on a stage": {"stageArn": STAGE_ARN, "userId": "mallory", "duration": 3600},
    "a user everywhere, for good": {"userId": "mallory", "reason": "threats"},
    "a participant": {"participantId": "m5vTq2ZsYh8e", "duration": 600},
}
_BAN: Final[dict[str, object]] = {
    "banId": "ban-lq3hzy2vk5n4x7rjmc2a",
    "kind": "user_on_stage",
    "stageArn": STAGE_ARN,
    "userId": "mallory",
    "participantId": None,
    "until": "2026-09-01T13:00:00Z",
    "reason": "threats",
    "callerId": "yfl2k3qj5x7a",
    "createdAt": "2026-09-01T12:00:00Z",
    "liftedAt": None,
}
BAN_ANSWER: Final[dict[str, object]] = {
    "for an hour": _BAN,
    "for good": {**_BAN, "until": None},
}
BANS_ANSWER: Final[dict[str, object]] = {"one": {"bans": [_BAN], "nextCursor": None}}

ISSUED_TOKENS: Final[dict[str, object]] = {
    "one": {
        "tokens": [
            {
                "tokenId": "Zr3mQx8KcT1b",
                "kind": "participant",
                "stageArn": STAGE_ARN,
                "region": "eu-central-1",
                "userId": "ana",
                "keyId": "ixr5w2ksaejd",
                "keyArn": _KEY_ARN,
                "callerId": "yfl2k3qj5x7a",
                "issuer": "local",
                "issuedAt": "2026-09-01T11:00:00Z",
                "expirationTime": "2026-09-01T12:00:00Z",
                "disconnectedAt": None,
            }
        ],
        "nextCursor": None,
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
