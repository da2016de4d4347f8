"""The requests of the operations, as IVS's API model bounds them (`ivs-realtime`, 2020-07-14).

Two places differ from the model's letter. ResourceArn's pattern there has `[a-z-]/`, which no ARN of
IVS fits, so kinds of more than one letter are taken here; and attributes are bounded to the 1 KB that
the documentation states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokensvc.emulator.shapes import Choice, Flag, Items, Shape, Structure, Text, Texts, Whole
from tokensvc.tokens.limits import (
    CAPABILITIES,
    MAX_ARN_CHARS,
    MAX_ATTRIBUTES_BYTES,
    MAX_DURATION_MINUTES,
    MAX_TOKEN_ID_CHARS,
    MAX_USER_ID_CHARS,
    MIN_DURATION_MINUTES,
)

__all__ = ["REQUESTS", "TAG_OPERATIONS"]


def _arn(kind: str) -> Text:
    return Text(1, MAX_ARN_CHARS, rf"arn:aws:ivs:[a-z0-9-]+:[0-9]+:{kind}/[a-zA-Z0-9-]+")


_NAME = Text(max=128, pattern=r"[a-zA-Z0-9-_]*")
_STAGE_ARN = _arn("stage")
_PUBLIC_KEY_ARN = _arn("public-key")
_RESOURCE_ARN = _arn("[a-z-]+")
_SESSION_ID = Text(16, 16, r"st-[a-zA-Z0-9]+")
_PARTICIPANT_ID = Text(max=MAX_TOKEN_ID_CHARS, pattern=r"[a-zA-Z0-9-_]*")
_USER_ID = Text(max=MAX_USER_ID_CHARS)
_TAGS = Texts(key=Text(1, 128), value=Text(max=256), max=50)
_TOKEN_MEMBERS: Mapping[str, Shape] = {
    "duration": Whole(MIN_DURATION_MINUTES, MAX_DURATION_MINUTES),
    "userId": _USER_ID,
    "attributes": Texts(max_bytes=MAX_ATTRIBUTES_BYTES),
    "capabilities": Items(Choice(CAPABILITIES), max=len(CAPABILITIES)),
}
_PAGE: Mapping[str, Shape] = {
    "nextToken": Text(max=1024, pattern=r"[a-zA-Z0-9+/=_-]*"),
    "maxResults": Whole(1, 100),
}
_RECORDING = Structure(
    {
        "storageConfigurationArn": Text(
            max=128,
            pattern=r"^$|^arn:aws:ivs:[a-z0-9-]+:[0-9]+:storage-configuration/[a-zA-Z0-9-]+$",
        ),
        "mediaTypes": Items(Choice(("AUDIO_VIDEO", "AUDIO_ONLY", "NONE")), max=1),
        "thumbnailConfiguration": Structure(
            {
                "targetIntervalSeconds": Whole(1, 86_400),
                "storage": Items(Choice(("SEQUENTIAL", "LATEST")), max=2),
                "recordingMode": Choice(("INTERVAL", "DISABLED")),
            }
        ),
        "recordingReconnectWindowSeconds": Whole(0, 300),
        "hlsConfiguration": Structure({"targetSegmentDurationSeconds": Whole(2, 10)}),
        "recordParticipantReplicas": Flag(),
    },
    required=("storageConfigurationArn",),
)
_PEM = (
    r".*-----BEGIN PUBLIC KEY-----\r?\n([a-zA-Z0-9+/=\r\n]+)\r?\n-----END PUBLIC KEY-----(\r?\n)?.*"
)

REQUESTS: Final[Mapping[str, Structure]] = {
    "CreateStage": Structure(
        {
            "name": _NAME,
            "participantTokenConfigurations": Items(Structure(_TOKEN_MEMBERS), max=12),
            "tags": _TAGS,
            "autoParticipantRecordingConfiguration": _RECORDING,
        }
    ),
    "GetStage": Structure({"arn": _STAGE_ARN}, required=("arn",)),
    "ListStages": Structure(_PAGE),
    "UpdateStage": Structure(
        {"arn": _STAGE_ARN, "name": _NAME, "autoParticipantRecordingConfiguration": _RECORDING},
        required=("arn",),
    ),
    "DeleteStage": Structure({"arn": _STAGE_ARN}, required=("arn",)),
    "CreateParticipantToken": Structure(
        {"stageArn": _STAGE_ARN, **_TOKEN_MEMBERS}, required=("stageArn",)
    ),
    "ImportPublicKey": Structure(
        {"publicKeyMaterial": Text(pattern=_PEM), "name": _NAME, "tags": _TAGS},
        required=("publicKeyMaterial",),
    ),
    "GetPublicKey": Structure({"arn": _PUBLIC_KEY_ARN}, required=("arn",)),
    "ListPublicKeys": Structure(_PAGE),
    "DeletePublicKey": Structure({"arn": _PUBLIC_KEY_ARN}, required=("arn",)),
    "DisconnectParticipant": Structure(
        {"stageArn": _STAGE_ARN, "participantId": _PARTICIPANT_ID, "reason": Text(max=128)},
        required=("stageArn", "participantId"),
    ),
    "GetParticipant": Structure(
        {"stageArn": _STAGE_ARN, "sessionId": _SESSION_ID, "participantId": _PARTICIPANT_ID},
        required=("stageArn", "sessionId", "participantId"),
    ),
    "ListParticipants": Structure(
        {
            "stageArn": _STAGE_ARN,
            "sessionId": _SESSION_ID,
            "filterByUserId": _USER_ID,
            "filterByPublished": Flag(),
            "filterByState": Choice(("CONNECTED", "DISCONNECTED")),
            "filterByRecordingState": Choice(
                ("STARTING", "ACTIVE", "STOPPING", "STOPPED", "FAILED")
            ),
            **_PAGE,
        },
        required=("stageArn", "sessionId"),
    ),
    "ListParticipantEvents": Structure(
        {
            "stageArn": _STAGE_ARN,
            "sessionId": _SESSION_ID,
            "participantId": _PARTICIPANT_ID,
            **_PAGE,
        },
        required=("stageArn", "sessionId", "participantId"),
    ),
    "GetStageSession": Structure(
        {"stageArn": _STAGE_ARN, "sessionId": _SESSION_ID}, required=("stageArn", "sessionId")
    ),
    "ListStageSessions": Structure({"stageArn": _STAGE_ARN, **_PAGE}, required=("stageArn",)),
    "RevokeConnectionToken": Structure(
        {"tokenId": Text(1, MAX_TOKEN_ID_CHARS, r"[a-zA-Z0-9-_]+")}, required=("tokenId",)
    ),
    "TagResource": Structure(
        {"resourceArn": _RESOURCE_ARN, "tags": _TAGS}, required=("resourceArn", "tags")
    ),
    "UntagResource": Structure(
        {"resourceArn": _RESOURCE_ARN, "tagKeys": Items(Text(1, 128), max=50)},
        required=("resourceArn", "tagKeys"),
    ),
    "ListTagsForResource": Structure({"resourceArn": _RESOURCE_ARN}, required=("resourceArn",)),
}
"""The request of each operation that the stand-in answers."""

TAG_OPERATIONS: Final[Mapping[str, str]] = {
    "POST": "TagResource",
    "DELETE": "UntagResource",
    "GET": "ListTagsForResource",
}
"""The operations at `/tags/{resourceArn}`, by HTTP method; all others are `POST /<operation>`."""
