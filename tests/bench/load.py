"""The load: wrk, which always asks, and pace.c, which asks at a given rate.

wrk tells how much a server can take. How long a request takes under a given load only pace tells, since it
counts from when the request was due (see pace.c).
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.bench.machine import pinned

__all__ = ["CACHE", "Requests", "always_asking", "ask", "asking_every_second", "pace"]

CACHE = Path(__file__).parents[2] / ".bench"
"""What the bench builds and installs; git ignores it."""

_HERE = Path(__file__).parent
_PATIENCE_SECONDS = 60.0
_runs = count(1)


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked for: `tokens` a request, more than one as a batch; each for another user."""

    pid: int
    """The server's process, or that of which its processes are children."""
    port: int
    api_key: str
    stage: str
    tokens: int = 1
    idempotency: bool = False

    @property
    def path(self) -> str:
        return "/v1/tokens" if self.tokens == 1 else "/v1/tokens/batch"

    def environment(self) -> dict[str, str]:
        """Return what mint.lua reads; a command line would be there for all to see."""
        return {
            "BENCH_PATH": self.path,
            "BENCH_BATCH": str(self.tokens),
            "BENCH_STAGE": self.stage,
            "BENCH_API_KEY": self.api_key,
            "BENCH_IDEMPOTENCY": "1" if self.idempotency else "",
            "BENCH_RUN": str(next(_runs)),
        }

    def template(self) -> bytes:
        """Return a whole request for pace.c, with holes for numbers."""
        user: dict[str, object] = {"userId": f"user-{'#' * 12}", "attributes": {"team": "red"}}
        body: dict[str, object] = (
            {"stageArn": self.stage, **user}
            if self.tokens == 1
            else {"defaults": {"stageArn": self.stage}, "tokens": [user] * self.tokens}
        )
        encoded = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self.api_key}\r\nContent-Type: application/json\r\n"
            + (f'Idempotency-Key: "{next(_runs)}-{"#" * 12}"\r\n' if self.idempotency else "")
            + f"Content-Length: {len(encoded)}\r\n\r\n"
        )
        return head.encode() + encoded


def ask(
    requests: Requests, *, cores: set[int], seconds: float, connections: int
) -> Mapping[str, float]:
    """Let wrk ask for `seconds`; returns what mint.lua says.

    Raises RuntimeError where a request was not answered 2xx: a fast error is no mint.
    """
    process = _start_wrk(requests, cores=cores, seconds=seconds, connections=connections)
    return _told(process, seconds)


@contextmanager
def always_asking(
    requests: Requests, *, cores: set[int], connections: int, seconds: float
) -> Iterator[dict[str, float]]:
    """Let wrk ask beside the body, for `seconds`, which should be as long as the body takes.

    What it says is in the dict when the body is left.
    """
    process = _start_wrk(requests, cores=cores, seconds=seconds, connections=connections)
    said: dict[str, float] = {}
    try:
        yield said
    finally:
        said.update(_told(process, seconds))


@contextmanager
def asking_every_second(
    requests: Requests, *, cores: set[int], connections: int, seconds: float
) -> Iterator[dict[str, float]]:
    """Let one request be sent each second beside the body, as `always_asking` does."""
    said: dict[str, float] = {}
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(
            pace,
            requests,
            cores=cores,
            rate=1.0,
            seconds=seconds,
            connections=connections,
            warm_up=0.0,
            seed=random.randrange(1, 1000),
            even=True,
        )
        yield said
        said.update(asking.result())


def pace(
    requests: Requests,
    *,
    cores: set[int],
    rate: float,
    seconds: float,
    connections: int = 256,
    warm_up: float = 1.0,
    seed: int = 1,
    even: bool = False,
) -> Mapping[str, float]:
    """Ask `rate` times a second, at random moments (Poisson) or evenly; returns what pace.c says.

    Raises RuntimeError where a request was not answered 2xx.
    """
    moments = "even" if even else "poisson"
    arguments = (requests.port, connections, rate, seconds, warm_up, seed, moments)
    done = subprocess.run(
        [*pinned(cores), str(_pace_program()), *map(str, arguments)],
        input=requests.template(),
        capture_output=True,
        timeout=seconds + warm_up + _PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode().strip())
    return _sound(json.loads(done.stdout), ("status", "timeout"))


def _start_wrk(
    requests: Requests, *, cores: set[int], seconds: float, connections: int
) -> subprocess.Popen[str]:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing (Debian: apt-get install wrk)")
    command = [
        "wrk", f"-t{min(len(cores), connections)}", f"-c{connections}",
        f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(_HERE / "mint.lua"),
        f"http://127.0.0.1:{requests.port}",
    ]  # fmt: skip
    return subprocess.Popen(
        [*pinned(cores), *command],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", **requests.environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _told(process: subprocess.Popen[str], seconds: float) -> Mapping[str, float]:
    try:
        _, said = process.communicate(timeout=seconds + _PATIENCE_SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"wrk ended with {process.returncode}: {said}")
    return _sound(json.loads(said), ("connect", "read", "write", "timeout", "status"))


def _sound(said: dict[str, Any], faults: Sequence[str]) -> Mapping[str, float]:
    found = {name: said[name] for name in faults if said[name]}
    if found or not said["requests"]:
        raise RuntimeError(f"the load was not answered as it should be: {found or 'not at all'}")
    return said


def _pace_program() -> Path:
    source, program = _HERE / "pace.c", CACHE / "pace"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(exist_ok=True)
        subprocess.run(
            ["cc", "-O2", "-Wall", "-o", str(program), str(source), "-lm"], check=True, timeout=60
        )
    return program
