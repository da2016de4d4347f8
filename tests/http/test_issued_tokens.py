"""What was issued is known: `GET /v1/tokens`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.http.support import NOW, REGION, Service, problem_in, stage_arn
from tokensvc.errors import StoreUnavailableError
from tokensvc.http.app import SWEEP_SECONDS, TIDY_SECONDS
from tokensvc.ledger import LedgerWriter


async def listed(service: Service, query: str = "") -> list[str]:
    answer = await service.get(f"/v1/tokens{query}")
    assert answer.status_code == 200, answer.text
    return [token["tokenId"] for token in answer.json()["tokens"]]


async def test_tokens_are_listed_whoever_issued_them_and_never_shown(service: Service):
    local = await service.mint(userId="ana", duration=60)
    of_ivs = await service.mint(userId="ana", duration=30, issuer="ivs")
    answer = await service.post("/v1/connection-tokens", {"region": REGION, "duration": 90})
    connection = answer.json()
    answer = await service.get("/v1/tokens")
    by_ivs, here, shared = answer.json()["tokens"]
    keys = (await service.get("/v1/keys")).json()["keys"]
    (active,) = [key for key in keys if key["phase"] == "ACTIVE"]
    assert here == {
        "tokenId": local["participantId"],
        "kind": "participant",
        "stageArn": stage_arn(),
        "region": REGION,
        "userId": "ana",
        "keyId": active["keyId"],
        "keyArn": active["arn"],
        "callerId": here["callerId"],
        "issuer": "local",
        "issuedAt": datetime.fromtimestamp(int(NOW) - 5, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expirationTime": local["expirationTime"],
        "disconnectedAt": None,
    }
    assert f"tsk_{here['callerId']}_" in service.api_keys["all"]
    assert (by_ivs["tokenId"], by_ivs["issuer"]) == (of_ivs["participantId"], "ivs")
    assert (by_ivs["keyId"], by_ivs["keyArn"]) == (None, None)
    assert (shared["tokenId"], shared["kind"]) == (connection["tokenId"], "connection")
    assert shared["stageArn"] is None
    for token in (local["token"], of_ivs["token"], connection["token"]):
        assert token not in answer.text
        assert token.rsplit(".", 1)[1] not in answer.text


async def test_tokens_are_found_by_user_stage_and_key(service: Service):
    ana = (await service.mint(userId="ana"))["participantId"]
    ben = (await service.mint(userId="ben"))["participantId"]
    there = (await service.mint(userId="ana", stageArn=stage_arn("stage2")))["participantId"]
    assert set(await listed(service, "?userId=ana")) == {ana, there}
    assert set(await listed(service, f"?stageArn={stage_arn()}")) == {ana, ben}
    assert await listed(service, f"?stageArn={stage_arn()}&userId=ana") == [ana]
    (key,) = {one["keyId"] for one in (await service.get("/v1/tokens")).json()["tokens"]}
    assert set(await listed(service, f"?keyId={key}")) == {ana, ben, there}
    assert await listed(service, "?keyId=another") == []


async def test_an_expired_token_is_not_listed(service: Service):
    await service.mint(duration=1)
    lasting = (await service.mint(duration=2))["participantId"]
    service.now += 60
    assert await listed(service) == [lasting]


async def test_pages_follow_each_other_while_tokens_are_issued(service: Service):
    minted = [(await service.mint(duration=60 + n))["participantId"] for n in range(5)]
    first = (await service.get("/v1/tokens?limit=2")).json()
    earlier = await service.mint(duration=5)
    rest = await listed(service, f"?cursor={first['nextCursor']}")
    assert [token["tokenId"] for token in first["tokens"]] + rest == minted
    assert earlier["participantId"] not in rest


async def test_bad_parameters_are_named(service: Service):
    query = "?stageArn=arn:x&userId=&keyId=a%20b&limit=1001&stage=x"
    problem = problem_in(await service.get(f"/v1/tokens{query}"), 400, "invalid_request")
    assert {error["field"]: error["code"] for error in problem["errors"]} == {
        "stageArn": "pattern",
        "userId": "too_short",
        "keyId": "pattern",
        "limit": "out_of_range",
        "stage": "unknown_field",
    }
    for _ in range(2):
        await service.mint(userId="ana")
    cursor = (await service.get("/v1/tokens?limit=1&userId=ana")).json()["nextCursor"]
    for bad in (f"?cursor={cursor}&userId=ben", "?cursor=nonsense", "?limit=x"):
        problem_in(await service.get(f"/v1/tokens{bad}"), 400, "invalid_request")


async def test_what_the_database_does_not_record_is_not_handed_out_and_readiness_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def ledger() -> tuple[int, bool]:
        answer = await service.get("/readyz", caller=None)
        (check,) = [one for one in answer.json()["checks"] if one["name"] == "ledger"]
        return answer.status_code, check["ok"]

    async def full(self: object, batch: object) -> None:
        raise StoreUnavailableError("The disk that holds the database is full.")

    assert await ledger() == (200, True)
    with monkeypatch.context() as broken:
        broken.setattr(LedgerWriter, "_store", full)
        answer = await service.post("/v1/tokens", {"stageArn": stage_arn()})
        problem = problem_in(answer, 503, "store_unavailable")
        assert "full" in problem["detail"]
        assert await ledger() == (503, False)
    metrics = (await service.get("/metrics", caller=None)).text
    assert 'tokensvc_ledger_rows_total{outcome="refused"} 1.0' in metrics
    assert await listed(service) == []
    # One that gets no requests finds out nothing: after a while it is given another try.
    service.now += 10.5
    await service.sleeper.wake_copies()
    assert await ledger() == (200, True)
    await service.mint()
    assert len(await listed(service)) == 1


async def deleted(service: Service) -> None:
    """Let the janitors do their rounds."""
    await service.sleeper.wake(SWEEP_SECONDS)
    await service.sleeper.wake(TIDY_SECONDS)


async def test_a_clock_that_leaps_deletes_no_row_and_no_ban(service: Service):
    living = (await service.mint(userId="ana"))["participantId"]
    made = (await service.post("/v1/bans", {"userId": "ben", "duration": 3600})).json()
    service.ahead = 30 * 86_400.0
    await deleted(service)
    service.ahead = 0.0
    await deleted(service)
    assert await listed(service) == [living]
    assert (await service.get(f"/v1/bans/{made['banId']}")).status_code == 200


async def test_what_has_expired_by_a_clock_that_is_believed_is_deleted(service: Service):
    await service.mint(userId="ana", duration=1)
    made = (await service.post("/v1/bans", {"userId": "ben", "duration": 60})).json()
    service.now += 2 * 86_400.0
    await deleted(service)
    await service.sleeper.wake_copies()
    service.now -= 2 * 86_400.0
    await service.sleeper.wake_copies()
    assert await listed(service) == []
    problem_in(await service.get(f"/v1/bans/{made['banId']}"), 404, "not_found")


async def test_how_late_rows_are_deleted_is_a_metric(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def late() -> str:
        await deleted(service)
        metrics = (await service.get("/metrics", caller=None)).text
        name = "tokensvc_ledger_deletion_late_seconds "
        (line,) = [line for line in metrics.splitlines() if line.startswith(name)]
        return line.removeprefix(name)

    for _ in range(26):
        await service.mint(duration=1)
    service.now += 86_400.0 + 60 + 100
    with monkeypatch.context() as patch:
        patch.setattr("tokensvc.ledger.janitor.MAX_SWEEP_SECONDS", 0.0)
        assert await late() == "100.0", "a slice of 25 was all that there was time for"
    assert await late() == "0.0"
