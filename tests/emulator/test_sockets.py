"""The events sockets say what the official web SDK expects, over a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from tests.emulator.client_support import (
    NOW,
    REGION,
    Client,
    closed,
    private_key,
    received,
    send,
    serving,
)

STATE = {"type": "aws:ivs:STAGE_STATE", "payload": {"sequenceNumber": 1, "participants": []}}


@pytest_asyncio.fixture
async def ivs() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


def events(ivs: Client, participant_id: str = "p1") -> list[str]:
    session = ivs.sessions.stage_sessions(ivs.stage.arn)[0]
    return [
        event.name
        for event in ivs.sessions.events(ivs.stage.arn, session.session_id, participant_id)
    ]


async def eventually_ended(ivs: Client, stage_arn: str | None = None) -> None:
    """Wait until the stage's session has ended, which follows the closing of a socket."""
    async with asyncio.timeout(5):
        await _until(lambda: ivs.sessions.active_session_id(stage_arn or ivs.stage.arn) is None)


async def _until(condition: Callable[[], bool]) -> None:
    for _ in itertools.takewhile(lambda _: not condition(), itertools.count()):
        await asyncio.sleep(0)


async def exchange(client: Any, old: str, new: object, **extra: object) -> dict[str, Any]:
    payload = {"oldToken": old, "newToken": new, "requestId": "r1", "traceId": "t1", **extra}
    await send(client, {"type": "aws:ivs:EXCHANGE_TOKEN", "payload": payload})
    answer = await received(client)
    assert answer["type"] == "aws:ivs:EXCHANGE_TOKEN"
    assert (answer["payload"]["requestId"], answer["payload"]["traceId"]) == ("r1", "t1")
    return answer["payload"]


async def test_a_participant_joins_and_leaves(ivs: Client):
    token = ivs.token()
    query = f"?error_over_ws=1&topic={ivs.stage.id}/publishers&traceid=x"
    async with await ivs.stage_socket(token, query) as client:
        assert client.subprotocol == token
        assert await received(client) == STATE
        session = ivs.sessions.active_session_id(ivs.stage.arn)
        assert session is not None
        record = ivs.sessions.participant(ivs.stage.arn, session, "p1")
        assert record is not None
        assert (record.state, record.user_id) == ("CONNECTED", "u1")
    await eventually_ended(ivs)

    assert events(ivs) == ["JOINED", "LEFT"]


async def test_pings_are_answered(ivs: Client):
    async with await ivs.joined(ivs.token()) as client:
        await send(client, {"type": "PING"})
        assert await received(client) == {"type": "PONG"}


async def test_messages_about_media_are_passed_over(ivs: Client):
    async with await ivs.joined(ivs.token()) as client:
        await send(client, {"type": "aws:ivs:SET_STATE", "payload": {}})
        await send(client, {"type": "aws:ivs:EXCHANGE_TOKEN", "payload": 7})
        await send(client, {"type": "PING"})
        assert await received(client) == {"type": "PONG"}


