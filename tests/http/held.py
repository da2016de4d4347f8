"""A database that somebody else is writing to."""

from __future__ import annotations

import sqlite3

from tests.http.support import Service

__all__ = ["Held"]


class Held:
    """A lock on the database that keeps every commit waiting."""

    def __init__(self, service: Service) -> None:
        path = service.settings.data_dir / "tokensvc.db"
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()
