"""Fixtures of the tests of `tokensvc.ivs`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from botocore.retries.standard import ExponentialBackoff

from tests.ivs.support import CREDENTIALS, ScriptedIvs
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.clients import ClientSettings


@pytest.fixture(autouse=True)
def no_pause_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0)


@pytest.fixture
def ivs() -> Iterator[ScriptedIvs]:
    server = ScriptedIvs()
    yield server
    server.close()


@pytest.fixture
async def gateway(ivs: ScriptedIvs) -> AsyncIterator[BotoIvsGateway]:
    """A gateway to `ivs` that never gives up early."""
    made = BotoIvsGateway(
        ClientSettings(endpoint_url=ivs.url, read_timeout_seconds=30.0), credentials=CREDENTIALS
    )
    yield made
    ivs.released.set()
    await made.aclose()
