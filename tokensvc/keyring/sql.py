"""Key rings in the database: one row per ring and Region, one row per key.

A save is one transaction whose first statement is the compare-and-swap of the ring's version. That
statement takes the row's lock (PostgreSQL) or the write lock (SQLite), so of two savers that loaded
the same version one succeeds, and the other writes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Row, Select, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tokensvc.errors import RingConflictError, RingDamagedError
from tokensvc.keyring.record import (
    DeleteReason,
    KeyPhase,
    KeyRecord,
    RingState,
    check_ring_id,
)
from tokensvc.store import tables
from tokensvc.store.faults import store_faults

__all__ = ["SqlRingStore"]

_OWNER_BYTES: Final = 8
_KEY_COLUMNS: Final = tuple(
    column for column in tables.keys.c if column.name not in {"ring_id", "region"}
)


class SqlRingStore:
    """A `RingStore` over the tables `rings` and `keys`."""

    def __init__(self, engine: AsyncEngine, ring_id: str, clock: Callable[[], float]) -> None:
        """Work on the rings of `ring_id`; ValueError if that is not one (`check_ring_id`)."""
        self._engine = engine
        self._ring_id = check_ring_id(ring_id)
        self._clock = clock

    async def load(self, region: str) -> RingState:
        """Return the ring of `region`; see RingStore."""
        rings = await self._read(self._selection().where(tables.rings.c.region == region))
        return rings[0] if rings else RingState(region, 0)

    async def load_all(self) -> tuple[RingState, ...]:
        """Return the rings of all Regions; see RingStore."""
        return await self._read(self._selection())

    async def versions(self) -> dict[str, int]:
        """Return the version of each Region's ring; see RingStore."""
        selection = select(tables.rings.c.region, tables.rings.c.version).where(
            tables.rings.c.ring_id == self._ring_id
        )
        with store_faults("read versions of key rings"):
            async with self._engine.connect() as connection:
                rows = (await connection.execute(selection)).all()
        return {row.region: row.version for row in rows}

    async def save(self, state: RingState, keys: tuple[KeyRecord, ...]) -> RingState:
        """Compare and swap; see RingStore."""
        successor = state.successor(keys)
        if state.version == 0:
            successor = replace(successor, owner=secrets.token_hex(_OWNER_BYTES))
        with store_faults("save key ring"):
            async with self._engine.begin() as connection:
                await self._advance(connection, state, successor.owner)
                await self._write(connection, state, keys)
        return successor

    def _selection(self) -> Select[Any]:
        # One statement, so that version and keys are of one moment on every engine.
        joined = tables.rings.outerjoin(
            tables.keys,
            and_(
                tables.keys.c.ring_id == tables.rings.c.ring_id,
                tables.keys.c.region == tables.rings.c.region,
            ),
        )
        return (
            select(
                tables.rings.c.region,
                tables.rings.c.version,
                tables.rings.c.owner,
                *_KEY_COLUMNS,
            )
            .select_from(joined)
            .where(tables.rings.c.ring_id == self._ring_id)
            .order_by(tables.rings.c.region, tables.keys.c.created_at, tables.keys.c.key_id)
        )

    async def _read(self, selection: Select[Any]) -> tuple[RingState, ...]:
        with store_faults("load key ring"):
            async with self._engine.connect() as connection:
                rows = (await connection.execute(selection)).all()
        try:
            return _assemble(rows)
        except ValueError as error:
            raise RingDamagedError(
                f"The stored key ring {self._ring_id} is damaged: {error}."
            ) from error

    async def _advance(self, connection: AsyncConnection, state: RingState, owner: str) -> None:
        if state.version == 0:
            values = {
                "ring_id": self._ring_id,
                "region": state.region,
                "owner": owner,
                "version": 1,
                "created_at": self._clock(),
            }
            try:
                await connection.execute(insert(tables.rings).values(values))
            except IntegrityError as error:
                raise self._conflict(state) from error
            return
        swapped = await connection.execute(
            update(tables.rings)
            .where(
                tables.rings.c.ring_id == self._ring_id,
                tables.rings.c.region == state.region,
                tables.rings.c.version == state.version,
            )
            .values(version=state.version + 1)
        )
        if swapped.rowcount != 1:
            raise self._conflict(state)

    async def _write(
        self, connection: AsyncConnection, state: RingState, keys: tuple[KeyRecord, ...]
    ) -> None:
        before = {key.key_id: key for key in state.keys}
        vanished = before.keys() - {key.key_id for key in keys}
        if vanished:
            await connection.execute(
                delete(tables.keys).where(tables.keys.c.key_id.in_(sorted(vanished)))
            )
        # The database holds at most one ACTIVE key at every moment, so the old one steps down first.
        for key in sorted(keys, key=lambda key: key.phase is KeyPhase.ACTIVE):
            if key.key_id not in before:
                await connection.execute(
                    insert(tables.keys).values(ring_id=self._ring_id, **_values(key))
                )
            elif key != before[key.key_id]:
                await connection.execute(
                    update(tables.keys)
                    .where(tables.keys.c.key_id == key.key_id)
                    .values(**_values(key))
                )

    def _conflict(self, state: RingState) -> RingConflictError:
        return RingConflictError(
            f"The key ring of {state.region} was changed by another process since it was read.",
            ring_id=self._ring_id,
            version=state.version,
        )


def _values(key: KeyRecord) -> dict[str, object]:
    values: dict[str, object] = {column.name: getattr(key, column.name) for column in _KEY_COLUMNS}
    reason = None if key.delete_reason is None else key.delete_reason.value
    return values | {"region": key.region, "phase": key.phase.value, "delete_reason": reason}


def _assemble(rows: Iterable[Row[Any]]) -> tuple[RingState, ...]:
    rings: dict[str, tuple[int, str]] = {}
    keys: dict[str, list[KeyRecord]] = {}
    for row in rows:
        fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
        region = fields.pop("region")
        rings[region] = (fields.pop("version"), fields.pop("owner"))
        of_region = keys.setdefault(region, [])
        # The outer join gives a ring without keys one row of nothing.
        if fields["key_id"] is not None:
            fields["phase"] = KeyPhase(fields["phase"])
            if fields["delete_reason"] is not None:
                fields["delete_reason"] = DeleteReason(fields["delete_reason"])
            of_region.append(KeyRecord(region=region, **fields))
    return tuple(
        RingState(region, version, tuple(keys[region]), owner)
        for region, (version, owner) in rings.items()
    )
