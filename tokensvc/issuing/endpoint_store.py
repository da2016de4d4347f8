"""Known stages in the database: an `EndpointStore` over the table `known_stages`.

Replicas share the table, so each row keeps what was fetched last, whoever fetched it. A row whose ARN
cannot be read is left out: it costs one call to IVS, and must not cost the service its start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
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

_FETCHED: Final = ("events_url", "whip_url", "fetched_at", "tags", "tags_at")

_log = structlog.get_logger(__name__)


class SqlEndpointStore:
    """Keeps what is known of a stage for as long as IVS allows endpoints to be kept: 14 days."""

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

    async def find(self, stage: StageArn, *, since: float) -> KnownStage | None:
        """See `EndpointStore`; raises StoreUnavailableError."""
        known = tables.known_stages
        selection = select(known).where(
            known.c.stage_arn == str(stage), known.c.fetched_at >= since
        )
        with store_faults("find a stage"):
            async with self._engine.connect() as connection:
                row = (await connection.execute(selection)).first()
        return None if row is None else _read(row)

    async def save(self, known: Sequence[KnownStage], gone: Sequence[StageArn]) -> None:
        """See `EndpointStore`; raises StoreUnavailableError."""
        table = tables.known_stages
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        keep = dialect.insert(table)
        keep = keep.on_conflict_do_update(
            index_elements=[table.c.stage_arn],
            set_={name: keep.excluded[name] for name in _FETCHED},
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
        "tags": None if known.tags is None else msgspec.json.encode(known.tags).decode(),
        "tags_at": None if known.tags is None else known.fetched_at,
    }


def _read(row: Row[Any]) -> KnownStage | None:
    try:
        stage = StageArn.parse(row.stage_arn)
    except InvalidArnError:
        _log.warning("known_stage_unreadable", stage_arn=row.stage_arn)
        return None
    endpoints = StageEndpoints(row.events_url, row.whip_url)
    return KnownStage(stage, endpoints, row.fetched_at, _tags(row))


def _tags(row: Row[Any]) -> dict[str, str] | None:
    if row.tags is None or row.tags_at != row.fetched_at:
        return None
    try:
        return msgspec.json.decode(row.tags, type=dict[str, str])
    except msgspec.DecodeError:
        _log.warning("known_stage_tags_unreadable", stage_arn=row.stage_arn)
        return None
