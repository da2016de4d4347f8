"""A batch answers every item, in order, without one spoiling another or the loop being held."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.issuing.conftest import REGION, new_key
from tests.issuing.support import desk_over
from tokensvc.errors import (
    BannedError,
    InvalidRequestError,
    LedgerBusyError,
    TokenServiceError,
)
from tokensvc.issuing.issued import IssuedToken
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.issuing.slices import (
    SHORT_SLICE_SECONDS,
    SLICE_SECONDS,
    LoopSlices,
)
from tokensvc.ledger import LedgerRow
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest

Ask = Callable[..., TokenRequest]


def code(outcome: IssuedToken | TokenServiceError) -> str:
    return outcome.code if isinstance(outcome, TokenServiceError) else outcome.issuer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    kinds=st.lists(
        st.sampled_from(["local", "ivs", "invalid", "unknown stage", "bug", "no key"]), max_size=25
    )
)
async def test_order_is_kept_and_a_bad_item_spoils_only_itself(
    world: Any, issuer: TokenIssuer, ask: Ask, kinds: list[str]
) -> None:
    world.unknown_stages.add("gone")
    world.broken_stages.add("broken")
    other = ask().stage.__class__("us-east-1", "123456789012", "s")
    make = {
        "local": lambda n: ask(user_id=f"user{n}"),
        "ivs": lambda n: ask(user_id=f"user{n}", issuer="ivs"),
        "invalid": lambda _: InvalidRequestError("bad"),
        "unknown stage": lambda _: ask("gone"),
        "bug": lambda _: ask("broken"),
        "no key": lambda _: TokenRequest(other, issuer="local"),
    }
    expected = {
        "local": "local",
        "ivs": "ivs",
        "invalid": "invalid_request",
        "unknown stage": "stage_not_found",
        "bug": "internal",
        "no key": "no_signing_key",
    }
    items = [make[kind](n) for n, kind in enumerate(kinds)]
    outcomes = await desk_over(world, issuer).mint_batch(items, LoopSlices(), "backend")
    assert [code(outcome) for outcome in outcomes] == [expected[kind] for kind in kinds]
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, IssuedToken):
            assert outcome.user_id == f"user{n}"
            if outcome.issuer == "local":
                assert world.verify(outcome.token)["user_id"] == f"user{n}"


async def test_each_stage_is_looked_up_once(world: Any, issuer: TokenIssuer, ask: Ask) -> None:
    outcomes = await desk_over(world, issuer).mint_batch(
        [ask(f"stage{n % 7}") for n in range(100)], LoopSlices(), "backend"
    )
    assert all(isinstance(outcome, IssuedToken) for outcome in outcomes)
    assert set(world.lookups.values()) == {1}
    assert len(world.lookups) == 7


async def test_lookups_run_several_at_a_time_but_not_all(
    world: Any, issuer: TokenIssuer, ask: Ask, monkeypatch: Any
) -> None:
    running, most = 0, 0
    get = world.get

    async def slow(stage: Any, caller: str) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return await get(stage, caller)

    monkeypatch.setattr(world, "get", slow)
    await desk_over(world, issuer).mint_batch(
        [ask(f"s{n}") for n in range(50)], LoopSlices(), "backend"
    )
    assert 1 < most <= 8


async def test_nothing_is_signed_here_before_ivs_has_answered(
    world: Any, issuer: TokenIssuer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is signed has to be recorded soon: a key that signs no more may be deleted after a while."""
    create = world.create_participant_token

    async def slow(request: TokenRequest) -> Any:
        world.now += 150
        return await create(request)

    monkeypatch.setattr(world, "create_participant_token", slow)
    desk = desk_over(world, issuer)
    await desk.mint_batch([ask(), ask(issuer="ivs"), ask()], LoopSlices(), "backend")
    signed = [row.iat for row in world.rows if row.issuer == "local"]
    assert len(signed) == 2
    assert min(signed) >= int(world.now) - 5


