"""Exchanges, connection tokens and repeated requests: what is handed out, and to whom no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.issuing.conftest import REGION, new_key
from tests.issuing.support import desk_over, freely
from tokensvc.errors import (
    BannedError,
    InvalidRequestError,
    NoSigningKeyError,
    NotExchangeableError,
    NotFoundError,
    NotRepeatableError,
    TokenServiceError,
)
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.issued import IssuedToken
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.issuing.repeats import KeptProblem, keep, kept
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ledger import idempotency_ref
from tokensvc.tokens.claims import StageEndpoints, TokenRequest
from tokensvc.tokens.connection import ConnectionRequest
from tokensvc.tokens.exchange import ExchangeRequest

Ask = Callable[..., TokenRequest]
REF = idempotency_ref("backend", "tokens", "key-1", b"{}")


@pytest.fixture
def desk(world: Any, issuer: TokenIssuer) -> TokenDesk:
    return desk_over(world, issuer)


# --- exchange -------------------------------------------------------------------------------------


async def test_an_exchange_changes_rights_and_keeps_what_ivs_wants_kept(
    world: Any, desk: TokenDesk, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await desk.mint(ask(user_id="ana", attributes={"a": "1"}), "backend")

    async def moved(stage: object) -> StageEndpoints:
        return StageEndpoints("wss://elsewhere", "https://elsewhere")

    monkeypatch.setattr(world, "get", moved)
    world.now += 60
    request = ExchangeRequest(
        first.participant_id, capabilities=("SUBSCRIBE",), attributes={"b": "2"}, duration=30
    )
    second = await desk.exchange(request, "backend", freely)
    old, new = world.verify(first.token), world.verify(second.token)
    for claim in ("jti", "resource", "topic", "events_url", "whip_url", "version", "user_id"):
        assert new[claim] == old[claim]
    assert new["capabilities"] == {"allow_subscribe": True}
    assert new["attributes"] == {"b": "2"}
    assert new["exp"] == int(world.now) + 30 * 60
    assert world.rows[-1].token_id == first.participant_id
    assert world.rows[-1].exp == new["exp"]


async def test_an_exchange_may_change_the_user(world: Any, desk: TokenDesk, ask: Ask) -> None:
    first = await desk.mint(ask(user_id="ana"), "backend")
    second = await desk.exchange(
        ExchangeRequest(first.participant_id, user_id="bo"), "backend", freely
    )
    assert world.verify(second.token)["user_id"] == "bo"


async def test_nobody_unknown_is_exchanged(desk: TokenDesk) -> None:
    with pytest.raises(NotFoundError):
        await desk.exchange(ExchangeRequest("nobody"), "backend", freely)


async def test_a_connection_token_is_no_participant(desk: TokenDesk) -> None:
    made = await desk.connect(ConnectionRequest(REGION), "backend")
    with pytest.raises(NotFoundError):
        await desk.exchange(ExchangeRequest(made.token_id), "backend", freely)


async def test_a_token_of_ivs_cannot_be_exchanged_and_the_reason_is_said(
    desk: TokenDesk, ask: Ask
) -> None:
    first = await desk.mint(ask(issuer="ivs"), "backend")
    with pytest.raises(NotExchangeableError, match="issued by IVS"):
        await desk.exchange(ExchangeRequest(first.participant_id), "backend", freely)


@pytest.mark.parametrize("what", ["expired", "disconnected", "pending", "key gone"])
async def test_who_cannot_join_again_gets_no_exchange(
    world: Any, desk: TokenDesk, ask: Ask, what: str
) -> None:
    first = await desk.mint(ask(duration=1), "backend")
    match what:
        case "expired":
            world.now += 60
        case "disconnected":
            world.disconnected.add(first.participant_id)
        case "pending":
            world.pending.add(first.participant_id)
        case _:
            world.gone_keys.add(first.key_arn)
    with pytest.raises(NotExchangeableError):
        await desk.exchange(ExchangeRequest(first.participant_id), "backend", freely)
    assert len(world.rows) == 1


async def test_who_did_not_use_a_short_exchange_is_exchanged_again_while_the_first_token_lives(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    first = await desk.mint(ask(duration=60), "backend")
    await desk.exchange(ExchangeRequest(first.participant_id, duration=1), "backend", freely)
    world.now += 120
    await desk.exchange(ExchangeRequest(first.participant_id), "backend", freely)
    assert len(world.rows) == 3


async def test_an_exchange_needs_a_local_key(world: Any, desk: TokenDesk, ask: Ask) -> None:
    first = await desk.mint(ask(), "backend")
    world.keys.clear()
    with pytest.raises(NoSigningKeyError):
        await desk.exchange(ExchangeRequest(first.participant_id), "backend", freely)
    assert not world.ivs_calls


async def test_an_exchange_names_the_participants_own_stage(desk: TokenDesk, ask: Ask) -> None:
    first = await desk.mint(ask("stage1"), "backend")
    other = ask("stage2").stage
    with pytest.raises(InvalidRequestError) as raised:
        await desk.exchange(ExchangeRequest(first.participant_id, stage=other), "backend", freely)
    assert raised.value.errors[0].field == "stageArn"


@pytest.mark.parametrize("who", ["the old user", "the new user", "while recorded"])
async def test_a_ban_stops_an_exchange(world: Any, desk: TokenDesk, ask: Ask, who: str) -> None:
    first = await desk.mint(ask(user_id="ana"), "backend")
    request = ExchangeRequest(first.participant_id, user_id=None if who != "the new user" else "bo")
    if who == "while recorded":
        world.during_record = lambda: world.banned_users.add("ana")
    else:
        world.banned_users.add("ana" if who == "the old user" else "bo")
    with pytest.raises(BannedError):
        await desk.exchange(request, "backend", freely)


async def test_a_new_name_does_not_help_a_banned_user(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    first = await desk.mint(ask(user_id="ana"), "backend")
    world.banned_users.add("ana")
    with pytest.raises(BannedError):
        await desk.exchange(ExchangeRequest(first.participant_id, user_id="bo"), "backend", freely)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("kind", ["mint", "connect"])
async def test_a_ban_that_is_answered_while_a_token_is_recorded_still_holds(
    world: Any, desk: TokenDesk, ask: Ask, kind: str, keyed: bool, repeats: bool
) -> None:
    ref = idempotency_ref("backend", kind, "key", b"") if keyed else None

    async def once() -> object:
        if kind == "mint":
            return await desk.mint(ask(user_id="ana"), "backend", ref)
        return await desk.connect(ConnectionRequest(REGION, user_id="ana"), "backend", ref)

    if repeats:
        await once()
        # Another key signs by now, so a repetition is recorded, too.
        world.keys = {REGION: new_key(key_id="key2")}
    recorded = len(world.rows)
    world.during_record = lambda: world.banned_users.add("ana")
    with pytest.raises(BannedError):
        await once()
    assert len(world.rows) == recorded + 1


# --- connection tokens ----------------------------------------------------------------------------


async def test_a_connection_token_says_what_ivs_wants_and_nothing_else(
    world: Any, desk: TokenDesk
) -> None:
    made = await desk.connect(ConnectionRequest(REGION, user_id="ana", duration=40_320), "backend")
    claims = world.verify(made.token)
    assert set(claims) == {
        "exp", "iat", "jti", "account_id", "region", "events_url", "version",
    }  # fmt: skip
    assert claims["jti"] == made.token_id
    assert claims["region"] == REGION
    assert claims["account_id"] == made.account_id == "123456789012"
    assert claims["events_url"] == "wss://global.events.live-video.net"
    assert claims["exp"] - claims["iat"] <= 28 * 86_400
    (row,) = world.rows
    assert (row.kind, row.stage_arn, row.user_id, row.key_id) == (
        "connection", None, "ana", "key1",
    )  # fmt: skip


async def test_a_connection_token_of_another_account_is_refused(desk: TokenDesk) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await desk.connect(ConnectionRequest(REGION, account="999999999999"), "backend")
    assert (raised.value.errors[0].field, raised.value.errors[0].limit) == (
        "stageArn",
        "123456789012",
    )


async def test_a_connection_token_has_no_fallback_and_no_exception_from_bans(
    world: Any, desk: TokenDesk
) -> None:
    world.banned_users.add("eve")
    with pytest.raises(BannedError):
        await desk.connect(ConnectionRequest(REGION, user_id="eve"), "backend")
    world.keys.clear()
    with pytest.raises(NoSigningKeyError):
        await desk.connect(ConnectionRequest(REGION), "backend")
    assert not world.rows


async def test_a_connection_token_does_not_outlive_its_key(world: Any, desk: TokenDesk) -> None:
    world.longest = 3600.0
    with pytest.raises(InvalidRequestError) as raised:
        await desk.connect(ConnectionRequest(REGION, duration=61), "backend")
    assert raised.value.errors[0].limit == 60


# --- repeated requests ----------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(later=st.integers(0, 3599), rotated=st.booleans())
async def test_a_repeated_mint_is_the_same_participant_with_the_same_times(
    world: Any, issuer: TokenIssuer, ask: Ask, later: int, rotated: bool
) -> None:
    world.answers.clear()
    world.rows.clear()
    world.keys = {REGION: new_key()}
    desk = desk_over(world, issuer)
    request = ask(user_id="ana", duration=60)
    first = await desk.mint(request, "backend", REF)
    before = world.verify(first.token)
    world.now += later
    if rotated:
        world.keys = {REGION: new_key(key_id="key2")}
    second = await desk.mint(request, "backend", REF)
    after = world.verify(second.token)
    assert after == before
    assert second.participant_id == first.participant_id
    assert second.expiration_time == first.expiration_time
    signed_with = {row.key_id for row in world.rows}
    assert signed_with == ({"key1", "key2"} if rotated else {"key1"})
    assert len(world.rows) == len(signed_with)


async def test_a_key_that_repeats_a_longer_token_than_it_has_signed_since_is_kept_for_it(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    first = await desk.mint(ask(duration=600), "backend", REF)
    world.keys[REGION] = new_key(key_id="key2")
    await desk.exchange(ExchangeRequest(first.participant_id, duration=5), "backend", freely)
    again = await desk.mint(ask(duration=600), "backend", REF)
    exp = world.verify(again.token)["exp"]
    assert again.key_arn.endswith("key2")
    assert max(row.exp for row in world.rows if row.key_id == "key2") == exp
    recorded = len(world.rows)
    await desk.mint(ask(duration=600), "backend", REF)
    assert len(world.rows) == recorded, "it is known now"


@pytest.mark.parametrize("kind", ["participant", "connection"])
async def test_a_key_repeats_no_token_that_would_outlive_it(
    world: Any, desk: TokenDesk, ask: Ask, kind: str
) -> None:
    async def answer() -> object:
        if kind == "connection":
            return await desk.connect(ConnectionRequest(REGION, duration=600), "backend", REF)
        return await desk.mint(ask(duration=600), "backend", REF)

    await answer()
    recorded = list(world.rows)
    world.keys[REGION] = new_key(key_id="key2")
    # The clock of the replica that repeats it is behind.
    world.now -= 20
    world.longest = 600 * 60 - 11
    with pytest.raises(InvalidRequestError, match="longer than the 599 minutes for which"):
        await answer()
    assert world.rows == recorded
    world.longest = 600 * 60
    await answer()
    assert [row.key_id for row in world.rows] == ["key1", "key2"]


async def test_an_expired_token_is_not_given_again_though_its_participant_has_another(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    first = await desk.mint(ask(duration=5), "backend", REF)
    await desk.exchange(ExchangeRequest(first.participant_id, duration=600), "backend", freely)
    world.now += 300
    with pytest.raises(NotRepeatableError, match="expired"):
        await desk.mint(ask(duration=5), "backend", REF)


async def test_two_at_once_get_the_same_answer(world: Any, desk: TokenDesk, ask: Ask) -> None:
    """The other replica's answer was stored between our look and our commit."""
    first = await desk.mint(ask(), "backend", REF)

    async def not_yet(ref: object, now: float) -> None:
        return None

    world.find, find = not_yet, world.find
    second = await desk.mint(ask(), "backend", REF)
    world.find = find
    assert second.participant_id == first.participant_id
    assert len(world.rows) == 1


