"""Promise: a changed policy takes effect as a whole; a bad one keeps the old, and says so."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.policy.support import POLICY, wanted
from tokensvc.errors import ConfigurationError
from tokensvc.policy import PolicyFile

NOW = 1_780_000_000.0
CLOSED = "version: 1\ncallers: {}\n"


class Scene:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "policy.yaml"
        self.now = NOW
        self.writes = 0
        self.write(POLICY)
        self.file = PolicyFile(self.path, lambda: self.now)

    def write(self, text: str) -> None:
        self.path.write_text(text)
        # Two writes within one tick of the file system's clock are still two times.
        self.writes += 1
        os.utime(self.path, ns=(self.writes, self.writes))

    def allows(self) -> bool:
        return self.file.policy.decide("plain", wanted()).allowed


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_start_needs_a_sound_file(scene: Scene) -> None:
    with pytest.raises(ConfigurationError, match="has not been read yet"):
        _ = scene.file.policy
    scene.file.load()
    assert scene.allows()
    scene.write("version: 3\ncallers: []\n")
    with pytest.raises(ConfigurationError) as caught:
        PolicyFile(scene.path, lambda: NOW).load()
    assert [line.split(" is ")[0] for line in caught.value.detail.splitlines()] == [
        "policy.yaml: line 1: version:",
        "policy.yaml: line 2: callers: must be a mapping, not a list",
    ]
    scene.path.unlink()
    with pytest.raises(ConfigurationError, match=r"cannot read .*: No such file"):
        scene.file.load()


async def test_a_change_is_read_when_it_has_settled(scene: Scene) -> None:
    scene.file.load()
    before = scene.file.digest
    scene.write("version: 1\n")
    assert not await scene.file.poll()
    scene.write(CLOSED)
    assert not await scene.file.poll(), "it was still being written"
    assert scene.allows()
    scene.now += 5
    assert await scene.file.poll()
    assert not scene.allows()
    assert scene.file.refused is None
    assert (scene.file.loaded_at, scene.file.age()) == (NOW + 5, 0)
    assert scene.file.digest != before
    assert not await scene.file.poll(), "read once"


async def test_a_bad_file_keeps_the_old_one_and_says_which_lines(scene: Scene) -> None:
    scene.file.load()
    scene.write("version: 1\ncallers: []\nroles: 7\n")
    with capture_logs() as logs:
        for _ in range(5):
            assert not await scene.file.poll()
    assert scene.allows()
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("policy_file_refused", "error")
    assert entry["faults"] == [
        "policy.yaml: line 2: callers: must be a mapping, not a list",
        "policy.yaml: line 3: roles: must be a mapping, not a number (7)",
    ]
    assert entry["in_force"] == scene.file.digest
    assert scene.file.refused is not None
    scene.write(CLOSED)
    await scene.file.poll()
    with capture_logs() as logs:
        assert await scene.file.poll()
    assert [entry["event"] for entry in logs] == ["policy_file_loaded"]
    assert not scene.allows()
    assert scene.file.refused is None


async def test_a_file_that_is_gone_keeps_the_old_one_until_it_is_back(scene: Scene) -> None:
    scene.file.load()
    scene.path.unlink()
    with capture_logs() as logs:
        for _ in range(5):
            assert not await scene.file.poll()
    assert [entry["event"] for entry in logs] == ["policy_file_refused"]
    assert scene.allows()
    assert scene.file.refused is not None
    assert "no such file" in scene.file.refused
    scene.write(POLICY)
    await scene.file.poll()
    assert await scene.file.poll()
    assert scene.file.refused is None


async def test_a_file_put_in_its_place_is_seen_by_its_inode(scene: Scene, tmp_path: Path) -> None:
    scene.file.load()
    times = scene.path.stat().st_mtime_ns
    other = tmp_path / "new.yaml"
    other.write_text(POLICY.replace("  plain:", "  plein:"))
    os.utime(other, ns=(times, times))
    other.replace(scene.path)
    await scene.file.poll()
    assert await scene.file.poll()
    assert not scene.allows()


class Sleeper:
    """A sleep that ends when the test says so."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        assert seconds == 2.0
        future = asyncio.get_running_loop().create_future()
        await self.begun.put(future)
        await future


async def test_run_follows_the_file_and_a_signal_reads_it_at_once(scene: Scene) -> None:
    scene.file.load()
    sleep = Sleeper()
    task = asyncio.create_task(scene.file.run(2.0, sleep))
    try:
        await sleep.begun.get()
        scene.write(CLOSED)
        scene.file.wake()
        pause = await sleep.begun.get()
        assert not scene.allows(), "read without a pause"
        scene.write(POLICY)
        for _ in range(2):
            pause.set_result(None)
            pause = await sleep.begun.get()
        assert scene.allows()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_was_not_foreseen_is_logged_and_the_following_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.file.load()
    sleep = Sleeper()

    async def broken() -> bool:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(scene.file, "reload", broken)
    with capture_logs() as logs:
        task = asyncio.create_task(scene.file.run(2.0, sleep))
        await sleep.begun.get()
        scene.file.wake()
        await sleep.begun.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [entry["event"] for entry in logs] == ["policy_file_not_followed"]


async def test_a_sleep_that_fails_ends_the_loop_instead_of_spinning(scene: Scene) -> None:
    scene.file.load()

    async def broken(seconds: float) -> None:
        raise OSError("no clock")

    with pytest.raises(OSError, match="no clock"):
        await scene.file.run(2.0, broken)
