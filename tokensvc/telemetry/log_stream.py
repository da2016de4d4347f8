"""Where log lines go, and what becomes of those that cannot be written.

A full disk, or a reader that is gone, must not fail whoever has something to say: a request would be
answered 500 for want of its line in the access log. Such lines are lost and counted, and the next one
that can be written is preceded by one that says how many.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final, TextIO

__all__ = ["LogStream"]

_NEWLINE: Final = "\n"


class LogStream:
    """A text stream, as far as logging needs one, whose `write` does not raise OSError.

    Only whole lines are to be written. `told` makes the line that tells how many were lost.
    """

    def __init__(self, stream: TextIO, told: Callable[[int], str]) -> None:
        self.lost = 0
        """Lines that could not be written."""
        self.failing: str | None = None
        """Why the last line could not be written; None where it could."""
        self._stream = stream
        self._told = told
        self._untold = 0
        self._is_cut = False
        self._lock = threading.Lock()
        self._descriptor = _descriptor(stream)

    def write(self, text: str) -> int:
        """Write `text`, which ends with a newline, or count its lines as lost."""
        with self._lock:
            try:
                if self._untold:
                    self._put(self._told(self._untold) + _NEWLINE)
                    self._untold = 0
                self._put(text)
                self.failing = None
            except OSError as error:
                # Told by readiness and metrics, as there is nowhere to write it.
                self.failing = error.strerror or type(error).__name__
                count = text.count(_NEWLINE)
                self.lost += count
                self._untold += count
        return len(text)

    def flush(self) -> None:
        """Do nothing: what is written is not held back."""

    def _put(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        # Not through the stream's buffer, which keeps what a full disk did not take, and cuts it.
        if self._is_cut:
            text = _NEWLINE + text
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        whole = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                self._is_cut = self._is_cut or len(rest) < whole
                raise
        self._is_cut = False


def _descriptor(stream: TextIO) -> int | None:
    """Return the file of a stream; None where it is in memory."""
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None
