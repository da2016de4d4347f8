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
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Final, Self

import msgspec

from tokensvc.errors import FieldError, RateLimitedError
from tokensvc.policy.recent import Recent
from tokensvc.policy.rules import TokenLimits

__all__ = ["Counted", "Limiter", "Quota", "quotas_of", "rate_limit_headers"]

_MINUTE: Final = 60.0
_NEARLY_NOTHING: Final = 1e-6
"""Of a token, or a second: what is lost where times are added up, and nobody is told of."""

_ONE: Final = 1 - _NEARLY_NOTHING


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
        return cls(name, rate, burst, int(burst), ceil(burst / rate))

    def quota(self, tokens: float) -> Quota:
        reset = ceil((self.burst - tokens) / self.rate - _NEARLY_NOTHING)
        return Quota(self.name, self.whole, self.window, int(tokens + _NEARLY_NOTHING), reset)


class _Bucket(msgspec.Struct, gc=False):
    """A new one is full, whatever fits in it."""

    tokens: float = math.inf
    at: float = -math.inf


class _CallerLimits(msgspec.Struct, frozen=True):
    """What a caller is counted in, put together once for the limits that hold now."""

    limits: TokenLimits
    overall: TokenLimits
    shared: tuple[tuple[_Limit, _Bucket], ...]
    """Limits of all callers, and of this one."""
    user: _Limit | None
    own_bucket: _Bucket
    told: str
    """`RateLimit-Policy` of a token that is counted in `shared` alone, and then in all of them."""
    told_with_user: str


class Counted(msgspec.Struct, frozen=True, gc=False):
    """What a token was counted in, with what was left of the user's limit when it was."""

    of: _CallerLimits
    user_tokens: float | None

    @property
    def headers(self) -> dict[str, str]:
        """What `rate_limit_headers` tells of `quotas_of` these, at a third of the cost."""
        of, user_tokens = self.of, self.user_tokens
        left = ""
        for limit, bucket in of.shared:
            left += _left(limit, bucket.tokens)
        if of.user is None or user_tokens is None:
            told = of.told
        else:
            told = of.told_with_user
            left += _left(of.user, user_tokens)
        return {"RateLimit-Policy": told, "RateLimit": left[2:]} if left else {}


def quotas_of(counted: Counted) -> tuple[Quota, ...]:
    """Return what is left of each limit, as of the last token that was counted in it."""
    quotas = [limit.quota(bucket.tokens) for limit, bucket in counted.of.shared]
    if counted.of.user is not None and counted.user_tokens is not None:
        quotas.append(counted.of.user.quota(counted.user_tokens))
    return tuple(quotas)


