"""Promise: nothing is given up for ever by a clock that is wrong, or may be."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from structlog.testing import capture_logs

from tests.ivs.support import REGION
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.ivs.clock_watch import ClockWatch

START = 1_780_000_000.0
LIMIT = 60.0


class World:
    """AWS's time, which nobody sets, and a host's clock that may be off by `ahead` seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.aws = START
        self.ahead = ahead
        self.drift = ClockDrift(lambda: self.aws + self.ahead)
        self.watch = ClockWatch(self.drift, monotonic=lambda: self.aws - START, limit=LIMIT)

    def hear(self, region: str = REGION) -> None:
        date = formatdate(int(self.aws), usegmt=True)
        self.drift.answered(region, sent_at=self.aws + self.ahead, date=date)


def test_a_clock_that_nobody_contradicts_is_believed() -> None:
    world = World()
    assert world.watch.is_right()
    world.hear()
    world.aws += 90 * 86_400
    assert world.watch.is_right()


def test_a_clock_that_was_wrong_from_the_start_is_found_out_by_the_first_answer_for_good() -> None:
    world = World(ahead=30 * 86_400)
    assert world.watch.is_right(), "nothing is known yet"
    world.hear()
    assert not world.watch.is_right()
    world.aws += 7 * 86_400
    assert not world.watch.is_right(), "AWS is silent, and the clock has not moved"


@pytest.mark.parametrize("leap", [LIMIT + 5, 30 * 86_400, -LIMIT - 5, -86_400])
def test_a_leap_is_noticed_before_aws_says_anything(leap: float) -> None:
    world = World()
    world.hear()
    assert world.watch.is_right()
    world.ahead += leap
    with capture_logs() as logs:
        assert not world.watch.is_right()
        assert not world.watch.is_right()
    assert [(entry["event"], entry["seconds"]) for entry in logs] == [("clock_leapt", leap)]
    world.hear()
    assert not world.watch.is_right(), "AWS says the same"


def test_a_leap_back_to_the_truth_is_believed_when_aws_has_confirmed_it() -> None:
    world = World(ahead=3600)
    world.hear("us-east-1")
    assert not world.watch.is_right()
    world.ahead = 0.0
    assert not world.watch.is_right()
    world.hear()
    assert world.watch.is_right(), "what the other Region said before the leap counts no more"


def test_a_leap_within_the_limit_is_none_and_several_of_them_are_one() -> None:
    world = World()
    world.ahead += LIMIT - 1
    assert world.watch.is_right()
    world.ahead += LIMIT - 1
    assert not world.watch.is_right()
