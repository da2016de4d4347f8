"""Every worker knows how the ring stands, and not only the one that looks after keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.http.support import REGION, Service, Sleeper, running, stage_arn
from tests.keyring.support import World
from tokensvc.errors import IvsQuotaExceededError, StoreUnavailableError
from tokensvc.http.key_reports import COUNT_SECONDS, REPORT_SECONDS, KeyReports
from tokensvc.keyring import RingView
from tokensvc.keyring.reports import RegionReport, SqlRegionReports
from tokensvc.ledger import Ledger

MINT = {"stageArn": stage_arn(), "duration": 60}


def worker_beside(service: Service) -> Service:
    """Return another worker of the same installation."""
    return dataclasses.replace(
        service, sleeper=Sleeper(), tends_keys=False, app=None, client=None, now=service.now
    )


async def region_of(service: Service) -> dict[str, Any]:
    answer = await service.get("/v1/keys")
    assert answer.status_code == 200, answer.text
    (region,) = answer.json()["regions"]
    assert isinstance(region, dict)
    return region


async def metric(service: Service, line: str) -> float | None:
    text = (await service.get("/metrics", caller=None)).text
    found = [one.rsplit(" ", 1)[1] for one in text.splitlines() if one.startswith(line + " ")]
    return float(found[0]) if found else None


async def ring_check(service: Service) -> dict[str, Any] | None:
    checks = (await service.get("/readyz", caller=None)).json()["checks"]
    return next((check for check in checks if check["name"] == f"keys:{REGION}"), None)


async def test_a_worker_that_does_not_look_tells_what_the_other_found(service: Service):
    async with running(worker_beside(service)) as other:
        assert await region_of(other) == await region_of(service)
        assert (await ring_check(other))["ok"] is True  # type: ignore[index]
        service.ivs.fault = IvsQuotaExceededError("no more keys")
        service.now = other.now = service.now + 40
        await service.sleeper.wake()
        (problem,) = (await region_of(other))["problems"]
        assert problem["code"] == "ivs_quota_exceeded"
        await other.sleeper.wake(REPORT_SECONDS)
        assert await metric(other, f'tokensvc_key_ring_problems{{region="{REGION}"}}') == 1
        check = await ring_check(other)
        assert check is not None
        assert (check["ok"], check["required"]) == (False, False)
        assert "no more keys" in check["detail"]


async def test_what_a_worker_once_did_itself_gives_way_to_what_was_found_later(service: Service):
    async with running(worker_beside(service)) as other:
        await other.post("/v1/keys/rotate", {})
        service.now = other.now = service.now + 40
        await service.sleeper.wake()
        assert (await region_of(other))["checkedAt"] == service.now


async def test_living_tokens_are_counted_for_every_worker(service: Service):
    await service.post("/v1/tokens", MINT)
    await service.post("/v1/tokens", MINT)
    await service.sleeper.wake(COUNT_SECONDS)
    living = f'tokensvc_living_tokens{{phase="ACTIVE",region="{REGION}"}}'
    assert await metric(service, living) == 2
    await service.sleeper.wake()
    async with running(worker_beside(service)) as other:
        assert await metric(other, living) == 2
        retired = f'tokensvc_living_tokens{{phase="RETIRING",region="{REGION}"}}'
        assert await metric(other, retired) == 0


async def test_counting_takes_a_fiftieth_of_the_time_at_most(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    counts = 0

    async def slowly(self: Ledger, now: float, *, key_id: str | None = None) -> int:
        nonlocal counts
        counts += 1
        service.now += 2
        return 7

    monkeypatch.setattr(Ledger, "count_living", slowly)
    await service.sleeper.wake(COUNT_SECONDS)
    for seconds, counted in ((0, 1), (99, 1), (1, 2)):
        service.now += seconds
        await service.sleeper.wake(COUNT_SECONDS)
        assert counts == counted


class SharedReports:
    def __init__(self) -> None:
        self.stored: dict[str, RegionReport] = {}

    async def load(self) -> dict[str, RegionReport]:
        return dict(self.stored)

    async def save(self, report: RegionReport) -> None:
        self.stored[report.status.region] = report


class OneOfTwo:
    """A process that looks after keys, and counts."""

    def __init__(self, world: World, shared: SharedReports) -> None:
        self.counts = 0
        self.reports = KeyReports(
            (REGION,),
            ticker=world.manager(),
            own=lambda region: None,
            reports=shared,
            ledger=self,
            view=lambda: RingView([], world.ring().keys),
            clock=world.clock,
            monotonic=world.clock,
        )

    async def count_living(self, now: float, *, key_id: str | None = None) -> int:
        self.counts += 1
        return 5


async def test_one_process_of_all_counts_and_another_where_that_one_is_gone():
    world, shared = World(), SharedReports()
    await world.settled()
    one, other = OneOfTwo(world, shared), OneOfTwo(world, shared)
    for counted in (1, 2, 3):
        world.clock.now += COUNT_SECONDS
        await one.reports.count()
        await one.reports.tick(REGION)
        await other.reports.refresh()
        await other.reports.count()
        await other.reports.tick(REGION)
        assert (one.counts, other.counts) == (counted, 0)
        assert other.reports.living(REGION) == {"ACTIVE": 5, "RETIRING": 0}
    world.clock.now += 3 * COUNT_SECONDS
    await other.reports.count()
    assert other.counts == 1


async def test_a_region_nobody_looks_at_is_told(service: Service):
    assert await metric(service, f'tokensvc_key_ring_look_age_seconds{{region="{REGION}"}}') == 0
    service.now += 301
    assert await metric(service, f'tokensvc_key_ring_look_age_seconds{{region="{REGION}"}}') == 301
    check = await ring_check(service)
    assert check is not None
    assert check["ok"] is False
    assert "Nobody has looked for 301 s" in check["detail"]


async def test_a_report_that_is_not_stored_keeps_no_key_from_rotating(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    async def fail(self: SqlRegionReports, report: object) -> None:
        raise StoreUnavailableError("The disk that holds the database is full.")

    monkeypatch.setattr(SqlRegionReports, "save", fail)
    before = (await service.post("/v1/tokens", MINT)).json()["keyArn"]
    service.now += service.settings.rotation_period
    await service.sleeper.wake()
    assert (await service.post("/v1/tokens", MINT)).json()["keyArn"] != before
