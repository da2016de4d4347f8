"""Migrations bring any database to what `tables.py` declares, once, whole, and one at a time."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import alembic.op
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import tokensvc.store
from tests.store.support import schema_of, tables_of, url_of
from tokensvc.errors import ConfigurationError, StoreUnavailableError
from tokensvc.store import ensure_current, open_engine, upgrade
from tokensvc.store.schema import HEAD
from tokensvc.store.tables import metadata


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokensvc.db"


def revisions() -> list[str]:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(tokensvc.store.__file__).parent / "migrations")
    )
    config.set_main_option("path_separator", "os")
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]


def test_migrations_make_the_declared_tables(path, tmp_path):
    upgrade(url_of(path))
    migrated, declared = create_engine(f"sqlite:///{path}"), create_engine("sqlite://")
    with migrated.connect() as one, declared.connect() as other:
        metadata.create_all(other)
        assert schema_of(one) == schema_of(other)
        assert set(schema_of(one)) == set(metadata.tables)
    migrated.dispose()
    declared.dispose()


def test_alembic_sees_no_difference_to_the_declared_tables(path):
    upgrade(url_of(path))
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_head_is_the_newest_revision_and_revisions_only_grow():
    newest_first = revisions()
    assert newest_first[0] == HEAD
    assert all(re.fullmatch(r"\d{4}", revision) for revision in newest_first)
    assert all(newer > older for newer, older in pairwise(newest_first))


def test_an_upgrade_is_made_once(path):
    assert upgrade(url_of(path)) is True
    before = path.read_bytes()
    assert upgrade(url_of(path)) is False
    assert path.read_bytes() == before


def test_an_upgrade_that_fails_leaves_nothing_and_can_be_repeated(path, monkeypatch):
    class CutOffError(Exception):
        pass

    def cut(*_args, **_options):
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(alembic.op, "bulk_insert", cut)
        with pytest.raises(CutOffError):
            upgrade(url_of(path))
    assert tables_of(path) == set()
    assert upgrade(url_of(path)) is True
    assert set(metadata.tables) < tables_of(path)


def test_of_upgrades_at_once_one_does_the_work(path):
    script = "import sys; from tokensvc.store import upgrade; print(upgrade(sys.argv[1]))"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, url_of(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outcomes = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert sorted(outcomes) == [("False\n", "", 0)] * 3 + [("True\n", "", 0)]


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_only_the_owner_may_read_the_files(path, umask):
    before = os.umask(umask)
    try:
        upgrade(url_of(path))
        engine = open_engine(url_of(path))
        async with engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE feeds SET version = version + 1")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await engine.dispose()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["tokensvc.db", "tokensvc.db-shm", "tokensvc.db-wal"], 0o600)


async def test_what_is_committed_is_on_the_disk_and_keys_are_enforced(path):
    upgrade(url_of(path))
    engine = open_engine(url_of(path))
    async with engine.connect() as connection:
        pragmas = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        with pytest.raises(Exception, match="FOREIGN KEY"):
            await connection.exec_driver_sql(
                "INSERT INTO caller_secrets VALUES ('nobody', x'00', 1.0, NULL)"
            )
    await engine.dispose()
    full = 2
    assert pragmas == {"journal_mode": "wal", "synchronous": full, "foreign_keys": 1}


async def test_a_current_database_is_served(path):
    upgrade(url_of(path))
    engine = open_engine(url_of(path))
    await ensure_current(engine)
    await engine.dispose()


@pytest.mark.parametrize(
    ("revision", "served"), [(None, False), ("0000", False), (HEAD, True), ("9999", True)]
)
async def test_an_old_database_is_not_served_and_a_newer_one_is(path, revision, served):
    upgrade(url_of(path))
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM alembic_version")
    if revision is not None:
        connection.execute("INSERT INTO alembic_version VALUES (?)", [revision])
    connection.commit()
    connection.close()
    engine = open_engine(url_of(path))
    if served:
        await ensure_current(engine)
    else:
        with pytest.raises(ConfigurationError, match=f"{revision or 'none'} and {HEAD} is needed"):
            await ensure_current(engine)
    await engine.dispose()


async def test_an_empty_file_is_not_served_and_can_be_upgraded(path):
    path.touch()
    engine = open_engine(url_of(path))
    with pytest.raises(ConfigurationError, match="tokensvc db upgrade"):
        await ensure_current(engine)
    await engine.dispose()
    assert upgrade(url_of(path)) is True


def test_an_upgrade_of_what_is_no_database_is_refused(path):
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        upgrade(url_of(path))
