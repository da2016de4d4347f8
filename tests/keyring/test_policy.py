"""A period that does not fit into IVS's three slots is refused at start, with the way out."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokensvc.errors import ConfigurationError
from tokensvc.keyring.policy import SLOTS, RotationPolicy
from tokensvc.settings import Settings

HOUR = 3600.0
DAY = 24 * HOUR


def test_the_defaults_of_the_settings_fit_with_the_longest_tokens_there_are() -> None:
    settings = Settings()
    policy = RotationPolicy(
        period=settings.rotation_period,
        longest_participant_ttl=settings.max_duration * 60.0,
        longest_connection_ttl=28 * DAY,
        skew=settings.clock_skew,
        standby_min_age=settings.standby_min_age,
        view_max_age=settings.ring_max_age,
        overdue_after=settings.rotation_overdue,
    )
    assert policy.slots_needed <= SLOTS
    # Not only feasible: a standby is there all the time but for moments.
    assert policy.drain + policy.standby_min_age <= policy.period


def test_six_hours_with_twelve_hour_tokens_need_four_slots() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RotationPolicy(period=6 * HOUR, longest_participant_ttl=12 * HOUR)
    assert str(caught.value).startswith(
        "period 6 h with TTL 12 h needs 4 slots, IVS gives 3: raise TOKENSVC_ROTATION_PERIOD to at "
        "least 22005 (seconds), or lower TOKENSVC_MAX_DURATION to 706 (minutes)"
    )


def test_connection_tokens_are_named_where_it_is_they_that_live_too_long() -> None:
    with pytest.raises(ConfigurationError, match="with connection tokens of 28 d needs 4 slots"):
        RotationPolicy(
            period=14 * DAY, longest_participant_ttl=12 * HOUR, longest_connection_ttl=28 * DAY
        )


def test_every_bound_that_is_crossed_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RotationPolicy(period=1.0, longest_participant_ttl=15 * DAY, skew=-1.0)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "TOKENSVC_ROTATION_PERIOD",
        "the longest participant token",
        "TOKENSVC_CLOCK_SKEW",
    ]


durations = st.integers(1, 20_160).map(lambda minutes: minutes * 60.0)
periods = st.integers(60, 100 * 86_400).map(float)


@given(period=periods, ttl=durations, min_age=st.integers(0, 86_400).map(float))
def test_the_advice_of_a_refusal_is_accepted(period: float, ttl: float, min_age: float) -> None:
    fields = {"longest_participant_ttl": ttl, "standby_min_age": min_age}
    try:
        RotationPolicy(period=period, **fields)
    except ConfigurationError as error:
        words = error.detail.split()
        wanted = float(
            words[words.index("(seconds)") - 1]
            if "(seconds)" in words
            else words[words.index("(seconds),") - 1]
        )
        RotationPolicy(period=wanted, **fields)
        assert wanted > period
        if "(minutes)" in words:
            minutes = float(words[words.index("(minutes)") - 1])
            RotationPolicy(
                period=period, longest_participant_ttl=minutes * 60, standby_min_age=min_age
            )


@given(period=periods, ttl=durations, min_age=st.integers(0, 86_400).map(float))
def test_what_is_accepted_has_a_slot_for_the_standby_before_every_rotation(
    period: float, ttl: float, min_age: float
) -> None:
    """Counted key by key, for keys that rotate on time for ever."""
    try:
        policy = RotationPolicy(period=period, longest_participant_ttl=ttl, standby_min_age=min_age)
    except ConfigurationError:
        assume(False)
        raise
    rotation = 50 * period
    import_by = rotation - min_age
    retiring = [
        k
        for k in range(1, 50)
        if rotation - k * period <= import_by and rotation - k * period + policy.drain > import_by
    ]
    active_and_standby = 2
    assert len(retiring) + active_and_standby <= SLOTS
    assert math.isfinite(policy.drain)
