"""What each operation does, from a checked request to the answer's members.

A handler gets the Region of the request's signature; things of another Region are not found in it.
Answers have only members that IVS's API model has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from tokensvc.emulator.errors import ResourceNotFoundError, ValidationError
from tokensvc.emulator.issued_tokens import issue_token
from tokensvc.emulator.pages import page
from tokensvc.emulator.public_keys import read_material
from tokensvc.emulator.records import PublicKeyRecord, StageRecord
from tokensvc.emulator.sessions import (
    ParticipantEvent,
    ParticipantRecord,
    Sessions,
    StageSessionRecord,
    TokenFacts,
)
from tokensvc.emulator.world import World

__all__ = ["HANDLERS", "Call", "Members"]

Members: TypeAlias = dict[str, Any]

_REGION_PART: Final = 3


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation; `request` was checked against the model."""

    world: World
    sessions: Sessions
    region: str
    request: Mapping[str, Any]

    def arn(self, member: str) -> str:
        """Return the ARN in `member`. Raises ResourceNotFoundError for one of another Region."""
        arn: str = self.request[member]
        if arn.split(":")[_REGION_PART] != self.region:
            raise ResourceNotFoundError(f"Resource: {arn} not found")
        return arn

    def stage(self, member: str) -> StageRecord:
        """Return the stage whose ARN is in `member`. Raises ResourceNotFoundError."""
        arn = self.arn(member)
        stage = self.world.stage(arn)
        if stage is None:
            raise ResourceNotFoundError(f"Resource: {arn} not found")
        return stage


# Stages


def create_stage(call: Call) -> Members:
    """CreateStage; the tokens that are made with it have no expirationTime, as IVS's have none."""
    request = call.request
    stage = call.world.create_stage(
        call.region,
        name=request.get("name", ""),
        tags=_checked_tags(request.get("tags", {})),
        recording=request.get("autoParticipantRecordingConfiguration"),
    )
    tokens = [
        issue_token(call.world, stage, wanted).members()
        for wanted in request.get("participantTokenConfigurations", [])
    ]
    return {"stage": _stage(call, stage), "participantTokens": tokens}


def get_stage(call: Call) -> Members:
    """GetStage."""
    return {"stage": _stage(call, call.stage("arn"))}


def list_stages(call: Call) -> Members:
    """ListStages."""
    stages, more = page(
        call.world.stages(call.region), call.request, lambda s: (s.created_at, s.arn)
    )
    return {"stages": [_stage_summary(call, stage) for stage in stages], **more}


def update_stage(call: Call) -> Members:
    """UpdateStage."""
    stage = call.stage("arn")
    changes: Members = {}
    if "name" in call.request:
        changes["name"] = call.request["name"]
    if "autoParticipantRecordingConfiguration" in call.request:
        changes["recording"] = call.request["autoParticipantRecordingConfiguration"]
    return {"stage": _stage(call, call.world.update_stage(stage.arn, changes))}


def delete_stage(call: Call) -> Members:
    """DeleteStage; everybody who is on the stage is told so."""
    arn = call.arn("arn")
    call.world.delete_stage(arn)
    call.sessions.stage_deleted(arn)
    return {}


def create_participant_token(call: Call) -> Members:
    """CreateParticipantToken."""
    issued = issue_token(call.world, call.stage("stageArn"), call.request)
    return {
        "participantToken": {
            **issued.members(),
            "expirationTime": _time(issued.expires_at),
        }
    }


def _stage_summary(call: Call, stage: StageRecord) -> Members:
    session_id = call.sessions.active_session_id(stage.arn)
    active = {} if session_id is None else {"activeSessionId": session_id}
    return {"arn": stage.arn, "name": stage.name, "tags": stage.tags, **active}


def _stage(call: Call, stage: StageRecord) -> Members:
    recording = (
        {}
        if stage.recording is None
        else {"autoParticipantRecordingConfiguration": stage.recording}
    )
    return {
        **_stage_summary(call, stage),
        **recording,
        "endpoints": {"events": call.world.config.events_url, "whip": stage.whip_url},
    }


# Public keys


def import_public_key(call: Call) -> Members:
    """ImportPublicKey; a key of another curve than P-384 is a ValidationException."""
    material = read_material(call.request["publicKeyMaterial"])
    key = call.world.import_public_key(
        call.region,
        public_key_pem=material.public_key_pem,
        fingerprint=material.fingerprint,
        name=call.request.get("name", ""),
        tags=_checked_tags(call.request.get("tags", {})),
    )
    return {"publicKey": _public_key(key)}


def get_public_key(call: Call) -> Members:
    """GetPublicKey."""
    arn = call.arn("arn")
    key = call.world.public_key(arn)
    if key is None:
        raise ResourceNotFoundError(f"Resource: {arn} not found")
    return {"publicKey": _public_key(key)}


def list_public_keys(call: Call) -> Members:
    """ListPublicKeys."""
    keys, more = page(
        call.world.public_keys(call.region), call.request, lambda k: (k.created_at, k.arn)
    )
    return {"publicKeys": [_public_key_summary(key) for key in keys], **more}


def delete_public_key(call: Call) -> Members:
    """DeletePublicKey; who is connected stays, and nobody joins with the key's tokens any more."""
    call.world.delete_public_key(call.arn("arn"))
    return {}


def _public_key_summary(key: PublicKeyRecord) -> Members:
    return {"arn": key.arn, "name": key.name, "tags": key.tags}


def _public_key(key: PublicKeyRecord) -> Members:
    return {
        **_public_key_summary(key),
        "publicKeyMaterial": key.public_key_pem,
        "fingerprint": key.fingerprint,
    }


# Tags


