"""A kick is not lost, and a ban stops the mint at once: disconnects and bans over HTTP."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.http.support import (
    NOW,
    OTHER_REGION,
    PATIENCE_SECONDS,
    REGION,
    Service,
    problem_in,
    running,
    stage_arn,
)
from tokensvc.errors import InvalidRequestError, IvsThrottledError, StoreUnavailableError
from tokensvc.http import token_routes
from tokensvc.http.revocation_structs import BanRequest, DisconnectRequest
from tokensvc.revocation.bans import REFRESH_SECONDS
from tokensvc.revocation.requests import (
    BAN_FIELDS,
    DISCONNECT_FIELDS,
    parse_ban_request,
    parse_disconnect_request,
)

STAGE = {"stageArn": stage_arn()}
ANA = {**STAGE, "userId": "ana"}
YEARS = 10 * 366 * 86_400


async def banned(service: Service, body: dict[str, object] = ANA) -> dict[str, Any]:
    """Expect a mint to be refused, and return the problem."""
    return problem_in(await service.post("/v1/tokens", body), 403, "banned")


# --- disconnects ----------------------------------------------------------------------------------


async def test_a_user_is_disconnected_wherever_connected(service: Service):
    for participant, user in (("p1", "ana"), ("p2", "ana"), ("p3", "ben")):
        service.ivs.join(participant, user)
    answer = await service.post("/v1/disconnects", {**ANA, "reason": "insults"})
    assert answer.status_code == 202
    body = answer.json()
    assert body["banId"] is None
    assert datetime.fromisoformat(body["expectedCompletion"]).timestamp() > NOW
    assert answer.headers["location"] == f"/v1/disconnects/{body['disconnectId']}"
    done = await service.until_done(body["disconnectId"])
    assert sorted(service.ivs.disconnected) == [
        (stage_arn(), "p1", "insults"),
        (stage_arn(), "p2", "insults"),
    ]
    assert done["counts"]["disconnected"] == 2
    assert {one["participantId"]: one["state"] for one in done["participants"]} == {
        "p1": "disconnected",
        "p2": "disconnected",
    }
    assert done["expectedCompletion"] is None


async def test_a_participant_and_everybody_are_disconnected(service: Service):
    for participant in ("p1", "p2", "p3"):
        service.ivs.join(participant)
    answer = await service.post("/v1/disconnects", {**STAGE, "participantId": "p2"})
    await service.until_done(answer.json()["disconnectId"])
    assert [one for _, one, _ in service.ivs.disconnected] == ["p2"]
    answer = await service.post("/v1/disconnects", {**STAGE, "everybody": True})
    await service.until_done(answer.json()["disconnectId"])
    assert {one for _, one, _ in service.ivs.disconnected} == {"p1", "p2", "p3"}


async def test_a_disconnect_is_kept_over_a_restart_and_done_then(stopped: Service):
    stopped.ivs.join("p1", "ana")
    async with running(stopped) as service:
        service.ivs.fault = IvsThrottledError("out of calls")
        answer = await service.post("/v1/disconnects", ANA)
        assert answer.status_code == 202
    assert stopped.ivs.disconnected == []
    stopped.ivs.fault = None
    stopped.sleeper.waiting.clear()
    async with running(stopped) as service:
        await service.until_done(answer.json()["disconnectId"])
    assert [one for _, one, _ in stopped.ivs.disconnected] == ["p1"]


async def test_a_kick_is_answered_where_its_end_cannot_be_estimated(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def fail(*_: object, **__: object) -> int:
        raise StoreUnavailableError("The database took too long for a statement.")

    monkeypatch.setattr("tokensvc.ledger.Ledger.count_living", fail)
    answer = await service.post("/v1/disconnects", {**ANA, "ban": 60})
    assert answer.status_code == 202, "stored, and the ban holds"
    assert answer.json()["expectedCompletion"]
    await banned(service)


async def test_a_participant_of_another_stage_is_not_kicked_in_vain(service: Service):
    participant = (await service.mint(stageArn=stage_arn("stage2")))["participantId"]
    body = {**STAGE, "participantId": participant, "ban": 60}
    problem = problem_in(await service.post("/v1/disconnects", body), 400, "invalid_request")
    assert [(one["field"], one["code"]) for one in problem["errors"]] == [("stageArn", "mismatch")]
    assert (await service.get("/v1/bans")).json()["bans"] == []
    body["stageArn"] = stage_arn("stage2")
    assert (await service.post("/v1/disconnects", body)).status_code == 202


async def test_a_connection_token_is_not_kicked_in_vain(service: Service):
    made = await service.post("/v1/connection-tokens", {"region": REGION})
    body = {**STAGE, "participantId": made.json()["tokenId"]}
    problem = problem_in(await service.post("/v1/disconnects", body), 400, "invalid_request")
    assert [one["field"] for one in problem["errors"]] == ["participantId"]
    assert "/v1/connection-tokens/" in problem["detail"]


async def test_progress_is_told_page_by_page(service: Service):
    for number in range(3):
        service.ivs.join(f"p{number}", "ana")
    disconnect_id = (await service.post("/v1/disconnects", ANA)).json()["disconnectId"]
    await service.until_done(disconnect_id)
    found, path = [], f"/v1/disconnects/{disconnect_id}?limit=2"
    first = (await service.get(path)).json()
    second = (await service.get(f"{path}&cursor={first['nextCursor']}")).json()
    assert second["nextCursor"] is None
    found = [one["participantId"] for one in first["participants"] + second["participants"]]
    assert sorted(found) == ["p0", "p1", "p2"]
    assert len(first["participants"]) == 2


async def test_a_stage_alone_empties_no_stage(service: Service):
    """A participant id that was lost on its way must not be taken for everybody."""
    service.ivs.join("p1")
    for body in (STAGE, {**STAGE, "participantId": None}, {**STAGE, "everybody": False}):
        answer = await service.post("/v1/disconnects", body)
        problem = problem_in(answer, 400, "invalid_request")
        assert [error["field"] for error in problem["errors"]] == ["everybody"]
    service.sleeper.nudge(longest=4.0)
    assert service.ivs.calls["ListParticipants"] == 0


@pytest.mark.parametrize(
    ("changes", "field", "code", "limit"),
    [
        ({"stageArn": None}, "stageArn", "required", None),
        ({"stageArn": stage_arn(region=OTHER_REGION)}, "stageArn", "region_not_served", REGION),
        ({"stageArn": "arn:aws:ivs:x"}, "stageArn", "pattern", None),
        ({"userId": ""}, "userId", "too_short", 1),
        ({"userId": "u" * 129}, "userId", "too_long", 128),
        ({"userId": None, "participantId": "p 1"}, "participantId", "pattern", None),
        ({"participantId": "p1"}, "userId", "conflict", "participantId"),
        ({"everybody": True}, "everybody", "conflict", "userId"),
        ({"everybody": "true"}, "everybody", "type", None),
        ({"reason": "r" * 129}, "reason", "too_long", 128),
        ({"reason": 1}, "reason", "type", None),
        ({"reason": "a\0b"}, "reason", "encoding", None),
        ({"ban": -1}, "ban", "out_of_range", YEARS),
        ({"ban": YEARS + 1}, "ban", "out_of_range", YEARS),
        ({"ban": True}, "ban", "type", None),
        ({"ban": 1.5}, "ban", "type", None),
        ({"user": "ana"}, "user", "unknown_field", None),
    ],
)
async def test_a_bad_field_of_a_disconnect_is_named(
    service: Service, changes: dict[str, object], field: str, code: str, limit: object
):
    answer = await service.post("/v1/disconnects", {**ANA, **changes})
    problem = problem_in(answer, 400, "invalid_request")
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [(field, code)]
    if limit is not None:
        assert problem["errors"][0]["limit"] == limit


async def test_an_unknown_disconnect_and_bad_parameters(service: Service):
    problem_in(await service.get("/v1/disconnects/dis-nobody"), 404, "not_found")
    answer = await service.get("/v1/disconnects/dis-nobody?limit=0&cursor=%20&page=2")
    problem = problem_in(answer, 400, "invalid_request")
    assert {error["field"] for error in problem["errors"]} == {"limit", "cursor", "page"}


# --- bans -----------------------------------------------------------------------------------------


async def test_a_disconnect_with_a_ban_stops_every_way_to_a_token(service: Service):
    minted = await service.mint(userId="ana", attributes={"team": "red"})
    answer = await service.post("/v1/disconnects", {**ANA, "ban": 60})
    ban_id = answer.json()["banId"]
    problem = await banned(service)
    assert problem["banId"] == ban_id
    assert ban_id in problem["detail"]
    until = datetime.fromisoformat(problem["bannedUntil"]).timestamp()
    assert until == pytest.approx(NOW + 60, abs=0.01)
    await banned(service, {**ANA, "issuer": "ivs"})
    answer = await service.post("/v1/tokens/batch", {"defaults": STAGE, "tokens": [ANA, {}]})
    refused, other = answer.json()["tokens"]
    assert (refused["problem"]["code"], refused["problem"]["banId"]) == ("banned", ban_id)
    assert "token" in other
    exchange = {"participantId": minted["participantId"]}
    for body in (exchange, {**exchange, "userId": "somebody else"}):
        problem_in(await service.post("/v1/tokens/exchange", body), 403, "banned")
    await service.mint(userId="ben")
    await service.mint(userId="ana", stageArn=stage_arn("stage2"))
    service.now += 60
    await service.sleeper.wake_copies()
    await service.mint(userId="ana")


async def test_no_token_of_a_batch_leaves_after_a_ban_that_was_answered_while_it_was_encoded(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    encode = token_routes._encode_outcomes
    banned_next = ["eve", "bo"]

    async def encode_while_somebody_is_banned(*given: Any) -> bytes:
        body = await encode(*given)
        if banned_next:
            ban = {**STAGE, "userId": banned_next.pop(0)}
            assert (await service.post("/v1/bans", ban)).status_code == 201
        return body

    monkeypatch.setattr(token_routes, "_encode_outcomes", encode_while_somebody_is_banned)
    users = ["ana", "eve", "bo", "cy"]
    tokens = [{**STAGE, "userId": user} for user in users]
    answer = (await service.post("/v1/tokens/batch", {"tokens": tokens})).json()
    got = [item.get("userId") or item["problem"]["code"] for item in answer["tokens"]]
    assert got == ["ana", "banned", "banned", "cy"]
    assert (answer["issued"], answer["failed"]) == (2, 2)
    metrics = (await service.get("/metrics", caller=None)).text
    assert f'tokensvc_tokens_issued_total{{issuer="local",region="{REGION}"}} 2.0' in metrics
    # Their rows are there already, so whoever asks for a kick finds them.
    assert len((await service.get("/v1/tokens")).json()["tokens"]) == 4


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (ANA, "user_on_stage"),
        ({"userId": "ana"}, "user"),
        ({**STAGE, "everybody": True}, "stage"),
    ],
)
async def test_a_ban_is_made_shown_and_lifted(service: Service, body: dict[str, Any], kind: str):
    answer = await service.post("/v1/bans", {**body, "reason": "insults"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["kind"] == kind
    assert (made["until"], made["liftedAt"], made["reason"]) == (None, None, "insults")
    assert made["callerId"] in service.api_keys["all"]
    assert answer.headers["location"] == f"/v1/bans/{made['banId']}"
    problem = await banned(service)
    assert (problem["banId"], problem["bannedUntil"]) == (made["banId"], None)
    assert "for good" in problem["detail"]
    assert (await service.get(answer.headers["location"])).json() == made
    assert (await service.get("/v1/bans")).json() == {"bans": [made], "nextCursor": None}
    lifted = await service.delete(answer.headers["location"])
    assert (lifted.status_code, lifted.json()["banId"]) == (200, made["banId"])
    assert lifted.json()["liftedAt"] is not None
    await service.mint(userId="ana")
    assert (await service.get("/v1/bans")).json()["bans"] == []


async def test_a_banned_participant_is_not_given_another_token(service: Service):
    minted = await service.mint(userId="ana")
    exchange = {"participantId": minted["participantId"]}
    answer = await service.post("/v1/bans", {**exchange, "duration": 10})
    assert answer.json()["kind"] == "participant"
    problem_in(await service.post("/v1/tokens/exchange", exchange), 403, "banned")
    await service.mint(userId="ana")


async def test_a_user_who_is_banned_everywhere_gets_no_connection_token(service: Service):
    await service.post("/v1/bans", {"userId": "ana"})
    answer = await service.post("/v1/connection-tokens", {"region": REGION, "userId": "ana"})
    assert problem_in(answer, 403, "banned")["banId"].startswith("ban-")


async def test_a_ban_until_a_moment(service: Service):
    until = datetime.fromtimestamp(NOW + 5.25, UTC)
    answer = await service.post("/v1/bans", {**ANA, "until": until.isoformat()})
    assert datetime.fromisoformat(answer.json()["until"]) == until
    await banned(service)
    service.now += 5.25
    await service.mint(userId="ana")


async def test_lifting_by_whom_lifts_nothing_else(service: Service):
    bodies = [ANA, ANA, {"userId": "ana"}, {**STAGE, "everybody": True}]
    ids = [(await service.post("/v1/bans", body)).json()["banId"] for body in bodies]
    answer = await service.delete("/v1/bans", stageArn=stage_arn(), userId="ana")
    assert {ban["banId"] for ban in answer.json()["bans"]} == set(ids[:2])
    assert answer.json()["complete"] is True
    assert (await banned(service))["banId"] in ids[2:]
    await service.delete("/v1/bans", userId="ana")
    assert (await banned(service))["banId"] == ids[3]
    await service.delete("/v1/bans", stageArn=stage_arn(), everybody="true")
    await service.mint(userId="ana")
    for query in ({}, {"stageArn": stage_arn()}, {"stageArn": stage_arn(), "everybody": "yes"}):
        problem_in(await service.delete("/v1/bans", **query), 400, "invalid_request")


async def test_bans_are_listed_by_filter_and_page(service: Service):
    for user in ("ana", "ben", "cleo"):
        for body in ({"userId": user}, {**STAGE, "userId": user}):
            assert (await service.post("/v1/bans", body)).status_code == 201
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await service.get(f"/v1/bans?limit=4{cursor}")).json()
        seen += [ban["banId"] for ban in page["bans"]]
        if page["nextCursor"] is None:
            break
        cursor = f"&cursor={page['nextCursor']}"
    assert len(seen) == len(set(seen)) == 6
    of_ben = (await service.get("/v1/bans?userId=ben")).json()["bans"]
    assert {ban["userId"] for ban in of_ben} == {"ben"}
    assert len(of_ben) == 2
    on_stage = (await service.get(f"/v1/bans?userId=ben&stageArn={stage_arn()}")).json()["bans"]
    assert [ban["kind"] for ban in on_stage] == ["user_on_stage"]
    problem = problem_in(
        await service.get("/v1/bans?userId=&userid=ben&limit=1&limit=2"), 400, "invalid_request"
    )
    named = {error["field"]: error["code"] for error in problem["errors"]}
    assert named == {"userId": "too_short", "userid": "unknown_field", "limit": "duplicate"}


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "userId", "required"),
        (STAGE, "everybody", "required"),
        ({"everybody": True}, "userId", "required"),
        ({**STAGE, "participantId": "p1"}, "stageArn", "conflict"),
        ({**ANA, "everybody": True}, "everybody", "conflict"),
        ({**ANA, "duration": 5, "until": "2030-01-01T00:00:00Z"}, "until", "conflict"),
        ({**ANA, "until": "2020-01-01T00:00:00Z"}, "until", "out_of_range"),
        ({**ANA, "until": "2030-01-01T00:00:00"}, "until", "pattern"),
        ({**ANA, "until": 5}, "until", "type"),
        ({**ANA, "duration": -1}, "duration", "out_of_range"),
        ({**ANA, "ban": 5}, "ban", "unknown_field"),
    ],
)
async def test_a_bad_field_of_a_ban_is_named(
    service: Service, body: dict[str, object], field: str, code: str
):
    problem = problem_in(await service.post("/v1/bans", body), 400, "invalid_request")
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [(field, code)]
    assert (await service.get("/v1/bans")).json()["bans"] == []


async def test_an_unknown_ban_is_not_found(service: Service):
    problem_in(await service.get("/v1/bans/ban-none"), 404, "not_found")
    problem_in(await service.delete("/v1/bans/ban-none"), 404, "not_found")


async def test_each_call_wants_its_scope(service: Service):
    for answer in (
        await service.post("/v1/disconnects", ANA, caller="minter"),
        await service.get("/v1/disconnects/dis-x", caller="minter"),
        await service.post("/v1/bans", ANA, caller="minter"),
        await service.get("/v1/bans", caller="minter"),
        await service.get("/v1/bans/ban-x", caller="minter"),
        await service.delete("/v1/bans/ban-x", caller="minter"),
        await service.delete("/v1/bans", caller="minter", userId="ana"),
        await service.get("/v1/tokens", caller="minter"),
    ):
        problem_in(answer, 403, "forbidden")


# --- replicas -------------------------------------------------------------------------------------


async def test_a_ban_holds_on_the_other_replica_after_one_refresh(service: Service, other: Service):
    await other.mint(userId="ana")
    made = (await service.post("/v1/disconnects", {**ANA, "ban": 0})).json()
    await other.sleeper.wake(REFRESH_SECONDS)
    assert (await banned(other))["banId"] == made["banId"]
    await other.delete(f"/v1/bans/{made['banId']}")
    # Its worker was woken by the kick.
    await service.at_rest()
    await service.sleeper.wake(REFRESH_SECONDS)
    await service.mint(userId="ana")


async def test_a_ban_holds_after_a_restart_before_the_first_mint(stopped: Service):
    async with running(stopped) as service:
        made = (await service.post("/v1/bans", ANA)).json()
    stopped.sleeper.waiting.clear()
    async with running(stopped) as service:
        assert (await banned(service))["banId"] == made["banId"]


async def test_a_replica_that_does_not_know_the_bans_any_more_mints_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def fail(self: object) -> int:
        raise OSError("gone")

    monkeypatch.setattr("tokensvc.revocation.ban_store.BanStore.version", fail)
    service.now += 9
    await service.sleeper.wake_copies()
    await service.mint(userId="ana")
    service.now += 2
    await service.sleeper.wake_copies()
    problem_in(await service.post("/v1/tokens", ANA), 503, "store_unavailable")
    checks = (await service.get("/readyz", caller=None)).json()["checks"]
    assert [check["name"] for check in checks if not check["ok"]] == ["bans"]


# --- what monitoring sees, and what the document says ---------------------------------------------


async def test_metrics_of_bans_disconnects_and_ledger(service: Service):
    service.ivs.join("p1", "ana")
    await service.mint(userId="ben")
    await service.post("/v1/bans", {"userId": "cleo"})
    await service.sleeper.wake(10.0)
    answer = await service.post("/v1/disconnects", {**STAGE, "participantId": "p1"})
    await service.until_done(answer.json()["disconnectId"])
    text = (await service.get("/metrics", caller=None)).text
    for line in (
        "tokensvc_bans 1.0",
        'tokensvc_view_age_seconds{view="bans"}',
        'tokensvc_ledger_rows_total{outcome="committed"} 1.0',
        'tokensvc_ledger_rows_total{outcome="lost"} 0.0',
        "tokensvc_ledger_commits_total 1.0",
        "tokensvc_ledger_waiting_rows 0.0",
        "tokensvc_ledger_deletion_late_seconds 0.0",
        f'tokensvc_disconnect_queue{{region="{REGION}",state="due"}} 0.0',
        f'tokensvc_disconnect_oldest_seconds{{region="{REGION}"}} 0.0',
        f'tokensvc_disconnect_calls_total{{outcome="taken",region="{REGION}"}} 1.0',
    ):
        assert line in text


async def test_the_queue_of_disconnects_is_told_with_its_age(service: Service):
    service.ivs.fault = IvsThrottledError("out of calls")
    await service.post("/v1/disconnects", {**STAGE, "participantId": "p1"})
    service.now += 30
    service.sleeper.nudge(longest=10.0)
    text = ""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while f'tokensvc_disconnect_queue{{region="{REGION}",state="due"}} 1.0' not in text:
            await service.get("/v1/bans")
            text = (await service.get("/metrics", caller=None)).text
    assert f'tokensvc_disconnect_oldest_seconds{{region="{REGION}"}} 30.0' in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"userId": "u" * 128},
        {"userId": "u" * 129},
        {"userId": ""},
        {"userId": 1},
        {"stageArn": 5},
        {"stageArn": "arn:aws:ivs:eu-central-1:1:public-key/y"},
        {"reason": "\N{ARTIST PALETTE}" * 128},
        {"reason": "r" * 129},
        {"reason": None},
        {"everybody": None},
        {"everybody": 1},
        {"participantId": "p."},
        {"participantId": 3},
        {"unknown": 1},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_the_schemas_and_the_parsers_agree(changes: dict[str, Any]):
    def parses(parse: Any) -> bool:
        try:
            parse({**ANA, **changes}, regions={REGION})
        except InvalidRequestError:
            return False
        return True

    def converts(kind: type) -> bool:
        try:
            msgspec.json.decode(json.dumps({**ANA, **changes}), type=kind)
        except msgspec.ValidationError:
            return False
        return True

    assert parses(parse_disconnect_request) == converts(DisconnectRequest)

    def ban(body: object, *, regions: set[str]) -> object:
        return parse_ban_request(body, regions=regions, now=NOW)

    assert parses(ban) == converts(BanRequest)


def test_the_schemas_have_the_fields_of_the_parsers():
    fields = msgspec.json.schema_components([DisconnectRequest, BanRequest])[1]
    assert set(fields["DisconnectRequest"]["properties"]) == DISCONNECT_FIELDS
    assert set(fields["BanRequest"]["properties"]) == BAN_FIELDS
