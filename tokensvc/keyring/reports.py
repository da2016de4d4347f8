"""What was last found in each Region, stored for the processes that do not look themselves.

One process of an installation looks after keys; every one is asked about them. A report is for people
and for monitoring alone: nobody decides anything by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import structlog
from sqlalchemy import Row, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.keyring.status import RegionStatus
from tokensvc.store import tables
from tokensvc.store.faults import store_faults

__all__ = ["Living", "RegionReport", "RegionReports", "SqlRegionReports"]

_WRITTEN: Final = ("found_at", "report")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Living:
    """The living tokens of a Region's keys by phase, as counted at `at` (Unix seconds)."""

    by_phase: dict[str, int] = field(default_factory=dict)
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class RegionReport:
    """How a Region stood, and its living tokens as somebody last counted them."""

    status: RegionStatus
    living: Living = field(default_factory=Living)


class RegionReports(Protocol):
    """The last report of each Region. Every method raises StoreUnavailableError."""

    async def load(self) -> dict[str, RegionReport]:
        """Return the reports by Region."""
        ...

    async def save(self, report: RegionReport) -> None:
        """Keep `report` in the place of the one before."""
        ...


class SqlRegionReports:
    """`RegionReports` of one ring id over the table `region_reports`."""

    def __init__(self, engine: AsyncEngine, ring_id: str) -> None:
        self._engine = engine
        self._ring_id = ring_id

    async def load(self) -> dict[str, RegionReport]:
        """See RegionReports; a report that cannot be read is left out."""
        selection = select(tables.region_reports).where(
            tables.region_reports.c.ring_id == self._ring_id
        )
        with store_faults("load reports of Regions"):
            async with self._engine.connect() as connection:
                rows = (await connection.execute(selection)).all()
        found = ((row.region, _read(row)) for row in rows)
        return {region: report for region, report in found if report is not None}

    async def save(self, report: RegionReport) -> None:
        """See RegionReports."""
        table = tables.region_reports
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        keep = dialect.insert(table).values(
            ring_id=self._ring_id,
            region=report.status.region,
            found_at=report.status.at,
            report=msgspec.json.encode(report).decode(),
        )
        # Whoever wrote last, wins: clocks of replicas may differ, and a report is soon followed by
        # the next.
        keep = keep.on_conflict_do_update(
            index_elements=[table.c.ring_id, table.c.region],
            set_={name: keep.excluded[name] for name in _WRITTEN},
        )
        with store_faults("save report of a Region"):
            async with self._engine.begin() as connection:
                await connection.execute(keep)


def _read(row: Row[Any]) -> RegionReport | None:
    try:
        return msgspec.json.decode(row.report, type=RegionReport)
    except msgspec.DecodeError:
        # Of another release, perhaps; the next look replaces it.
        _log.warning("region_report_unreadable", region=row.region)
        return None