@pytest.mark.parametrize("what", ["banned", "disconnected", "pending", "expired", "forgotten"])
async def test_a_repetition_passes_the_same_admission(
    world: Any, desk: TokenDesk, ask: Ask, what: str
) -> None:
    first = await desk.mint(ask(user_id="ana", duration=1), "backend", REF)
    match what:
        case "banned":
            world.banned_users.add("ana")
        case "disconnected":
            world.disconnected.add(first.participant_id)
        case "pending":
            world.pending.add(first.participant_id)
        case "expired":
            world.now += 60
        case _:
            world.rows.clear()
    with pytest.raises(BannedError if what == "banned" else NotRepeatableError):
        await desk.mint(ask(user_id="ana", duration=1), "backend", REF)


async def test_a_token_of_ivs_cannot_be_given_again(desk: TokenDesk, ask: Ask) -> None:
    await desk.mint(ask(issuer="ivs"), "backend", REF)
    with pytest.raises(NotRepeatableError, match="issued by IVS"):
        await desk.mint(ask(issuer="ivs"), "backend", REF)


async def test_a_repeated_batch_issues_nothing_new(world: Any, desk: TokenDesk, ask: Ask) -> None:
    world.unknown_stages.add("gone")
    items = [ask(user_id="a"), ask("gone"), InvalidRequestError("bad"), ask(user_id="b")]
    first = await desk.mint_batch(items, LoopSlices(), "backend", REF)
    world.unknown_stages.clear()
    second = await desk.mint_batch(items, LoopSlices(), "backend", REF)
    assert [summary(one) for one in second] == [summary(one) for one in first]
    assert len(world.rows) == 2


