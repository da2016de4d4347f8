"""Promise: no process of ours carries rich, which nothing of ours uses, and others may still use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMAND = """
import contextlib, sys
from tokensvc.cli import main
sys.argv[1:] = ["--help"]
with contextlib.suppress(SystemExit):
    main()
"""
WORKER = (
    "from tokensvc.http.workers import _be_worker; from tokensvc.http.server import serve_as_worker"
)
LOOK = """
import sys
loaded = {name.partition(".")[0] for name in sys.modules}
assert "structlog" in loaded
assert not {"rich", "pygments"} & loaded, loaded
import rich.console
"""


@pytest.mark.parametrize("process", [COMMAND, WORKER], ids=["command", "worker"])
def test_structlog_is_loaded_without_rich(process: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{process}\n{LOOK}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
