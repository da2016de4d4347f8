"""A short run of atheris, the same each time; `make fuzz` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = 1_500


def test_a_short_run_finds_nothing(tmp_path: Path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.atheris_run", str(tmp_path)),
            *(f"-runs={RUNS}", "-seed=1", f"-artifact_prefix={tmp_path}/"),
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    # It was let into the code: it counts what it reaches there, and finds more than it was given.
    begun, *_, ended = map(int, re.findall(r" cov: ([0-9]+) ", done.stderr))
    assert ended > begun > 100
    assert f"Done {RUNS} runs" in done.stderr
