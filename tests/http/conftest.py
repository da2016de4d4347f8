"""One running service for each test."""

from __future__ import annotations

import asyncio
import io
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from tests.http.support import FakeIvs, Service, install, running, settings_for
from tokensvc.telemetry.logging import configure_logging


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """What is logged, in the form that production has."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = before


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with database and master key, to be copied, and its callers' API keys."""
    folder = tmp_path_factory.mktemp("installation")
    return folder, asyncio.run(install(settings_for(folder)))


@pytest.fixture
def stopped(tmp_path: Path, installation: tuple[Path, dict[str, str]]) -> Service:
    """A service that is installed and does not run yet."""
    return _installed(tmp_path, installation)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, installation: tuple[Path, dict[str, str]]
) -> AsyncIterator[Service]:
    """A service that runs for a whole module, whose tests leave it as it is."""
    async with running(_installed(tmp_path_factory.mktemp("shared"), installation)) as service:
        yield service


@pytest.fixture
async def service(stopped: Service) -> AsyncIterator[Service]:
    """A service that runs, its Region's key active."""
    async with running(stopped):
        yield stopped


@pytest.fixture
async def other(stopped: Service) -> AsyncIterator[Service]:
    """Another replica: the same database and master key, the same IVS, memory of its own.

    To be asked for together with `service`, and after it.
    """
    replica = Service(stopped.settings, stopped.ivs, api_keys=stopped.api_keys)
    async with running(replica):
        yield replica


def _installed(folder: Path, installation: tuple[Path, dict[str, str]]) -> Service:
    source, api_keys = installation
    shutil.copytree(source, folder / "data")
    return Service(settings_for(folder / "data"), FakeIvs(), api_keys=api_keys)
