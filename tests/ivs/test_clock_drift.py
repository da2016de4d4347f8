"""Promise: a host clock that is off is known from AWS's answers, without a call and without a guess."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ivs.support import CREDENTIALS, REGION, ScriptedIvs, answer
from tokensvc.errors import IvsNotFoundError
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.clients import ClientSettings
from tokensvc.ivs.clock_drift import ClockDrift

AWS_NOW = 1_780_000_000.0


def date(unix_seconds: float) -> str:
    return formatdate(int(unix_seconds), usegmt=True)


@given(
    aws=st.floats(1e9, 2e9),
    ahead=st.floats(-1e5, 1e5),
    there=st.floats(0, 30),
    back=st.floats(0, 30),
)
def test_the_truth_lies_within_the_bounds(
    aws: float, ahead: float, there: float, back: float
) -> None:
    drift = ClockDrift(lambda: aws + ahead + back)
    drift.answered(REGION, sent_at=aws + ahead - there, date=date(aws))
    reading = drift.latest(REGION)
    assert reading is not None
    assert abs(reading.offset_seconds - ahead) <= reading.uncertainty_seconds + 1e-3
    assert reading.uncertainty_seconds == pytest.approx(0.5 + (there + back) / 2, abs=1e-3)
    assert reading.at_least_seconds <= abs(ahead) + 1e-3


@pytest.mark.parametrize(
    "text",
    [None, "", "yesterday", "Thu, 99 Foo 2026 00:00:00 GMT", "Thu, 01 Jan 99999 00:00:00 GMT"],
)
def test_a_date_that_cannot_be_read_is_no_reading(text: str | None) -> None:
    drift = ClockDrift(lambda: AWS_NOW)
    drift.answered(REGION, sent_at=AWS_NOW, date=text)
    assert drift.latest(REGION) is None


@given(st.text())
def test_no_header_is_so_odd_that_it_ends_a_call(text: str) -> None:
    ClockDrift(lambda: AWS_NOW).answered(REGION, sent_at=AWS_NOW, date=text)


def test_a_clock_set_back_during_the_call_is_no_reading() -> None:
    drift = ClockDrift(lambda: AWS_NOW)
    drift.answered(REGION, sent_at=AWS_NOW + 1, date=date(AWS_NOW))
    assert drift.latest(REGION) is None


def test_the_worst_reading_is_told_while_it_is_young() -> None:
    now = AWS_NOW
    drift = ClockDrift(lambda: now)
    drift.answered("us-east-1", sent_at=now, date=date(now - 300))
    now += 60
    drift.answered("eu-west-1", sent_at=now, date=date(now))
    assert drift.offsets() == {"us-east-1": 299.5, "eu-west-1": -0.5}
    worst = drift.worst(max_age_seconds=60)
    assert worst is not None
    assert (worst.region, worst.age(now)) == ("us-east-1", 60)
    assert worst.at_least_seconds == pytest.approx(299)
    young = drift.worst(max_age_seconds=59)
    assert young is not None
    assert (young.region, young.at_least_seconds) == ("eu-west-1", 0)
    now += 3600
    assert drift.worst(max_age_seconds=60) is None


async def test_every_answer_tells_the_time_errors_too(ivs: ScriptedIvs) -> None:
    now = AWS_NOW + 120
    drift = ClockDrift(lambda: now)
    gateway = BotoIvsGateway(
        ClientSettings(endpoint_url=ivs.url), credentials=CREDENTIALS, drift=drift
    )
    ivs.will(
        answer(200, {"stages": []}, Date=date(AWS_NOW)),
        answer(404, {}, x_amzn_errortype="ResourceNotFoundException", Date=date(AWS_NOW + 60)),
    )
    await gateway.list_stages(REGION)
    first = drift.latest(REGION)
    assert first is not None
    assert (first.offset_seconds, first.uncertainty_seconds) == (119.5, 0.5)
    with pytest.raises(IvsNotFoundError):
        await gateway.delete_public_key(REGION, f"arn:aws:ivs:{REGION}:1:public-key/x")
    second = drift.latest(REGION)
    await gateway.aclose()
    assert second is not None
    assert second.offset_seconds == 59.5
