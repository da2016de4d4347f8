"""Stage endpoints in the database: an `EndpointStore` over the table `known_stages`.

Replicas share the table, so each row keeps what was fetched last, whoever fetched it. A row whose ARN
cannot be read is left out: it costs one call to IVS, and must not cost the service its start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Row, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.ivs.endpoint_store import KnownStage
from tokensvc.ivs.stages import HARD_LIMIT_SECONDS
from tokensvc.store import tables
from tokensvc.store.faults import store_faults
from tokensvc.tokens.arn import InvalidArnError, StageArn
from tokensvc.tokens.claims import StageEndpoints

__all__ = ["SqlEndpointStore"]

_log = structlog.get_logger(__name__)


class SqlEndpointStore:
    """Keeps endpoints for as long as IVS allows: 14 days."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], float]) -> None:
        """Work on the database of `engine`; `clock` gives Unix seconds."""
        self._engine = engine
        self._clock = clock

    async def load(self, *, since: float, limit: int) -> list[KnownStage]:
        """See `EndpointStore`; raises StoreUnavailableError."""
        known = tables.known_stages
        selection = (
            select(known)
            .where(known.c.fetched_at >= since)
            .order_by(known.c.fetched_at.desc())
            .limit(limit)
        )
        with store_faults("load stage endpoints"):
            async with self._engine.connect() as connection:
                rows = (await connection.execute(selection)).all()
        return [stage for row in rows if (stage := _read(row)) is not None]

    async def save(self, known: Sequence[KnownStage], gone: Sequence[StageArn]) -> None:
        """See `EndpointStore`; raises StoreUnavailableError."""
        table = tables.known_stages
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        keep = dialect.insert(table)
        keep = keep.on_conflict_do_update(
            index_elements=[table.c.stage_arn],
            set_={name: keep.excluded[name] for name in ("events_url", "whip_url", "fetched_at")},
            where=table.c.fetched_at < keep.excluded.fetched_at,
        )
        # In the order of the key, so that two replicas that save the same stages cannot deadlock.
        rows = sorted((_values(stage) for stage in known), key=lambda row: row["stage_arn"])
        too_old = table.c.fetched_at < self._clock() - HARD_LIMIT_SECONDS
        with store_faults("save stage endpoints"):
            async with self._engine.begin() as connection:
                if rows:
                    await connection.execute(keep, rows)
                if gone:
                    named = table.c.stage_arn.in_([str(stage) for stage in gone])
                    await connection.execute(delete(table).where(named))
                await connection.execute(delete(table).where(too_old))


def _values(known: KnownStage) -> dict[str, Any]:
    return {
        "stage_arn": str(known.stage),
        "events_url": known.endpoints.events,
        "whip_url": known.endpoints.whip,
        "fetched_at": known.fetched_at,
    }


def _read(row: Row[Any]) -> KnownStage | None:
    try:
        stage = StageArn.parse(row.stage_arn)
    except InvalidArnError:
        _log.warning("known_stage_unreadable", stage_arn=row.stage_arn)
        return None
    return KnownStage(stage, StageEndpoints(row.events_url, row.whip_url), row.fetched_at)
