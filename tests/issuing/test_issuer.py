"""A token handed out says what was asked, verifies, and names who issued it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokensvc.errors import (
    BannedError,
    InvalidRequestError,
    IvsThrottledError,
    LedgerBusyError,
    NoSigningKeyError,
    StageNotFoundError,
)
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

Ask = Callable[..., TokenRequest]


async def test_a_local_token_verifies_and_carries_what_was_asked(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    request = ask(user_id="zoë", attributes={"team": "blå"}, capabilities=("SUBSCRIBE",))
    issued = await issuer.issue(request, "backend")
    claims = world.verify(issued.token)
    assert claims["jti"] == issued.participant_id
    assert claims["user_id"] == "zoë"
    assert claims["attributes"] == {"team": "blå"}
    assert claims["capabilities"] == {"allow_subscribe": True}
    assert claims["resource"] == str(request.stage)
    assert claims["events_url"] == "wss://events/stage1"
    assert issued.issuer == "local"
    assert issued.exchangeable is True
    assert issued.key_arn == world.keys["eu-central-1"].arn
    assert issued.expiration_time == datetime.fromtimestamp(claims["exp"], UTC)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(duration=st.integers(1, 20_160), now=st.floats(0, 4e9))
async def test_exp_is_exact_and_never_more_than_14_days_after_iat(
    world: Any, issuer: TokenIssuer, ask: Ask, duration: int, now: float
) -> None:
    world.now = now
    claims = world.verify((await issuer.issue(ask(duration=duration), "backend")).token)
    assert claims["exp"] == int(now) + duration * 60
    assert int(now) - 5 <= claims["iat"] <= int(now)
    assert claims["exp"] - claims["iat"] <= 14 * 24 * 3600
    assert type(claims["exp"]) is type(claims["iat"]) is int


async def test_fresh_endpoints_are_not_waited_for(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.fresh["stage1"] = StageEndpoints("wss://fresh", "https://fresh")
    claims = world.verify((await issuer.issue(ask(), "backend")).token)
    assert claims["events_url"] == "wss://fresh"
    assert not world.lookups


async def test_auto_without_a_key_falls_back_and_says_so(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.keys.clear()
    issued = await issuer.issue(ask(user_id="u"), "backend")
    assert (issued.issuer, issued.key_arn, issued.exchangeable) == ("ivs", None, False)
    assert issued.participant_id == "ivs1"
    assert not world.lookups, "a fallback needs no endpoints"


async def test_auto_falls_back_for_nothing_but_a_missing_key(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.unknown_stages.add("gone")
    with pytest.raises(StageNotFoundError):
        await issuer.issue(ask("gone"), "backend")
    assert world.ivs_calls == []


async def test_local_never_falls_back(world: Any, issuer: TokenIssuer, ask: Ask) -> None:
    world.keys.clear()
    with pytest.raises(NoSigningKeyError):
        await issuer.issue(ask(issuer="local"), "backend")
    assert world.ivs_calls == []


async def test_ivs_always_goes_to_ivs_and_its_refusal_is_the_answer(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    assert (await issuer.issue(ask(issuer="ivs"), "backend")).issuer == "ivs"
    world.ivs_fails = True
    with pytest.raises(IvsThrottledError):
        await issuer.issue(ask(issuer="ivs"), "backend")


async def test_a_key_that_goes_while_the_stage_is_looked_up_does_not_sign(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.during_lookup = world.keys.clear
    assert (await issuer.issue(ask(), "backend")).issuer == "ivs"


async def test_every_token_has_an_id_of_its_own(issuer: TokenIssuer, ask: Ask) -> None:
    ids = {(await issuer.issue(ask(), "backend")).participant_id for _ in range(50)}
    assert len(ids) == 50


async def test_the_token_is_in_the_body_and_in_no_repr(issuer: TokenIssuer, ask: Ask) -> None:
    issued = await issuer.issue(ask(), "backend")
    assert issued.token not in repr(issued)
    assert issued.token not in str(issued.__rich_repr__())
    body = msgspec.json.decode(msgspec.json.encode(issued))
    assert body["token"] == issued.token
    assert body["expirationTime"].endswith("Z")
    assert list(body) == [
        "token",
        "participantId",
        "userId",
        "attributes",
        "capabilities",
        "duration",
        "expirationTime",
        "issuer",
        "keyArn",
        "exchangeable",
    ]


async def test_what_is_handed_out_is_in_the_ledger_first(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    issued = await issuer.issue(ask(user_id="u"), "backend")
    (row,) = world.rows
    claims = world.verify(issued.token)
    assert (row.token_id, row.kind, row.user_id) == (issued.participant_id, "participant", "u")
    assert (row.iat, row.exp) == (claims["iat"], claims["exp"])
    assert (row.key_id, row.key_arn) == ("key1", issued.key_arn)
    assert (row.caller_id, row.issuer) == ("backend", "local")
    assert row.endpoints.whip == claims["whip_url"]
    assert issued.token not in repr(row)


async def test_a_token_of_ivs_is_in_the_ledger_too(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    issued = await issuer.issue(ask(issuer="ivs"), "backend")
    (row,) = world.rows
    assert (row.token_id, row.issuer, row.key_id) == (issued.participant_id, "ivs", None)
    assert row.exp == issued.expiration_time.timestamp()


@pytest.mark.parametrize("source", ["local", "ivs"])
async def test_without_its_row_a_token_is_not_handed_out(
    world: Any, issuer: TokenIssuer, ask: Ask, source: str
) -> None:
    world.ledger_error = LedgerBusyError("full", retry_after=1.0)
    with pytest.raises(LedgerBusyError):
        await issuer.issue(ask(issuer=source), "backend")


async def test_a_banned_user_costs_no_work(world: Any, issuer: TokenIssuer, ask: Ask) -> None:
    world.banned_users.add("eve")
    for source in ("auto", "local", "ivs"):
        with pytest.raises(BannedError):
            await issuer.issue(ask(user_id="eve", issuer=source), "backend")
    assert not world.rows
    assert not world.ivs_calls
    assert not world.lookups


async def test_a_ban_answered_while_the_row_was_committed_still_holds(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.during_record = lambda: world.banned_users.add("eve")
    with pytest.raises(BannedError):
        await issuer.issue(ask(user_id="eve"), "backend")


async def test_no_token_outlives_the_time_its_key_is_kept(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.longest = 3600.0
    with pytest.raises(InvalidRequestError) as raised:
        await issuer.issue(ask(duration=61), "backend")
    assert (raised.value.errors[0].field, raised.value.errors[0].limit) == ("duration", 60)
    assert (await issuer.issue(ask(duration=60), "backend")).issuer == "local"
