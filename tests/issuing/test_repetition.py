"""A repeated batch answers each item as the item alone would be answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.issuing.conftest import REGION, new_key
from tests.issuing.support import desk_over, freely
from tokensvc.errors import (
    BannedError,
    InvalidRequestError,
    LedgerBusyError,
    StoreUnavailableError,
    TokenServiceError,
)
from tokensvc.issuing.batch import BatchItem
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.issued import IssuedToken
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ledger import IdempotencyRef, idempotency_ref
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest
from tokensvc.tokens.exchange import ExchangeRequest

Ask = Callable[..., TokenRequest]
REF = idempotency_ref("backend", "tokens/batch", "key-1", b"{}")
OTHER_REGION = "us-east-1"
WHAT = st.sampled_from(
    [
        "as it was",
        "banned",
        "being disconnected",
        "disconnected",
        "endpoints forgotten",
        "exchanged for a longer one",
        "exchanged for a shorter one",
        "expired",
        "expired and exchanged",
        "forgotten",
        "key gone",
        "not parsed",
        "of another duration now",
        "of ivs",
        "refused before",
        "stage gone",
    ]
)


@pytest.fixture
def desk(world: Any, issuer: TokenIssuer) -> TokenDesk:
    return desk_over(world, issuer)


class Batch:
    """A batch that was answered, and what has become of its items since."""

    def __init__(self, world: Any, desk: TokenDesk, ask: Ask) -> None:
        self.world = world
        self.desk = desk
        self.ask = ask
        self.items: list[BatchItem] = []

    async def answer(self, kinds: Sequence[str]) -> None:
        self.world.unknown_stages = {"unknown"}
        self.items = [self._item(number, what) for number, what in enumerate(kinds)]
        first = await self.desk.mint_batch(self.items, LoopSlices(), "backend", REF)
        for what, token in zip(kinds, first, strict=True):
            if "exchanged" in what:
                assert isinstance(token, IssuedToken)
                duration = 5 if "shorter" in what else 600
                await self.desk.exchange(
                    ExchangeRequest(token.participant_id, duration=duration), "backend", freely
                )
        self.world.now += 60
        for number, (what, token) in enumerate(zip(kinds, first, strict=True)):
            if isinstance(token, IssuedToken):
                self._happen(number, what, token.participant_id)

    def _item(self, number: int, what: str) -> BatchItem:
        if what == "not parsed":
            return InvalidRequestError("bad")
        if what == "key gone":
            return TokenRequest(StageArn(OTHER_REGION, "123456789012", "s"), issuer="local")
        stage = {"refused before": "unknown", "stage gone": "going"}.get(what, "stage1")
        duration = 1 if what.startswith("expired") else 60
        issuer = "ivs" if what == "of ivs" else "auto"
        return self.ask(stage, user_id=f"user{number}", duration=duration, issuer=issuer)

    def _happen(self, number: int, what: str, participant_id: str) -> None:
        world = self.world
        mine = [n for n, row in enumerate(world.rows) if row.token_id == participant_id]
        match what:
            case "banned":
                world.banned_users.add(f"user{number}")
            case "being disconnected":
                world.pending.add(participant_id)
            case "disconnected":
                world.disconnected.add(participant_id)
            case "endpoints forgotten" | "stage gone":
                world.unknown_stages = {"going"}
                for at in mine:
                    world.rows[at] = world.rows[at]._replace(endpoints=None)
            case "forgotten":
                for at in reversed(mine):
                    del world.rows[at]
            case "key gone":
                world.keys.pop(OTHER_REGION, None)
            case "of another duration now":
                item = self.items[number]
                assert isinstance(item, TokenRequest)
                self.items[number] = replace_duration(item)
            case _:
                pass

    async def one_by_one(self) -> list[object]:
        """Repeat every item as the only one of its request."""
        parts = json.loads(self.world.answers[REF])
        return [
            await self._alone(item, part, idempotency_ref("backend", "tokens", str(number), b""))
            for number, (item, part) in enumerate(zip(self.items, parts, strict=True))
        ]

    async def _alone(self, item: BatchItem, part: list[Any], ref: IdempotencyRef) -> object:
        if isinstance(item, TokenServiceError):
            return said(self.world, item)
        if part[0] == "p":
            return part[1], part[2]
        self.world.answers[ref] = json.dumps([part])
        try:
            return said(self.world, await self.desk.mint(item, "backend", ref))
        except TokenServiceError as error:
            return said(self.world, error)

    async def together(self) -> list[object]:
        outcomes = await self.desk.mint_batch(self.items, LoopSlices(), "backend", REF)
        return [said(self.world, one) for one in outcomes]


def replace_duration(item: TokenRequest) -> TokenRequest:
    return TokenRequest(item.stage, user_id=item.user_id, duration=item.duration * 2)


def said(world: Any, outcome: IssuedToken | TokenServiceError) -> object:
    if isinstance(outcome, TokenServiceError):
        return outcome.code, outcome.detail
    return world.verify(outcome.token), outcome.key_arn, outcome.issuer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(kinds=st.lists(WHAT, max_size=20), rotated=st.booleans())
async def test_a_batch_says_of_each_item_what_it_would_say_of_it_alone(
    world: Any, issuer: TokenIssuer, ask: Ask, kinds: list[str], rotated: bool
) -> None:
    fresh = type(world)(keys={REGION: new_key(), OTHER_REGION: new_key(OTHER_REGION)})
    vars(world).update(vars(fresh))
    batch = Batch(world, desk_over(world, issuer), ask)
    await batch.answer(kinds)
    if rotated:
        world.keys[REGION] = new_key(key_id="key2")
    rows = list(world.rows)
    alone = await batch.one_by_one()
    recorded, world.rows = world.rows, rows
    assert await batch.together() == alone
    assert world.rows == recorded


async def test_what_the_ledger_lacks_goes_to_it_at_once(
    world: Any, desk: TokenDesk, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [ask(user_id=f"user{number}") for number in range(5)]
    await desk.mint_batch(items, LoopSlices(), "backend", REF)
    world.keys[REGION] = new_key(key_id="key2")
    record = world.record
    told: list[int] = []

    async def counted(rows: Sequence[Any], claim: object = None) -> str | None:
        told.append(len(rows))
        answer: str | None = await record(rows, claim)
        return answer

    monkeypatch.setattr(world, "record", counted)
    await desk.mint_batch(items, LoopSlices(), "backend", REF)
    await desk.mint_batch(items, LoopSlices(), "backend", REF)
    assert told == [5]


async def test_a_ban_while_a_repeated_batch_is_recorded_still_holds(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    items = [ask(user_id="ana"), ask(user_id="eve"), ask(user_id="bo")]
    await desk.mint_batch(items, LoopSlices(), "backend", REF)
    world.keys[REGION] = new_key(key_id="key2")
    world.during_record = lambda: world.banned_users.add("eve")
    ana, eve, bo = await desk.mint_batch(items, LoopSlices(), "backend", REF)
    assert isinstance(eve, BannedError)
    assert isinstance(ana, IssuedToken)
    assert isinstance(bo, IssuedToken)


async def test_a_busy_ledger_refuses_those_items_alone_that_it_lacks(
    world: Any, desk: TokenDesk, ask: Ask
) -> None:
    items = [ask(user_id="ana"), ask(user_id="bo")]
    first = await desk.mint_batch(items, LoopSlices(), "backend", REF)
    world.keys[REGION] = new_key(key_id="key2")
    (bo,) = [row for row in world.rows if row.user_id == "bo"]
    world.rows.append(bo._replace(key_id="key2"))
    world.ledger_error = LedgerBusyError("full", retry_after=1.0)
    of_ana, of_bo = await desk.mint_batch(items, LoopSlices(), "backend", REF)
    assert isinstance(of_ana, LedgerBusyError)
    assert isinstance(of_bo, IssuedToken)
    assert of_bo.participant_id == first[1].participant_id


@pytest.mark.parametrize("where", ["latest_of", "pending_of", "record", "admit"])
async def test_a_store_that_fails_fails_the_repeated_batch_whole(
    world: Any, issuer: TokenIssuer, ask: Ask, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    desk = desk_over(world, issuer)
    items = [InvalidRequestError("bad"), ask(), ask()]
    await desk.mint_batch(items, LoopSlices(), "backend", REF)
    world.keys[REGION] = new_key(key_id="key2")

    def fail(*_: object) -> None:
        raise StoreUnavailableError("down")

    async def fail_later(*_: object) -> None:
        fail()

    if where == "admit":
        monkeypatch.setattr(issuer, "admit", fail)
    else:
        monkeypatch.setattr(world, where, fail_later)
    with pytest.raises(StoreUnavailableError):
        await desk.mint_batch(items, LoopSlices(), "backend", REF)