class Limiter:
    """Counts tokens; belongs to one event loop. `clock` gives seconds, from whenever it likes.

    Of a user no more is kept than the moment at which its bucket is full again: there are many of
    them, and most ask for one token.
    """

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
        self._lost = 0.0
        self._last = -math.inf
        self._share = share
        self._overall = _Bucket()
        self._callers: Recent[str, _CallerLimits] = Recent(max_callers)
        self._users: Recent[tuple[str, str], float] = Recent(max_users)

    def count(
        self, caller: str, user_id: str | None, limits: TokenLimits, overall: TokenLimits
    ) -> Counted:
        """Take one token for `caller` and its user; return what `quotas_of` can be told of.

        `limits` are the caller's, `overall` those of all callers. Raises RateLimitedError, and then
        nothing was taken.
        """
        of = self._limits_of(caller, limits, overall)
        now = self._now()
        wait = 0.0
        worst: _Limit | None = None
        shared = of.shared
        for limit, bucket in shared:
            tokens = bucket.tokens + (now - bucket.at) * limit.rate
            if tokens > limit.burst:
                tokens = limit.burst
            bucket.tokens = tokens
            bucket.at = now
            if tokens < 1 and (1 - tokens) / limit.rate > wait:
                worst, wait = limit, (1 - tokens) / limit.rate
        user = of.user
        if user is None or user_id is None:
            if worst is not None:
                raise _limited(worst, wait, quotas_of(Counted(of, None)))
            for _, bucket in shared:
                bucket.tokens -= 1
            return Counted(of, None)
        key = (caller, user_id)
        full_at = self._users.get(key)
        if full_at is None or full_at < now:
            full_at = now
        left = user.burst - (full_at - now) * user.rate
        if left < _ONE and (1 - left) / user.rate > wait:
            worst, wait = user, (1 - left) / user.rate
        if worst is not None:
            raise _limited(worst, wait, quotas_of(Counted(of, max(0.0, left))))
        for _, bucket in shared:
            bucket.tokens -= 1
        self._users.put(key, full_at + 1 / user.rate)
        return Counted(of, left - 1)

    def count_all(
        self,
        caller: str,
        user_ids: Sequence[str | None],
        limits: TokenLimits,
        overall: TokenLimits,
    ) -> tuple[Counted | None, dict[int, RateLimitedError]]:
        """Take a token for each of these users of `caller`, in their order, all at one moment.

        Returns what the last was counted in, and which were refused: `count` one after the other.
        """
        of = self._limits_of(caller, limits, overall)
        now = self._now()
        refused: dict[int, RateLimitedError] = {}
        last: Counted | None = None
        if not _have_room(of, now, len(user_ids)):
            for position, user_id in enumerate(user_ids):
                try:
                    last = self.count(caller, user_id, limits, overall)
                except RateLimitedError as error:
                    refused[position] = error
            return last, refused
        user, users = of.user, self._users
        taken = 0
        user_tokens: float | None = None
        for position, user_id in enumerate(user_ids):
            if user is not None and user_id is not None:
                key = (caller, user_id)
                full_at = users.get(key)
                if full_at is None or full_at < now:
                    full_at = now
                left = user.burst - (full_at - now) * user.rate
                if left < _ONE:
                    _take(of, taken)
                    taken = 0
                    quotas = quotas_of(Counted(of, max(0.0, left)))
                    refused[position] = _limited(user, (1 - left) / user.rate, quotas)
                    continue
                users.put(key, full_at + 1 / user.rate)
                user_tokens = left - 1
            else:
                user_tokens = None
            taken += 1
        _take(of, taken)
        if len(refused) < len(user_ids):
            last = Counted(of, user_tokens)
        return last, refused

    def _now(self) -> float:
        """Return the time, which never goes back: of a clock set back nobody gains or loses."""
        now = self._clock() + self._lost
        if now < self._last:
            self._lost += self._last - now
            return self._last
        self._last = now
        return now

    def _limits_of(self, caller: str, limits: TokenLimits, overall: TokenLimits) -> _CallerLimits:
        of = self._callers.get(caller)
        if of is None or of.limits is not limits or of.overall is not overall:
            of = self._put_together(caller, limits, overall, of)
        return of

    def _put_together(
        self,
        caller: str,
        limits: TokenLimits,
        overall: TokenLimits,
        before: _CallerLimits | None,
    ) -> _CallerLimits:
        share = self._share

        def limit(name: str, rate: float | None, burst: float) -> _Limit | None:
            return None if rate is None else _Limit.of(name, rate * share, max(1.0, burst * share))

        of_all = limit("all", overall.per_second, overall.burst)
        own = limit("caller", limits.per_second, limits.burst)
        each = limits.per_user_minute
        user = None if each is None else limit("user", each / _MINUTE, each)
        own_bucket = _Bucket() if before is None else before.own_bucket
        pairs = ((of_all, self._overall), (own, own_bucket))
        shared = tuple((one, bucket) for one, bucket in pairs if one is not None)
        texts = [_limit_text(one.name, one.whole, one.window) for one, _ in shared]
        told = ", ".join(texts)
        if user is not None:
            texts.append(_limit_text(user.name, user.whole, user.window))
        made = _CallerLimits(limits, overall, shared, user, own_bucket, told, ", ".join(texts))
        self._callers.put(caller, made)
        return made


def _have_room(of: _CallerLimits, now: float, tokens: int) -> bool:
    """Let the buckets that are shared fill up, and tell whether each has so many tokens.

    Where it has, no one of so many needs to be held against it.
    """
    room = True
    for limit, bucket in of.shared:
        bucket.tokens = min(limit.burst, bucket.tokens + (now - bucket.at) * limit.rate)
        bucket.at = now
        room = room and bucket.tokens >= tokens
    return room


def _take(of: _CallerLimits, tokens: int) -> None:
    for _, bucket in of.shared:
        bucket.tokens -= tokens


def _left(limit: _Limit, tokens: float) -> str:
    """Return what is left of one limit, to stand behind that of another."""
    reset = ceil((limit.burst - tokens) / limit.rate - _NEARLY_NOTHING)
    return f', "{limit.name}";r={int(tokens + _NEARLY_NOTHING)};t={reset}'


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
