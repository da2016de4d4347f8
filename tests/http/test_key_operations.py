"""Rotation and invalidation over HTTP: what is answered, what it does to tokens, what is shown of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.http.support import NOW, OTHER_REGION, REGION, Service, problem_in, running, stage_arn
from tokensvc.errors import IvsQuotaExceededError, IvsUnavailableError, StoreUnavailableError
from tokensvc.ivs.gateway import PublicKey
from tokensvc.ledger import Ledger

MINT = {"stageArn": stage_arn(), "userId": "ana", "duration": 60}


async def keys_of(service: Service) -> dict[str, dict[str, Any]]:
    """Return the keys by phase."""
    return {key["phase"]: key for key in (await service.get("/v1/keys")).json()["keys"]}


async def rotated(service: Service, **body: str) -> dict[str, Any]:
    answer = await service.post("/v1/keys/rotate", body)
    assert answer.status_code == 200, answer.text
    (region,) = answer.json()["regions"]
    assert isinstance(region, dict)
    return region


async def invalidated(service: Service, key_id: str, query: str = "", **body: Any) -> Any:
    answer = await service.post(f"/v1/keys/{key_id}/invalidate{query}", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_ring_says_what_comes_next_and_when(service: Service):
    await service.post("/v1/tokens", MINT)
    keys = await keys_of(service)
    active, standby = keys["ACTIVE"], keys["STANDBY"]
    due = active["activatedAt"] + service.settings.rotation_period
    assert (active["nextPhase"], active["nextAt"]) == ("RETIRING", due)
    assert (standby["nextPhase"], standby["nextAt"]) == ("ACTIVE", due)
    assert active["liveTokens"] == 1
    assert active["lastTokenExpiresAt"] == int(NOW) + 3600
    assert standby["liveTokens"] == 0
    body = (await service.get("/v1/keys")).json()
    (region,) = body["regions"]
    assert region["healthy"] is True
    assert (region["usedSlots"], region["freeSlots"]) == (2, 1)
    assert region["nextAt"] == due


async def test_a_standby_that_is_too_young_does_not_sign_yet(service: Service):
    before = await keys_of(service)
    region = await rotated(service)
    assert region["rotated"] is False
    assert region["activeKeyId"] == before["ACTIVE"]["keyId"]
    ready = before["STANDBY"]["importedAt"] + service.settings.standby_min_age
    assert region["status"]["nextAt"] == ready


async def test_a_rotation_signs_with_the_standby_at_once_and_breaks_no_token(service: Service):
    before = await keys_of(service)
    service.now += service.settings.standby_min_age
    await service.sleeper.wake()
    old = (await service.post("/v1/tokens", MINT)).json()
    region = await rotated(service, region=REGION)
    assert region["rotated"] is True
    assert region["previousKeyId"] == before["ACTIVE"]["keyId"]
    new = (await service.post("/v1/tokens", MINT)).json()
    assert new["keyArn"] == before["STANDBY"]["arn"]
    assert old["keyArn"] in service.ivs.keys
    retiring = (await keys_of(service))["RETIRING"]
    # Its last token expires an hour after it was minted; then the skew.
    assert retiring["nextAt"] == int(service.now) + 3600 + service.settings.clock_skew
    assert retiring["nextPhase"] == "DELETED"


async def test_a_drained_key_is_deleted_and_the_next_standby_made(service: Service):
    service.now += service.settings.standby_min_age
    await service.sleeper.wake()
    await service.post("/v1/tokens", MINT)
    await rotated(service)
    gone = (await keys_of(service))["RETIRING"]
    service.now = gone["nextAt"] - 1
    await service.sleeper.wake()
    assert gone["arn"] in service.ivs.keys
    service.now = gone["nextAt"]
    await service.sleeper.wake()
    assert gone["arn"] not in service.ivs.keys
    shown = (await service.get(f"/v1/keys/{gone['keyId']}")).json()
    assert (shown["phase"], shown["deleteReason"]) == ("DELETED", "DRAINED")
    assert shown["liveTokens"] is None
    assert shown["nextPhase"] is None


async def test_regions_rotate_each_for_itself(stopped: Service):
    stopped.settings = dataclasses.replace(
        stopped.settings, regions=(REGION, OTHER_REGION), standby_min_age=0
    )
    stopped.ivs.faulty_regions.add(OTHER_REGION)
    async with running(stopped) as service:
        answer = (await service.post("/v1/keys/rotate", {})).json()
        found = {region["region"]: region for region in answer["regions"]}
        assert found[REGION]["rotated"] is True
        assert found[OTHER_REGION]["rotated"] is False
        (problem,) = found[OTHER_REGION]["status"]["problems"]
        assert problem["code"] == "ivs_error"


async def test_a_dry_run_says_what_would_break_and_changes_nothing(service: Service):
    await service.post("/v1/tokens", MINT)
    await service.post("/v1/tokens", {**MINT, "stageArn": stage_arn("stage2"), "duration": 90})
    before = await keys_of(service)
    active = before["ACTIVE"]
    report = await invalidated(service, active["keyId"], "?dryRun=true", disconnect=True)
    assert report["dryRun"] is True
    assert report["deleted"] is False
    assert report["disconnect"] is None
    assert report["successor"] == before["STANDBY"]["keyId"]
    assert report["livingTokens"] == 2
    assert report["latestExpiry"] == int(NOW) + 5400
    assert {user["stageArn"]: user["living"] for user in report["tokens"]} == {
        stage_arn(): 1,
        stage_arn("stage2"): 1,
    }
    assert {user["callerId"] for user in report["tokens"]} == {
        service.api_keys["all"].split("_")[1]
    }
    assert await keys_of(service) == before
    assert service.ivs.calls["DeletePublicKey"] == 0


async def test_an_invalidated_key_is_gone_and_the_standby_signs(service: Service):
    before = await keys_of(service)
    report = await invalidated(service, before["ACTIVE"]["keyId"])
    assert report["deleted"] is True
    assert report["successor"] == report["activeKeyId"] == before["STANDBY"]["keyId"]
    assert before["ACTIVE"]["arn"] not in service.ivs.keys
    assert (await service.post("/v1/tokens", MINT)).json()["keyArn"] == before["STANDBY"]["arn"]
    shown = (await service.get(f"/v1/keys/{before['ACTIVE']['keyId']}")).json()
    assert (shown["phase"], shown["deleteReason"]) == ("DELETED", "COMPROMISED")
    again = await invalidated(service, before["ACTIVE"]["keyId"])
    assert again["deleted"] is True
    assert again["activeKeyId"] == before["STANDBY"]["keyId"]


async def test_an_invalidation_is_answered_where_its_tokens_cannot_be_counted_in_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def fail(self: Ledger, key_id: str, now: float) -> None:
        raise StoreUnavailableError("The database took too long for a statement.")

    monkeypatch.setattr(Ledger, "key_use", fail)
    key = (await keys_of(service))["ACTIVE"]
    asked = await service.post(f"/v1/keys/{key['keyId']}/invalidate?dryRun=true", {})
    problem_in(asked, 503, "store_unavailable")
    report = await invalidated(service, key["keyId"], disconnect=True)
    assert (report["deleted"], report["livingTokens"], report["tokens"]) == (True, None, [])
    assert report["disconnect"] is not None


async def test_without_a_standby_another_key_is_made_at_once(service: Service):
    keys = await keys_of(service)
    await invalidated(service, keys["STANDBY"]["keyId"])
    service.ivs.fault = IvsUnavailableError("IVS does not answer.")
    made = (await keys_of(service))["STANDBY"]
    await invalidated(service, made["keyId"])
    # Nothing can take its place while IVS does not answer, and it signs no more all the same.
    report = await invalidated(service, keys["ACTIVE"]["keyId"])
    assert report["deleted"] is False
    assert report["problem"]["code"] == "ivs_unavailable"
    assert report["activeKeyId"] is None
    answer = await service.post("/v1/tokens", {**MINT, "issuer": "local"})
    problem_in(answer, 503, "no_signing_key")
    service.ivs.fault = None
    report = await invalidated(service, keys["ACTIVE"]["keyId"])
    assert report["deleted"] is True
    assert report["activeKeyId"] is not None
    assert keys["ACTIVE"]["arn"] not in service.ivs.keys
    answer = await service.post("/v1/tokens", {**MINT, "issuer": "local"})
    assert answer.status_code == 201


async def test_participants_are_queued_to_be_disconnected(service: Service):
    await service.post("/v1/tokens", MINT)
    active = (await keys_of(service))["ACTIVE"]
    report = await invalidated(service, active["keyId"], disconnect=True, reason="sign in again")
    queued = report["disconnect"]
    assert queued["disconnectId"].startswith("dis-")
    assert queued["expectedCompletion"] > NOW


async def test_a_reason_that_ivs_would_refuse_deletes_no_key(service: Service):
    active = (await keys_of(service))["ACTIVE"]
    answer = await service.post(f"/v1/keys/{active['keyId']}/invalidate", {"reason": "x" * 129})
    problem = problem_in(answer, 400, "invalid_request")
    assert problem["errors"][0]["field"] == "reason"
    assert active["arn"] in service.ivs.keys


@pytest.mark.parametrize(
    ("query", "body", "field"),
    [
        ("?dryrun=true", {}, "dryrun"),
        ("?dryRun=yes", {}, "dryRun"),
        ("?dryRun=true&dryRun=false", {}, "dryRun"),
        ("", {"disconnect": "true"}, "disconnect"),
        ("", {"dryRun": True}, "dryRun"),
        ("", [], ""),
    ],
)
async def test_what_is_misspelt_deletes_no_key(
    service: Service, query: str, body: object, field: str
):
    active = (await keys_of(service))["ACTIVE"]
    answer = await service.post(f"/v1/keys/{active['keyId']}/invalidate{query}", body)
    problem = problem_in(answer, 400, "invalid_request")
    assert problem["errors"][0]["field"] == field
    assert service.ivs.calls["DeletePublicKey"] == 0


async def test_an_empty_body_is_no_body(service: Service):
    answer = await service.send("/v1/keys/rotate", b"")
    assert answer.status_code == 200
    problem_in(await service.send("/v1/keys/rotate", b"{"), 400, "malformed_json")


async def test_regions_and_keys_that_are_not_there(service: Service):
    answer = await service.post("/v1/keys/rotate", {"region": OTHER_REGION})
    assert problem_in(answer, 400, "invalid_request")["errors"][0]["field"] == "region"
    problem_in(await service.post("/v1/keys/k000/invalidate", {}), 404, "not_found")


async def test_each_operation_has_its_scope(service: Service):
    active = (await keys_of(service))["ACTIVE"]
    for path in ("/v1/keys/rotate", f"/v1/keys/{active['keyId']}/invalidate"):
        problem_in(await service.post(path, {}, caller="reader"), 403, "forbidden")
    assert service.ivs.calls["DeletePublicKey"] == 0


async def test_foreign_keys_and_a_full_quota_are_shown(stopped: Service):
    for name in ("theirs1", "theirs2"):
        arn = f"arn:aws:ivs:{REGION}:123456789012:public-key/{name}"
        stopped.ivs.keys[arn] = PublicKey(arn, name, "not ours", "00", {})
    async with running(stopped) as service:
        (region,) = (await service.get("/v1/keys")).json()["regions"]
        assert region["healthy"] is False
        assert region["blocked"] is True
        assert [arn.rsplit("/")[-1] for arn in region["foreignKeys"]] == ["theirs1", "theirs2"]
        assert "all 3 public keys" in region["nextStep"]
        answer = await service.get("/readyz", caller=None)
        checks = {check["name"]: check for check in answer.json()["checks"]}
        assert answer.status_code == 200
        assert checks[f"keys:{REGION}"]["ok"] is False
        assert checks[f"keys:{REGION}"]["required"] is False
        assert "theirs1" in checks[f"keys:{REGION}"]["detail"]
        metrics = (await service.get("/metrics", caller=None)).text
        assert f'tokensvc_foreign_keys{{region="{REGION}"}} 2.0' in metrics
        assert f'tokensvc_key_ring_blocked{{region="{REGION}"}} 1.0' in metrics


async def test_what_fails_is_in_the_ring_the_readiness_and_the_metrics(service: Service):
    service.ivs.fault = IvsQuotaExceededError("out of order")
    await service.sleeper.wake()
    (region,) = (await service.get("/v1/keys")).json()["regions"]
    assert [problem["code"] for problem in region["problems"]] == ["ivs_quota_exceeded"]
    metrics = (await service.get("/metrics", caller=None)).text
    assert f'tokensvc_key_ring_problems{{region="{REGION}"}} 1.0' in metrics
    # Minting goes on, and so the process stays in service.
    assert (await service.get("/readyz", caller=None)).status_code == 200


async def test_metrics_of_a_rotation(service: Service):
    service.now += service.settings.standby_min_age
    await service.sleeper.wake()
    await rotated(service)
    await service.sleeper.wake()
    metrics = (await service.get("/metrics", caller=None)).text
    for line in (
        f'tokensvc_keys{{phase="ACTIVE",region="{REGION}"}} 1.0',
        f'tokensvc_keys{{phase="RETIRING",region="{REGION}"}} 1.0',
        f'tokensvc_active_key_age_seconds{{region="{REGION}"}} 0.0',
        f'tokensvc_key_rotations_total{{region="{REGION}"}} 1.0',
        f'tokensvc_rotation_overdue_seconds{{region="{REGION}"}} 0.0',
        f'tokensvc_key_next_step_timestamp_seconds{{region="{REGION}"}}',
    ):
        assert line in metrics


async def test_a_rotation_that_is_late_is_overdue(service: Service):
    service.ivs.fault = IvsUnavailableError("IVS does not answer.")
    active = (await keys_of(service))["STANDBY"]
    await invalidated(service, active["keyId"])
    service.ivs.fault = None
    late = service.settings.rotation_overdue + 60
    service.now += service.settings.rotation_period + late
    # The standby is made only now, and is too young.
    await service.sleeper.wake()
    (region,) = (await service.get("/v1/keys")).json()["regions"]
    assert region["overdueSeconds"] >= late
    metrics = (await service.get("/metrics", caller=None)).text
    assert f'tokensvc_rotation_overdue_seconds{{region="{REGION}"}} {late}' in metrics
