"""Every operation through boto3, its answers held against the API model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.emulator.api_model import ModelJudge
from tests.emulator.support import RunningEmulator, public_pem, refused

REQUIRED_OPERATIONS = {
    "CreateStage",
    "GetStage",
    "ListStages",
    "UpdateStage",
    "DeleteStage",
    "CreateParticipantToken",
    "ImportPublicKey",
    "GetPublicKey",
    "ListPublicKeys",
    "DeletePublicKey",
    "DisconnectParticipant",
    "GetParticipant",
    "ListParticipants",
    "ListParticipantEvents",
    "GetStageSession",
    "ListStageSessions",
    "RevokeConnectionToken",
    "TagResource",
    "UntagResource",
    "ListTagsForResource",
}
RECORDING = {
    "storageConfigurationArn": "arn:aws:ivs:eu-central-1:123456789012:storage-configuration/abc",
    "mediaTypes": ["AUDIO_ONLY"],
    "thumbnailConfiguration": {"targetIntervalSeconds": 5, "storage": ["LATEST"]},
    "hlsConfiguration": {"targetSegmentDurationSeconds": 4},
    "recordingReconnectWindowSeconds": 10,
}
TAGS = {"ring": "blue", "Owner": "Zoë"}


class World:
    """An emulator, a judged client, and a stage that somebody has joined."""

    def __init__(self, ivs: RunningEmulator) -> None:
        self.ivs = ivs
        self.client = ivs.client()
        self.judge = ModelJudge(self.client)
        self.sockets: list[ClientConnection] = []
        self._open = ExitStack()

    def stage(self, **wanted: Any) -> str:
        arn: str = self.client.create_stage(**wanted)["stage"]["arn"]
        return arn

    def key(self, **wanted: Any) -> str:
        answer = self.client.import_public_key(publicKeyMaterial=public_pem(), **wanted)
        arn: str = answer["publicKey"]["arn"]
        return arn

    def joined(self, stage: str, **wanted: Any) -> tuple[str, str]:
        """Have a participant join over the events socket; return session and participant id."""
        issued = self.client.create_participant_token(stageArn=stage, **wanted)["participantToken"]
        self.join(issued["token"])
        session = self.client.get_stage(arn=stage)["stage"]["activeSessionId"]
        return session, issued["participantId"]

    def join(self, token: str) -> None:
        opened = connect(
            f"{self.ivs.events_url}?error_over_ws=1",
            subprotocols=[Subprotocol(token)],
            proxy=None,
            open_timeout=10,
            close_timeout=5,
        )
        self.sockets.append(self._open.enter_context(opened))
        assert self.heard()["type"] == "aws:ivs:STAGE_STATE"

    def heard(self) -> Any:
        """Return the next message to the participant that joined last."""
        return json.loads(self.sockets[-1].recv(timeout=10))

    def leave(self) -> None:
        self._open.close()


@pytest.fixture(scope="module")
def emulator() -> Iterator[RunningEmulator]:
    with RunningEmulator(enforce_quotas=False) as ivs:
        yield ivs


@pytest.fixture
def world(emulator: RunningEmulator) -> Iterator[World]:
    world = World(emulator)
    try:
        yield world
    finally:
        world.leave()
    assert world.judge.problems == []


def create_stage(world: World) -> None:
    answer = world.client.create_stage(
        name="demo_1",
        tags=TAGS,
        autoParticipantRecordingConfiguration=RECORDING,
        participantTokenConfigurations=[
            {"userId": "Zoë", "attributes": {"a": "b"}, "capabilities": ["PUBLISH"], "duration": 1},
            {},
        ],
    )
    stage, (first, second) = answer["stage"], answer["participantTokens"]
    assert stage["name"] == "demo_1"
    assert stage["tags"] == TAGS
    assert stage["autoParticipantRecordingConfiguration"] == RECORDING
    assert stage["endpoints"]["events"] == world.ivs.events_url
    assert stage["endpoints"]["whip"].endswith(".global-bm.whip.live-video.net")
    assert first["userId"] == "Zoë"
    assert first["attributes"] == {"a": "b"}
    assert first["capabilities"] == ["PUBLISH"]
    assert "expirationTime" not in first
    assert second["capabilities"] == ["PUBLISH", "SUBSCRIBE"]
    assert second["duration"] == 720
    world.join(second["token"])


def get_stage(world: World) -> None:
    made = world.client.create_stage(name="x", tags=TAGS)["stage"]
    assert world.client.get_stage(arn=made["arn"])["stage"] == made


def list_stages(world: World) -> None:
    made = world.client.create_stage(name="listed", tags=TAGS)["stage"]
    listed = world.client.list_stages(maxResults=100)["stages"]
    stages = {stage["arn"]: stage for stage in listed}
    assert stages[made["arn"]] == {name: made[name] for name in ("arn", "name", "tags")}


def update_stage(world: World) -> None:
    arn = world.stage(name="before", tags=TAGS)
    updated = world.client.update_stage(
        arn=arn, name="after", autoParticipantRecordingConfiguration=RECORDING
    )["stage"]
    assert updated["name"] == "after"
    assert updated["tags"] == TAGS
    assert world.client.get_stage(arn=arn)["stage"] == updated
    assert world.client.update_stage(arn=arn)["stage"] == updated


def delete_stage(world: World) -> None:
    arn = world.stage()
    world.joined(arn)
    world.client.delete_stage(arn=arn)
    assert world.heard()["payload"]["code"] == "STAGE_DELETED"
    refused(world.client.get_stage, 404, "ResourceNotFoundException", arn=arn)
    refused(world.client.delete_stage, 404, "ResourceNotFoundException", arn=arn)


def create_participant_token(world: World) -> None:
    arn = world.stage()
    issued = world.client.create_participant_token(
        stageArn=arn,
        userId="Zoë",
        attributes={"näme": "🎈"},
        capabilities=["SUBSCRIBE"],
        duration=15,
    )["participantToken"]
    assert issued["userId"] == "Zoë"
    assert issued["attributes"] == {"näme": "🎈"}
    assert issued["capabilities"] == ["SUBSCRIBE"]
    assert issued["duration"] == 15
    assert issued["expirationTime"].timestamp() == pytest.approx(
        world.ivs.world.now() + 15 * 60, abs=30
    )
    record = world.ivs.world.issued_token(issued["token"])
    assert record is not None
    assert (record.stage_arn, record.participant_id) == (arn, issued["participantId"])
    assert world.ivs.world.issued_token(issued["token"] + "A") is None
    unknown = arn[:-12] + "000000000000"
    refused(
        world.client.create_participant_token, 404, "ResourceNotFoundException", stageArn=unknown
    )


def import_public_key(world: World) -> None:
    pem = public_pem()
    key = world.client.import_public_key(publicKeyMaterial=pem, name="ring-1", tags=TAGS)[
        "publicKey"
    ]
    assert key["publicKeyMaterial"] == pem
    assert key["name"] == "ring-1"
    assert key["tags"] == TAGS
    assert len(key["fingerprint"].split(":")) == 16
    refused(
        world.client.import_public_key,
        409,
        "ConflictException",
        publicKeyMaterial=pem.replace("\n", "\r\n"),
    )


def get_public_key(world: World) -> None:
    arn = world.key(tags=TAGS)
    key = world.client.get_public_key(arn=arn)["publicKey"]
    assert key["arn"] == arn
    assert key["tags"] == TAGS
    unknown = arn[:-12] + "000000000000"
    refused(world.client.get_public_key, 404, "ResourceNotFoundException", arn=unknown)


def list_public_keys(world: World) -> None:
    arn = world.key(name="listed", tags=TAGS)
    keys = world.client.list_public_keys(maxResults=100)["publicKeys"]
    assert {"arn": arn, "name": "listed", "tags": TAGS} in keys


def delete_public_key(world: World) -> None:
    arn = world.key()
    world.client.delete_public_key(arn=arn)
    refused(world.client.get_public_key, 404, "ResourceNotFoundException", arn=arn)
    refused(world.client.delete_public_key, 404, "ResourceNotFoundException", arn=arn)
    assert arn not in [key["arn"] for key in world.client.list_public_keys()["publicKeys"]]


def disconnect_participant(world: World) -> None:
    arn = world.stage()
    _, participant = world.joined(arn)
    world.client.disconnect_participant(stageArn=arn, participantId=participant, reason="rude")
    assert world.heard()["payload"] == {"code": "PARTICIPANT_DISCONNECTED", "reason": "rude"}
    world.client.disconnect_participant(stageArn=arn, participantId=participant)
    refused(
        world.client.disconnect_participant,
        404,
        "ResourceNotFoundException",
        stageArn=arn,
        participantId="never-joined",
    )


def get_participant(world: World) -> None:
    arn = world.stage()
    session, participant = world.joined(arn, userId="Zoë", attributes={"a": "b"})
    known = {"stageArn": arn, "sessionId": session}
    found = world.client.get_participant(**known, participantId=participant)["participant"]
    assert found["userId"] == "Zoë"
    assert found["attributes"] == {"a": "b"}
    assert found["state"] == "CONNECTED"
    assert found["published"] is False
    refused(
        world.client.get_participant,
        404,
        "ResourceNotFoundException",
        **known,
        participantId="nobody",
    )


def list_participants(world: World) -> None:
    arn = world.stage()
    session, first = world.joined(arn, userId="one")
    _, second = world.joined(arn)
    known = {"stageArn": arn, "sessionId": session}

    def ids(**filters: Any) -> set[str]:
        answer = world.client.list_participants(**known, **filters)
        return {participant["participantId"] for participant in answer["participants"]}

    assert ids() == {first, second}
    assert ids(filterByUserId="one") == {first}
    world.client.disconnect_participant(stageArn=arn, participantId=first)
    assert ids(filterByState="CONNECTED") == {second}
    assert ids(filterByState="DISCONNECTED") == {first}
    assert ids(filterByPublished=True) == set()
    assert ids(filterByRecordingState="ACTIVE") == set()
    two = {"filterByUserId": "one", "filterByState": "CONNECTED"}
    refused(world.client.list_participants, 400, "ValidationException", **known, **two)
    page = world.client.list_participants(**known, maxResults=1)
    rest = world.client.list_participants(**known, maxResults=1, nextToken=page["nextToken"])
    both = page["participants"] + rest["participants"]
    assert {participant["participantId"] for participant in both} == {first, second}
    assert "nextToken" not in rest


def list_participant_events(world: World) -> None:
    arn = world.stage()
    session, participant = world.joined(arn)
    world.client.disconnect_participant(stageArn=arn, participantId=participant)
    known = {"stageArn": arn, "sessionId": session, "participantId": participant}
    first = world.client.list_participant_events(**known, maxResults=1)
    second = world.client.list_participant_events(**known, nextToken=first["nextToken"])
    assert [event["name"] for event in first["events"] + second["events"]] == ["JOINED", "LEFT"]
    assert "nextToken" not in second


def get_stage_session(world: World) -> None:
    arn = world.stage()
    session, participant = world.joined(arn)
    known = {"stageArn": arn, "sessionId": session}
    assert "endTime" not in world.client.get_stage_session(**known)["stageSession"]
    world.client.disconnect_participant(stageArn=arn, participantId=participant)
    found = world.client.get_stage_session(**known)["stageSession"]
    assert found["startTime"] <= found["endTime"]
    known["sessionId"] = "st-0000000000000"
    refused(world.client.get_stage_session, 404, "ResourceNotFoundException", **known)


def list_stage_sessions(world: World) -> None:
    arn = world.stage()
    first, participant = world.joined(arn)
    world.client.disconnect_participant(stageArn=arn, participantId=participant)
    second, _ = world.joined(arn)
    sessions = world.client.list_stage_sessions(stageArn=arn)["stageSessions"]
    assert [session["sessionId"] for session in sessions] == [second, first]
    page = world.client.list_stage_sessions(stageArn=arn, maxResults=1)
    rest = world.client.list_stage_sessions(stageArn=arn, nextToken=page["nextToken"])
    assert page["stageSessions"] + rest["stageSessions"] == sessions


def revoke_connection_token(world: World) -> None:
    world.client.revoke_connection_token(tokenId="never-seen_1")
    assert world.ivs.sessions.is_revoked("eu-central-1", "never-seen_1")
    assert not world.ivs.sessions.is_revoked("us-east-1", "never-seen_1")


def tag_resource(world: World) -> None:
    for arn in (world.stage(tags={"a": "b"}), world.key(tags={"a": "b"})):
        world.client.tag_resource(resourceArn=arn, tags=TAGS | {"a": "c"})
        listed = world.client.list_tags_for_resource(resourceArn=arn)["tags"]
        assert listed == TAGS | {"a": "c"}
        surplus = {f"tag-{number}": "" for number in range(50)}
        refused(
            world.client.tag_resource, 400, "ValidationException", resourceArn=arn, tags=surplus
        )
        reserved = {"aws:mine": ""}
        refused(
            world.client.tag_resource, 400, "ValidationException", resourceArn=arn, tags=reserved
        )


def untag_resource(world: World) -> None:
    for arn in (world.stage(tags=TAGS), world.key(tags=TAGS)):
        world.client.untag_resource(resourceArn=arn, tagKeys=["ring", "not there"])
        listed = world.client.list_tags_for_resource(resourceArn=arn)["tags"]
        assert listed == {"Owner": "Zoë"}


def list_tags_for_resource(world: World) -> None:
    arn = world.stage()
    assert world.client.list_tags_for_resource(resourceArn=arn)["tags"] == {}
    assert world.client.get_stage(arn=arn)["stage"]["tags"] == {}
    refused(
        world.client.list_tags_for_resource,
        404,
        "ResourceNotFoundException",
        resourceArn=arn[:-12] + "000000000000",
    )


EXERCISES: dict[str, Callable[[World], None]] = {
    "CreateStage": create_stage,
    "GetStage": get_stage,
    "ListStages": list_stages,
    "UpdateStage": update_stage,
    "DeleteStage": delete_stage,
    "CreateParticipantToken": create_participant_token,
    "ImportPublicKey": import_public_key,
    "GetPublicKey": get_public_key,
    "ListPublicKeys": list_public_keys,
    "DeletePublicKey": delete_public_key,
    "DisconnectParticipant": disconnect_participant,
    "GetParticipant": get_participant,
    "ListParticipants": list_participants,
    "ListParticipantEvents": list_participant_events,
    "GetStageSession": get_stage_session,
    "ListStageSessions": list_stage_sessions,
    "RevokeConnectionToken": revoke_connection_token,
    "TagResource": tag_resource,
    "UntagResource": untag_resource,
    "ListTagsForResource": list_tags_for_resource,
}


def test_every_required_operation_is_exercised() -> None:
    assert set(EXERCISES) == REQUIRED_OPERATIONS


@pytest.mark.parametrize("operation", sorted(EXERCISES))
def test_operation_answers_as_the_model_says(world: World, operation: str) -> None:
    EXERCISES[operation](world)
    assert operation in world.judge.operations


def test_pages_of_stages_and_keys_are_complete() -> None:
    with RunningEmulator(enforce_quotas=False) as ivs:
        world = World(ivs)
        stages = [world.stage(name=f"s-{number}") for number in range(7)]
        keys = [world.key() for _ in range(5)]
        for list_all, member, expected in (
            (world.client.list_stages, "stages", stages),
            (world.client.list_public_keys, "publicKeys", keys),
        ):
            found: list[str] = []
            request: dict[str, Any] = {"maxResults": 2}
            while True:
                answer = list_all(**request)
                assert len(answer[member]) <= 2
                found += [item["arn"] for item in answer[member]]
                if "nextToken" not in answer:
                    break
                request["nextToken"] = answer["nextToken"]
            assert found == expected
            refused(list_all, 400, "ValidationException", nextToken="abcd")
        assert world.judge.problems == []


def test_regions_are_apart(emulator: RunningEmulator) -> None:
    here, there = emulator.client("eu-west-1"), emulator.client("ap-south-1")
    pem = public_pem()
    arn = here.create_stage()["stage"]["arn"]
    key = here.import_public_key(publicKeyMaterial=pem)["publicKey"]["arn"]
    assert arn.split(":")[3] == "eu-west-1"
    assert [stage["arn"] for stage in here.list_stages()["stages"]] == [arn]
    assert there.list_stages()["stages"] == []
    assert there.list_public_keys()["publicKeys"] == []
    there.import_public_key(publicKeyMaterial=pem)
    refused(there.get_stage, 404, "ResourceNotFoundException", arn=arn)
    refused(there.get_public_key, 404, "ResourceNotFoundException", arn=key)
    refused(there.list_tags_for_resource, 404, "ResourceNotFoundException", resourceArn=arn)


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP521R1])
def test_only_p384_keys_are_imported(world: World, curve: type[ec.EllipticCurve]) -> None:
    refused(
        world.client.import_public_key,
        400,
        "ValidationException",
        publicKeyMaterial=public_pem(curve),
    )


def test_disconnect_of_unknown_can_be_set_to_succeed() -> None:
    with RunningEmulator(unknown_participants_disconnect=True) as ivs:
        client = ivs.client()
        arn = client.create_stage()["stage"]["arn"]
        client.disconnect_participant(stageArn=arn, participantId="never-joined")


def test_one_attribute_byte_too_many_is_refused(world: World) -> None:
    arn = world.stage()
    most = {"a": "é" * 511 + "b"}
    world.client.create_participant_token(stageArn=arn, attributes=most)
    refused(
        world.client.create_participant_token,
        400,
        "ValidationException",
        stageArn=arn,
        attributes={"aa": most["a"]},
    )
