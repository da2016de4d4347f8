"""A clock that a test sets, and a store of callers that a test breaks."""

from __future__ import annotations

from tokensvc.callers import ApiKey, Caller, CallerSecret, CallerStore, parse_scopes
from tokensvc.callers.api_key import new_caller_id
from tokensvc.errors import StoreUnavailableError

NOW = 1_780_000_000.5


class Clock:
    """Unix seconds, as a test sets them."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_caller(name: str = "ana", **fields: object) -> tuple[Caller, ApiKey]:
    """Return a caller with one secret that does not end, and its key."""
    api_key = ApiKey.new(new_caller_id())
    values = {
        "scopes": parse_scopes(["tokens:mint"]),
        "created_at": NOW,
        "secrets": (CallerSecret(api_key.secret_sha256, NOW),),
    }
    return Caller(api_key.caller_id, name, **{**values, **fields}), api_key


class ReadOnlyStore(CallerStore):
    """The two reads of a store, over what a test puts into it."""

    def __init__(self, *callers: Caller) -> None:
        self.callers = callers
        self.feed = 1
        self.fault: Exception | None = None
        self.reads: list[str] = []

    async def list(self, *, revoked: bool = True) -> tuple[Caller, ...]:
        self._read("list")
        return tuple(one for one in self.callers if revoked or one.revoked_at is None)

    async def version(self) -> int:
        self._read("version")
        return self.feed

    def put(self, *callers: Caller) -> None:
        """Replace the callers, as a change does."""
        self.callers = callers
        self.feed += 1

    def go_down(self) -> None:
        """Answer no more, until `fault` is None."""
        self.fault = StoreUnavailableError("The database is locked by another process.")

    def _read(self, what: str) -> None:
        self.reads.append(what)
        if self.fault is not None:
            raise self.fault
