"""The machine: which core does what, and what a process takes of it."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import gmtime, strftime
from typing import Any

from tokensvc.cli.measuring import AWS_LC, Rate, measure, subjects

__all__ = [
    "circumstances", "cpu_seconds", "load_cores", "memory_mb", "on_cores", "pinned", "raw_signatures",
    "server_cores", "thread_seconds", "wait_until_idle",
]  # fmt: skip

_CORES = sorted(os.sched_getaffinity(0))
_RAW_SECONDS = 0.5
_SUBJECTS = subjects()
_LOOKS = 50
_LOOK_SECONDS = 0.2
_IDLE = 0.1
"""Of a core: what background work takes, and a tick of the clock that counts it."""


def server_cores(count: int = 1) -> set[int]:
    """Return the cores of `count` workers: the first ones."""
    return set(_CORES[:count])


def load_cores(servers: int = 1) -> set[int]:
    """Return the cores of the load and of all else: those without a worker, if there are any."""
    return set(_CORES[servers:]) or set(_CORES)


def pinned(cores: set[int]) -> list[str]:
    """Return what to put before a command so that it stays on `cores`."""
    return ["taskset", "-c", ",".join(map(str, sorted(cores)))]


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep this thread on `cores` for as long as the body runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raw_signatures() -> Rate:
    """Measure AWS-LC's raw signatures on the core of the server, now; it must be idle."""
    with on_cores(server_cores()):
        calls = {AWS_LC: _SUBJECTS[AWS_LC]}
        return measure(calls, rounds=1, seconds=_RAW_SECONDS)[AWS_LC][0]


def family(pid: int) -> list[int]:
    """Return a process and those it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [pid, *(one for child in children for one in family(int(child)))]


def cpu_seconds(pid: int) -> float:
    """Return the processor time, of user and system, that a process and its children have taken."""
    return sum(_cpu_seconds(one) for one in family(pid))


def wait_until_idle(pid: int) -> None:
    """Wait until a process and its children have nothing left to do; for some seconds at most.

    What it was asked last may still be under way, and would make whatever is measured on its core slower.
    """
    before = cpu_seconds(pid)
    for _ in range(_LOOKS):
        time.sleep(_LOOK_SECONDS)
        now = cpu_seconds(pid)
        if now - before <= _IDLE * _LOOK_SECONDS:
            return
        before = now
    raise RuntimeError("the server does not come to rest")


def thread_seconds(pid: int) -> dict[int, float]:
    """Return the processor time, of user and system, that each thread of a process has taken."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {int(one.name): _cpu_seconds(f"{pid}/task/{one.name}") for one in threads}


def _cpu_seconds(process: int | str) -> float:
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return a process's resident memory, in 10^6 bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def circumstances(**more: Any) -> dict[str, Any]:
    """Return when and on what was measured."""
    return {
        "at": strftime("%Y-%m-%d %H:%M UTC", gmtime()),
        "processor": _processor(),
        "cores": len(_CORES),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        **more,
    }


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", info)
    return found[1] if found else platform.machine()
