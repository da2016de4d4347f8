"""`kill -9` of the real command in the middle of its work, at each call to IVS (promise 4)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.support import RunningEmulator
from tests.keyring.support import REGION
from tokensvc.keyring import create_master_key
from tokensvc.keyring.record import KeyPhase, RingState
from tokensvc.keyring.sql import SqlRingStore
from tokensvc.store import open_engine, upgrade

_DEADLINE_SECONDS = 30.0


class Gate:
    """Holds a call inside the emulator until the caller is dead."""

    def __init__(self) -> None:
        self.open = False

    async def sleep(self, seconds: float) -> None:
        # Opened by another thread than the emulator's loop.
        while not self.open:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def ivs(gate: Gate) -> Iterator[RunningEmulator]:
    sleep: Callable[[float], Awaitable[object]] = gate.sleep
    emulator = RunningEmulator(sleep=sleep)
    yield emulator
    gate.open = True
    emulator.close()


class Command:
    """`tokensvc keys ...` in processes of their own."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOKENSVC_")}
        self.database_url = f"sqlite+aiosqlite:///{folder / 'tokensvc.db'}"
        self.environment = inherited | {
            "TOKENSVC_DATA_DIR": str(folder),
            "TOKENSVC_REGIONS": REGION,
            "TOKENSVC_AWS_ENDPOINT_URL": endpoint,
            "TOKENSVC_AWS_READ_TIMEOUT": "20",
            "TOKENSVC_STANDBY_MIN_AGE": "0",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tokensvc", "keys", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, error = process.communicate(timeout=_DEADLINE_SECONDS)
        assert process.returncode == 0, (out, error)
        return out

    def ring(self) -> RingState:
        """The stored ring."""

        async def load() -> RingState:
            engine = open_engine(self.database_url)
            try:
                return await SqlRingStore(engine, "default", time.time).load(REGION)
            finally:
                await engine.dispose()

        return asyncio.run(load())

    def healthy(self, ivs: RunningEmulator, *phases: str) -> RingState:
        """See that the ring has keys in these phases, and IVS exactly those."""
        ring = self.ring()
        living = [key for key in ring.keys if key.phase is not KeyPhase.DELETED]
        assert sorted(key.phase for key in living) == sorted(phases)
        # Not by a call, of which the commands may have left none for this second.
        held = ivs.run(lambda: ivs.world.public_keys(REGION))
        assert {key.arn for key in held} == {key.arn for key in living}
        return ring


@pytest.fixture
def command(tmp_path: Path, ivs: RunningEmulator) -> Command:
    create_master_key(tmp_path / "master.key")
    command = Command(tmp_path, ivs.url)
    upgrade(command.database_url)
    command.run("rotate", "--if-due")
    return command


def _arrived(ivs: RunningEmulator, operation: str) -> int:
    return int(ivs.calls().get((operation, REGION), {}).get("count", 0))


def _kill_during(ivs: RunningEmulator, gate: Gate, operation: str, work: Callable[[], Any]) -> None:
    before = _arrived(ivs, operation)
    ivs.post_faults({"operation": operation, "kind": "delay", "seconds": 30})
    process = work()
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while _arrived(ivs, operation) == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {operation} came"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    # Only now the call takes effect: its answer goes to nobody.
    gate.open = True
    ivs.clear_faults()


@pytest.mark.parametrize("operation", ["ImportPublicKey", "GetPublicKey"])
def test_a_rotation_killed_at_a_call_is_finished_by_the_next(
    ivs: RunningEmulator, gate: Gate, command: Command, operation: str
) -> None:
    first = command.ring().active
    assert first is not None
    _kill_during(ivs, gate, operation, lambda: command.start("rotate"))
    command.run("rotate", "--if-due")
    ring = command.healthy(ivs, "ACTIVE", "STANDBY", "RETIRING")
    assert ring.in_phase(KeyPhase.RETIRING)[0].key_id == first.key_id


def test_an_invalidation_killed_at_its_call_is_finished_by_the_next(
    ivs: RunningEmulator, gate: Gate, command: Command
) -> None:
    bad = command.ring().active
    assert bad is not None
    _kill_during(ivs, gate, "DeletePublicKey", lambda: command.start("invalidate", bad.key_id))
    # Dead before it could say so, and yet the key signs nowhere any more.
    halfway = command.ring()
    assert halfway.active is not None
    assert halfway.active.key_id != bad.key_id
    command.run("rotate", "--if-due")
    ring = command.healthy(ivs, "ACTIVE", "STANDBY")
    dead = ring.key(bad.key_id)
    assert dead is not None
    assert dead.phase is KeyPhase.DELETED
