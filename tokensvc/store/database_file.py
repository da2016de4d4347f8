"""The file of a SQLite database: opened where it is, never made, and the same one while a process runs.

Who moves or replaces the file of a running service takes it away from those who ask for a new connection
alone: whatever was connected before goes on in the file that is gone, and what it commits is lost with the
process. So whoever connects gets the file that was there at first, and whoever commits asks before and
after it whether it still is.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from tokensvc.errors import StoreUnavailableError

__all__ = ["DatabaseFile"]

_MOVED: Final = (
    "The database file was moved, replaced or deleted while it was in use:"
    " put it back, or restart the service on the one that is there now."
)


class DatabaseFile:
    """The file at `path`, as it is now; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Take note of which file it is; raises StoreUnavailableError where there is none."""
        self._path = str(path.absolute())
        # A path may have any character in it; without the mode, SQLite would make a file that is missing.
        self._uri = f"{path.absolute().as_uri()}?mode=rw"
        self._identity = self._identity_now()

    def connect(self, *, lock_seconds: float) -> sqlite3.Connection:
        """Return a connection for any one thread at a time, which waits so long for another's lock.

        Raises sqlite3.Error, and StoreUnavailableError where it is another file.
        """
        connection = sqlite3.connect(
            self._uri, uri=True, timeout=lock_seconds, check_same_thread=False
        )
        try:
            self.require_in_place()
        except BaseException:
            connection.close()
            raise
        return connection

    def require_in_place(self) -> None:
        """Raise StoreUnavailableError where the path names another file than at first, or none."""
        if self._identity_now() != self._identity:
            raise StoreUnavailableError(_MOVED, path=self._path)

    def _identity_now(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - once in each commit, and Path.stat takes twice as long
        except OSError as error:
            raise StoreUnavailableError(_MOVED, path=self._path) from error
        return found.st_dev, found.st_ino
