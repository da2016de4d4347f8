"""Promise: nobody gets more tokens a second than its limit, and who is refused learns when to return."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensvc.errors import RateLimitedError
from tokensvc.policy import Limiter, Quota, rate_limit_headers
from tokensvc.policy.limiter import quotas_of
from tokensvc.policy.rules import TokenLimits

NONE = TokenLimits()
TEN = TokenLimits(per_second=10, burst=20)


class Clock:
    def __init__(self) -> None:
        self.now = 1_780_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(
    sut: Limiter, caller: str, user: str | None, limits: TokenLimits, overall: TokenLimits
) -> tuple[Quota, ...]:
    """Take one token, and return what is left of each limit."""
    return quotas_of(sut.count(caller, user, limits, overall))


def taken(
    sut: Limiter,
    times: int,
    caller: str = "a",
    user: str | None = None,
    limits: TokenLimits = TEN,
    overall: TokenLimits = NONE,
) -> int:
    """Return how many of `times` attempts got a token."""
    got = 0
    for _ in range(times):
        try:
            take(sut, caller, user, limits, overall)
        except RateLimitedError:
            continue
        got += 1
    return got


def test_a_burst_and_then_the_rate(clock: Clock) -> None:
    sut = Limiter(clock)
    assert taken(sut, 100) == 20
    clock.now += 1
    assert taken(sut, 100) == 10
    clock.now += 1000
    assert taken(sut, 100) == 20


def test_no_limit_counts_nothing(clock: Clock) -> None:
    assert take(Limiter(clock), "a", "u", NONE, NONE) == ()


def test_who_is_refused_learns_when_and_why(clock: Clock) -> None:
    sut = Limiter(clock)
    taken(sut, 20)
    with pytest.raises(RateLimitedError, match="caller has spent the 20 tokens of 2 s") as caught:
        take(sut, "a", None, TEN, NONE)
    assert caught.value.retry_after == pytest.approx(0.1)
    assert caught.value.headers == {
        "RateLimit-Policy": '"caller";q=20;w=2',
        "RateLimit": '"caller";r=0;t=2',
    }
    assert caught.value.errors[0].limit == 20
    clock.now += caught.value.retry_after + 0.001
    assert taken(sut, 2) == 1


def test_callers_and_users_have_their_own_buckets(clock: Clock) -> None:
    sut = Limiter(clock)
    limits = TokenLimits(per_second=10, burst=20, per_user_minute=3)
    assert taken(sut, 9, user="u", limits=limits) == 3
    assert taken(sut, 9, user="v", limits=limits) == 3
    assert taken(sut, 9, "b", user="u", limits=limits) == 3
    clock.now += 20
    assert taken(sut, 9, user="u", limits=limits) == 1


def test_all_callers_together_have_a_limit(clock: Clock) -> None:
    sut = Limiter(clock)
    overall = TokenLimits(per_second=1, burst=5)
    assert taken(sut, 4, "a", overall=overall) == 4
    assert taken(sut, 4, "b", overall=overall) == 1


def test_a_refusal_takes_from_no_bucket(clock: Clock) -> None:
    sut = Limiter(clock)
    limits = TokenLimits(per_second=10, burst=20, per_user_minute=1)
    assert taken(sut, 50, user="u", limits=limits) == 1
    quotas = take(sut, "a", "v", limits, NONE)
    assert [(quota.name, quota.remaining) for quota in quotas] == [("caller", 18), ("user", 0)]


def test_the_longest_wait_is_the_one_that_is_told(clock: Clock) -> None:
    sut = Limiter(clock)
    limits = TokenLimits(per_second=1, burst=1, per_user_minute=1)
    take(sut, "a", "u", limits, NONE)
    with pytest.raises(RateLimitedError, match="user has spent") as caught:
        take(sut, "a", "u", limits, NONE)
    assert caught.value.retry_after == pytest.approx(60)
    assert caught.value.errors[0].field == "userId"


def test_a_share_divides_every_limit_between_processes(clock: Clock) -> None:
    sut = Limiter(clock, share=0.25)
    assert taken(sut, 100) == 5
    clock.now += 2
    assert taken(sut, 100) == 5
    with pytest.raises(ValueError, match="share"):
        Limiter(clock, share=0)


def test_a_limit_below_one_token_still_gives_one(clock: Clock) -> None:
    sut = Limiter(clock, share=0.1)
    assert taken(sut, 9, limits=TokenLimits(per_second=0.5, burst=1)) == 1
    clock.now += 19
    assert taken(sut, 9, limits=TokenLimits(per_second=0.5, burst=1)) == 0
    clock.now += 1.01
    assert taken(sut, 9, limits=TokenLimits(per_second=0.5, burst=1)) == 1


def test_new_limits_hold_from_the_next_token_on(clock: Clock) -> None:
    sut = Limiter(clock)
    assert taken(sut, 1) == 1
    assert taken(sut, 99, limits=TokenLimits(per_second=1, burst=2)) == 2
    clock.now += 1
    assert taken(sut, 99, limits=TokenLimits(per_second=50, burst=50)) == 50


def test_a_clock_that_is_set_back_neither_gives_nor_holds_back(clock: Clock) -> None:
    sut = Limiter(clock)
    taken(sut, 20)
    clock.now -= 3600
    assert taken(sut, 1) == 0
    clock.now += 1
    assert taken(sut, 99) == 10


def test_what_is_remembered_is_bounded(clock: Clock) -> None:
    sut = Limiter(clock, max_callers=10, max_users=10)
    limits = TokenLimits(per_second=1, burst=1, per_user_minute=1)
    for number in range(100):
        take(sut, f"caller-{number}", f"user-{number}", limits, NONE)
    assert 0 < len(sut._callers) <= 10
    assert 0 < len(sut._users) <= 10
    assert taken(sut, 1, "caller-99", "user-99", limits) == 0
    # Who was not seen for longest is as new.
    assert taken(sut, 1, "caller-0", "user-0", limits) == 1


def test_who_keeps_coming_is_not_forgotten(clock: Clock) -> None:
    sut = Limiter(clock, max_callers=10, max_users=10)
    limits = TokenLimits(per_second=1, burst=1, per_user_minute=1)
    take(sut, "a", "u", limits, NONE)
    for number in range(100):
        assert taken(sut, 1, "a", "u", limits) == 0
        take(sut, f"caller-{number}", f"user-{number}", limits, NONE)


def test_headers_list_every_limit() -> None:
    assert rate_limit_headers([]) == {}
    assert rate_limit_headers([Quota("all", 5, 1, 4, 1), Quota("user", 3, 60, 0, 60)]) == {
        "RateLimit-Policy": '"all";q=5;w=1, "user";q=3;w=60',
        "RateLimit": '"all";r=4;t=1, "user";r=0;t=60',
    }


@given(
    st.floats(0.1, 100),
    st.integers(1, 50),
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
@settings(max_examples=100)
def test_never_more_than_the_burst_and_the_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    sut = Limiter(clock)
    limits = TokenLimits(per_second=rate, burst=burst)
    began = clock.now
    got = 0
    for pause in pauses:
        clock.now += pause
        got += taken(sut, 3, limits=limits)
        assert got <= burst + rate * (clock.now - began) + 1e-6


@given(
    st.integers(1, 600),
    st.lists(st.floats(0, 30), min_size=1, max_size=40),
)
@settings(max_examples=100)
def test_a_user_never_has_more_than_its_minute_and_learns_truly_when(
    per_minute: int, pauses: list[float]
) -> None:
    clock = Clock()
    sut = Limiter(clock)
    limits = TokenLimits(per_user_minute=per_minute)
    began = clock.now
    got = 0
    for pause in pauses:
        clock.now += pause
        for _ in range(per_minute // 10 + 2):
            try:
                quotas = take(sut, "a", "u", limits, NONE)
            except RateLimitedError as refusal:
                assert refusal.retry_after is not None
                clock.now += refusal.retry_after + 1e-5
                take(sut, "a", "u", limits, NONE)
                got += 1
            else:
                got += 1
                assert 0 <= quotas[0].remaining < per_minute
        assert got <= per_minute + (clock.now - began) * per_minute / 60 + 1e-4


@given(st.integers(0, 3), st.booleans(), st.integers(1, 30), st.floats(0, 10))
def test_headers_are_those_of_the_quotas(
    kinds: int, with_user: bool, times: int, pause: float
) -> None:
    clock = Clock()
    sut = Limiter(clock)
    limits = TokenLimits(
        per_second=50 if kinds % 2 else None, burst=50, per_user_minute=40 if kinds >= 2 else None
    )
    overall = TokenLimits(per_second=7.5, burst=60) if times % 2 else NONE
    for _ in range(times):
        counted = sut.count("a", "u" if with_user else None, limits, overall)
        assert counted.headers == rate_limit_headers(quotas_of(counted))
        clock.now += pause / times


users = st.lists(st.sampled_from([None, "ana", "eva", "ion"]), max_size=12)
bounds = st.builds(
    TokenLimits,
    per_second=st.sampled_from([None, 0.5, 10, 1000]),
    burst=st.integers(1, 12),
    per_user_minute=st.sampled_from([None, 1, 3, 60]),
)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["a", "b"]), users), max_size=8),
    bounds,
    bounds,
)
def test_many_are_counted_as_one_after_the_other(
    batches: list[tuple[float, str, list[str | None]]], own: TokenLimits, overall: TokenLimits
) -> None:
    clock = Clock()
    one_by_one, at_once = Limiter(clock), Limiter(clock)
    for seconds, caller, user_ids in batches:
        clock.now += seconds
        refused: dict[int, RateLimitedError] = {}
        last = None
        for position, user_id in enumerate(user_ids):
            try:
                last = one_by_one.count(caller, user_id, own, overall)
            except RateLimitedError as error:
                refused[position] = error
        last_at_once, refused_at_once = at_once.count_all(caller, user_ids, own, overall)
        assert [told(refused_at_once[at]) for at in refused_at_once] == [
            told(refused[at]) for at in refused
        ]
        assert list(refused_at_once) == list(refused)
        assert (last is None) == (last_at_once is None)
        if last is not None and last_at_once is not None:
            assert last_at_once.headers == last.headers
            assert quotas_of(last_at_once) == quotas_of(last)


def told(error: RateLimitedError) -> tuple[object, ...]:
    return (error.detail, error.errors, error.retry_after, error.headers, error.context)
