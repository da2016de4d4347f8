"""Promise: what we ask of IVS is what its model wants, and what it answers is read or refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.stub import Stubber

from tests.ivs.support import CREDENTIALS, REGION, ScriptedIvs, answer
from tokensvc.errors import ConfigurationError, IvsError, IvsNotFoundError, IvsRejectedError
from tokensvc.ivs.boto import MAX_LIST_PAGES, BotoIvsGateway
from tokensvc.ivs.budgets import CallBudgets, Operation
from tokensvc.ivs.clients import ClientSettings, RegionalClients, StaticCredentials
from tokensvc.ivs.gateway import Participant, PublicKey, PublicKeySummary, Stage, StageSummary
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

STAGE = StageArn(REGION, "123456789012", "AbCdEf123456")
KEY_ARN = f"arn:aws:ivs:{REGION}:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
_NOT_FOUND = "ResourceNotFoundException"
ENDPOINTS = {"events": "wss://events.example.com", "whip": "https://whip.example.com"}


@pytest.fixture
def stub(gateway: BotoIvsGateway) -> Iterator[Stubber]:
    """Expectations of the client that may repeat a call."""
    with Stubber(gateway._clients.client(REGION, repeatable=True)) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture
def stub_once(gateway: BotoIvsGateway) -> Iterator[Stubber]:
    """Expectations of the client that makes one attempt."""
    with Stubber(gateway._clients.client(REGION, repeatable=False)) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def stage_answer(**changes: Any) -> dict[str, Any]:
    return {"stage": {"arn": str(STAGE), "name": "demo", "endpoints": ENDPOINTS, **changes}}


async def test_import_sends_pem_name_and_tags(gateway: BotoIvsGateway, stub_once: Stubber) -> None:
    key = {
        "arn": KEY_ARN,
        "name": "ring-1",
        "publicKeyMaterial": PEM,
        "fingerprint": "00:11",
        "tags": {"ring": "r"},
    }
    stub_once.add_response(
        "import_public_key",
        {"publicKey": key},
        {"publicKeyMaterial": PEM, "name": "ring-1", "tags": {"ring": "r"}},
    )
    made = await gateway.import_public_key(
        REGION, public_key_pem=PEM, name="ring-1", tags={"ring": "r"}
    )
    assert made == PublicKey(KEY_ARN, "ring-1", PEM, "00:11", {"ring": "r"})


async def test_get_public_key(gateway: BotoIvsGateway, stub: Stubber) -> None:
    stub.add_response(
        "get_public_key",
        {"publicKey": {"arn": KEY_ARN, "publicKeyMaterial": PEM}},
        {"arn": KEY_ARN},
    )
    assert await gateway.get_public_key(REGION, KEY_ARN) == PublicKey(KEY_ARN, "", PEM, "", {})


async def test_lists_follow_every_page(gateway: BotoIvsGateway, stub: Stubber) -> None:
    stub.add_response(
        "list_public_keys",
        {"publicKeys": [{"arn": KEY_ARN, "name": "a", "tags": {"k": "v"}}], "nextToken": "t1"},
        {"maxResults": 100},
    )
    stub.add_response(
        "list_public_keys", {"publicKeys": []}, {"maxResults": 100, "nextToken": "t1"}
    )
    stub.add_response("list_stages", {"stages": [], "nextToken": "t2"}, {"maxResults": 100})
    stub.add_response(
        "list_stages", {"stages": [{"arn": str(STAGE)}]}, {"maxResults": 100, "nextToken": "t2"}
    )
    assert await gateway.list_public_keys(REGION) == [PublicKeySummary(KEY_ARN, "a", {"k": "v"})]
    assert await gateway.list_stages(REGION) == [StageSummary(str(STAGE), "", {})]


async def test_a_list_without_end_is_given_up(
    gateway: BotoIvsGateway, stub: Stubber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokensvc.ivs.boto.MAX_LIST_PAGES", 3)
    assert MAX_LIST_PAGES > 3
    for _ in range(3):
        stub.add_response("list_stages", {"stages": [], "nextToken": "again"})
    with pytest.raises(IvsError) as caught:
        await gateway.list_stages(REGION)
    assert caught.value.context == {"operation": "ListStages", "region": REGION, "max_pages": 3}


async def test_get_stage(gateway: BotoIvsGateway, stub: Stubber) -> None:
    stub.add_response("get_stage", stage_answer(), {"arn": str(STAGE)})
    assert await gateway.get_stage(REGION, str(STAGE)) == Stage(
        str(STAGE), "demo", StageEndpoints(ENDPOINTS["events"], ENDPOINTS["whip"]), {}
    )


async def test_create_stage(gateway: BotoIvsGateway, stub_once: Stubber) -> None:
    stub_once.add_response("create_stage", stage_answer(), {"name": "demo", "tags": {"a": "b"}})
    made = await gateway.create_stage(REGION, name="demo", tags={"a": "b"})
    assert (made.arn, made.endpoints.events) == (str(STAGE), ENDPOINTS["events"])


async def test_an_answer_about_another_thing_is_refused(
    gateway: BotoIvsGateway, stub: Stubber
) -> None:
    other = f"{STAGE}X"
    stub.add_response("get_stage", stage_answer(arn=other))
    with pytest.raises(IvsError) as caught:
        await gateway.get_stage(REGION, str(STAGE))
    assert caught.value.context["answered"] == other
    stub.add_response(
        "get_public_key", {"publicKey": {"arn": f"{KEY_ARN}X", "publicKeyMaterial": PEM}}
    )
    with pytest.raises(IvsError):
        await gateway.get_public_key(REGION, KEY_ARN)


@pytest.mark.parametrize(
    ("endpoints", "member"),
    [
        (None, "endpoints"),
        ({"events": "wss://a.example"}, "whip"),
        ({"whip": "https://a.example"}, "events"),
        ({**ENDPOINTS, "events": "https://a.example"}, "events"),
        ({**ENDPOINTS, "events": "wss://"}, "events"),
        ({**ENDPOINTS, "events": "wss://[::1"}, "events"),
        ({**ENDPOINTS, "events": "wss://a.example/" + "x" * 2033}, "events"),
        ({**ENDPOINTS, "whip": "wss://a.example"}, "whip"),
        ({**ENDPOINTS, "whip": "https://a.example/ b"}, "whip"),
        ({**ENDPOINTS, "whip": "https://a.example/\u00a0"}, "whip"),
        ({**ENDPOINTS, "whip": "https://a.example/\x00"}, "whip"),
        ({**ENDPOINTS, "whip": ""}, "whip"),
    ],
)
async def test_a_stage_with_an_unusable_endpoint_is_refused(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, endpoints: Any, member: str
) -> None:
    ivs.will(answer(200, {"stage": {"arn": str(STAGE), "endpoints": endpoints}}))
    with pytest.raises(IvsError) as caught:
        await gateway.get_stage(REGION, str(STAGE))
    assert caught.value.context["member"] == member
    assert caught.value.context["operation"] == "GetStage"
    assert caught.value.context["region"] == REGION


async def test_the_longest_endpoint_and_plain_schemes_are_taken(
    gateway: BotoIvsGateway, ivs: ScriptedIvs
) -> None:
    events, whip = "ws://127.0.0.1:8090/" + "x" * 2028, "http://127.0.0.1:8090"
    assert len(events) == 2048
    ivs.will(answer(200, stage_answer(endpoints={"events": events, "whip": whip})))
    stage = await gateway.get_stage(REGION, str(STAGE))
    assert stage.endpoints == StageEndpoints(events, whip)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", {}, {"stage": []}, {"stage": {"arn": 1}}])
async def test_an_answer_that_is_not_what_the_model_says_is_our_error(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, body: object
) -> None:
    ivs.will(answer(200, body))
    with pytest.raises(IvsError) as caught:
        await gateway.get_stage(REGION, str(STAGE))
    assert caught.value.status == 502


def token_answer(**changes: Any) -> dict[str, Any]:
    return {
        "participantToken": {
            "participantId": "p-1",
            "token": "opaque-test-token",
            "userId": "ann",
            "attributes": {"team": "red"},
            "duration": 5,
            "capabilities": ["SUBSCRIBE"],
            "expirationTime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            **changes,
        }
    }


REQUEST = TokenRequest(
    STAGE, user_id="ann", duration=5, capabilities=("SUBSCRIBE",), attributes={"team": "red"}
)


async def test_create_participant_token(gateway: BotoIvsGateway, stub: Stubber) -> None:
    stub.add_response(
        "create_participant_token",
        token_answer(),
        {
            "stageArn": str(STAGE),
            "duration": 5,
            "capabilities": ["SUBSCRIBE"],
            "userId": "ann",
            "attributes": {"team": "red"},
        },
    )
    made = await gateway.create_participant_token(REQUEST)
    assert (made.token, made.participant_id, made.user_id) == ("opaque-test-token", "p-1", "ann")
    assert (made.attributes, made.duration) == ({"team": "red"}, 5)
    assert made.capabilities == ("SUBSCRIBE",)
    assert made.expiration_time == 1767323045
    assert "opaque-test-token" not in repr(made)


async def test_a_token_without_user_or_attributes_sends_neither(
    gateway: BotoIvsGateway, stub: Stubber
) -> None:
    stub.add_response(
        "create_participant_token",
        token_answer(userId="", attributes={}, capabilities=["PUBLISH", "SUBSCRIBE"]),
        {"stageArn": str(STAGE), "duration": 720, "capabilities": ["PUBLISH", "SUBSCRIBE"]},
    )
    made = await gateway.create_participant_token(TokenRequest(STAGE))
    assert (made.user_id, made.attributes) == (None, {})


@pytest.mark.parametrize(
    "change",
    [
        {"capabilities": ["PUBLISH", "SUBSCRIBE"]},
        {"token": ""},
        {"participantId": ""},
    ],
)
async def test_a_token_that_was_not_asked_for_is_refused(
    gateway: BotoIvsGateway, stub: Stubber, change: dict[str, Any]
) -> None:
    stub.add_response("create_participant_token", token_answer(**change))
    with pytest.raises(IvsError) as caught:
        await gateway.create_participant_token(REQUEST)
    assert caught.value.context["member"] == next(iter(change))


async def test_what_the_model_forbids_is_refused_without_a_call(
    gateway: BotoIvsGateway, ivs: ScriptedIvs
) -> None:
    with pytest.raises(IvsRejectedError):
        await gateway.get_stage(REGION, "")
    assert ivs.requests == []


@pytest.mark.parametrize("region", ["eu-north-1", "evil.example.com/", ""])
async def test_a_foreign_region_never_becomes_a_host_name(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, region: str
) -> None:
    with pytest.raises(IvsRejectedError):
        await gateway.list_stages(region)
    assert ivs.requests == []


async def test_requests_are_signed_for_their_region_and_say_who_we_are(
    gateway: BotoIvsGateway, ivs: ScriptedIvs
) -> None:
    ivs.will(answer(200, {"stages": []}))
    await gateway.list_stages("us-west-2")
    path, body, headers = ivs.requests[0]
    assert (path, body) == ("/ListStages", {"maxResults": 100})
    assert "/us-west-2/ivs/aws4_request" in headers["authorization"]
    assert headers["user-agent"].endswith("tokensvc")


async def test_a_proxy_of_the_environment_is_not_asked_for_our_loopback(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    ivs.will(answer(200, {"stages": []}))
    assert await gateway.list_stages(REGION) == []


async def test_one_client_per_region_is_made_and_kept() -> None:
    clients = RegionalClients(ClientSettings(), CREDENTIALS)
    here, there = (clients.client(region, repeatable=True) for region in (REGION, "us-east-1"))
    assert clients.client(REGION, repeatable=True) is here is not there
    config = here.meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (1, 3, 32)
    assert config.retries == {"mode": "standard", "total_max_attempts": 2}
    once = clients.client(REGION, repeatable=False)
    assert once.meta.config.retries["total_max_attempts"] == 1
    clients.close()


async def test_no_token_reaches_the_log_even_at_debug(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ivs.will(
        answer(200, token_answer(expirationTime="2026-01-02T03:04:05Z")),
    )
    made = await gateway.create_participant_token(REQUEST)
    assert made.token not in caplog.text
    assert "test-access-key-id" not in caplog.text


def test_credentials_do_not_show() -> None:
    shown = repr(StaticCredentials("id", "the-secret", "the-session"))
    assert "the-secret" not in shown
    assert "the-session" not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint_url": "ftp://127.0.0.1"},
        {"endpoint_url": "http://"},
        {"endpoint_url": "http://127.0.0.1:999999"},
        {"read_timeout_seconds": 0.0},
        {"call_deadline_seconds": -1.0},
        {"total_max_attempts": 0},
        {"max_threads": 0},
        {"max_waiting": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ClientSettings(**change)


def test_the_deadline_leaves_room_for_every_attempt() -> None:
    assert ClientSettings().deadline() == 10.0
    assert ClientSettings(total_max_attempts=4, read_timeout_seconds=8).deadline() == 40.0
    assert ClientSettings(call_deadline_seconds=7).deadline() == 7


async def test_delete_public_key(gateway: BotoIvsGateway, stub: Stubber) -> None:
    stub.add_response("delete_public_key", {}, {"arn": KEY_ARN})
    await gateway.delete_public_key(REGION, KEY_ARN)


async def test_a_delete_whose_answer_was_lost_ends_as_not_found(
    gateway: BotoIvsGateway, ivs: ScriptedIvs
) -> None:
    ivs.will(ivs.drop, answer(404, {"exceptionMessage": "gone"}, x_amzn_errortype=_NOT_FOUND))
    with pytest.raises(IvsNotFoundError) as caught:
        await gateway.delete_public_key(REGION, KEY_ARN)
    assert [path for path, _, _ in ivs.requests] == ["/DeletePublicKey"] * 2
    assert caught.value.context["attempts"] == 2


SESSION = "st-abcdefghijklm"


def participant(participant_id: str, **changes: Any) -> dict[str, Any]:
    return {"participantId": participant_id, "state": "CONNECTED", **changes}


async def test_participants_of_the_active_session(gateway: BotoIvsGateway, stub: Stubber) -> None:
    asked = {
        "stageArn": str(STAGE),
        "sessionId": SESSION,
        "filterByState": "CONNECTED",
        "maxResults": 100,
    }
    joined = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    stub.add_response("get_stage", stage_answer(activeSessionId=SESSION), {"arn": str(STAGE)})
    stub.add_response(
        "list_participants",
        {
            "participants": [
                participant("p1", userId="ann", published=True, firstJoinTime=joined),
                participant("p2", state="DISCONNECTED"),
            ],
            "nextToken": "more",
        },
        asked,
    )
    stub.add_response(
        "list_participants",
        {"participants": [participant("p3", userId="")]},
        {**asked, "nextToken": "more"},
    )
    assert await gateway.list_participants(REGION, stage_arn=str(STAGE)) == [
        Participant("p1", "ann", "CONNECTED", published=True, first_join_time=1767323045.0),
        Participant("p3", None, "CONNECTED", published=False, first_join_time=None),
    ]


async def test_participants_of_one_user_are_those_connected(
    gateway: BotoIvsGateway, stub: Stubber
) -> None:
    stub.add_response("get_stage", stage_answer(activeSessionId=SESSION))
    stub.add_response(
        "list_participants",
        {
            "participants": [
                participant("p1", userId="ann", state="DISCONNECTED"),
                participant("p2", userId="ann"),
                participant("p3", userId="annabel"),
            ]
        },
        {
            "stageArn": str(STAGE),
            "sessionId": SESSION,
            "filterByUserId": "ann",
            "maxResults": 100,
        },
    )
    found = await gateway.list_participants(REGION, stage_arn=str(STAGE), user_id="ann")
    assert [who.participant_id for who in found] == ["p2"]


async def test_a_stage_without_a_session_has_no_participants(
    gateway: BotoIvsGateway, stub: Stubber
) -> None:
    stub.add_response("get_stage", stage_answer())
    assert await gateway.list_participants(REGION, stage_arn=str(STAGE)) == []


@pytest.mark.parametrize(
    "item", [{"state": "CONNECTED"}, {"participantId": "p"}, participant("p", state="?")]
)
async def test_a_participant_that_cannot_be_read_is_refused(
    gateway: BotoIvsGateway, stub: Stubber, item: dict[str, Any]
) -> None:
    stub.add_response("get_stage", stage_answer(activeSessionId=SESSION))
    stub.add_response("list_participants", {"participants": [item]})
    with pytest.raises(IvsError) as caught:
        await gateway.list_participants(REGION, stage_arn=str(STAGE))
    assert caught.value.context["operation"] == "ListParticipants"


async def test_disconnect_participant(gateway: BotoIvsGateway, stub_once: Stubber) -> None:
    stub_once.add_response(
        "disconnect_participant",
        {},
        {"stageArn": str(STAGE), "participantId": "p-1", "reason": "spam"},
    )
    await gateway.disconnect_participant(
        REGION, stage_arn=str(STAGE), participant_id="p-1", reason="spam"
    )


async def test_revoke_connection_token(gateway: BotoIvsGateway, stub_once: Stubber) -> None:
    stub_once.add_response("revoke_connection_token", {}, {"tokenId": "c-1"})
    await gateway.revoke_connection_token(REGION, "c-1")


@pytest.mark.parametrize("body", [b"", {}])
async def test_an_empty_answer_is_enough_where_nothing_is_promised(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, body: object
) -> None:
    ivs.will(answer(200, body))
    await gateway.revoke_connection_token(REGION, "c-1")
    await gateway.disconnect_participant(REGION, stage_arn=str(STAGE), participant_id="p-1")
    await gateway.delete_public_key(REGION, KEY_ARN)
    assert [path for path, _, _ in ivs.requests] == [
        "/RevokeConnectionToken",
        "/DisconnectParticipant",
        "/DeletePublicKey",
    ]


async def test_a_region_that_does_not_answer_holds_up_no_other_and_none_of_its_own_kicks(
    gateway: BotoIvsGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though more calls hang than there are threads, of each kind."""
    goes_on, silent = threading.Event(), "us-east-1"

    def hang(operation: str, region: str, call: object, repeatable: bool) -> dict[str, object]:
        if region == silent and operation != "DisconnectParticipant":
            assert goes_on.wait(60)
        return {"stages": [], **token_answer()}

    monkeypatch.setattr(gateway, "_in_thread", hang)
    stage = StageArn(silent, STAGE.account, "s")
    waiting = [
        asyncio.create_task(call)
        for _ in range(40)
        for call in (
            gateway.get_stage(silent, str(stage)),
            gateway.create_participant_token(TokenRequest(stage)),
        )
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        assert await gateway.list_stages(REGION) == []
        await gateway.create_participant_token(REQUEST)
        await gateway.revoke_connection_token(REGION, "t")
        await gateway.disconnect_participant(silent, stage_arn=str(stage), participant_id="p")
    goes_on.set()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_whom_a_kick_means_is_asked_before_stages_that_are_to_be_known(
    ivs: ScriptedIvs,
) -> None:
    taken: list[tuple[str, bool]] = []

    class Noting(CallBudgets):
        async def take(self, operation: Operation, region: str, *, urgent: bool = False) -> None:
            taken.append((operation, urgent))

    ivs.will(answer(200, stage_answer()))
    made = BotoIvsGateway(
        ClientSettings(endpoint_url=ivs.url), credentials=CREDENTIALS, budgets=Noting()
    )
    await made.get_stage(REGION, str(STAGE))
    assert await made.list_participants(REGION, stage_arn=str(STAGE)) == []
    await made.aclose()
    assert taken == [("GetStage", False), ("GetStage", True)]
