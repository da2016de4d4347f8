"""Mints over HTTP: one worker of `tokensvc serve` on a core of its own, wrk on another.

The service is a process as an operator starts it, with a SQLite store in a folder of its own, a key that
it imports into the emulator (another process), and a caller added on the command line. Between the rounds
the raw signature is measured on the service's core while the service is idle, so that the ratio compares
the same core in the same minute.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import boto3
import httpx

from tests.bench.in_process import raw_signature_cpu, raw_signatures
from tokensvc.keyring import create_master_key

__all__ = ["Figures", "measure"]

_REGION = "eu-central-1"
_BATCH = 100
_CONNECTIONS = {1: 64, _BATCH: 16}
"""By the tokens of a request: enough for group commit, and for batches as many as wait elsewhere."""
_PATIENCE_SECONDS = 60.0
_TOKENSVC = str(Path(sys.executable).with_name("tokensvc"))
_SCRIPT = str(Path(__file__).with_name("mint.lua"))


@dataclass(slots=True)
class Figures:
    """What the rounds gave, by what was measured; latencies are of whole requests."""

    per_second: dict[str, list[float]] = field(default_factory=dict)
    p50_ms: dict[str, list[float]] = field(default_factory=dict)
    p99_ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """Microseconds of processor time that the service takes for one token, all threads together."""
    raw_cpu_us: list[float] = field(default_factory=list)
    """The same of a raw signature, on the same core."""
    ready_seconds: float = 0.0
    """From the start of the process to its first 200 from /readyz."""
    memory_mb: float = 0.0
    """Resident memory of the worker at the end."""


def measure(rounds: int, seconds: float) -> Figures:
    """Return the figures of `rounds` rounds, each of `seconds` for each kind of request.

    Raises SystemExit where wrk is missing, and RuntimeError where a request was not answered 2xx: a
    fast error is no mint.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing (Debian: apt-get install wrk)")
    figures = Figures()
    server_core, load_core = _cores()
    with tempfile.TemporaryDirectory(prefix="tokensvc-bench-") as folder, ExitStack() as running:
        environment, stage, api_key = _prepare(Path(folder), running)
        url, figures.ready_seconds, pid = running.enter_context(_service(environment, server_core))
        script = {**environment, "BENCH_STAGE": stage, "BENCH_API_KEY": api_key}
        single = {**script, "BENCH_PATH": "/v1/tokens", "BENCH_BATCH": "1"}
        batch = {**script, "BENCH_PATH": "/v1/tokens/batch", "BENCH_BATCH": str(_BATCH)}
        _load(url, single, load_core, 1.0, 1)  # so that every round meets a warm service
        for _ in range(rounds):
            _note_raw(figures, server_core)
            for name, script, tokens in (
                ("mints over HTTP", single, 1),
                (f"mints over HTTP, {_BATCH} a request", batch, _BATCH),
            ):
                before = _cpu_seconds(pid)
                said = _load(url, script, load_core, seconds, tokens)
                spent = _cpu_seconds(pid) - before
                _note(figures, name, said, tokens)
                per_token = spent / (said["requests"] * tokens)
                figures.cpu_us.setdefault(name, []).append(per_token * 1e6)
        figures.memory_mb = _memory_mb(pid)
    return figures


def _cores() -> tuple[set[int], set[int]]:
    """Return where the service runs, and where the load does: apart, if there are two cores."""
    cores = sorted(os.sched_getaffinity(0))
    return {cores[0]}, set(cores[1:]) or {cores[0]}


def _note(figures: Figures, name: str, said: Mapping[str, float], tokens: int) -> None:
    rate = said["requests"] * tokens / said["seconds"]
    figures.per_second.setdefault(name, []).append(rate)
    figures.p50_ms.setdefault(name, []).append(said["p50_ms"])
    figures.p99_ms.setdefault(name, []).append(said["p99_ms"])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    return int(found[1]) / 1024 if found else 0.0


def _note_raw(figures: Figures, cores: set[int]) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        rate = raw_signatures()
        figures.raw_cpu_us.append(raw_signature_cpu() * 1e6)
    finally:
        os.sched_setaffinity(0, before)
    figures.per_second.setdefault("raw AWS-LC signatures", []).append(rate)


