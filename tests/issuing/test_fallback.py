"""Promise: a request that falls back is answered within bounds, and AWS's fault stays AWS's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from tests.issuing.conftest import REGION
from tests.ivs.support import CREDENTIALS, ScriptedIvs, answer
from tokensvc.errors import (
    FallbackSaturatedError,
    IvsAccessDeniedError,
    IvsError,
    IvsNotFoundError,
    IvsRejectedError,
    IvsThrottledError,
    IvsUnavailableError,
    NoSigningKeyError,
)
from tokensvc.issuing.breaker import BreakerLimits, BreakerState
from tokensvc.issuing.fallback import Fallback
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.budgets import WINDOW_SECONDS, CallBudgets
from tokensvc.ivs.clients import ClientSettings
from tokensvc.ivs.gateway import IvsToken
from tokensvc.ledger import Claim, LedgerRow
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

HERE = TokenRequest(StageArn(REGION, "123456789012", "a"))
ELSEWHERE = TokenRequest(StageArn("us-east-1", "123456789012", "a"))


@dataclass
class Ivs:
    """CreateParticipantToken as the tests want it, and a clock."""

    fault: BaseException | None = None
    held: asyncio.Event | None = None
    calls: Counter[str] = field(default_factory=Counter)
    now: float = 1000.0

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        self.calls[request.stage.region] += 1
        if self.held is not None:
            await self.held.wait()
        if self.fault is not None:
            raise self.fault
        return IvsToken("opaque", "p-1", None, {}, 720, ("PUBLISH", "SUBSCRIBE"), 2_000_000_000)

    def fallback(self) -> Fallback:
        limits = BreakerLimits(failures=3, pause_seconds=5.0, max_pause_seconds=60.0)
        return Fallback(self, lambda: self.now, limits=limits, jitter=lambda: 0.0)


async def refused(fallback: Fallback, request: TokenRequest = HERE) -> IvsError:
    with pytest.raises(IvsError) as caught:
        await fallback.create_participant_token(request)
    return caught.value


async def open_circuit(ivs: Ivs, fallback: Fallback) -> None:
    ivs.fault = IvsUnavailableError("silence", retry_after=2.0)
    for _ in range(3):
        await refused(fallback)
    assert fallback.states() == {REGION: BreakerState.OPEN}


async def test_what_ivs_makes_is_what_the_caller_gets() -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    assert (await fallback.create_participant_token(HERE)).token == "opaque"
    assert fallback.states() == {REGION: BreakerState.CLOSED}


async def test_spent_calls_are_said_to_be_that_with_when_to_come_back() -> None:
    ivs = Ivs(fault=IvsThrottledError("spent", retry_after=1.5, operation="x", region=REGION))
    error = await refused(ivs.fallback())
    assert type(error) is FallbackSaturatedError
    assert (error.status, error.code, error.retry_after) == (503, "fallback_saturated", 1.5)
    assert error.context == {"operation": "x", "region": REGION}


async def test_a_silent_ivs_is_asked_no_more_until_the_pause_is_over() -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    ivs.now += 2
    error = await refused(fallback)
    assert type(error) is IvsUnavailableError
    assert error.retry_after == 3.0
    assert ivs.calls[REGION] == 3


async def test_one_probe_reopens_the_way() -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    ivs.now += 5
    ivs.fault, ivs.held = None, asyncio.Event()
    probe = asyncio.create_task(fallback.create_participant_token(HERE))
    await asyncio.sleep(0)
    assert type(await refused(fallback)) is IvsUnavailableError
    assert ivs.calls[REGION] == 4
    ivs.held.set()
    await probe
    await fallback.create_participant_token(HERE)
    assert fallback.states() == {REGION: BreakerState.CLOSED}


async def test_a_probe_that_fails_makes_the_pause_longer() -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    ivs.now += 5
    await refused(fallback)
    ivs.now += 5
    await refused(fallback)
    assert ivs.calls[REGION] == 4
    ivs.now += 5
    await refused(fallback)
    assert ivs.calls[REGION] == 5


async def test_regions_fail_by_themselves() -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    ivs.fault = None
    await fallback.create_participant_token(ELSEWHERE)
    assert fallback.states() == {REGION: BreakerState.OPEN, "us-east-1": BreakerState.CLOSED}


@pytest.mark.parametrize(
    "fault",
    [
        IvsNotFoundError("no stage", http_status=404),
        IvsRejectedError("no", http_status=400),
        IvsAccessDeniedError("no", http_status=403),
        IvsAccessDeniedError("no credentials"),
        IvsThrottledError("ours", retry_after=1.0),
        IvsThrottledError("theirs", retry_after=1.0, http_status=429),
        IvsError("not understood"),
        ZeroDivisionError("a bug"),
    ],
    ids=lambda fault: str(fault),
)
async def test_only_silence_opens_the_circuit(fault: BaseException) -> None:
    ivs = Ivs(fault=fault)
    fallback = ivs.fallback()
    for _ in range(20):
        with pytest.raises(type(fault)):
            await fallback.create_participant_token(HERE)
    assert fallback.states() == {REGION: BreakerState.CLOSED}
    assert ivs.calls[REGION] == 20


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (IvsNotFoundError("no stage", http_status=404), BreakerState.CLOSED),
        (IvsThrottledError("theirs", retry_after=1.0, http_status=429), BreakerState.CLOSED),
        (IvsThrottledError("ours", retry_after=1.0), BreakerState.HALF_OPEN),
        (ZeroDivisionError("a bug"), BreakerState.HALF_OPEN),
    ],
    ids=lambda value: str(value),
)
async def test_a_probe_closes_the_circuit_only_by_an_answer(
    fault: BaseException, state: BreakerState
) -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    ivs.now += 5
    ivs.fault = fault
    with pytest.raises(type(fault)):
        await fallback.create_participant_token(HERE)
    assert fallback.states() == {REGION: state}
    ivs.fault = None
    await fallback.create_participant_token(HERE)


async def test_a_caller_that_leaves_does_not_keep_the_probe() -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    ivs.now += 5
    ivs.fault, ivs.held = None, asyncio.Event()
    probe = asyncio.create_task(fallback.create_participant_token(HERE))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    ivs.held.set()
    await fallback.create_participant_token(HERE)
    assert fallback.states() == {REGION: BreakerState.CLOSED}


async def test_the_log_says_when_the_circuit_opens_and_closes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ivs = Ivs()
    fallback = ivs.fallback()
    await open_circuit(ivs, fallback)
    assert capsys.readouterr().out.count("fallback_circuit_opened") == 1
    ivs.now += 5
    ivs.fault = None
    await fallback.create_participant_token(HERE)
    await fallback.create_participant_token(HERE)
    assert capsys.readouterr().out.count("fallback_circuit_closed") == 1


async def test_our_share_of_the_calls_a_second_is_a_bound_and_not_a_queue() -> None:
    ivs = ScriptedIvs()
    expires = "2040-01-02T03:04:05Z"
    made = {"token": "opaque", "participantId": "p-1", "expirationTime": expires}
    ivs.will(answer(200, {"participantToken": made}))
    gateway = BotoIvsGateway(
        ClientSettings(endpoint_url=ivs.url),
        # A twentieth of a call a second: no machine is so slow that a second one passes.
        budgets=CallBudgets(share=0.001, max_wait_seconds=0),
        credentials=CREDENTIALS,
    )
    fallback = Fallback(gateway, lambda: 0.0)
    assert (await fallback.create_participant_token(HERE)).participant_id == "p-1"
    error = await refused(fallback)
    assert type(error) is FallbackSaturatedError
    assert error.retry_after == pytest.approx(20 * WINDOW_SECONDS)
    assert len(ivs.requests) == 1
    await gateway.aclose()
    ivs.close()


class NoKey:
    def signing_key(self, region: str) -> object:
        raise NoSigningKeyError("no key")

    async def record(self, rows: Sequence[LedgerRow], claim: Claim | None = None) -> None:
        return None

    def peek(self, stage: StageArn, now: float) -> StageEndpoints | None:
        raise AssertionError("no endpoints are needed where nothing is signed here")

    async def get(self, stage: StageArn, caller: str) -> StageEndpoints:
        raise AssertionError("no endpoints are needed where nothing is signed here")


@pytest.fixture
def issuer_over() -> Callable[[Fallback], TokenIssuer]:
    def make(fallback: Fallback) -> TokenIssuer:
        return TokenIssuer(
            view=NoKey,  # type: ignore[arg-type]
            endpoints=NoKey(),
            gateway=fallback,
            ledger=NoKey(),
            admit=lambda *_: None,
            admits_all=lambda *_: True,
            clock=lambda: 1_780_000_000.0,
            iat_backdate=5,
        )

    return make


async def test_a_request_that_insists_on_a_local_key_never_falls_back(
    issuer_over: Callable[[Fallback], TokenIssuer],
) -> None:
    ivs = Ivs()
    issuer = issuer_over(ivs.fallback())
    with pytest.raises(NoSigningKeyError):
        await issuer.issue(TokenRequest(HERE.stage, issuer="local"), "backend")
    assert ivs.calls.total() == 0
    marked = await issuer.issue(HERE, "backend")
    assert (marked.issuer, marked.exchangeable, marked.key_arn) == ("ivs", False, None)