async def test_a_batch_in_which_all_failed_is_repeated_too(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    world.unknown_stages.add("gone")
    first = await desk.mint_batch([ask("gone")], LoopSlices(), "backend", REF)
    world.unknown_stages.clear()
    second = await desk.mint_batch([ask("gone")], LoopSlices(), "backend", REF)
    assert summary(first[0]) == summary(second[0]) == "stage_not_found"
    assert not world.rows


def test_a_ban_is_kept_with_its_id_and_end() -> None:
    for until in (None, 1_780_000_000.5):
        ban = BannedError("banned", ban_id="ban-1", until=until)
        (again,) = (one.as_error() for one in kept(keep([ban])) if isinstance(one, KeptProblem))
        assert isinstance(again, BannedError)
        assert (again.detail, again.ban_id, again.until) == ("banned", "ban-1", until)


async def test_exchanges_and_connection_tokens_are_repeated_too(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    minted = await desk.mint(ask(user_id="ana"), "backend")
    request = ExchangeRequest(minted.participant_id, capabilities=("SUBSCRIBE",))
    exchange = replace(REF, route="exchange")
    first = await desk.exchange(request, "backend", freely, exchange)
    world.now += 30
    assert world.verify(
        (await desk.exchange(request, "backend", freely, exchange)).token
    ) == world.verify(first.token)
    connect = replace(REF, route="connect")
    one = await desk.connect(ConnectionRequest(REGION), "backend", connect)
    world.now += 30
    two = await desk.connect(ConnectionRequest(REGION), "backend", connect)
    assert world.verify(one.token) == world.verify(two.token)


def summary(outcome: IssuedToken | TokenServiceError) -> object:
    if isinstance(outcome, TokenServiceError):
        return outcome.code
    return outcome.participant_id, outcome.user_id, outcome.expiration_time
