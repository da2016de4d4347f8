"""docs/faults.md is true: each fault comes about, and every cell is compared with what the service does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults import test_processes
from tests.faults.asking import COLUMNS
from tests.faults.rows import ROWS, Row
from tests.faults.table import TABLE
from tests.faults.world import Installation, World

MOST_ROUNDS = 60


def test_every_fault_of_the_table_is_tried():
    others = {f"test_{name.replace(' ', '_').lower()}" for name in TABLE.keys() - ROWS.keys()}
    assert others == {name for name in vars(test_processes) if name.startswith("test_")}


@pytest.mark.parametrize("name", ROWS)
async def test_a_fault(
    name: str, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    row = ROWS[name]
    row.prepare(monkeypatch)
    folder = tmp_path / "installation"
    async with installation.copied(folder, row.damage, **row.settings) as world:
        async with row.inject(world, monkeypatch):
            outcomes = {column: await world.ask(column) for column in COLUMNS}
        assert outcomes == TABLE[name]
        assert await asyncio.to_thread(world.refusals) == []
        await gets_well(world, row)


async def gets_well(world: World, row: Row) -> None:
    """See that it is over when it is over, and that nothing that was promised is forgotten."""
    if row.cured:
        well = {column: TABLE["none"][column] for column in ("mint", "ready")}
        for _ in range(MOST_ROUNDS):
            await world.let_pass(1)
            if {column: await world.ask(column) for column in well} == well:
                break
        else:
            raise AssertionError((await world.service.get("/readyz")).text)
    for disconnect_id in world.disconnects:
        path = f"/v1/disconnects/{disconnect_id}"
        for _ in range(MOST_ROUNDS):
            told = (await world.service.get(path)).json()
            if told["done"]:
                break
            # Every part comes to rest before the next look, however slow the machine is.
            await world.let_pass(1)
        else:
            raise AssertionError(told)
