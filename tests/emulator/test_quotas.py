"""IVS's quotas: stages and keys a Region, calls a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulator.support import RunningEmulator, public_pem, refused
from tokensvc.emulator.calls import CallLog
from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.errors import ServiceQuotaExceededError, ThrottlingError
from tokensvc.emulator.quotas import CallQuotas
from tokensvc.emulator.records import IssuedToken
from tokensvc.emulator.world import MAX_STAGES, World


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ivs(clock: Clock) -> Iterator[RunningEmulator]:
    with RunningEmulator(clock=clock) as ivs:
        yield ivs


def test_fourth_public_key_of_a_region_is_one_too_many(ivs: RunningEmulator, clock: Clock) -> None:
    client = ivs.client("eu-central-1")
    keys = [import_key(client) for _ in range(3)]
    clock.now += 1
    refused(
        client.import_public_key,
        402,
        "ServiceQuotaExceededException",
        publicKeyMaterial=public_pem(),
    )
    import_key(ivs.client("us-east-1"))
    client.delete_public_key(arn=keys[0])
    import_key(client)


def test_calls_above_the_quota_are_throttled(ivs: RunningEmulator, clock: Clock) -> None:
    client = ivs.client()
    for _ in range(5):
        client.list_stages()
    error = refused(client.list_stages, 429, "ThrottlingException")
    assert error.response["Error"]["Message"] == "Rate exceeded"
    client.create_stage()
    ivs.client("us-east-1").list_stages()
    clock.now += 0.2
    client.list_stages()
    refused(client.list_stages, 429, "ThrottlingException")


def test_botocore_retries_what_was_throttled(ivs: RunningEmulator) -> None:
    client = ivs.client(retries={"mode": "standard", "total_max_attempts": 2})
    ivs.post_faults({"operation": "ListStages", "kind": "throttle"})
    answer = client.list_stages()
    assert answer["ResponseMetadata"]["RetryAttempts"] == 1


def test_moving_the_clock_does_not_move_the_rates(ivs: RunningEmulator) -> None:
    client = ivs.client()
    for _ in range(3):
        client.list_public_keys()
    ivs.set_clock(60)
    refused(client.list_public_keys, 429, "ThrottlingException")


@pytest.mark.parametrize(
    ("operation", "rate"),
    [
        ("CreateParticipantToken", 50),
        ("ImportPublicKey", 3),
        ("DeletePublicKey", 3),
        ("TagResource", 10),
        ("DisconnectParticipant", 5),
        ("RevokeConnectionToken", 5),
    ],
)
def test_rates_are_those_of_the_guide(clock: Clock, operation: str, rate: int) -> None:
    quotas = CallQuotas(clock)
    for _ in range(rate):
        quotas.take(operation, "eu-central-1")
    with pytest.raises(ThrottlingError):
        quotas.take(operation, "eu-central-1")
    clock.now += 10
    for _ in range(rate):
        quotas.take(operation, "eu-central-1")
    with pytest.raises(ThrottlingError):
        quotas.take(operation, "eu-central-1")
    clock.now -= 10
    with pytest.raises(ThrottlingError):
        quotas.take(operation, "eu-central-1")


def test_stages_have_a_quota_unless_it_is_off(clock: Clock) -> None:
    world = World(EmulatorConfig(), clock)
    for _ in range(MAX_STAGES):
        world.create_stage("eu-central-1")
    with pytest.raises(ServiceQuotaExceededError):
        world.create_stage("eu-central-1")
    world.create_stage("us-east-1")
    unbounded = World(EmulatorConfig(enforce_quotas=False), clock)
    for _ in range(MAX_STAGES + 1):
        unbounded.create_stage("eu-central-1")


def test_issued_tokens_are_bounded_and_forgotten_when_expired(clock: Clock) -> None:
    world = World(EmulatorConfig(max_issued_tokens=3), clock)

    def remember(text: str, lifetime: float) -> None:
        record = IssuedToken("arn", text, ("PUBLISH",), clock.now, clock.now + lifetime)
        world.remember_token(text, record)

    for text in ("a", "b", "c", "d"):
        remember(text, 100)
    assert world.issued_token("a") is None
    assert all(world.issued_token(text) is not None for text in "bcd")
    assert len(world.snapshot()[2]) == 3
    clock.now += 101
    remember("e", 100)
    assert world.issued_token("b") is None
    assert len(world.snapshot()[2]) == 1


def test_calls_are_counted_as_they_come(ivs: RunningEmulator, clock: Clock) -> None:
    client = ivs.client()
    for _ in range(3):
        client.list_public_keys()
    refused(client.list_public_keys, 429, "ThrottlingException")
    clock.now += 2
    client.list_public_keys()
    ivs.client("us-east-1").list_public_keys()
    calls = ivs.calls()
    here = calls["ListPublicKeys", "eu-central-1"]
    assert here["count"] == 5
    assert here["maxPerSecond"] == 4
    assert here["statuses"] == {"200": 4, "429": 1}
    assert here["timestamps"] == [clock.now - 2] * 4 + [clock.now]
    assert calls["ListPublicKeys", "us-east-1"]["count"] == 1
    assert ivs.http.delete("/_emulator/calls").status_code == 204
    assert ivs.calls() == {}


def test_most_calls_in_any_second_are_found() -> None:
    log = CallLog()
    for at in (0.0, 0.9, 1.0, 1.5, 1.8, 5.0):
        log.record("GetStage", "eu-central-1", at)
    (report,) = log.report()
    assert report["maxPerSecond"] == 4
    assert report["count"] == 6


def import_key(client: Any) -> str:
    arn: str = client.import_public_key(publicKeyMaterial=public_pem())["publicKey"]["arn"]
    return arn


def test_quotas_can_be_off(clock: Clock) -> None:
    with RunningEmulator(clock=clock, enforce_quotas=False) as ivs:
        client = ivs.client()
        for _ in range(6):
            import_key(client)
        assert len(client.list_public_keys()["publicKeys"]) == 6
