"""Who calls: the callers of the store in memory, and the check of every request against them.

A check does no I/O: a look-up by caller id, one SHA-256 and two comparisons in constant time, the
same for a caller that does not exist. (Together 2 µs; remembering headers that were right would still
take a hash and a look-up, and save 1 µs of a mint's hundred.)

`refresh` reads one number from the store, and the callers only when it has changed or a minute has
passed (which repairs what changed the tables without it: a restored backup, an operator's SQL). Between
two of them a key that is not known may be one that was made just now: `catch_up` refreshes for its sake,
ten times a second at most whatever is tried, so that a key works from the moment it is printed. While
the store does not answer, the last callers stay: a caller that is known goes on being served, a new
one is not known, a revocation is not seen, and expiry, which needs only the clock, is enforced. There
is no age at which everybody is locked out; `age` says how old the knowledge is, for readiness and
alerts to judge.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from types import MappingProxyType
from typing import Final, NoReturn

import structlog

from tokensvc.callers.api_key import read_bearer
from tokensvc.callers.record import MAX_SECRETS, Caller
from tokensvc.callers.scopes import Scope
from tokensvc.callers.store import CallerStore
from tokensvc.errors import StoreUnavailableError, UnauthenticatedError

__all__ = ["Authenticated", "CallerDirectory"]

FULL_RELOAD_SECONDS: Final = 60.0
CATCH_UP_SECONDS: Final = 0.1
"""Between two refreshes for keys that are not known, so that a flood of wrong ones costs nothing."""

_MAY_BE_NEW: Final = frozenset({"unknown_caller", "wrong_secret"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Who calls, and what it may do."""

    caller_id: str
    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A caller made ready for checks: always two digests, and infinity where nothing ends."""

    who: Authenticated
    expires_at: float
    digest: bytes = field(repr=False)
    digest_expires_at: float
    second_digest: bytes = field(repr=False)
    second_expires_at: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    version: int
    loaded_at: float
    entries: Mapping[str, _Entry]


class CallerDirectory:
    """The callers as of the last `refresh`; belongs to one event loop."""

    def __init__(self, store: CallerStore, clock: Callable[[], float]) -> None:
        """Know nobody yet; `clock` gives Unix seconds."""
        self._store = store
        self._clock = clock
        self._snapshot: _Snapshot | None = None
        self._read_at = -math.inf
        self._caught_up_at = -math.inf
        self._refreshing = asyncio.Lock()
        self._nobody = _entry(Caller("", "", frozenset(), created_at=0.0))

    def authenticate(self, authorization: str | None) -> Authenticated:
        """Return who sends this `Authorization` header (RFC 6750, section 2.1).

        Raises UnauthenticatedError, which says in public always the same, and in its context why;
        StoreUnavailableError where the callers were never read yet.
        """
        snapshot = self._snapshot
        if snapshot is None:
            raise StoreUnavailableError("The callers have not been read yet.", retry_after=1.0)
        presented = None if authorization is None else read_bearer(authorization)
        if presented is None:
            _refuse("no_api_key" if authorization is None else "not_an_api_key", None)
        now = self._clock()
        caller_id, digest = presented
        entry = snapshot.entries.get(caller_id, self._nobody)
        is_first = compare_digest(digest, entry.digest)
        is_second = compare_digest(digest, entry.second_digest)
        if not (
            (is_first and now < entry.digest_expires_at)
            or (is_second and now < entry.second_expires_at)
        ):
            if entry is self._nobody:
                _refuse("unknown_caller", caller_id)
            _refuse("secret_expired" if is_first or is_second else "wrong_secret", caller_id)
        if now >= entry.expires_at:
            _refuse("caller_expired", caller_id)
        return entry.who

    async def refresh(self) -> bool:
        """Read the store's version, and the callers if need be; tell whether they were read.

        Raises StoreUnavailableError; what was known before stays known.
        """
        # One at a time, or a slow one could put back what a later one has replaced.
        async with self._refreshing:
            now = self._clock()
            # The version first: what is read after it is at least as new, so nothing is missed.
            version = await self._store.version()
            known = self._snapshot
            reload = (
                known is None
                or version != known.version
                or not 0 <= now - known.loaded_at < FULL_RELOAD_SECONDS
            )
            if reload:
                callers = await self._store.list(revoked=False)
                entries = {caller.caller_id: _entry(caller) for caller in callers}
                self._snapshot = _Snapshot(version, now, MappingProxyType(entries))
            self._read_at = now
            return reload

    async def catch_up(self, refusal: UnauthenticatedError) -> bool:
        """Refresh if the key that was refused may be newer than what is known; tell if anything was.

        True says that the same header may be answered differently now. False: it was no key at all or
        one that has ended, others were looked for less than CATCH_UP_SECONDS ago, or the store does not
        answer. A wrong secret is treated as an unknown caller is, so that time tells nobody which it was.
        """
        now = self._clock()
        if refusal.context.get("reason") not in _MAY_BE_NEW or (
            0 <= now - self._caught_up_at < CATCH_UP_SECONDS
        ):
            return False
        self._caught_up_at = now
        known = self._snapshot
        try:
            await self.refresh()
        except StoreUnavailableError:
            # Told by the loop, whose refreshes fail as well.
            return False
        return self._snapshot is not known

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[object]]) -> NoReturn:
        """Refresh every `interval` seconds, until cancelled; faults are logged and outlived.

        The first refresh comes after the first interval. A fault that goes on is logged at its 1st,
        2nd, 4th, 8th... failure, and its end once.
        """
        failures = 0
        while True:
            await sleep(interval)
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - nothing may end the loop that sees revocations
                failures += 1
                if failures & (failures - 1) == 0:
                    expected = isinstance(error, StoreUnavailableError)
                    _log.warning(
                        "callers_not_refreshed",
                        failures=failures,
                        age=round(self.age(), 1),
                        reason=str(error),
                        exc_info=None if expected else error,
                    )
            else:
                if failures:
                    _log.info("callers_refreshed_again", failures=failures)
                failures = 0

    def age(self) -> float:
        """Return the seconds since the store was last read; infinity if it never was."""
        return max(0.0, self._clock() - self._read_at)

    def __len__(self) -> int:
        """Return how many callers are known."""
        return 0 if self._snapshot is None else len(self._snapshot.entries)


def _entry(caller: Caller) -> _Entry:
    # A digest that nothing hashes to stands where there is no secret, so that work is always equal.
    held = [
        (secret.sha256, math.inf if secret.expires_at is None else secret.expires_at)
        for secret in caller.secrets
    ]
    while len(held) < MAX_SECRETS:
        held.append((secrets.token_bytes(32), -math.inf))
    (digest, digest_expires_at), (second_digest, second_expires_at) = held
    return _Entry(
        Authenticated(caller.caller_id, caller.name, caller.scopes),
        math.inf if caller.expires_at is None else caller.expires_at,
        digest,
        digest_expires_at,
        second_digest,
        second_expires_at,
    )


def _refuse(reason: str, caller_id: str | None) -> NoReturn:
    raise UnauthenticatedError(
        "A valid API key is needed: Authorization: Bearer <api key>.",
        reason=reason,
        caller=caller_id,
    )
