"""Promise: somebody who does not answer is left alone, and asked again by one call at a time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tokensvc.errors import ConfigurationError
from tokensvc.issuing.breaker import BreakerLimits, BreakerState, CircuitBreaker, Permit

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
LIMITS = BreakerLimits(failures=3, pause_seconds=5.0, max_pause_seconds=20.0)


def breaker(jitter: float = 0.0) -> CircuitBreaker:
    return CircuitBreaker(LIMITS, lambda: jitter)


def fail(of: CircuitBreaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        permit = of.admit(now)
        assert permit is not None
        of.failed(permit, now)


def test_it_opens_after_failures_in_a_row_and_no_sooner() -> None:
    it = breaker()
    fail(it, 0, 2)
    permit = it.admit(0)
    assert permit is not None
    it.succeeded(permit)
    fail(it, 0, 2)
    assert it.state(0) is CLOSED
    fail(it, 0)
    assert it.state(0) is OPEN
    assert it.admit(4.9) is None
    assert it.retry_after(2) == 3.0
    assert it.retry_after(4.9) == 1.0


def test_after_the_pause_one_call_at_a_time_is_the_probe() -> None:
    it = breaker()
    fail(it, 0, 3)
    assert it.state(5) is HALF_OPEN
    probe = it.admit(5)
    assert probe is not None
    assert it.admit(5) is None
    it.dropped(probe)
    again = it.admit(5)
    assert again is not None
    it.succeeded(again)
    assert it.state(5) is CLOSED
    assert all(it.admit(5) is not None for _ in range(10))


def test_each_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    it = breaker()
    fail(it, 0, 3)
    now = 0.0
    for pause in (5.0, 10.0, 20.0, 20.0):
        assert it.state(now + pause - 0.1) is OPEN
        now += pause
        fail(it, now)
    probe = it.admit(now + 20)
    assert probe is not None
    it.succeeded(probe)
    fail(it, now, 3)
    assert it.state(now + 5) is HALF_OPEN


def test_a_breaker_that_is_opened_a_thousand_times_still_counts() -> None:
    it = breaker()
    fail(it, 0, 3)
    for round_ in range(1, 2000):
        fail(it, round_ * 100.0)
    assert it.state(2000 * 100.0) is HALF_OPEN


def test_the_pause_is_spread() -> None:
    it = breaker(jitter=0.5)
    fail(it, 0, 3)
    assert it.state(5.4) is OPEN
    assert it.state(5.5) is HALF_OPEN


def test_what_was_let_through_before_it_opened_no_longer_counts() -> None:
    it = breaker()
    early = [it.admit(0) for _ in range(3)]
    fail(it, 0, 3)
    probe = it.admit(5)
    assert probe is not None
    assert None not in early
    late_success, late_failure, late_drop = (permit for permit in early if permit is not None)
    it.succeeded(late_success)
    assert it.state(5) is HALF_OPEN
    it.failed(late_failure, 5)
    assert it.state(5) is HALF_OPEN
    it.dropped(late_drop)
    assert it.admit(5) is None
    it.succeeded(probe)
    assert it.state(5) is CLOSED


@pytest.mark.parametrize(
    "limits",
    [
        {"failures": 0},
        {"pause_seconds": 0},
        {"pause_seconds": 10, "max_pause_seconds": 9},
        {"pause_seconds": float("nan")},
    ],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        BreakerLimits(**limits)  # type: ignore[arg-type]


class Breaker(RuleBasedStateMachine):
    """Calls come and go in any order; at no time do more pass than the state allows."""

    under_way = Bundle("under_way")

    def __init__(self) -> None:
        super().__init__()
        self.it = breaker()
        self.now = 0.0
        self.opened_at: float | None = None

    @rule(target=under_way)
    def call(self) -> tuple[Permit | None, bool]:
        state = self.it.state(self.now)
        permit = self.it.admit(self.now)
        if state is OPEN:
            assert permit is None
            assert self.it.retry_after(self.now) > 0
        if state is CLOSED:
            assert permit is not None
        return permit, state is HALF_OPEN

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(call=consumes(under_way), end=st.sampled_from(["succeeded", "failed", "dropped"]))
    def end(self, call: tuple[Permit | None, bool], end: str) -> None:
        permit, probe = call
        if permit is None:
            return
        before = self.it.state(self.now)
        if end == "failed":
            self.it.failed(permit, self.now)
        elif end == "succeeded":
            self.it.succeeded(permit)
        else:
            self.it.dropped(permit)
        after = self.it.state(self.now)
        if before is not CLOSED and after is CLOSED:
            assert probe
            assert end == "succeeded"
        if before is not OPEN and after is OPEN:
            assert end == "failed"
            self.opened_at = self.now

    @invariant()
    def open_for_a_bounded_time(self) -> None:
        if self.opened_at is not None and self.it.state(self.now) is OPEN:
            assert self.now - self.opened_at < LIMITS.max_pause_seconds


TestBreaker = Breaker.TestCase
TestBreaker.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
