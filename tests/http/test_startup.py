"""A service that cannot start says why in one line, and one that stops leaves nothing open."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
from pathlib import Path

import pytest

from tests.http.support import (
    FakeIvs,
    Service,
    lifespan,
    running,
    settings_for,
    stage_arn,
)
from tokensvc.errors import ConfigurationError, StoreUnavailableError, TokenServiceError
from tokensvc.http import background
from tokensvc.http.app import create_app
from tokensvc.http.background import every
from tokensvc.http.parts import open_parts
from tokensvc.keyring import create_master_key
from tokensvc.settings import Settings
from tokensvc.store import upgrade


async def fails(settings: Settings, log: io.StringIO) -> TokenServiceError:
    """Start a service that cannot, and return what it says."""
    app = create_app(settings, gateway=FakeIvs())
    # Litestar wraps it in a group; a server only sees that the lifespan failed, and asks `app`.
    with pytest.raises(ExceptionGroup):
        async with lifespan(app):
            raise AssertionError("it started")
    assert app.startup_error is not None
    assert "\n" not in app.startup_error.detail
    assert "Traceback" not in log.getvalue()
    return app.startup_error


async def test_a_missing_database(tmp_path: Path, log: io.StringIO):
    error = await fails(settings_for(tmp_path), log)
    assert "tokensvc db upgrade" in error.detail
    assert not (tmp_path / "tokensvc.db").exists()


async def test_an_old_schema(stopped: Service, log: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokensvc.store.schema.HEAD", "9999")
    error = await fails(stopped.settings, log)
    assert "tokensvc db upgrade" in error.detail


async def test_a_missing_master_key(tmp_path: Path, log: io.StringIO):
    settings = settings_for(tmp_path)
    upgrade(settings.database_url)
    error = await fails(settings, log)
    assert "master key" in error.detail
    assert not settings.master_key_file.exists()


async def test_a_damaged_database(stopped: Service, log: io.StringIO):
    database = stopped.settings.data_dir / "tokensvc.db"
    database.write_bytes(b"not a database at all" * 100)
    error = await fails(stopped.settings, log)
    assert isinstance(error, StoreUnavailableError)


def test_no_region():
    with pytest.raises(ConfigurationError, match="TOKENSVC_REGIONS"):
        create_app(Settings())


async def test_another_master_key_leaves_the_region_without_a_key_and_says_so(service: Service):
    service.settings.master_key_file.unlink()
    create_master_key(service.settings.master_key_file)
    again = Service(service.settings, service.ivs, api_keys=service.api_keys)
    async with running(again):
        answer = await again.post("/v1/tokens", {"stageArn": stage_arn(), "issuer": "local"})
        assert answer.json()["code"] == "no_signing_key"
        assert "another master key" in answer.json()["detail"]


async def test_the_log_says_who_signs_and_how_fast(service: Service, log: io.StringIO):
    again = Service(service.settings, service.ivs, api_keys=service.api_keys)
    async with running(again):
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (chosen,) = [line for line in lines if line["event"] == "signer_chosen"][-1:]
    assert chosen["signer"] == "aws-lc"
    assert chosen["signatures_per_second"] > 0


async def test_the_signer_is_the_one_that_is_set(stopped: Service, log: io.StringIO):
    stopped.settings = dataclasses.replace(stopped.settings, signer="openssl")
    async with running(stopped):
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["signer"] for line in lines if line["event"] == "signer_chosen"] == ["openssl"]


async def test_a_stopped_service_leaves_no_task_behind(stopped: Service):
    before = asyncio.all_tasks()
    async with running(stopped) as service:
        assert asyncio.all_tasks() > before
        await service.post("/v1/tokens", {"stageArn": stage_arn()})
    assert asyncio.all_tasks() == before


async def test_a_service_starts_again_on_what_it_left(stopped: Service):
    async with running(stopped) as service:
        first = (await service.post("/v1/tokens", {"stageArn": stage_arn()})).json()
    async with running(stopped) as service:
        second = (await service.post("/v1/tokens", {"stageArn": stage_arn()})).json()
    assert first["keyArn"] == second["keyArn"]


async def test_what_is_given_is_not_closed_and_what_fails_to_close_stops_nothing(
    stopped: Service, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    async def broken(self: object) -> None:
        raise RuntimeError("does not close")

    monkeypatch.setattr("tokensvc.ivs.stages.StageEndpointCache.aclose", broken)
    async with open_parts(stopped.settings, lambda: 0.0, gateway=stopped.ivs) as parts:
        engine, connections = parts.engine, parts.engine.pool
    # What was opened before it is closed all the same, and with it its connections.
    assert engine.pool is not connections
    assert "part_failed_to_close" in log.getvalue()


async def test_background_work_outlives_its_faults_and_logs_each_once(log: io.StringIO):
    outcomes: list[Exception | None] = [
        None,
        StoreUnavailableError("gone"),
        StoreUnavailableError("gone"),
        None,
        ZeroDivisionError("a bug"),
        None,
    ]
    rounds = iter(outcomes)
    slept: list[float] = []

    async def work() -> None:
        outcome = next(rounds)
        if outcome is not None:
            raise outcome

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > len(outcomes):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await every(7.0, work, name="test work", sleep=sleep)
    events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
    assert events == [
        "background_work_failed",
        "background_work_recovered",
        "background_work_failed",
        "background_work_recovered",
    ]
    assert set(slept) == {7.0}


async def test_background_work_that_ends_by_a_fault_is_told_at_once(log: io.StringIO):
    async def work() -> None:
        raise ZeroDivisionError("a bug")

    ended: list[str] = []
    async with background.running([work()], ended.append):
        while not ended:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
    assert "background_work_ended" in log.getvalue()
    assert "ZeroDivisionError" in log.getvalue()
