"""What of a request is in the audit record, and what never is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.support import Service, problem_in, running, stage_arn
from tests.policy.support import POLICY
from tokensvc.http.app import ROUTES
from tokensvc.http.request_audit import ACTIONS, MINTS

INTERVAL = 47.0


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def audited(stopped: Service, path: Path) -> Service:
    stopped.settings = replace(stopped.settings, audit=str(path), audit_interval=INTERVAL)
    return stopped


def of(path: Path, action: str) -> list[dict[str, Any]]:
    return [line for line in told(path) if line["action"] == action]


def test_every_route_that_changes_anything_is_recorded():
    changing = {
        (method, template)
        for handler in ROUTES
        for template in handler.paths
        for method in handler.http_methods
        if method != "GET"
    }
    known = {(method, route) for method, route in ACTIONS} | {("POST", route) for route in MINTS}
    plain = {(method, template.replace(":str}", "}")) for method, template in changing}
    # Inspection reads.
    assert plain - known == {("POST", "/v1/tokens/inspect")}
    assert known <= plain


async def test_actions_are_recorded_one_by_one(audited: Service, path: Path):
    async with running(audited) as service:
        caller = service.api_keys["all"].split("_")[1]
        made = await service.post("/v1/bans", {"userId": "ana", "stageArn": stage_arn()})
        assert made.status_code == 201
        await service.post("/v1/bans", {"userId": "ana"}, caller="minter")
        await service.post("/v1/bans", {"until": "never"})
        assert service.client is not None
        await service.client.post("/v1/bans", json={})
        assert (await service.delete(f"/v1/bans/{made.json()['banId']}")).status_code == 200
        gone = await service.post(
            "/v1/disconnects", {"stageArn": stage_arn(), "participantId": "p1", "reason": "rude"}
        )
        await service.post("/v1/keys/rotate", {})
        key = (await service.get("/v1/keys")).json()["keys"][0]["keyId"]
        await service.post(f"/v1/keys/{key}/invalidate?dryRun=true", {})
    banned, forbidden, invalid, unknown = of(path, "ban.add")
    assert banned["who"] == caller
    assert banned["outcome"] == "done"
    assert banned["banId"] == made.json()["banId"]
    assert banned["stageArn"] == stage_arn()
    assert banned["requestId"] == made.headers["x-request-id"]
    assert banned["userId"].startswith("hmac:")
    (lifted,) = of(path, "ban.lift")
    assert {name: lifted[name] for name in ("banId", "stageArn", "userId")} == {
        name: banned[name] for name in ("banId", "stageArn", "userId")
    }
    assert forbidden["outcome"] == "forbidden"
    assert invalid["outcome"] == "invalid_request"
    assert (unknown["who"], unknown["outcome"]) == (None, "unauthenticated")
    (kicked,) = of(path, "participant.disconnect")
    assert kicked["participantId"] == "p1"
    assert kicked["disconnectId"] == gone.json()["disconnectId"]
    (invalidated,) = of(path, "key.invalidate")
    assert (invalidated["keyId"], invalidated["dryRun"]) == (key, True)
    assert of(path, "key.rotate")
    # The ring's own steps: made, imported, active.
    assert [line["phase"] for line in of(path, "key.phase")][:1] == ["GENERATED"]
    assert {line["phase"] for line in of(path, "key.phase")} >= {"GENERATED", "STANDBY", "ACTIVE"}
    assert "ana" not in json.dumps(told(path))
    assert [line["seq"] for line in told(path)] == list(range(1, len(told(path)) + 1))


async def test_mints_are_recorded_in_summary(audited: Service, path: Path):
    async with running(audited) as service:
        tokens = [(await service.mint(userId="ana"))["token"] for _ in range(3)]
        await service.post("/v1/tokens", {"stageArn": stage_arn("nowhere")})
        batch = await service.post(
            "/v1/tokens/batch",
            {"tokens": [{"stageArn": stage_arn()}, {"stageArn": stage_arn()}, {"duration": 0}]},
        )
        assert batch.json()["failed"] == 1
        assert of(path, "token.mint") == []
        key_arn = batch.json()["tokens"][0]["keyArn"]
    counted = {(line["stageArn"], line["outcome"]): line for line in of(path, "token.mint")}
    assert counted[stage_arn(), "done"]["count"] == 3
    assert counted[stage_arn(), "done"]["keyArn"] == key_arn
    assert counted[stage_arn("nowhere"), "stage_not_found"]["count"] == 1
    batches = {line["outcome"]: line["count"] for line in of(path, "token.mint_batch")}
    assert batches == {"done": 2, "invalid_request": 1}
    text = json.dumps(told(path))
    for secret in (*tokens, *service.api_keys.values(), "eyJ", "ana"):
        assert secret not in text


async def test_mints_are_told_while_the_service_runs(audited: Service, path: Path):
    async with running(audited) as service:
        await service.mint()
        await service.sleeper.wake(INTERVAL)
        metrics = (await service.get("/metrics")).text
        assert "tokensvc_audit_failing 0.0" in metrics
    assert [line["count"] for line in of(path, "token.mint")] == [1]


@pytest.fixture
def full_disk(audited: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    def write(_descriptor: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokensvc.telemetry.audit_sink.os.write", write)
    return audited


async def test_a_full_disk_fails_no_mint(full_disk: Service):
    async with running(full_disk) as service:
        await until_not_written(service)
        await service.mint()
        ready = await service.get("/readyz")
        assert ready.status_code == 200
        (check,) = [one for one in ready.json()["checks"] if one["name"] == "audit"]
        assert not check["ok"]
        assert "No space left" in check["detail"]


async def test_a_full_disk_stops_what_must_be_recorded(full_disk: Service):
    full_disk.settings = replace(full_disk.settings, audit_required=True)
    async with running(full_disk) as service:
        await until_not_written(service)
        for path, body in (("/v1/tokens", {"stageArn": stage_arn()}), ("/v1/bans", {})):
            answer = await service.post(path, body)
            problem_in(answer, 503, "audit_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        # What only reads goes on, and so does what says what is wrong.
        assert (await service.get("/v1/bans")).status_code == 200
        assert (await service.get("/readyz")).status_code == 503
        assert (await service.get("/healthz")).status_code == 200


async def until_not_written(service: Service) -> None:
    """The ring's first steps are recorded; wait until the thread has tried to."""
    for _ in range(5000):
        checks = (await service.get("/readyz")).json()["checks"]
        if any(one["name"] == "audit" and not one["ok"] for one in checks):
            return
    raise AssertionError("nothing failed")


async def test_policies_that_come_into_force_or_are_refused_are_recorded(
    audited: Service, path: Path, tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    await asyncio.to_thread(policy.write_text, POLICY)
    audited.settings = replace(audited.settings, policy_file=policy, policy_refresh=53.0)
    async with running(audited) as service:
        (first,) = of(path, "policy.load") or await recorded(path, "policy.load")
        await asyncio.to_thread(policy.write_text, "version: 2\ncallers: {}\n")
        assert service.app is not None
        assert service.app.reload is not None
        service.app.reload()
        (refused,) = await recorded(path, "policy.refuse")
    assert (first["who"], first["outcome"]) == ("policy file", "done")
    assert refused["outcome"] == "configuration"
    assert refused["inForce"] == first["inForce"]
    assert "line 1" in str(refused["faults"])


async def recorded(path: Path, action: str) -> list[dict[str, Any]]:
    """Wait until the sink's thread has written such a record."""
    for _ in range(5000):
        found = of(path, action)
        if found:
            return found
        await asyncio.sleep(0)
    raise AssertionError(f"no {action}")