def _load(
    url: str, script: Mapping[str, str], cores: set[int], seconds: float, tokens: int
) -> dict[str, float]:
    command = [
        "wrk",
        "-t1",
        f"-c{_CONNECTIONS[tokens]}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "10s",
    ]
    wrk = subprocess.run(
        [*_pinned(cores), *command, "-s", _SCRIPT, url],
        env=dict(script),
        capture_output=True,
        text=True,
        timeout=seconds + _PATIENCE_SECONDS,
        check=True,
    )
    said: dict[str, float] = json.loads(wrk.stderr)
    faults = {what: said[what] for what in ("connect", "read", "write", "timeout", "status")}
    if any(faults.values()) or not said["requests"]:
        raise RuntimeError(f"the load was not answered as it should be: {faults}")
    return said


def _pinned(cores: set[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, sorted(cores)))]


def _prepare(folder: Path, running: ExitStack) -> tuple[dict[str, str], str, str]:
    """Make an installation; return its environment, a stage's ARN and an API key."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "TOKENSVC_DATA_DIR": str(folder),
        "TOKENSVC_REGIONS": _REGION,
        "TOKENSVC_HOST": "127.0.0.1",
    }
    emulator, _ = running.enter_context(
        _process(["emulator", "--port", "0"], environment, re.compile(r"(?<=127\.0\.0\.1:)\d+"))
    )
    environment["TOKENSVC_AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{emulator}"
    stages = boto3.client(
        "ivs-realtime",
        region_name=_REGION,
        endpoint_url=environment["TOKENSVC_AWS_ENDPOINT_URL"],
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
    )
    stage = stages.create_stage(name="bench")["stage"]["arn"]
    create_master_key(folder / "master.key")
    _run(["db", "upgrade"], environment)
    caller = json.loads(_run(["callers", "add", "bench", "--json"], environment))
    return environment, stage, caller["apiKey"]


@contextmanager
def _service(environment: Mapping[str, str], cores: set[int]) -> Iterator[tuple[str, float, int]]:
    """Run one worker; yields its URL once a key signs, the seconds until then, and its pid."""
    started = time.monotonic()
    arguments = ["serve", "--port", "0", "--workers", "1"]
    with _process(arguments, environment, re.compile(r'(?<="port":)\d+'), cores) as (port, pid):
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while httpx.get(f"{url}/readyz").status_code != 200:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the service is not ready: {httpx.get(f'{url}/readyz').text}")
            time.sleep(0.02)
        yield url, time.monotonic() - started, pid


def _run(arguments: list[str], environment: Mapping[str, str]) -> str:
    return subprocess.run(
        [_TOKENSVC, *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=True,
    ).stdout


@contextmanager
def _process(
    arguments: list[str],
    environment: Mapping[str, str],
    announces: re.Pattern[str],
    cores: set[int] | None = None,
) -> Iterator[tuple[str, int]]:
    """Run `tokensvc` until the body ends; yields what it announced, and its pid."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*(_pinned(cores) if cores else []), _TOKENSVC, *arguments],
            env=dict(environment),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _wait_for(process, said.fileno(), announces), process.pid
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(process: subprocess.Popen[bytes], said: int, announces: re.Pattern[str]) -> str:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        text = os.pread(said, 1_000_000, 0).decode("utf-8", "replace")
        if found := announces.search(text):
            return found[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"tokensvc did not start:\n{text}")
        time.sleep(0.05)


def summary(figures: Figures) -> list[str]:
    """Return what the table does not say: processor time, latencies, start and memory."""
    raw = median(figures.raw_cpu_us)
    lines = [f"processor time of a raw signature: {raw:.0f} us"]
    for name, rounds in figures.p50_ms.items():
        cpu = median(figures.cpu_us[name])
        lines.append(
            f"{name}: {cpu:.0f} us of processor time a token (ratio {raw / cpu:.2f});"
            f" p50 {median(rounds):.1f} ms,"
            f" p99 {median(figures.p99_ms[name]):.1f} ms"
        )
    lines.append(
        f"ready after {figures.ready_seconds:.1f} s; {figures.memory_mb:.0f} MB at the end;"
        f" load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}"
    )
    return lines
