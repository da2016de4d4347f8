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
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, Generic, Self, TypeAlias, TypeVar

import msgspec

from tokensvc.errors import FieldError, RateLimitedError
from tokensvc.policy.rules import TokenLimits

__all__ = ["Counted", "Limiter", "Quota", "quotas_of", "rate_limit_headers"]

_MINUTE: Final = 60.0

K = TypeVar("K")


class Quota(msgspec.Struct, frozen=True, gc=False):
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
    known = tuple(quotas)
    if not known:
        return {}
    return {
        "RateLimit-Policy": ", ".join([_limit_text(q.name, q.limit, q.window) for q in known]),
        "RateLimit": ", ".join([f'"{q.name}";r={q.remaining};t={q.reset}' for q in known]),
    }


@lru_cache(maxsize=1024)
def _limit_text(name: str, limit: int, window: int) -> str:
    return f'"{name}";q={limit};w={window}'


class _Limit(msgspec.Struct, frozen=True, gc=False):
    """A limit as the policy has it, and this process's part of it."""

    name: str
    rate: float
    burst: float
    whole: int
    window: int

    @classmethod
    def of(cls, name: str, rate: float, burst: float) -> Self:
        return cls(name, rate, burst, int(burst), math.ceil(burst / rate))

    def quota(self, tokens: float) -> Quota:
        reset = math.ceil((self.burst - tokens) / self.rate)
        return Quota(self.name, self.whole, self.window, int(tokens), reset)


class _Limits(msgspec.Struct, frozen=True, gc=False):
    """The limits that hold for one caller; None: there is none."""

    all: _Limit | None
    caller: _Limit | None
    user: _Limit | None


class _Bucket(msgspec.Struct, gc=False):
    """A new one is full, whatever fits in it."""

    tokens: float = math.inf
    at: float = -math.inf


Counted: TypeAlias = list[tuple[_Limit, _Bucket]]
"""What a token was counted in."""


def quotas_of(counted: Counted) -> tuple[Quota, ...]:
    """Return what is left of each limit, as of the last token that was counted in it."""
    return tuple([limit.quota(bucket.tokens) for limit, bucket in counted])


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
        self._overall = _Bucket()
        self._callers: _Buckets[str] = _Buckets(max_callers)
        self._users: _Buckets[tuple[str, str]] = _Buckets(max_users)
        self._limits_of = lru_cache(maxsize=4096)(self._make_limits)

    def take(
        self, caller: str, user_id: str | None, limits: TokenLimits, overall: TokenLimits
    ) -> tuple[Quota, ...]:
        """Take one token for `caller` and its user; return what is left of each limit.

        `limits` are the caller's, `overall` those of all callers. Raises RateLimitedError, and then
        nothing was taken.
        """
        return quotas_of(self.count(caller, user_id, limits, overall))

    def count(
        self, caller: str, user_id: str | None, limits: TokenLimits, overall: TokenLimits
    ) -> Counted:
        """Do the same, and return what `quotas_of` can be told of."""
        counted = self._buckets(caller, user_id, limits, overall)
        if not counted:
            return counted
        now = self._clock()
        wait, worst = 0.0, counted[0][0]
        for limit, bucket in counted:
            # A clock that was set back gives nothing, and must not keep the bucket waiting for it.
            passed = now - bucket.at
            tokens = bucket.tokens + passed * limit.rate if passed > 0 else bucket.tokens
            bucket.tokens = tokens = min(tokens, limit.burst)
            bucket.at = now
            if tokens < 1 and (1 - tokens) / limit.rate > wait:
                worst, wait = limit, (1 - tokens) / limit.rate
        if wait > 0:
            raise _limited(worst, wait, quotas_of(counted))
        for _, bucket in counted:
            bucket.tokens -= 1
        return counted

    def _buckets(
        self, caller: str, user_id: str | None, limits: TokenLimits, overall: TokenLimits
    ) -> Counted:
        of = self._limits_of(limits, overall)
        counted: Counted = []
        if of.all is not None:
            counted.append((of.all, self._overall))
        if of.caller is not None:
            counted.append((of.caller, self._callers.of(caller)))
        if of.user is not None and user_id is not None:
            counted.append((of.user, self._users.of((caller, user_id))))
        return counted

    def _make_limits(self, limits: TokenLimits, overall: TokenLimits) -> _Limits:
        share = self._share

        def limit(name: str, rate: float | None, burst: float) -> _Limit | None:
            return None if rate is None else _Limit.of(name, rate * share, max(1.0, burst * share))

        each = limits.per_user_minute
        return _Limits(
            limit("all", overall.per_second, overall.burst),
            limit("caller", limits.per_second, limits.burst),
            None if each is None else limit("user", each / _MINUTE, each),
        )


class _Buckets(Generic[K]):
    """At most so many buckets; the one that was not asked for for longest is forgotten."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._held: OrderedDict[K, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def of(self, key: K) -> _Bucket:
        held = self._held
        bucket = held.get(key)
        if bucket is None:
            bucket = held[key] = _Bucket()
            if len(held) > self._at_most:
                held.popitem(last=False)
        else:
            held.move_to_end(key)
        return bucket


_WHOSE: Final = {
    "all": "All callers together have",
    "caller": "This caller has",
    "user": "This user has",
}


def _limited(worst: _Limit, wait: float, quotas: tuple[Quota, ...]) -> RateLimitedError:
    quota = next(quota for quota in quotas if quota.name == worst.name)
    detail = f"{_WHOSE[worst.name]} spent the {quota.limit} tokens of {quota.window} s."
    field = "userId" if worst.name == "user" else ""
    return RateLimitedError(
        detail,
        errors=(FieldError(field, "rate_limited", detail, quota.limit),),
        retry_after=wait,
        headers=rate_limit_headers(quotas),
        bucket=worst.name,
    )
