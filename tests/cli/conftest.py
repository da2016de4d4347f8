"""An installation that commands work on, and an emulator behind it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.cli.support import REGION, Cli
from tests.emulator.support import RunningEmulator
from tokensvc.keyring import create_master_key
from tokensvc.settings import Settings
from tokensvc.store import upgrade
from tokensvc.telemetry.logging import configure_logging


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    settings = Settings(data_dir=folder)
    upgrade(settings.database_url)
    create_master_key(settings.master_key_file)
    return folder


@pytest.fixture
def cli(
    tmp_path: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Cli]:
    for file in template.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).chmod(0o600)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging("error", "json", io.StringIO())
    with RunningEmulator(enforce_quotas=False) as emulator:
        for name, value in {
            "TOKENSVC_DATA_DIR": str(tmp_path),
            "TOKENSVC_REGIONS": REGION,
            "TOKENSVC_AWS_ENDPOINT_URL": emulator.url,
            "TOKENSVC_STANDBY_MIN_AGE": "0",
            # Generous, for slow and busy machines.
            "TOKENSVC_AWS_CONNECT_TIMEOUT": "30",
            "TOKENSVC_AWS_READ_TIMEOUT": "60",
            "AWS_ACCESS_KEY_ID": "emulator",
            "AWS_SECRET_ACCESS_KEY": "emulator",
        }.items():
            monkeypatch.setenv(name, value)
        yield Cli(emulator, tmp_path, capsys)
    structlog.reset_defaults()
    root.handlers[:], root.level = before
