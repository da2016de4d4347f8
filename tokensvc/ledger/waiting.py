"""Who waits for the ledger: a future, or whoever behaves like one and needs no task."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Waiter"]


class Waiter(Protocol):
    """Is told once what came of it. Raises nothing."""

    def done(self) -> bool:
        """Tell whether nobody waits any more."""
        ...

    def set_result(self, result: str | None, /) -> None:
        """Take what would have been returned."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """Take what would have been raised."""
        ...
