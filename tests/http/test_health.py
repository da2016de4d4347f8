"""Live is not ready, and not ready says why."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from tests.http.support import (
    NOW,
    OTHER_REGION,
    REGION,
    Service,
    problem_in,
    running,
    stage_arn,
)
from tokensvc.errors import StoreUnavailableError
from tokensvc.http.health_watch import READING_SECONDS, DriftWatch
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.keyring import RingView
from tokensvc.ledger import LedgerWriter
from tokensvc.revocation import BanList
from tokensvc.signing import SigningKey, generate_private_key, public_key_pem


async def ready(service: Service) -> tuple[bool, dict[str, dict[str, Any]]]:
    answer = await service.get("/readyz", caller=None)
    body = answer.json()
    assert answer.status_code == (200 if body["ready"] else 503)
    return body["ready"], {check["name"]: check for check in body["checks"]}


async def test_alive_needs_no_api_key_and_no_other_part(service: Service):
    service.now += 10_000
    answer = await service.get("/healthz", caller=None)
    assert (answer.status_code, answer.json()) == (200, {"alive": True})


async def dies(service: Service) -> None:
    answer = await service.get("/healthz", caller=None)
    while answer.status_code == 200:
        await asyncio.sleep(0)
        answer = await service.get("/healthz", caller=None)
    assert (answer.status_code, answer.json()) == (503, {"alive": False})


async def test_work_that_has_ended_is_not_alive_since_only_a_restart_begins_it_again(
    stopped: Service, monkeypatch: pytest.MonkeyPatch
):
    async def end(self: BanList, sleep: Callable[[float], Awaitable[object]]) -> None:
        await sleep(12_345.0)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(BanList, "run", end)
    async with running(stopped) as service:
        assert (await service.get("/healthz", caller=None)).status_code == 200
        service.sleeper.nudge(longest=12_345.0)
        await dies(service)


async def test_a_ledger_that_writes_no_more_is_not_alive(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr(LedgerWriter, "_take", lambda self: 1 // 0)
        waiting = asyncio.create_task(service.mint())
        await dies(service)
    waiting.cancel()


async def test_ready_with_a_canary_for_each_region(service: Service):
    is_ready, checks = await ready(service)
    assert is_ready
    regional = {f"signing:{REGION}", f"keys:{REGION}"}
    assert set(checks) == {
        "store",
        "ring",
        "callers",
        "bans",
        "ledger",
        "signing",
        "clock",
        "log",
        *regional,
    }
    assert "verified" in checks[f"signing:{REGION}"]["detail"]


async def test_a_copy_that_is_not_renewed_is_not_ready_and_recovers(service: Service):
    service.now += 11
    is_ready, checks = await ready(service)
    assert not is_ready
    assert not checks["ring"]["ok"]
    assert not checks["callers"]["ok"]
    assert not checks["store"]["ok"]
    await service.sleeper.wake_copies()
    is_ready, checks = await ready(service)
    assert checks["ring"]["ok"]
    assert checks["store"]["ok"]
    assert is_ready


async def test_a_canary_that_is_not_signed_any_more_is_not_ready(service: Service):
    for _ in range(3):
        service.now += 9
        await service.sleeper.wake_copies()
    is_ready, checks = await ready(service)
    assert not is_ready
    assert not checks[f"signing:{REGION}"]["ok"]
    await service.sleeper.wake(5.0)
    assert (await ready(service))[0]


async def test_a_signature_that_does_not_verify_is_not_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    other = public_key_pem(generate_private_key())
    monkeypatch.setattr(RingView, "public_key_pem", lambda self, arn: other)
    await service.sleeper.wake(5.0)
    is_ready, checks = await ready(service)
    assert not is_ready
    assert checks[f"signing:{REGION}"]["required"]
    assert "another public key" in checks[f"signing:{REGION}"]["detail"]
    metrics = (await service.get("/metrics", caller=None)).text
    assert f'tokensvc_signer_canary_ok{{region="{REGION}"}} 0.0' in metrics


async def test_a_key_whose_canary_failed_signs_nothing_until_one_verifies(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        other = public_key_pem(generate_private_key())
        broken.setattr(RingView, "public_key_pem", lambda self, arn: other)
        await service.sleeper.wake(5.0)
    assert (await service.mint())["issuer"] == "ivs"
    answer = await service.post("/v1/tokens", {"stageArn": stage_arn(), "issuer": "local"})
    problem = problem_in(answer, 503, "no_signing_key")
    assert "canary signature failed" in problem["detail"]
    is_ready, checks = await ready(service)
    assert not is_ready
    assert not checks[f"signing:{REGION}"]["ok"]
    await service.sleeper.wake(5.0)
    assert (await service.mint())["issuer"] == "local"
    assert (await ready(service))[0]


async def test_a_signer_that_raises_is_taken_out_as_well(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    def fail(key: SigningKey, public_key_pem: str) -> None:
        raise RuntimeError("the library says nothing more")

    monkeypatch.setattr("tokensvc.http.readiness.self_check", fail)
    await service.sleeper.wake(5.0)
    assert (await service.mint())["issuer"] == "ivs"
    assert "cannot sign" in (await ready(service))[1][f"signing:{REGION}"]["detail"]


async def test_a_region_without_a_key_does_not_take_the_others_down(stopped: Service):
    stopped.settings = dataclasses.replace(stopped.settings, regions=(REGION, OTHER_REGION))
    stopped.ivs.faulty_regions.add(OTHER_REGION)
    async with running(stopped) as service:
        is_ready, checks = await ready(service)
        assert is_ready
        assert not checks[f"signing:{OTHER_REGION}"]["ok"]
        assert not checks[f"signing:{OTHER_REGION}"]["required"]


async def test_without_any_key_the_process_is_not_ready_until_there_is_one(stopped: Service):
    stopped.ivs.faulty_regions.add(REGION)
    async with running(stopped) as service:
        is_ready, checks = await ready(service)
        assert not is_ready
        assert not checks["signing"]["ok"]
        service.ivs.faulty_regions.clear()
        # The care of keys tries again after a second.
        await service.sleeper.wake()
        assert (await ready(service))[0]


async def test_a_store_that_fails_leaves_minting_as_it_is_until_the_ring_is_too_old(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def fail(self: object) -> None:
        raise StoreUnavailableError("The disk that holds the database fails.")

    monkeypatch.setattr("tokensvc.keyring.sql.SqlRingStore.versions", fail)
    body = {"stageArn": stage_arn(), "issuer": "local"}
    service.now += service.settings.ring_max_age
    await service.sleeper.wake()
    answer = await service.post("/v1/tokens", body)
    assert answer.status_code == 201, answer.text
    service.now += 1
    answer = await service.post("/v1/tokens", body)
    assert answer.json()["code"] == "no_signing_key"
    assert "30 seconds" in answer.json()["detail"]


async def test_metrics_count_what_was_done(service: Service):
    await service.post("/v1/tokens", {"stageArn": stage_arn()})
    await service.post("/v1/tokens", {"stageArn": "nonsense"})
    await service.post("/v1/tokens/batch", {"tokens": [{"stageArn": stage_arn()}, {}]})
    await service.get("/v1/keys/secret-path")
    answer = await service.get("/metrics", caller=None)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        f'tokensvc_tokens_issued_total{{issuer="local",region="{REGION}"}} 2.0',
        'tokensvc_batch_items_refused_total{code="invalid_request"} 1.0',
        'tokensvc_http_requests_total{code="",method="POST",route="/v1/tokens",status="201"} 1.0',
        'tokensvc_http_requests_total{code="invalid_request",method="POST",route="/v1/tokens"',
        'tokensvc_view_age_seconds{view="ring"} 0.0',
        'tokensvc_stage_endpoint_lookups_total{outcome="miss"} 1.0',
        f'tokensvc_signer_canary_ok{{region="{REGION}"}} 1.0',
    ):
        assert line in answer.text
    assert "tokensvc_mint_seconds_count 1.0" in answer.text
    assert "secret-path" not in answer.text


def reading(ahead: float) -> ClockDrift:
    drift = ClockDrift(lambda: NOW)
    drift.answered(
        REGION, sent_at=NOW - 0.2, date=format_datetime(datetime.fromtimestamp(NOW - ahead, UTC))
    )
    return drift


@pytest.mark.parametrize(
    ("ahead", "ok"), [(0.0, True), (-59.0, True), (62.0, False), (-63.0, False)]
)
def test_a_clock_that_is_off_is_not_ready(ahead: float, ok: bool):
    (check,) = DriftWatch(reading(ahead), 60.0).checks()
    assert (check.name, check.ok, check.required) == ("clock", ok, True)
    assert REGION in check.detail
    assert "TOKENSVC_CLOCK_SKEW" in check.detail
    if not ok:
        assert ("ahead of" if ahead > 0 else "behind") in check.detail


def test_without_a_young_reading_the_clock_is_not_blamed():
    assert DriftWatch(ClockDrift(lambda: NOW), 60.0).checks()[0].ok
    now = NOW
    drift = ClockDrift(lambda: now)
    drift.answered(REGION, sent_at=NOW, date="Thu, 01 Jan 1970 00:00:00 GMT")
    assert not DriftWatch(drift, 60.0).checks()[0].ok
    now += READING_SECONDS + 1
    assert DriftWatch(drift, 60.0).checks()[0].ok
