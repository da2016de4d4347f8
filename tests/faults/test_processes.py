"""The rows of docs/faults.md whose faults need processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.asking import COLUMNS
from tests.faults.load import Begun, Load
from tests.faults.processes import PATIENCE_SECONDS, Serving, serving
from tests.faults.table import TABLE
from tests.faults.world import Installation, install_once


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIDEMULATOR0000")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        folder = tmp_path_factory.mktemp("faults") / "installation"
        return await install_once(folder, time.time())


def outcomes(serving: Serving) -> dict[str, str]:
    return {column: serving.ask(column) for column in COLUMNS}


def test_disk_full_for_logs(installation: Installation, tmp_path: Path):
    full = Path("/dev/full")
    with serving(installation, tmp_path / "copy", log=full, AUDIT=str(full)) as service:
        service.until("live", "200")
        assert outcomes(service) == TABLE["disk full for logs"]
        assert service.end() == 0


def test_one_worker_dead(installation: Installation, tmp_path: Path):
    with serving(installation, tmp_path / "copy", WORKERS="2") as service:
        service.told("service_started", 2)
        # The one that looks after the keys, and nobody to replace it yet.
        (keeper,) = (one for one in service.told("worker_started", 2) if one["worker"] == 0)
        service.process.send_signal(signal.SIGSTOP)
        os.kill(keeper["pid"], signal.SIGKILL)
        assert outcomes(service) == TABLE["one worker dead"]
        service.process.send_signal(signal.SIGCONT)
        assert service.told("worker_started", 3)[2]["worker"] == 0
        service.told("service_started", 3)
        assert service.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_under_load(installation: Installation, tmp_path: Path, workers: int):
    row = TABLE["SIGTERM under load"]
    with serving(installation, tmp_path / "copy", WORKERS=str(workers)) as service:
        await asyncio.to_thread(service.told, "service_started", workers)
        load = Load(service, "mint", lasting=6, fresh=6)
        await load.until_answered(100)
        begun = {column: await Begun.ask(service, column) for column in COLUMNS}
        await load.until_answered(20)
        service.process.send_signal(signal.SIGTERM)
        # Their parent says it, too, where there are several.
        await asyncio.to_thread(service.told, "draining", 1 if workers == 1 else 3)
        assert {column: await begun[column].finish() for column in COLUMNS} == row
        await load.until_refused()
        assert set(load.outcomes) == {row["mint"]}
        assert load.dropped == []
        assert await asyncio.to_thread(service.process.wait, PATIENCE_SECONDS) == 0
