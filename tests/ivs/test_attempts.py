"""Promise: a call to IVS is repeated where that is safe, twice at most, and never waits without end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from tests.ivs.support import CREDENTIALS, REGION, ScriptedIvs, answer
from tokensvc.errors import (
    IvsAccessDeniedError,
    IvsError,
    IvsNotFoundError,
    IvsThrottledError,
    IvsUnavailableError,
)
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.clients import ClientSettings
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest

NO_STAGES = answer(200, {"stages": []})
Call = Callable[[BotoIvsGateway], Awaitable[object]]


def list_stages(gateway: BotoIvsGateway) -> Awaitable[object]:
    return gateway.list_stages(REGION)


def import_key(gateway: BotoIvsGateway) -> Awaitable[object]:
    return gateway.import_public_key(REGION, public_key_pem=PEM, name="ring", tags={})


def create_stage(gateway: BotoIvsGateway) -> Awaitable[object]:
    return gateway.create_stage(REGION, name="demo", tags={})


PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


@asynccontextmanager
async def gateway_to(url: str, **limits: float) -> AsyncIterator[BotoIvsGateway]:
    made = BotoIvsGateway(
        ClientSettings(endpoint_url=url, **limits),  # type: ignore[arg-type]
        credentials=CREDENTIALS,
    )
    try:
        yield made
    finally:
        await made.aclose()


@pytest.mark.parametrize(
    "fault",
    [
        answer(500, {}, x_amzn_errortype="InternalServerException"),
        answer(503, b"<html>down</html>"),
        answer(429, {}, x_amzn_errortype="ThrottlingException"),
        ScriptedIvs.drop,
    ],
    ids=["500", "503 of a proxy", "throttled", "connection lost"],
)
async def test_a_passing_fault_is_not_seen(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, fault: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    ivs.will(fault, NO_STAGES)
    assert await gateway.list_stages(REGION) == []
    assert len(ivs.requests) == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (answer(500, {}, x_amzn_errortype="InternalServerException"), IvsUnavailableError),
        (answer(429, {}, x_amzn_errortype="ThrottlingException"), IvsThrottledError),
        (ScriptedIvs.drop, IvsUnavailableError),
    ],
    ids=["500", "throttled", "connection lost"],
)
@pytest.mark.parametrize(
    ("call", "attempts"),
    [(list_stages, 2), (import_key, 1), (create_stage, 1)],
    ids=["list", "import", "create"],
)
async def test_what_makes_a_thing_is_attempted_once_and_the_rest_twice(
    gateway: BotoIvsGateway,
    ivs: ScriptedIvs,
    fault: Callable[[BaseHTTPRequestHandler], None],
    kind: type[IvsError],
    call: Call,
    attempts: int,
) -> None:
    ivs.will(fault)
    with pytest.raises(kind) as caught:
        await call(gateway)
    assert type(caught.value) is kind
    assert caught.value.retry_after is not None
    assert len(ivs.requests) == attempts


async def test_the_environment_does_not_change_how_often(
    gateway: BotoIvsGateway, ivs: ScriptedIvs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    ivs.will(answer(500, {}))
    with pytest.raises(IvsUnavailableError):
        await gateway.list_stages(REGION)
    assert len(ivs.requests) == 2


@pytest.mark.parametrize(
    ("call", "attempts"), [(list_stages, 2), (import_key, 1)], ids=["list", "import"]
)
async def test_silence_ends_at_the_read_timeout(
    ivs: ScriptedIvs, call: Call, attempts: int
) -> None:
    ivs.will(ivs.hang)
    async with gateway_to(ivs.url, read_timeout_seconds=0.05) as gateway:
        with pytest.raises(IvsUnavailableError) as caught:
            await call(gateway)
    assert caught.value.context["error_type"] == "ReadTimeoutError"
    assert len(ivs.requests) == attempts


async def test_the_deadline_ends_what_the_timeouts_would_let_go_on(ivs: ScriptedIvs) -> None:
    ivs.will(ivs.hang)
    async with gateway_to(
        ivs.url, read_timeout_seconds=30.0, call_deadline_seconds=0.05
    ) as gateway:
        with pytest.raises(IvsUnavailableError) as caught:
            await gateway.list_stages(REGION)
        ivs.released.set()
    assert caught.value.context == {
        "operation": "ListStages",
        "region": REGION,
        "deadline_seconds": 0.05,
    }


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with gateway_to(f"http://127.0.0.1:{port}") as gateway:
        with pytest.raises(IvsUnavailableError) as caught:
            await gateway.list_stages(REGION)
    assert caught.value.context["error_type"] == "EndpointConnectionError"


async def test_no_dns() -> None:
    async with gateway_to("http://ivs.invalid") as gateway:
        with pytest.raises(IvsUnavailableError):
            await gateway.list_stages(REGION)


async def test_no_credentials_is_a_denial_and_no_call(
    ivs: ScriptedIvs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    made = BotoIvsGateway(ClientSettings(endpoint_url=ivs.url))
    with pytest.raises(IvsAccessDeniedError) as caught:
        await made.list_stages(REGION)
    await made.aclose()
    assert caught.value.context["error_type"] == "NoCredentialsError"
    assert ivs.requests == []


async def test_a_profile_that_is_not_there_is_a_denial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    made = BotoIvsGateway()
    with pytest.raises(IvsAccessDeniedError) as caught:
        await made.list_stages(REGION)
    await made.aclose()
    assert caught.value.context["error_type"] == "ProfileNotFound"


async def test_a_refusal_is_not_repeated_and_its_words_stay_inside(
    gateway: BotoIvsGateway, ivs: ScriptedIvs
) -> None:
    ivs.will(
        answer(
            404,
            {"exceptionMessage": "role/admin saw no such stage"},
            x_amzn_errortype="ResourceNotFoundException",
            x_amzn_requestid="r-1",
        )
    )
    with pytest.raises(IvsNotFoundError) as caught:
        await gateway.get_stage(REGION, f"arn:aws:ivs:{REGION}:123456789012:stage/abc")
    assert len(ivs.requests) == 1
    assert "admin" not in caught.value.detail
    assert caught.value.context == {
        "operation": "GetStage",
        "region": REGION,
        "error_type": "ResourceNotFoundException",
        "aws_code": "ResourceNotFoundException",
        "http_status": 404,
        "request_id": "r-1",
        "attempts": 1,
        "ivs_message": "role/admin saw no such stage",
    }


async def test_after_closing_no_call_is_made(ivs: ScriptedIvs) -> None:
    async with gateway_to(ivs.url) as gateway:
        await gateway.aclose()
        with pytest.raises(IvsUnavailableError):
            await gateway.list_stages(REGION)
    assert ivs.requests == []


async def test_tokens_that_hang_do_not_hold_up_a_kick(ivs: ScriptedIvs) -> None:
    stage = StageArn(REGION, "123456789012", "abc")
    ivs.will(ivs.hang, answer(200, {}))
    settings = ClientSettings(
        endpoint_url=ivs.url, read_timeout_seconds=30.0, max_threads=1, max_waiting=0
    )
    gateway = BotoIvsGateway(settings, credentials=CREDENTIALS)
    hanging = asyncio.create_task(gateway.create_participant_token(TokenRequest(stage)))
    assert await asyncio.to_thread(ivs.arrived.acquire, timeout=60)
    with pytest.raises(IvsThrottledError):
        await gateway.create_participant_token(TokenRequest(stage))
    await gateway.disconnect_participant(REGION, stage_arn=str(stage), participant_id="p-1")
    assert [path for path, _, _ in ivs.requests] == [
        "/CreateParticipantToken",
        "/DisconnectParticipant",
    ]
    hanging.cancel()
    ivs.released.set()
    await gateway.aclose()


def kick(gateway: BotoIvsGateway) -> Awaitable[object]:
    stage = StageArn(REGION, "123456789012", "abc")
    return gateway.disconnect_participant(REGION, stage_arn=str(stage), participant_id="p-1")


def revoke(gateway: BotoIvsGateway) -> Awaitable[object]:
    return gateway.revoke_connection_token(REGION, "c-1")


@pytest.mark.parametrize("call", [kick, revoke])
async def test_a_kick_is_one_attempt_since_its_worker_counts_and_repeats(
    ivs: ScriptedIvs, call: Call
) -> None:
    ivs.will(answer(503, {}), answer(200, {}))
    async with gateway_to(ivs.url) as gateway:
        with pytest.raises(IvsUnavailableError):
            await call(gateway)
    assert len(ivs.requests) == 1
