"""Faults that a test asks for, and the rest of the control API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from botocore.exceptions import ConnectionClosedError

from tests.emulator.support import RunningEmulator, public_pem, refused
from tokensvc.emulator.faults import ERRORS, MAX_RULES

REGION = "eu-central-1"


class Pauses:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def ivs(pauses: Pauses) -> Iterator[RunningEmulator]:
    with RunningEmulator(enforce_quotas=False, sleep=pauses) as ivs:
        yield ivs


def test_delayed_call_waits_and_is_answered(ivs: RunningEmulator, pauses: Pauses) -> None:
    client = ivs.client()
    ivs.post_faults({"operation": "CreateStage", "kind": "delay", "seconds": 2.5, "count": 2})
    client.list_stages()
    for _ in range(3):
        client.create_stage()
    assert pauses.seconds == [2.5, 2.5]


def test_throttling_takes_no_effect_and_ends(ivs: RunningEmulator) -> None:
    client = ivs.client()
    ivs.post_faults({"operation": "CreateStage", "kind": "throttle", "count": 2})
    for _ in range(2):
        refused(client.create_stage, 429, "ThrottlingException")
    assert client.list_stages()["stages"] == []
    client.create_stage()


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_errors_can_be_asked_for(ivs: RunningEmulator, code: str) -> None:
    ivs.post_faults({"operation": "*", "kind": "error", "code": code})
    refused(ivs.client().create_stage, ERRORS[code].status, code)
    assert ivs.world.stages(REGION) == []


def test_error_is_internal_where_no_code_is_named(ivs: RunningEmulator) -> None:
    ivs.post_faults({"operation": "*", "kind": "error"})
    refused(ivs.client().list_stages, 500, "InternalServerException")


def test_connection_dropped_before_the_call_takes_effect(ivs: RunningEmulator) -> None:
    client = ivs.client()
    ivs.post_faults({"operation": "CreateStage", "kind": "drop_before"})
    with pytest.raises(ConnectionClosedError):
        client.create_stage()
    assert client.list_stages()["stages"] == []
    assert ivs.calls()["CreateStage", REGION]["statuses"] == {"dropped": 1}


def test_connection_dropped_after_the_call_took_effect(ivs: RunningEmulator) -> None:
    client = ivs.client()
    ivs.post_faults({"operation": "ImportPublicKey", "kind": "drop_after"})
    pem = public_pem()
    with pytest.raises(ConnectionClosedError):
        client.import_public_key(publicKeyMaterial=pem, name="lost")
    (key,) = client.list_public_keys()["publicKeys"]
    assert key["name"] == "lost"
    refused(client.import_public_key, 409, "ConflictException", publicKeyMaterial=pem)


def test_refused_call_is_answered_though_it_was_to_be_dropped_after(ivs: RunningEmulator) -> None:
    ivs.post_faults({"operation": "GetStage", "kind": "drop_after"})
    unknown = f"arn:aws:ivs:{REGION}:123456789012:stage/unknown"
    refused(ivs.client().get_stage, 404, "ResourceNotFoundException", arn=unknown)


def test_rules_apply_in_order_and_to_their_region(ivs: RunningEmulator) -> None:
    here, there = ivs.client(REGION), ivs.client("us-east-1")
    ivs.post_faults(
        {"operation": "ListStages", "kind": "error", "region": "us-east-1"},
        {"operation": "*", "kind": "throttle"},
    )
    refused(here.list_stages, 429, "ThrottlingException")
    here.list_stages()
    refused(there.list_stages, 500, "InternalServerException")
    there.list_stages()


def test_faults_can_be_taken_back(ivs: RunningEmulator) -> None:
    ivs.post_faults({"operation": "*", "kind": "throttle", "count": 9}, key_visible_after=60)
    ivs.clear_faults()
    client = ivs.client()
    arn = client.import_public_key(publicKeyMaterial=public_pem())["publicKey"]["arn"]
    client.get_public_key(arn=arn)


def test_key_is_seen_only_after_a_time(ivs: RunningEmulator) -> None:
    client = ivs.client()
    ivs.post_faults(key_visible_after=30)
    pem = public_pem()
    arn = client.import_public_key(publicKeyMaterial=pem)["publicKey"]["arn"]
    refused(client.get_public_key, 404, "ResourceNotFoundException", arn=arn)
    assert client.list_public_keys()["publicKeys"] == []
    assert ivs.world.public_key(arn) is None
    refused(client.import_public_key, 409, "ConflictException", publicKeyMaterial=pem)
    ivs.set_clock(31)
    assert client.get_public_key(arn=arn)["publicKey"]["publicKeyMaterial"] == pem
    assert [key["arn"] for key in client.list_public_keys()["publicKeys"]] == [arn]
    assert ivs.world.public_key(arn) is not None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", {"rules": [{"operation": "GetStage", "kind": "explode"}]}),
        ("faults", {"rules": [{"operation": "GetStage"}]}),
        ("faults", {"rules": [{"operation": "GetStage", "kind": "delay", "seconds": 61}]}),
        ("faults", {"rules": [{"operation": "GetStage", "kind": "error", "code": "Oops"}]}),
        ("faults", {"rules": [{"operation": "GetStage", "kind": "error", "count": 0}]}),
        ("faults", {"rules": [{"operation": "GetStage", "kind": "throttle", "often": True}]}),
        ("faults", {"rules": [{"operation": "*", "kind": "throttle"}] * (MAX_RULES + 1)}),
        ("faults", {"key_visible_after": -1}),
        ("clock", {}),
        ("clock", {"offset": "soon"}),
    ],
)
def test_malformed_request_to_the_control_api_changes_nothing(
    ivs: RunningEmulator, path: str, body: Any
) -> None:
    assert ivs.http.post(f"/_emulator/{path}", json=body).status_code == 400
    ivs.client().list_stages()


def test_control_api_answers_the_loopback_only(ivs: RunningEmulator) -> None:
    async def status(client: tuple[str, int]) -> int:
        transport = httpx.ASGITransport(ivs.app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://emulator") as http:
            return (await http.get("/_emulator/calls")).status_code

    assert ivs.run_async(lambda: status(("127.0.0.1", 1))) == 200
    assert ivs.run_async(lambda: status(("::1", 1))) == 200
    assert ivs.run_async(lambda: status(("192.0.2.7", 1))) == 403
