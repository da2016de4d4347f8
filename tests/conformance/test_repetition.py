"""A batch that is repeated asks every kind of database a few questions, however many tokens it has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.issuing.conftest import REGION, World, new_key
from tests.issuing.support import desk_over
from tests.revocation.support import NOW, STAGE, IvsModel, Replica, VirtualTime
from tokensvc.errors import NotRepeatableError
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.issued import IssuedToken
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ledger import IdempotencyStore, idempotency_ref
from tokensvc.revocation import DisconnectAsk
from tokensvc.tokens.claims import TokenRequest

REF = idempotency_ref("backend", "tokens/batch", "key", b"{}")
ITEMS = [TokenRequest(STAGE, user_id=f"user{number}") for number in range(1000)]


@pytest.fixture
async def replica(engine: AsyncEngine) -> AsyncIterator[Replica]:
    time = VirtualTime()
    replica = Replica(engine, IvsModel(time), time)
    await replica.bans.refresh()
    yield replica
    await replica.close()


@pytest.fixture
def world() -> World:
    """Keys and stages alone; what is stored is in the database."""
    return World(keys={REGION: new_key()}, now=NOW)


@pytest.fixture
def desk(world: World, replica: Replica, engine: AsyncEngine) -> TokenDesk:
    issuer = TokenIssuer(
        view=lambda: world,
        endpoints=world,
        gateway=world,
        ledger=replica.writer,
        admit=replica.bans.admit,
        admits_all=replica.bans.admits_all,
        clock=lambda: world.now,
        iat_backdate=5,
    )
    return desk_over(
        world,
        issuer,
        recorder=replica.writer,
        ledger=replica.ledger,
        pending=replica.calls,
        answers=IdempotencyStore(engine),
    )


@contextmanager
def statements() -> Iterator[list[str]]:
    """Yield what all databases are asked meanwhile."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield asked
    event.remove(Engine, "before_cursor_execute", note)


def ids_of(outcomes: list[Any]) -> list[str | None]:
    return [one.participant_id if isinstance(one, IssuedToken) else None for one in outcomes]


async def test_a_thousand_tokens_are_given_again_by_a_few_statements(
    desk: TokenDesk, world: World, replica: Replica
) -> None:
    first = ids_of(await desk.mint_batch(ITEMS, LoopSlices(), "backend", REF))
    assert len({*first} - {None}) == 1000
    with statements() as asked:
        again = ids_of(await desk.mint_batch(ITEMS, LoopSlices(), "backend", REF))
    assert again == first
    # Its record; two questions about 200 tokens at a time; what begins a connection's use.
    assert 11 <= len(asked) <= 15, asked
    assert await replica.ledger.count_living(NOW) == 1000

    world.keys = {REGION: new_key(key_id="key2")}
    with statements() as asked:
        again = ids_of(await desk.mint_batch(ITEMS, LoopSlices(), "backend", REF))
    assert again == first
    # Now all of them are recorded anew as well, some hundred rows a statement.
    assert len(asked) <= 40, asked
    assert await replica.ledger.count_living(NOW, key_id="key2") == 1000


async def test_only_who_is_gone_is_left_out(desk: TokenDesk, replica: Replica) -> None:
    first = ids_of(await desk.mint_batch(ITEMS[:500], LoopSlices(), "backend", REF))
    for number in (3, 333):
        ask = DisconnectAsk.of_participant(STAGE, first[number])
        await replica.revocations.disconnect(ask, caller_id=None)
    (due, _) = await replica.calls.due_calls(REGION, NOW, 2)
    await replica.calls.settle(due, "disconnected", attempts=1, error=None, now=NOW)
    again = await desk.mint_batch(ITEMS[:500], LoopSlices(), "backend", REF)
    refused = {n: one for n, one in enumerate(again) if isinstance(one, NotRepeatableError)}
    assert {n: one.detail.split(";")[0] for n, one in refused.items()} == {
        first.index(due.target_id): "The participant has been disconnected",
        ({3, 333} - {first.index(due.target_id)}).pop(): "The participant is being disconnected",
    }
    assert ids_of(again) == [None if n in refused else one for n, one in enumerate(first)]
