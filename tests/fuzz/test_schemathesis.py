"""schemathesis against the running service, from the service's own `/schema`, with every check."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.support import service_in_a_thread
from tokensvc.telemetry.logging import configure_logging

ROOT = Path(__file__).parents[2]
EXAMPLES = 6
"""For each operation; the coverage phase, whose cases are enumerated, comes on top."""


@pytest.mark.timeout(300)
def test_nothing_that_the_schema_leads_to_is_answered_wrongly(tmp_path: Path):
    log = io.StringIO()
    configure_logging("warning", "json", log)
    with service_in_a_thread(tmp_path / "data") as service:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                *("--config-file", str(ROOT / "tests/fuzz/schemathesis.toml"), "run"),
                *(f"{service.url}/schema", "--wait-for-schema", "30"),
                *("--header", f"Authorization: Bearer {service.api_key}"),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--no-color", "--seed", "1"),
                *("--request-timeout", "20"),
            ],
            # It keeps what failed in the folder that it is run in.
            cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.search(r"\b([0-9]{2}) selected / \1 total", done.stdout)
    assert service.api_key not in done.stdout + log.getvalue()
    told = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line for line in told if line["level"] == "error" or "exception" in line] == []
