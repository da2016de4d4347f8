"""Where audit records go: lines appended to a file or to a standard stream, by a thread of its own.

Whoever has a record hands it over and goes on: nothing here waits on a disk for a mint. What waits is
bounded; beyond that, records are dropped and counted, and the next line that can be written says how
many. A line that cannot be written (a full disk) is tried again until it can, or until the close.

A file is opened for appending, a line is one write, and `O_APPEND` keeps those of several processes
apart. Where the file was moved away (logrotate), a new one is begun under its name.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from tokensvc.errors import ConfigurationError

__all__ = ["STANDARD_ERROR", "STANDARD_OUTPUT", "AuditSink", "check_target"]

STANDARD_OUTPUT: Final = "stdout"
STANDARD_ERROR: Final = "stderr"
CAPACITY: Final = 10_000
"""Records that may wait; at some 400 bytes each, 4 MB."""

RETRY_SECONDS: Final = 1.0
_AT_ONCE: Final = 256
_STREAMS: Final = {STANDARD_OUTPUT: 1, STANDARD_ERROR: 2}
_NEWLINE: Final = ord("\n")

_log = structlog.get_logger(__name__)


class AuditSink:
    """Appends lines to `target`, a path, `stdout` or `stderr`.

    `start` comes before the first line, `close` after the last. `lost` makes the line that tells how many
    were dropped.
    """

    def __init__(
        self,
        target: str,
        *,
        lost: Callable[[int], bytes],
        capacity: int = CAPACITY,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.written = 0
        """Lines written."""
        self.dropped = 0
        """Lines that found the queue full, or were left at the close."""
        self.failing: str | None = None
        """Why the last try to write failed; None where it did not."""
        self._target = target
        self._path = None if target in _STREAMS else Path(target).expanduser()
        self._lost = lost
        self._capacity = capacity
        self._retry_seconds = retry_seconds
        self._descriptor = _STREAMS.get(target, -1)
        self._torn = False
        """Whether the file ends in part of a line, which a full disk has cut off."""
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._untold = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Open the file; raises ConfigurationError where that cannot be done."""
        if self._path is not None:
            try:
                self._descriptor = _open(self._path)
            except OSError as error:
                raise _not_opened(self._path, error.strerror) from error
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Hand over one line, without its newline; never waits, never raises."""
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self.dropped += 1
                self._untold += 1
                return
            self._waiting.append(line)
            self._changed.notify()

    def settle(self, seconds: float) -> bool:
        """Wait until all lines are written, or one cannot be, or so long; blocking. Tell whether all are."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self.failing is not None, seconds)
            return not self._waiting

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, for at most `seconds`; blocking. What is left then is counted as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        with self._changed:
            left = len(self._waiting)
        if left:
            self.dropped += left
            _log.error("audit_records_lost", count=left, reason=self.failing)
        if self._path is not None and not self._thread.is_alive():
            os.close(self._descriptor)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                batch = [*self._waiting][:_AT_ONCE]
            self._write(batch)
            if self.failing is not None and not self._pause():
                return

    def _write(self, batch: list[bytes]) -> None:
        sent = 0
        try:
            self._follow_name()
            for line in batch:
                self._write_line(line)
                sent += 1
            self._succeeded()
        except OSError as error:
            self._failed(error)
        self.written += sent
        with self._changed:
            # Only this thread takes from the left.
            for _ in range(sent):
                self._waiting.popleft()
            self._changed.notify_all()

    def _write_line(self, line: bytes) -> None:
        # What is left of a line that was cut off stays a line of its own; the record is written whole.
        rest = memoryview((b"\n" if self._torn else b"") + line + b"\n")
        while rest:
            sent = os.write(self._descriptor, rest)
            self._torn = rest[sent - 1] != _NEWLINE
            rest = rest[sent:]

    def _pause(self) -> bool:
        """Wait for the next try; False where the sink is being closed, and this was the last one."""
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, self._retry_seconds)
                return True
            return False

    def _failed(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if self.failing is None:
            _log.error("audit_not_written", path=str(self._path or self._target), reason=reason)
        self.failing = reason

    def _succeeded(self) -> None:
        if self._untold:
            untold = self._untold
            self._write_line(self._lost(untold))
            with self._changed:
                self._untold -= untold
        if self.failing is not None:
            _log.warning("audit_written_again", dropped=self.dropped)
        self.failing = None

    def _follow_name(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                return
        fresh = _open(self._path)
        os.close(self._descriptor)
        self._descriptor, self._torn = fresh, False


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def check_target(target: str) -> None:
    """Raise ConfigurationError where lines cannot be appended to `target`; no file is made."""
    if target in _STREAMS:
        return
    path = Path(target).expanduser()
    try:
        if path.exists():
            # A pipe that nobody reads is told, not waited for.
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))
        elif not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise _not_opened(path, "its folder is not there, or not to be written in")
    except OSError as error:
        raise _not_opened(path, error.strerror) from error


def _not_opened(path: Path, why: str | None) -> ConfigurationError:
    return ConfigurationError(f"The audit file {path} cannot be opened: {why}.")
