"""The commands of docs/runbook.md, as they stand there, against `tokensvc dev`."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from tests.e2e.support import PATIENCE_SECONDS, RunningDev, run_to_end

_TEXT = Path("docs/runbook.md").read_text("utf-8")
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# A standby that may sign at once, or a test would wait for ten minutes.
YOUNG = {"TOKENSVC_STANDBY_MIN_AGE": "0"}


def blocks(section: str) -> list[str]:
    """Return the shell blocks under a heading."""
    (text,) = [part for part in _TEXT.split("\n## ") if part.startswith(f"{section}\n")]
    return [found[1] for found in _BLOCK.finditer(text)]


def follow(dev: RunningDev, *commands: str) -> str:
    """Run blocks in one shell, as dev's settings are loaded there; each command must succeed."""
    (load,) = [block for block in _BLOCK.findall(_TEXT) if "dev.env" in block]
    done = run_to_end(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join((load, *commands))],
        dev.home,
        {**YOUNG, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def minted(dev: RunningDev, api_key: str | None = None) -> dict[str, Any]:
    curl = dev.curl_line.replace("$API_KEY", api_key or "$API_KEY")
    done = run_to_end(["bash", "-c", curl], dev.home, {})
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def minted_by_another(dev: RunningDev, key_arn: str, api_key: str | None = None) -> dict[str, Any]:
    """Mint until another key signs: the service follows what a command did within a second."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = minted(dev, api_key)
        if found["issuer"] == "local" and found["keyArn"] != key_arn:
            return found
    raise AssertionError(f"still signed by {key_arn}, or not here")


def test_looked_at_rotated_and_a_stolen_key_taken_out(tmp_path: Path) -> None:
    with RunningDev(tmp_path, settings=YOUNG) as dev:
        first = minted(dev)["keyArn"]
        follow(dev, *blocks("Look first"))
        follow(dev, *blocks("Rotate"))
        stolen = minted_by_another(dev, first)["keyArn"]
        said = follow(dev, *blocks("A key is compromised"))
        assert "would be deleted at IVS" in said
        assert "disconnects queued as" in said
        held = {key["arn"] for key in dev.ivs().list_public_keys()["publicKeys"]}
        assert first in held
        assert stolen not in held
        follow(dev, *blocks("The quota is full"))


def test_a_lost_master_key(tmp_path: Path) -> None:
    """The service starts without it, and signs again when the steps are done."""
    make, invalidate, rotate, _reseal = blocks("The master key is lost")
    with RunningDev(tmp_path, settings=YOUNG) as dev:
        first, api_key, ports = minted(dev), dev.api_key, dev.ports
        follow(dev, "tokensvc keys rotate --if-due", make)
    with RunningDev(tmp_path, ports=ports, settings=YOUNG) as again:
        assert "does not sign" in again.stderr.text
        assert minted(again, api_key)["issuer"] == "ivs"
        follow(again, invalidate, rotate)
        minted_by_another(again, first["keyArn"], api_key)
        assert "signs as before" in follow(again, "tokensvc keys rotate --if-due || test $? = 3")
