"""One running service for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.http.support import FakeIvs, Service, install, running, settings_for


@pytest.fixture
async def stopped(tmp_path: Path) -> Service:
    """A service that is installed and does not run yet."""
    settings = settings_for(tmp_path)
    return Service(settings, FakeIvs(), api_keys=await install(settings))


@pytest.fixture
async def service(stopped: Service) -> AsyncIterator[Service]:
    """A service that runs, its Region's key active."""
    async with running(stopped):
        yield stopped