REFUSALS = {
    "TOKEN_INVALID": lambda ivs: ivs.token(version="2.0"),
    "TOKEN_INVALID_SIGNATURE": lambda ivs: ivs.sign(ivs.claims(), key=private_key("second")),
    "TOKEN_MISSING": lambda ivs: "",
    "TOKEN_EXPIRED": lambda ivs: ivs.token(iat=NOW - 100, exp=NOW - 50),
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_comes_over_the_socket_with_its_code(ivs: Client, code: str):
    token = REFUSALS[code](ivs)
    async with await ivs.stage_socket(token) as client:
        assert client.subprotocol == (token or None)
        refusal = await received(client)
        assert refusal["type"] == "aws:ivs:JOIN_ERROR"
        assert refusal["payload"]["code"] == code
        assert refusal["payload"]["message"]
        assert (await closed(client))[0] == 1000
    assert ivs.sessions.stage_sessions(ivs.stage.arn) == []


async def test_a_topic_other_than_the_tokens_is_refused(ivs: Client):
    async with await ivs.stage_socket(ivs.token(), "?error_over_ws=1&topic=x/publishers") as client:
        assert (await received(client))["payload"]["code"] == "BAD_REQUEST"


@pytest.mark.parametrize("path", ["stage", "shared"])
async def test_a_client_that_wants_no_errors_over_the_socket_is_refused_in_the_handshake(
    ivs: Client, path: str
):
    connecting = (
        ivs.stage_socket(ivs.token(version="2.0"), "")
        if path == "stage"
        else ivs.shared_socket(ivs.connection_token(version="2.0"), query="")
    )
    with pytest.raises(InvalidStatus) as caught:
        await connecting
    assert caught.value.response.status_code == 403


async def test_a_disconnected_participant_is_told_and_never_comes_back(ivs: Client):
    token = ivs.token()
    async with await ivs.joined(token) as client:
        assert ivs.sessions.disconnect(ivs.stage.arn, "p1", "be gone")
        assert await received(client) == {
            "type": "aws:ivs:DISCONNECT",
            "payload": {"code": "PARTICIPANT_DISCONNECTED", "reason": "be gone"},
        }
        assert (await closed(client))[0] == 1000
    assert events(ivs) == ["JOINED", "LEFT"]

    for same_id in (token, ivs.token(iat=NOW - 1)):
        async with await ivs.stage_socket(same_id) as client:
            assert (await received(client))["payload"]["code"] == "PARTICIPANT_DISCONNECTED"
    assert events(ivs) == ["JOINED", "LEFT", "JOIN_ERROR", "JOIN_ERROR"]
    await (await ivs.joined(ivs.token(jti="p2"))).close()


async def test_everybody_is_told_that_the_stage_was_deleted(ivs: Client):
    token = ivs.token()
    async with await ivs.joined(token) as first, await ivs.joined(ivs.token(jti="p2")) as second:
        ivs.world.delete_stage(ivs.stage.arn)
        ivs.sessions.stage_deleted(ivs.stage.arn)
        for client in (first, second):
            assert (await received(client))["payload"]["code"] == "STAGE_DELETED"
    async with await ivs.stage_socket(token) as client:
        assert (await received(client))["payload"]["code"] == "STAGE_DELETED"


async def test_a_second_join_with_a_token_takes_the_place_of_the_first(ivs: Client):
    token = ivs.token()
    async with await ivs.joined(token) as first, await ivs.joined(token) as second:
        assert (await received(first))["payload"]["code"] == "TOKEN_REUSED"
        await closed(first)
        await send(second, {"type": "PING"})
        assert await received(second) == {"type": "PONG"}
        assert events(ivs) == ["JOINED", "LEFT", "JOINED"]
        assert len(ivs.sessions.stage_sessions(ivs.stage.arn)) == 1


async def test_a_token_is_exchanged_without_a_rejoin(ivs: Client):
    old = ivs.token()
    new = ivs.token(
        iat=NOW + 1,
        exp=NOW + 7200,
        attributes={"role": "mute"},
        capabilities={"allow_subscribe": True},
        user_id="u2",
    )
    async with await ivs.joined(old) as client:
        assert "error" not in await exchange(client, old, new)
        session = ivs.sessions.stage_sessions(ivs.stage.arn)[0].session_id
        event = ivs.sessions.events(ivs.stage.arn, session, "p1")[-1]
        assert event.name == "TOKEN_EXCHANGED"
        assert event.previous_token is not None
        assert event.previous_token.capabilities == ("PUBLISH", "SUBSCRIBE")
        assert event.previous_token.expires_at == NOW + 3600
        assert event.new_token is not None
        assert event.new_token.attributes == {"role": "mute"}
        assert (event.new_token.user_id, event.new_token.expires_at) == ("u2", NOW + 7200)

        refused = await exchange(client, old, new)
        assert "oldToken" in refused["error"]["message"]
        assert "error" not in await exchange(client, new, ivs.token())


async def test_a_token_of_another_key_can_take_over_in_an_exchange(ivs: Client):
    old = ivs.token()
    async with await ivs.joined(old) as client:
        key = ivs.import_key(private_key("second"))
        new = ivs.sign(ivs.claims(user_id="u9"), key=private_key("second"), kid=key.arn)
        assert "error" not in await exchange(client, old, new)


BAD_EXCHANGES = {
    "another participant": lambda ivs: ivs.token(jti="p2"),
    "expired": lambda ivs: ivs.token(iat=NOW - 100, exp=NOW - 50),
    "forged": lambda ivs: ivs.sign(ivs.claims(), key=private_key("second")),
    "issued by IVS": lambda ivs: ivs.issue(participant_id="p1"),
    "no text": lambda ivs: 7,
}


@pytest.mark.parametrize("new", BAD_EXCHANGES.values(), ids=BAD_EXCHANGES)
async def test_an_exchange_for_a_wrong_token_is_refused_for_good(ivs: Client, new: Any):
    old = ivs.token()
    async with await ivs.joined(old) as client:
        error = (await exchange(client, old, new(ivs)))["error"]
        assert error["fatal"] is True
        assert error["message"]
    await eventually_ended(ivs)
    assert "TOKEN_EXCHANGED" not in events(ivs)


async def test_an_exchange_to_another_stage_is_refused(ivs: Client):
    old = ivs.token()
    other = ivs.world.create_stage(REGION)
    new = ivs.token(resource=other.arn, topic=other.id, whip_url=other.whip_url)
    async with await ivs.joined(old) as client:
        assert "must not change" in (await exchange(client, old, new))["error"]["message"]


async def test_a_token_that_ivs_issued_joins_but_is_never_exchanged(ivs: Client):
    old = ivs.issue(participant_id="p1")
    async with await ivs.joined(old) as client:
        assert (
            "CreateParticipantToken"
            in (await exchange(client, old, ivs.token()))["error"]["message"]
        )


@pytest.mark.parametrize("frame", ["", "{", "[]", "7", "[" * 60_000])
async def test_what_is_not_a_json_object_ends_the_connection(ivs: Client, frame: str):
    async with await ivs.joined(ivs.token()) as client:
        await client.send(frame)
        assert (await closed(client))[0] == 1007
    await eventually_ended(ivs)


async def test_a_message_of_more_than_64_kb_ends_the_connection(ivs: Client):
    async with await ivs.joined(ivs.token()) as client:
        await client.send(json.dumps({"type": "x" * 65_536}))
        assert (await closed(client))[0] == 1009
    await eventually_ended(ivs)


async def test_the_longest_tokens_fit_into_the_handshake(ivs: Client):
    connection = ivs.connection_token()
    emoji = {"k": "😀" * 255}
    tokens = [ivs.token(jti=f"p{n}", user_id="😀" * 128, attributes=emoji) for n in range(2)]
    carried = [f"L{n}~{token}" for n, token in enumerate(tokens)]
    assert 8_192 < len(", ".join([connection, *carried])) <= 16_384

    async with await ivs.shared_socket(connection, *carried) as client:
        for n in range(2):
            assert (await received(client))["logicalId"] == f"L{n}"


async def test_stages_join_over_a_shared_connection(ivs: Client):
    other = ivs.world.create_stage(REGION)
    token = ivs.connection_token()
    async with await ivs.shared_socket(token, f"L1~{ivs.token()}") as client:
        assert client.subprotocol == token
        assert await received(client) == {
            "logicalId": "L1",
            "message": {
                "type": "aws:ivs:JOIN_STAGE",
                "payload": {"requestId": "L1", "stageState": STATE},
            },
        }
        new = ivs.token(jti="p2", resource=other.arn, topic=other.id, whip_url=other.whip_url)
        await send(client, envelope("L2", "JOIN_STAGE", token=new, requestId="r2"))
        answer = await received(client)
        assert answer["logicalId"] == "L2"
        assert answer["message"]["payload"] == {"requestId": "r2", "stageState": STATE}
        await send(client, {"type": "PING"})
        assert await received(client) == {"type": "PONG"}
        assert ivs.sessions.active_session_id(other.arn) is not None

        await send(client, envelope("L1", "LEAVE_STAGE", code=0, requestId="r3"))
        await eventually_ended(ivs)
        assert ivs.sessions.active_session_id(other.arn) is not None
    await eventually_ended(ivs, other.arn)


def envelope(logical_id: str, kind: str, **payload: Any) -> dict[str, Any]:
    return {"logicalId": logical_id, "message": {"type": f"aws:ivs:{kind}", "payload": payload}}


async def test_a_stage_refused_over_a_shared_connection_leaves_the_others(ivs: Client):
    expired = ivs.token(jti="p2", iat=NOW - 100, exp=NOW - 50)
    async with await ivs.shared_socket(
        ivs.connection_token(), f"L1~{ivs.token()}", f"L2~{expired}"
    ) as client:
        assert "stageState" in (await received(client))["message"]["payload"]
        refused = await received(client)
        assert refused["message"]["type"] == "aws:ivs:JOIN_STAGE"
        error = refused["message"]["payload"]["error"]
        assert (error["type"], error["fatal"]) == ("NOT_AUTHORIZED", True)
        assert error["details"] == {"code": "TOKEN_EXPIRED"}
        await send(client, envelope("L3", "JOIN_STAGE", requestId="r3"))
        error = (await received(client))["message"]["payload"]["error"]
        assert error["details"] == {"code": "TOKEN_MISSING"}
        assert ivs.sessions.active_session_id(ivs.stage.arn) is not None


async def test_kicks_and_exchanges_reach_their_stage_on_a_shared_connection(ivs: Client):
    old, new = ivs.token(), ivs.token(user_id="u2")
    async with await ivs.shared_socket(ivs.connection_token(), f"L1~{old}") as client:
        await received(client)
        await send(
            client, envelope("L1", "EXCHANGE_TOKEN", oldToken=old, newToken=new, requestId="r")
        )
        assert await received(client) == {
            "logicalId": "L1",
            "message": {"type": "aws:ivs:EXCHANGE_TOKEN", "payload": {"requestId": "r"}},
        }
        ivs.sessions.disconnect(ivs.stage.arn, "p1", "why")
        kicked = await received(client)
        assert kicked["logicalId"] == "L1"
        assert kicked["message"]["payload"]["code"] == "PARTICIPANT_DISCONNECTED"
        await send(client, {"type": "PING"})
        assert await received(client) == {"type": "PONG"}


async def test_a_revoked_connection_token_closes_its_connections(ivs: Client):
    token = ivs.connection_token()
    async with (
        await ivs.shared_socket(token, f"L1~{ivs.token()}") as client,
        await ivs.shared_socket(ivs.connection_token(jti="c2")) as other,
    ):
        await received(client)
        ivs.sessions.revoke_connection_token(REGION, "c1")
        assert ivs.sessions.active_session_id(ivs.stage.arn) is None
        assert await closed(client) == (1008, "token has been revoked")
        await send(other, {"type": "PING"})
        assert await received(other) == {"type": "PONG"}

    async with await ivs.shared_socket(token) as client:
        refusal = await received(client)
        assert refusal["type"] == "aws:ivs:JOIN_ERROR"
        assert refusal["payload"]["code"] == "TOKEN_REVOKED"


async def test_a_shared_connection_carries_50_stages(ivs: Client):
    async with await ivs.shared_socket(ivs.connection_token()) as client:
        for number in range(51):
            token = ivs.token(jti=f"p{number}")
            await send(client, envelope(f"L{number}", "JOIN_STAGE", token=token, requestId="r"))
            payload = (await received(client))["message"]["payload"]
            assert ("stageState" in payload) == (number < 50)
        assert payload["error"]["type"] == "BAD_REQUEST"


async def test_a_stage_of_another_region_does_not_join_over_the_connection(ivs: Client):
    key = ivs.import_key(private_key("second"), "us-east-1")
    connection = ivs.sign(
        ivs.connection_claims(region="us-east-1"), key=private_key("second"), kid=key.arn
    )
    async with await ivs.shared_socket(connection, f"L1~{ivs.token()}") as client:
        error = (await received(client))["message"]["payload"]["error"]
        assert error["details"] == {"code": "TOKEN_INVALID"}


@pytest.mark.parametrize(
    "frame", [{"type": "x"}, {"logicalId": 7, "message": {}}, {"logicalId": "L", "message": []}]
)
async def test_a_malformed_frame_ends_a_shared_connection(ivs: Client, frame: dict[str, Any]):
    async with await ivs.shared_socket(ivs.connection_token(), f"L1~{ivs.token()}") as client:
        await received(client)
        await send(client, frame)
        assert (await closed(client))[0] == 1007
    await eventually_ended(ivs)


async def test_connections_are_bounded(ivs: Client):
    ivs.sessions._max_connected = 1
    async with (
        await ivs.joined(ivs.token()),
        await ivs.stage_socket(ivs.token(jti="p2")) as client,
    ):
        assert (await received(client))["payload"]["code"] == "INTERNAL"


async def test_everything_ends_when_the_server_stops():
    async with serving() as ivs:
        stage = await ivs.joined(ivs.token())
        shared = await ivs.shared_socket(ivs.connection_token(), f"L1~{ivs.token(jti='p2')}")
        await received(shared)
    assert (await closed(stage))[0] == 1012
    assert (await closed(shared))[0] == 1012
    assert ivs.sessions.active_session_id(ivs.stage.arn) is None


async def test_no_token_is_logged_however_much_is(
    ivs: Client, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "websockets.client")
    good, bad = ivs.token(), ivs.token(jti="p2", version="2.0")
    async with await ivs.joined(good) as client, await ivs.stage_socket(bad) as refused:
        await received(refused)
        await exchange(client, good, bad)
    logged = "".join([caplog.text, *capsys.readouterr()])
    assert "join_refused" in logged
    for token in (good, bad):
        assert all(segment not in logged for segment in token.split("."))
