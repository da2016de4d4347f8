"""The state file: what is to survive a restart, written as a whole after every change.

One file, replaced atomically: a reader sees the state before a change or after it. Changes that come
while a write is under way share the next one. Writing and flushing happen in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from tokensvc.emulator.records import IssuedToken, PublicKeyRecord, StageRecord
from tokensvc.errors import ConfigurationError

__all__ = ["SavedState", "StateFile", "StateFileError", "StateKeeper"]

_log = structlog.get_logger(__name__)

_FORMAT: Final = 1


class StateFileError(ConfigurationError):
    """The state file cannot be read, or is of another format or account."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """What the file holds: no private key and no token."""

    account: str
    stages: dict[str, StageRecord]
    public_keys: dict[str, PublicKeyRecord]
    issued_tokens: dict[str, IssuedToken]
    """By the token's SHA-256."""

    sessions: dict[str, Any]
    format: int = _FORMAT


class StateFile:
    """Reads and writes the file; blocking, and safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Keep the state at `path`."""
        self._path = path
        self._lock = threading.Lock()
        self._newest = -1

    def read(self, account: str) -> SavedState | None:
        """Return what was saved, or None where there is no file. Raises StateFileError.

        That is also where none could be made.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            folder = self._path.parent
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StateFileError(
                    f"{self._path} cannot be made: no such folder, or not ours"
                ) from None
            return None
        except OSError as error:
            raise StateFileError(f"{self._path} cannot be read: {error.strerror}") from error
        try:
            state = msgspec.json.decode(raw, type=SavedState)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateFileError(
                f"{self._path} is not a state file of the emulator: {error}"
            ) from error
        if state.format != _FORMAT or state.account != account:
            raise StateFileError(f"{self._path} is of another format or AWS account")
        return state

    def write(self, number: int, state: SavedState) -> None:
        """Replace the file, unless a state with a higher `number` is there. Raises OSError."""
        raw = msgspec.json.encode(state)
        with self._lock:
            if number <= self._newest:
                return
            _replace(self._path, raw)
            self._newest = number


class StateKeeper:
    """Keeps the file in step with the state; belongs to one event loop."""

    def __init__(self, file: StateFile, snapshot: Callable[[], SavedState]) -> None:
        """`snapshot` must be quick: it runs on the event loop."""
        self._file = file
        self._snapshot = snapshot
        self._lock = asyncio.Lock()
        self._changes = 0
        self._saved = 0
        self._changed = asyncio.Event()
        self._following = False

    def changed(self) -> None:
        """Note that the state has changed."""
        self._changes += 1
        self._changed.set()

    async def save(self) -> None:
        """Return when the state as it is now, or a later one, is on disk. Raises OSError."""
        wanted = self._changes
        while self._saved < wanted:
            async with self._lock:
                if self._saved >= wanted:
                    return
                number, state = self._changes, self._snapshot()
                await asyncio.to_thread(self._file.write, number, state)
                self._saved = number

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Save changes for which nobody waits, such as those of the events socket; save at the end."""
        self._following = True
        follower = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            self._following = False
            self._changed.set()
            await follower

    async def _follow(self) -> None:
        while self._following or self._changed.is_set():
            await self._changed.wait()
            self._changed.clear()
            await self._try_to_save()

    async def _try_to_save(self) -> None:
        try:
            await self.save()
        except OSError as error:
            _log.error("emulator_state_not_saved", reason=str(error))


def _replace(path: Path, raw: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