async def test_a_failing_fallback_is_that_items_answer(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.ivs_fails = True
    outcomes = await desk_over(world, issuer).mint_batch(
        [ask(), ask(issuer="ivs"), ask()], LoopSlices(), "backend"
    )
    assert [code(outcome) for outcome in outcomes] == ["local", "ivs_throttled", "local"]


async def test_others_run_whenever_a_slice_is_spent(
    world: Any, issuer: TokenIssuer, ask: Ask, monkeypatch: Any
) -> None:
    """Every signature takes a millisecond here, so at most three fit between two breaths."""
    now = 0.0
    held: list[float] = []
    breaths = 0

    def costly_id() -> str:
        nonlocal now
        now += 0.001
        return f"id{now}"

    monkeypatch.setattr(issuer, "_new_id", costly_id)

    async def somebody_else() -> None:
        nonlocal breaths
        last = now
        while True:
            await asyncio.sleep(0)
            breaths += 1
            held.append(now - last)
            last = now

    other = asyncio.create_task(somebody_else())
    outcomes = await desk_over(world, issuer).mint_batch(
        [ask()] * 300, LoopSlices(lambda: now), "backend"
    )
    other.cancel()
    assert len(outcomes) == 300
    assert breaths >= 100
    assert max(held) <= SLICE_SECONDS + 0.001 + 1e-9


class Company:
    """Somebody who asks for single tokens."""

    def __init__(self) -> None:
        self.was_here = False
        self.rests = 0

    async def rest(self) -> None:
        self.rests += 1


async def test_slices_are_short_and_apart_where_somebody_asks_for_single_tokens() -> None:
    now = 0.0
    company = Company()
    slices = LoopSlices(lambda: now, company)
    now += SHORT_SLICE_SECONDS
    assert not slices.spent()
    now += SLICE_SECONDS
    assert slices.spent()
    company.was_here = True
    await slices.breathe()
    assert not slices.spent()
    now += SHORT_SLICE_SECONDS
    assert slices.spent()
    await slices.breathe()
    assert company.rests == 2


async def test_an_empty_batch_has_an_empty_answer(world: Any, issuer: TokenIssuer) -> None:
    assert await desk_over(world, issuer).mint_batch([], LoopSlices(), "backend") == []


async def test_a_batch_is_recorded_in_one_go_before_it_is_answered(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    items = [ask(user_id="a"), ask("gone"), ask(issuer="ivs"), ask(user_id="b")]
    world.unknown_stages.add("gone")
    outcomes = await desk_over(world, issuer).mint_batch(items, LoopSlices(), "backend")
    issued = [outcome for outcome in outcomes if isinstance(outcome, IssuedToken)]
    assert len(issued) == 3
    assert {row.token_id for row in world.rows} == {token.participant_id for token in issued}


async def test_bans_hold_in_batches_item_by_item(world: Any, issuer: TokenIssuer, ask: Ask) -> None:
    world.banned_users.add("eve")
    world.during_record = lambda: world.banned_users.add("mallory")
    items = [ask(user_id="eve"), ask(user_id="ana"), ask(user_id="mallory")]
    eve, ana, mallory = await desk_over(world, issuer).mint_batch(items, LoopSlices(), "backend")
    assert isinstance(eve, BannedError)
    assert isinstance(ana, IssuedToken)
    assert isinstance(mallory, BannedError)


async def test_a_ledger_that_refuses_fails_the_batch_whole(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    world.ledger_error = LedgerBusyError("full", retry_after=1.0)
    with pytest.raises(LedgerBusyError):
        await desk_over(world, issuer).mint_batch([ask(), ask()], LoopSlices(), "backend")


class Breaths(LoopSlices):
    """Slices that are spent after every item; `at_breath` is told of each breath."""

    def __init__(self, at_breath: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self.at_breath = at_breath
        self.breaths = 0

    def spent(self) -> bool:
        return True

    async def breathe(self) -> None:
        self.breaths += 1
        self.at_breath(self.breaths)


STAGES = [StageArn(REGION, "123456789012", name) for name in ("s1", "s2", "gone")]

requests = st.builds(
    TokenRequest,
    # As elsewhere, the same stage is nearly always the same object.
    stage=st.sampled_from([*STAGES, *map(replace, STAGES)]),
    user_id=st.sampled_from([None, "", "ana", "eve", "\u017dofie", "\ud800"]),
    duration=st.sampled_from([1, 720, 20_160]),
    capabilities=st.sampled_from([(), ("SUBSCRIBE",), ("PUBLISH", "SUBSCRIBE")]),
    attributes=st.sampled_from([{}, {"team": "red"}, {"\u00d6": "\u65e5", "k": '"'}]),
    issuer=st.sampled_from(["auto", "local", "ivs"]),
)


def alike(like: TokenRequest) -> st.SearchStrategy[list[TokenRequest]]:
    """Some requests next to each other that differ in their users alone."""
    changed = st.builds(
        replace, st.just(like), user_id=st.sampled_from([None, "ana", "eve", "ion"])
    )
    return st.lists(changed, min_size=1, max_size=40)


async def is_as_alone(
    world: Any,
    issuer: TokenIssuer,
    item: TokenRequest,
    outcome: IssuedToken | TokenServiceError,
    rows: dict[str, LedgerRow],
) -> None:
    """See that an item of a batch, which wrote `rows`, got what it gets alone, and so did the ledger."""
    world.rows.clear()
    try:
        alone: IssuedToken | TokenServiceError = await issuer.issue(item, "backend")
    except TokenServiceError as error:
        alone = error
    except UnicodeEncodeError:
        alone = TokenServiceError("")
    assert code(outcome) == code(alone)
    if isinstance(outcome, TokenServiceError):
        assert isinstance(alone, TokenServiceError)
        assert alone.detail in ("", outcome.detail)
        return
    assert isinstance(alone, IssuedToken)
    its_own = {"token": "", "participant_id": ""}
    assert replace(outcome, **its_own) == replace(alone, **its_own)
    row = rows[outcome.participant_id]
    assert row._replace(token_id="") == world.rows[0]._replace(token_id="")
    if outcome.issuer == "local":
        claims = world.verify(outcome.token)
        assert claims.pop("jti") == outcome.participant_id
        expected = world.verify(alone.token)
        assert expected.pop("jti") == alone.participant_id
        assert list(claims.items()) == list(expected.items()), "in the same order, too"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    groups=st.lists(requests.flatmap(alike), max_size=4),
    banned=st.sampled_from([set(), {"eve"}]),
    longest=st.sampled_from([math.inf, 60 * 720]),
    breathes=st.booleans(),
)
async def test_items_get_what_each_would_get_alone(
    world: Any,
    issuer: TokenIssuer,
    groups: list[list[TokenRequest]],
    banned: set[str],
    longest: float,
    breathes: bool,
) -> None:
    """The same claims, answers, rows and errors; only ids and signatures differ."""
    world.unknown_stages.add("gone")
    world.banned_users, world.longest = banned, longest
    items = [one for group in groups for one in group]
    world.rows.clear()
    slices = Breaths() if breathes else LoopSlices()
    outcomes = await desk_over(world, issuer).mint_batch(items, slices, "backend")
    rows = {row.token_id: row for row in world.rows}
    for item, outcome in zip(items, outcomes, strict=True):
        await is_as_alone(world, issuer, item, outcome, rows)


@pytest.mark.parametrize("breathes", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        {"stage": STAGES[1]},
        {"stage": replace(STAGES[0])},
        {"duration": 60},
        {"capabilities": ("SUBSCRIBE",)},
        {"attributes": {"team": "blue"}},
        {"user_id": "ana"},
        {"issuer": "local"},
    ],
)
async def test_items_get_their_own_after_others_that_differ_in_one_thing(
    world: Any, issuer: TokenIssuer, other: dict[str, Any], breathes: bool
) -> None:
    like = TokenRequest(STAGES[0], user_id="ion", attributes={"team": "red"})
    # As many as are looked at together, and mixed with others.
    some, others = [like], [replace(like, **other)]
    items = [*some * 32, *others * 32, *some * 20, *others * 12, *some * 32, *others * 5]
    slices = Breaths() if breathes else LoopSlices()
    outcomes = await desk_over(world, issuer).mint_batch(items, slices, "backend")
    rows = {row.token_id: row for row in world.rows}
    for item, outcome in zip(items, outcomes, strict=True):
        await is_as_alone(world, issuer, item, outcome, rows)


async def test_a_key_that_goes_between_two_signatures_signs_no_more(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    def at_breath(breaths: int) -> None:
        if breaths == 5:
            del world.keys[REGION]

    outcomes = await desk_over(world, issuer).mint_batch(
        [ask()] * 10, Breaths(at_breath), "backend"
    )
    codes = [code(outcome) for outcome in outcomes]
    assert codes == sorted(codes, reverse=True)
    assert 0 < codes.count("local") < 10
    assert codes.count("ivs") == 10 - codes.count("local")


async def test_a_key_that_another_follows_between_two_signatures_signs_no_more(
    world: Any, issuer: TokenIssuer, ask: Ask
) -> None:
    keys = [world.keys[REGION], new_key(key_id="key2")]

    def at_breath(breaths: int) -> None:
        # Thereafter the old one is back, as an interrupted rotation would have it.
        world.keys[REGION] = keys[breaths in (5, 6)]

    outcomes = await desk_over(world, issuer).mint_batch(
        [ask()] * 10, Breaths(at_breath), "backend"
    )
    signed = []
    for outcome in outcomes:
        assert isinstance(outcome, IssuedToken)
        world.keys = {str(number): key for number, key in enumerate(keys)}
        world.verify(outcome.token)
        assert jwt.get_unverified_header(outcome.token)["kid"] == outcome.key_arn
        signed.append(outcome.key_arn)
    assert signed.count(keys[1].arn) == 2
    assert [row.key_arn for row in world.rows] == signed
    assert [row.key_id for row in world.rows].count("key2") == 2


async def test_times_are_those_of_the_signature(world: Any, issuer: TokenIssuer, ask: Ask) -> None:
    def at_breath(_: int) -> None:
        world.now += 1

    outcomes = await desk_over(world, issuer).mint_batch([ask()] * 5, Breaths(at_breath), "backend")
    ends = [outcome.expiration_time for outcome in outcomes if isinstance(outcome, IssuedToken)]
    assert [(end - ends[0]).seconds for end in ends] == [0, 1, 2, 3, 4]


async def test_a_bug_spoils_only_its_item_among_others_alike(
    world: Any, issuer: TokenIssuer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "longest_ttl", lambda region: 1 / 0)
    outcomes = await desk_over(world, issuer).mint_batch([ask()] * 3, LoopSlices(), "backend")
    assert [code(outcome) for outcome in outcomes] == ["internal"] * 3
