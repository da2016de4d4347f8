"""How many tokens a caller, its users, and all callers together may have: token buckets.

A bucket holds `burst` tokens and fills at a steady rate; a request takes one from each bucket it is
counted in, or none from any. A batch takes one for each of its items. Nothing waits: what cannot be had
now is refused, with the seconds until it can.

Scope: the buckets are in this process's memory. Another worker or replica has its own, so a limit is
divided by their number (`share`) where it is to hold for all of them together. Buckets of callers and
users that were not seen for longest are forgotten when there are too many, and are then full again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from cachetools import LRUCache

from tokensvc.errors import FieldError, RateLimitedError
from tokensvc.policy.rules import TokenLimits

__all__ = ["Limiter", "Quota", "rate_limit_headers"]

_MINUTE: Final = 60.0


class Quota(NamedTuple):
    """One limit as of now: `remaining` of `limit` tokens, all of them again in `reset` seconds."""

    name: str
    limit: int
    window: int
    remaining: int
    reset: int


def rate_limit_headers(quotas: Iterable[Quota]) -> dict[str, str]:
    """Return `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).

    `q` tokens in `w` seconds; `r` remain, and in `t` seconds there are `q` again.
    """
    known = list(quotas)
    if not known:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{q.name}";q={q.limit};w={q.window}' for q in known),
        "RateLimit": ", ".join(f'"{q.name}";r={q.remaining};t={q.reset}' for q in known),
    }


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Limiter:
    """Counts tokens; belongs to one event loop. `clock` gives seconds, from whenever it likes."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        share: float = 1.0,
        max_callers: int = 10_000,
        max_users: int = 50_000,
    ) -> None:
        """`share` is this process's part of every limit: 1 divided by the number of processes."""
        if not 0 < share <= 1:
            raise ValueError("a share is above 0 and at most 1")
        self._clock = clock
        self._share = share
        self._overall = _Bucket(math.inf, -math.inf)
        self._callers: LRUCache[str, _Bucket] = LRUCache(max_callers)
        self._users: LRUCache[tuple[str, str], _Bucket] = LRUCache(max_users)

    def take(
        self, caller: str, user_id: str | None, limits: TokenLimits, overall: TokenLimits
    ) -> tuple[Quota, ...]:
        """Take one token for `caller` and its user; return what is left of each limit.

        `limits` are the caller's, `overall` those of all callers. Raises RateLimitedError, and then
        nothing was taken.
        """
        counted = self._buckets(caller, user_id, limits, overall)
        if not counted:
            return ()
        now = self._clock()
        worst, wait = counted[0], 0.0
        for one in counted:
            one.fill(now)
            if one.wait() > wait:
                worst, wait = one, one.wait()
        if wait > 0:
            raise _limited(worst, tuple(one.quota() for one in counted))
        for one in counted:
            one.bucket.tokens -= 1
        return tuple(one.quota() for one in counted)

    def _buckets(
        self, caller: str, user_id: str | None, limits: TokenLimits, overall: TokenLimits
    ) -> list[_Counted]:
        counted = []
        if overall.per_second is not None:
            counted.append(self._counted("all", self._overall, overall.per_second, overall.burst))
        if limits.per_second is not None:
            bucket = self._callers.get(caller)
            if bucket is None:
                bucket = self._callers[caller] = _Bucket(math.inf, -math.inf)
            counted.append(self._counted("caller", bucket, limits.per_second, limits.burst))
        if limits.per_user_minute is not None and user_id is not None:
            key = (caller, user_id)
            bucket = self._users.get(key)
            if bucket is None:
                bucket = self._users[key] = _Bucket(math.inf, -math.inf)
            rate = limits.per_user_minute / _MINUTE
            counted.append(self._counted("user", bucket, rate, limits.per_user_minute))
        return counted

    def _counted(self, name: str, bucket: _Bucket, rate: float, burst: int) -> _Counted:
        return _Counted(name, bucket, rate * self._share, max(1.0, burst * self._share))


@dataclass(slots=True)
class _Counted:
    """A bucket, and the limit as the policy has it now; a new bucket is full."""

    name: str
    bucket: _Bucket
    rate: float
    burst: float

    def fill(self, now: float) -> None:
        # A clock that was set back gives nothing, and must not keep the bucket waiting for it.
        passed = max(0.0, now - self.bucket.at)
        self.bucket.tokens = min(self.burst, self.bucket.tokens + passed * self.rate)
        self.bucket.at = now

    def wait(self) -> float:
        """Return the seconds until there is a token."""
        return max(0.0, (1 - self.bucket.tokens) / self.rate)

    def quota(self) -> Quota:
        return Quota(
            self.name,
            int(self.burst),
            math.ceil(self.burst / self.rate),
            int(self.bucket.tokens),
            math.ceil((self.burst - self.bucket.tokens) / self.rate),
        )


_WHOSE: Final = {
    "all": "All callers together have",
    "caller": "This caller has",
    "user": "This user has",
}


def _limited(worst: _Counted, quotas: tuple[Quota, ...]) -> RateLimitedError:
    quota = worst.quota()
    detail = f"{_WHOSE[worst.name]} spent the {quota.limit} tokens of {quota.window} s."
    field = "userId" if worst.name == "user" else ""
    return RateLimitedError(
        detail,
        errors=(FieldError(field, "rate_limited", detail, quota.limit),),
        retry_after=worst.wait(),
        headers=rate_limit_headers(quotas),
        bucket=worst.name,
    )
