"""What callers ask of their store; `sql.py` is the one that ships."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tokensvc.callers.api_key import ApiKey
from tokensvc.callers.record import Caller

__all__ = ["CallerStore"]


class CallerStore(Protocol):
    """The stored callers. Changes happen one after the other, and each is all or nothing.

    Every method raises StoreUnavailableError where the store does not answer or cannot write. After
    that from `add` or `rotate`, the change may have been made with a key that nobody knows.
    """

    async def add(
        self, name: str, scopes: Iterable[str], expires_at: float | None = None
    ) -> tuple[Caller, ApiKey]:
        """Store a new caller with its first secret; the key cannot be had again.

        `expires_at` is in Unix seconds, at most ten years from now. Raises InvalidRequestError that
        names what is wrong with `name` (also: taken), `scopes` or `expiresAt`, or says that there are
        1,000 callers already.
        """
        ...

    async def list(self, *, revoked: bool = True) -> tuple[Caller, ...]:
        """Return the callers by name; those that are revoked only if `revoked`."""
        ...

    async def rotate(
        self, caller: str, *, old_valid_until: float, restart: bool = False
    ) -> tuple[Caller, ApiKey]:
        """Give the caller with this id or name a new secret; the old one ends at `old_valid_until`.

        `old_valid_until` is in Unix seconds, at most 30 days from now; in the past it leaves the new
        secret as the only one. A caller that holds two secrets is still changing over: then one that
        would stay valid is refused, since only the operator knows which of the two is in use, unless
        `restart` says that the newer one is not and may go.

        Raises NotFoundError, and InvalidRequestError for a caller that is revoked, expired or
        changing over.
        """
        ...

    async def revoke(self, caller: str) -> Caller:
        """Revoke the caller with this id or name, for good; again does nothing more.

        Raises NotFoundError.
        """
        ...

    async def version(self) -> int:
        """Return a number that grows in the transaction of every change."""
        ...