def tag_resource(call: Call) -> Members:
    """TagResource."""
    call.world.tag(call.arn("resourceArn"), _checked_tags(call.request["tags"]))
    return {}


def untag_resource(call: Call) -> Members:
    """UntagResource."""
    call.world.untag(call.arn("resourceArn"), call.request["tagKeys"])
    return {}


def list_tags_for_resource(call: Call) -> Members:
    """ListTagsForResource."""
    return {"tags": call.world.tags(call.arn("resourceArn"))}


def _checked_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    if any(name.lower().startswith("aws:") for name in tags):
        raise ValidationError("Tag keys that begin with 'aws:' are reserved")
    return tags


# Participants


def disconnect_participant(call: Call) -> Members:
    """DisconnectParticipant; for one who never joined, see `EmulatorConfig`."""
    stage, participant_id = call.stage("stageArn"), call.request["participantId"]
    known = call.sessions.disconnect(stage.arn, participant_id, call.request.get("reason", ""))
    if not known and not call.world.config.unknown_participants_disconnect:
        raise ResourceNotFoundError("Resource: participant not found")
    return {}


def get_participant(call: Call) -> Members:
    """GetParticipant."""
    stage = call.stage("stageArn")
    found = call.sessions.participant(
        stage.arn, call.request["sessionId"], call.request["participantId"]
    )
    if found is None:
        raise ResourceNotFoundError("Resource: participant not found")
    return {"participant": {**_participant(found), "attributes": dict(found.attributes)}}


def list_participants(call: Call) -> Members:
    """ListParticipants; nobody publishes or is recorded here, so those filters find nobody."""
    wanted = call.request
    # In the model only the members' documentation says so.
    if sum(name.startswith("filterBy") for name in wanted) > 1:
        raise ValidationError("Only one filter can be provided per request")
    found = [
        participant
        for participant in call.sessions.participants(call.arn("stageArn"), wanted["sessionId"])
        if wanted.get("filterByUserId") in (None, participant.user_id)
        and wanted.get("filterByState") in (None, participant.state)
        and not wanted.get("filterByPublished")
        and "filterByRecordingState" not in wanted
    ]
    shown, more = page(found, wanted, lambda p: (p.first_joined_at, p.participant_id))
    return {"participants": [_participant(participant) for participant in shown], **more}


def list_participant_events(call: Call) -> Members:
    """ListParticipantEvents."""
    events = call.sessions.events(
        call.arn("stageArn"), call.request["sessionId"], call.request["participantId"]
    )
    shown, more = page(enumerate(events), call.request, lambda numbered: (numbered[0], ""))
    return {"events": [_event(event) for _, event in shown], **more}


def get_stage_session(call: Call) -> Members:
    """GetStageSession."""
    found = call.sessions.stage_session(call.arn("stageArn"), call.request["sessionId"])
    if found is None:
        raise ResourceNotFoundError("Resource: stage session not found")
    return {"stageSession": _stage_session(found)}


def list_stage_sessions(call: Call) -> Members:
    """ListStageSessions, newest first."""
    sessions = call.sessions.stage_sessions(call.arn("stageArn"))
    shown, more = page(sessions, call.request, lambda s: (-s.started_at, s.session_id))
    return {"stageSessions": [_stage_session(session) for session in shown], **more}


def revoke_connection_token(call: Call) -> Members:
    """RevokeConnectionToken; an id that was never seen is no error (API model)."""
    call.sessions.revoke_connection_token(call.region, call.request["tokenId"])
    return {}


def _participant(participant: ParticipantRecord) -> Members:
    user_id = {} if participant.user_id is None else {"userId": participant.user_id}
    return {
        "participantId": participant.participant_id,
        **user_id,
        "state": participant.state,
        "firstJoinTime": _time(participant.first_joined_at),
        "published": False,
    }


def _event(event: ParticipantEvent) -> Members:
    members: Members = {
        "name": event.name,
        "participantId": event.participant_id,
        "eventTime": _time(event.at),
    }
    if event.previous_token is not None:
        members["previousToken"] = _token_facts(event.previous_token)
    if event.new_token is not None:
        members["newToken"] = _token_facts(event.new_token)
    return members


def _token_facts(facts: TokenFacts) -> Members:
    user_id = {} if facts.user_id is None else {"userId": facts.user_id}
    return {
        "capabilities": list(facts.capabilities),
        "attributes": dict(facts.attributes),
        **user_id,
        "expirationTime": _time(facts.expires_at),
    }


def _stage_session(session: StageSessionRecord) -> Members:
    ended = {} if session.ended_at is None else {"endTime": _time(session.ended_at)}
    return {"sessionId": session.session_id, "startTime": _time(session.started_at), **ended}


def _time(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


HANDLERS: Final[Mapping[str, Callable[[Call], Members]]] = {
    "CreateParticipantToken": create_participant_token,
    "CreateStage": create_stage,
    "DeletePublicKey": delete_public_key,
    "DeleteStage": delete_stage,
    "DisconnectParticipant": disconnect_participant,
    "GetParticipant": get_participant,
    "GetPublicKey": get_public_key,
    "GetStage": get_stage,
    "GetStageSession": get_stage_session,
    "ImportPublicKey": import_public_key,
    "ListParticipantEvents": list_participant_events,
    "ListParticipants": list_participants,
    "ListPublicKeys": list_public_keys,
    "ListStages": list_stages,
    "ListStageSessions": list_stage_sessions,
    "ListTagsForResource": list_tags_for_resource,
    "RevokeConnectionToken": revoke_connection_token,
    "TagResource": tag_resource,
    "UntagResource": untag_resource,
    "UpdateStage": update_stage,
}
"""The handler of each operation."""
