"""Commands of `tokensvc` in this process, over an installation and an emulator of a test's own."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.support import RunningEmulator
from tokensvc.cli.root import run
from tokensvc.telemetry.logging import configure_logging

REGION = "eu-central-1"


@dataclass
class Cli:
    """Runs commands in this process, as `tokensvc` would."""

    emulator: RunningEmulator
    folder: Path
    capsys: pytest.CaptureFixture[str]
    err: str = ""

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        code = run_quietly(["keys", *arguments])
        captured = self.capsys.readouterr()
        self.err = captured.err
        assert code == expect, f"{code}\n{captured.out}{captured.err}"
        assert "Traceback" not in captured.err
        return captured.out

    def json(self, *arguments: str, expect: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", expect=expect))

    def region(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        (region,) = self.json(*arguments, expect=expect)["regions"]
        assert isinstance(region, dict)
        return region

    def keys(self) -> dict[str, dict[str, Any]]:
        """Return the keys by phase."""
        return {key["phase"]: key for key in self.json("list")["keys"]}

    def at_ivs(self) -> set[str]:
        world = self.emulator.world
        return {key.arn for key in self.emulator.run(lambda: world.public_keys(REGION))}

    def mint(self) -> str:
        """Mint with `tokensvc token mint`, and return the ARN of the key that signed."""
        stage = self.emulator.run(lambda: self.emulator.world.create_stage(REGION))
        assert (
            run_quietly(["token", "mint", "--stage-arn", stage.arn, "--issuer", "local", "--json"])
            == 0
        )
        return str(json.loads(self.capsys.readouterr().out)["keyArn"])


def run_quietly(arguments: list[str]) -> int:
    """Run a command; what the emulator logs in this process is not the command's output."""
    try:
        return run(arguments)
    finally:
        configure_logging("error", "json", io.StringIO())
