"""How a Region stands is kept as it was found, for whoever asks another process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import StoreUnavailableError
from tokensvc.keyring.reports import Living, RegionReport, SqlRegionReports
from tokensvc.keyring.status import Problem, RegionStatus
from tokensvc.store.tables import region_reports

NOW = 1_780_000_000.0
STATUS = RegionStatus(
    "eu-central-1",
    NOW,
    "the next rotation is not due",
    next_at=NOW + 60,
    problems=(Problem("Import k1", "ivs_throttled", "too many", 2.0),),
    foreign_keys=("arn:aws:ivs:eu-central-1:123456789012:public-key/a",),
    free_slots=0,
    steps=("Check k1",),
)
OTHER = RegionStatus("us-east-1", NOW, "no key is ACTIVE", blocked=True, overdue=5.0)


async def test_the_last_report_of_each_region_is_kept(
    engine: AsyncEngine, second_engine: AsyncEngine
) -> None:
    ours, theirs = SqlRegionReports(engine, "default"), SqlRegionReports(second_engine, "default")
    assert await theirs.load() == {}
    await ours.save(RegionReport(STATUS, Living({"ACTIVE": 3}, NOW)))
    await ours.save(RegionReport(OTHER))
    assert await theirs.load() == {
        "eu-central-1": RegionReport(STATUS, Living({"ACTIVE": 3}, NOW)),
        "us-east-1": RegionReport(OTHER, Living()),
    }
    later = RegionReport(replace(STATUS, at=NOW + 30, problems=()), Living({"ACTIVE": 4}, NOW + 9))
    await theirs.save(later)
    assert (await ours.load())["eu-central-1"] == later


async def test_each_ring_has_its_own(engine: AsyncEngine) -> None:
    await SqlRegionReports(engine, "default").save(RegionReport(STATUS))
    assert await SqlRegionReports(engine, "other").load() == {}


async def test_a_report_that_cannot_be_read_hides_no_other(engine: AsyncEngine) -> None:
    reports = SqlRegionReports(engine, "default")
    await reports.save(RegionReport(STATUS))
    await reports.save(RegionReport(OTHER))
    async with engine.begin() as connection:
        damage = update(region_reports).where(region_reports.c.region == "us-east-1")
        await connection.execute(damage.values(report="[]"))
    assert set(await reports.load()) == {"eu-central-1"}


async def test_a_database_that_fails_is_said(engine: AsyncEngine) -> None:
    reports = SqlRegionReports(engine, "default")
    async with engine.begin() as connection:
        await connection.run_sync(region_reports.drop)
    with pytest.raises(StoreUnavailableError):
        await reports.load()
    with pytest.raises(StoreUnavailableError):
        await reports.save(RegionReport(STATUS))
