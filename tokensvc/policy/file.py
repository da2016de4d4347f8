"""The policy file: read at start, followed as it changes, and never replaced by a worse one.

A new file takes effect as a whole, between two requests. One that has a fault, or is gone, changes
nothing: the policy that was read last stays, the log says which lines are at fault, and `refused` says
so to readiness and metrics until the file is mended.

A change is seen by the file's time, size and inode. It is read when two looks in a row see the same,
so that a file is not read while an editor is half through writing it; a signal (`wake`) reads it at
once. Reading is done in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

import structlog

from tokensvc.errors import ConfigurationError
from tokensvc.policy.document import MAX_BYTES
from tokensvc.policy.policy import Policy
from tokensvc.tokens.limits import MAX_DURATION_MINUTES

__all__ = ["PolicyFile"]

_Stamp: TypeAlias = tuple[int, int, int]
Tell: TypeAlias = Callable[[str, str | None, str], None]
"""Takes what became of a file (`policy.load`, `policy.refuse`), why, and the digest in force."""

_DIGEST_CHARS: Final = 12

_log = structlog.get_logger(__name__)


class PolicyFile:
    """The policy of a file; belongs to one event loop. `clock` gives Unix seconds."""

    def __init__(
        self, path: Path, clock: Callable[[], float], *, max_duration: int = MAX_DURATION_MINUTES
    ) -> None:
        """Nothing is read yet: `load` does, and must come first."""
        self.path = path
        self.refused: str | None = None
        """Why the file as it is now is not in force; None while it is."""
        self.loaded_at: float | None = None
        """When the policy in force was read, in Unix seconds."""
        self.digest = ""
        """The SHA-256 of the file in force, its first 12 digits: the same on every replica."""
        self._clock = clock
        self._max_duration = max_duration
        self._policy: Policy | None = None
        self._stamp: _Stamp | None = None
        self._last_look: _Stamp | None = None
        self._checked_at = clock()
        self._reloading = asyncio.Lock()
        self._woken = asyncio.Event()
        self._tell: Tell | None = None

    def tell(self, told: Tell) -> None:
        """Tell `told` of the policy in force, and of each that follows it or is refused."""
        self._tell = told
        if self._policy is not None:
            told("policy.load", None, self.digest)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        if self._policy is None:
            raise ConfigurationError(f"The policy file {self.path} has not been read yet.")
        return self._policy

    def load(self) -> Policy:
        """Read the file, at start; raises ConfigurationError with every fault, one a line."""
        stamp, text, policy = self._read()
        self._take(stamp, text, policy)
        return policy

    async def reload(self) -> bool:
        """Read the file now; tell whether it is in force. Never raises for what is in the file."""
        async with self._reloading:
            self._checked_at = self._clock()
            try:
                stamp, text, policy = await asyncio.to_thread(self._read)
            except ConfigurationError as error:
                self._refuse(error.detail)
                return False
            self._take(stamp, text, policy)
            return True

    async def poll(self) -> bool:
        """Look whether the file has changed, and read it if it has settled; tell whether it did."""
        stamp = await asyncio.to_thread(_stamp_of, self.path)
        settled = stamp == self._last_look
        self._last_look = stamp
        if stamp == self._stamp or not settled:
            self._checked_at = self._clock()
            return False
        if stamp is None:
            self._stamp = None
            self._refuse(f"cannot read {self.path}: no such file")
            return False
        taken = await self.reload()
        # A file that was refused is not read again until it changes.
        self._stamp = stamp
        return taken

    def wake(self) -> None:
        """Have `run` read the file at once, for a SIGHUP; may be called from a signal handler."""
        self._woken.set()

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[object]]) -> NoReturn:
        """Follow the file, looking every `interval` seconds, until cancelled."""
        while True:
            woken = await self._pause(interval, sleep)
            try:
                await (self.reload() if woken else self.poll())
            except Exception as error:  # noqa: BLE001 - nothing may end the loop that sees changes
                _log.error("policy_file_not_followed", path=str(self.path), exc_info=error)

    def age(self) -> float:
        """Return the seconds since it was last known whether the file has changed."""
        return max(0.0, self._clock() - self._checked_at)

    async def _pause(self, interval: float, sleep: Callable[[float], Awaitable[object]]) -> bool:
        async def pause() -> None:
            await sleep(interval)

        pausing, waking = asyncio.create_task(pause()), asyncio.create_task(self._woken.wait())
        try:
            await asyncio.wait((pausing, waking), return_when=asyncio.FIRST_COMPLETED)
            if pausing.done():
                # A sleep that fails must end the loop, or it would spin.
                pausing.result()
        finally:
            pausing.cancel()
            waking.cancel()
            await asyncio.gather(pausing, waking, return_exceptions=True)
        woken = self._woken.is_set()
        self._woken.clear()
        return woken

    def _read(self) -> tuple[_Stamp, bytes, Policy]:
        try:
            with self.path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                text = file.read(MAX_BYTES + 1)
        except OSError as fault:
            raise ConfigurationError(f"cannot read {self.path}: {fault.strerror}") from None
        name = self.path.name
        return stamp, text, Policy.parse(text, name=name, max_duration=self._max_duration)

    def _take(self, stamp: _Stamp, text: bytes, policy: Policy) -> None:
        digest = hashlib.sha256(text).hexdigest()[:_DIGEST_CHARS]
        if digest != self.digest or self.refused is not None:
            _log.info(
                "policy_file_loaded",
                path=str(self.path),
                digest=digest,
                callers=len(policy.callers),
                before=self.digest,
            )
            if self._tell is not None:
                self._tell("policy.load", None, digest)
        self._policy = policy
        self._stamp = self._last_look = stamp
        self.digest = digest
        self.refused = None
        self.loaded_at = self._checked_at = self._clock()

    def _refuse(self, reason: str) -> None:
        if reason != self.refused:
            _log.error(
                "policy_file_refused",
                path=str(self.path),
                faults=reason.splitlines(),
                in_force=self.digest,
            )
            if self._tell is not None:
                self._tell("policy.refuse", reason, self.digest)
        self.refused = reason


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None
