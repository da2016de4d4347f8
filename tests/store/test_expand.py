"""An upgrade is safe while replicas of the version before it run: every revision only adds.

What a replica reads and writes stays as it was, what is new can be left out by who does not know it, and
no statement holds a table for as long as it has rows. What is needed no longer goes in a release after
the one whose replicas have stopped using it; such a revision is then named here, with that release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

import tokensvc.store
from tests.postgres import PostgresServer
from tests.store.support import schema_of, url_of
from tests.store.test_schema import revisions
from tokensvc.store.engine import open_migration_engine
from tokensvc.store.postgresql import DatabaseLimits, open_single_engine

FIRST_ON_POSTGRESQL = "0005"
"""What it replaces was never used there."""

Schemas = dict[str, dict[str, Any]]


def run_to(connection: sa.Connection, revision: str) -> dict[str, Any]:
    config = Config()
    folder = Path(tokensvc.store.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    return schema_of(connection)


def schemas_by_revision(connection: sa.Connection) -> Schemas:
    return {revision: run_to(connection, revision) for revision in reversed(revisions())}


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Schemas]:
    engine = open_migration_engine(url_of(tmp_path / "tokensvc.db"))
    with engine.begin() as connection:
        yield schemas_by_revision(connection)
    engine.dispose()


@pytest.fixture
async def postgresql(postgres: PostgresServer) -> Schemas:
    url = postgres.empty_database()
    engine = open_single_engine(url, DatabaseLimits())
    async with engine.begin() as connection:
        found = await connection.run_sync(schemas_by_revision)
    await engine.dispose()
    postgres.release(url)
    return {revision: of for revision, of in found.items() if revision >= FIRST_ON_POSTGRESQL}


def what_breaks(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what of `after` a replica of the version before would stumble over."""
    found: list[str] = []
    for table, old in before.items():
        new = after.get(table)
        if new is None:
            found.append(f"{table} is gone")
            continue
        columns = {column["name"]: column for column in new["columns"]}
        known = {column["name"]: column for column in old["columns"]}
        found += [f"{table}.{n} is another" for n, of in known.items() if columns.get(n) != of]
        found += [
            f"{table}.{name} cannot be left out"
            for name, column in columns.items()
            if name not in known and not column["nullable"] and column["default"] is None
        ]
        # A constraint refuses what was written before; an index is built under a lock.
        found += [
            f"{table}: {part}" for part in old if part != "columns" and new[part] != old[part]
        ]
    return found


def test_every_revision_only_adds(sqlite: Schemas) -> None:
    assert len(sqlite) > 5
    for (_, before), (revision, after) in pairwise(sqlite.items()):
        assert what_breaks(before, after) == [], revision


async def test_every_revision_only_adds_on_postgresql(postgresql: Schemas) -> None:
    assert next(iter(postgresql)) == FIRST_ON_POSTGRESQL
    assert len(postgresql) > 1
    for (_, before), (revision, after) in pairwise(postgresql.items()):
        assert what_breaks(before, after) == [], revision


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda: op.drop_table("leases"), "leases is gone"),
        (lambda: op.drop_column("bans", "reason"), "bans.reason is another"),
        (lambda: op.alter_column("bans", "reason", new_column_name="why"), "bans.reason is another"),
        (lambda: op.create_index("ix_new", "bans", ["reason"]), "bans: indexes"),
        (lambda: op.add_column("bans", sa.Column("by", sa.Text, nullable=True)), None),
        (lambda: op.create_table("new", sa.Column("x", sa.Text, nullable=False)), None),
    ],
)  # fmt: skip
def test_what_an_old_replica_would_stumble_over_is_found(
    tmp_path: Path, change: Callable[[], object], broken: str | None
) -> None:
    engine = open_migration_engine(url_of(tmp_path / "tokensvc.db"))
    with engine.begin() as connection:
        before = run_to(connection, "head")
        with Operations.context(MigrationContext.configure(connection)):
            change()
        found = what_breaks(before, schema_of(connection))
    engine.dispose()
    assert found == [] if broken is None else broken in found


def test_a_column_that_cannot_be_left_out_is_found(sqlite: Schemas) -> None:
    """SQLite itself refuses to add one; PostgreSQL does not, where the table is empty."""
    before = list(sqlite.values())[-1]
    after = deepcopy(before)
    column = {"name": "by", "type": "TEXT()", "nullable": False, "default": None}
    after["bans"]["columns"].append(column)
    assert what_breaks(before, after) == ["bans.by cannot be left out"]
    column["default"] = "'nobody'"
    assert what_breaks(before, after) == []
