"""What bans, the queue of disconnects and leases must do on every kind of database."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.revocation.support import NOW, OTHER_STAGE, REGION, STAGE, IvsModel, Replica, VirtualTime
from tokensvc.errors import IdempotencyConflictError
from tokensvc.ledger import idempotency_ref
from tokensvc.revocation import DisconnectAsk
from tokensvc.revocation.calls import CONNECTED, FIRST, ISSUED, OF_KEY, OF_USER, WAITING, NewCall
from tokensvc.store import open_engine
from tokensvc.store.leases import SAFETY_SECONDS, LeaseStore
from tokensvc.store.many import IDS_PER_STATEMENT
from tokensvc.store.tables import disconnect_calls

STAGE_TEXT = str(STAGE)


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def ivs(time: VirtualTime) -> IvsModel:
    return IvsModel(time)


@pytest.fixture
async def replica(engine: AsyncEngine, ivs: IvsModel, time: VirtualTime) -> AsyncIterator[Replica]:
    replica = Replica(engine, ivs, time)
    await replica.bans.refresh()
    yield replica
    await replica.close()


@pytest.fixture
async def other(
    second_engine: AsyncEngine, ivs: IvsModel, time: VirtualTime
) -> AsyncIterator[Replica]:
    replica = Replica(second_engine, ivs, time)
    await replica.bans.refresh()
    yield replica
    await replica.close()


async def test_bans_made_at_once_on_two_replicas_get_versions_that_miss_none(replica, other):
    made = await asyncio.gather(
        *(
            (replica if number % 2 else other).revocations.ban(user_id=f"u{number}", caller_id=None)
            for number in range(20)
        )
    )
    assert sorted(ban.version for ban in made) == list(range(1, 21))
    assert await replica.ban_store.version() == 20
    await replica.bans.refresh()
    await other.bans.refresh()
    assert len(replica.bans) == len(other.bans) == 20


async def test_a_ban_comes_back_from_the_database_as_it_was_made(replica):
    made = await replica.revocations.ban(
        stage_arn=STAGE_TEXT, user_id="Zoë \U0001f600", until=NOW + 0.25, reason="x", caller_id="c"
    )
    assert await replica.ban_store.get(made.ban_id) == made
    assert (await replica.ban_store.changes(0)).bans == (made,)
    lifted = await replica.revocations.lift(made.ban_id)
    assert (lifted.version, lifted.lifted_at) == (made.version + 1, NOW)
    assert (await replica.ban_store.changes(made.version)).bans == (lifted,)
    assert await replica.ban_store.get("unknown") is None


async def test_a_ban_asked_for_again_on_two_replicas_is_one(replica, other):
    async def ban(at: Replica, body: bytes):
        ref = idempotency_ref("backend", "bans", "key", body)
        return await at.revocations.ban(user_id="alice", caller_id="backend", ref=ref)

    made = await asyncio.gather(*(ban((replica, other)[n % 2], b"same") for n in range(8)))
    assert len({one.ban_id for one in made}) == 1
    for at in (replica, other):
        assert at.bans.check(STAGE_TEXT, "alice", None, NOW) == made[0]
    with pytest.raises(IdempotencyConflictError):
        await ban(other, b"another")
    assert len(await other.revocations.standing_bans()) == 1


async def test_bans_of_exactly_one_subject_are_lifted(replica, other):
    async def ban(**subject: str | None) -> str:
        return (await replica.revocations.ban(**subject, caller_id=None)).ban_id

    on_stage = {await ban(stage_arn=STAGE_TEXT, user_id="alice") for _ in range(2)}
    others = {
        await ban(user_id="alice"),
        await ban(stage_arn=STAGE_TEXT),
        await ban(stage_arn=STAGE_TEXT, user_id="bob"),
        await ban(participant_id="p1"),
    }
    lifted = await other.revocations.lift_of(
        stage_arn=STAGE_TEXT, user_id="alice", participant_id=None
    )
    assert {one.ban_id for one in lifted} == on_stage
    assert len({one.version for one in lifted}) == 2
    await replica.bans.refresh()
    assert len(replica.bans) == len(others)
    assert {one.ban_id for one in await replica.revocations.standing_bans()} == others
    (of_participant,) = await replica.revocations.standing_bans(participant_id="p1")
    assert of_participant.kind == "participant"


async def test_the_queue_is_told_with_its_age(replica, time):
    empty = await replica.calls.state(REGION)
    assert (empty.due, empty.waiting, empty.oldest_at) == (0, 0, None)
    made = await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
    # Whom it means is not known yet, and it is in the queue all the same.
    assert (await replica.calls.state(REGION)).oldest_at == NOW
    request = await replica.store.get(made.disconnect_id)
    calls = [
        NewCall("disconnect", STAGE_TEXT, f"p{n}", None, rank, NOW + 60)
        for n, rank in enumerate((CONNECTED, ISSUED, WAITING))
    ]
    await replica.calls.enqueue(request, calls, NOW)
    await replica.store.swept(request, next_sweep_at=None)
    state = await replica.calls.state(REGION)
    assert (state.due, state.waiting, state.oldest_at) == (2, 1, NOW)
    for due in await replica.calls.due_calls(REGION, NOW, 10):
        if due.rank != WAITING:
            await replica.calls.settle(due, "disconnected", attempts=1, error=None, now=NOW)
    state = await replica.calls.state(REGION)
    assert (state.due, state.waiting, state.oldest_at) == (0, 1, None)
    assert (await replica.calls.state("us-west-2")).due == 0


async def test_a_request_its_ban_and_its_record_are_stored_together_or_not_at_all(replica, other):
    ask = DisconnectAsk.of_user(STAGE, "alice", ban=60)

    async def kick(at: Replica, body: bytes):
        ref = idempotency_ref("backend", "POST /v1/disconnects", "key", body)
        return await at.revocations.disconnect(ask, caller_id="backend", ref=ref)

    answers = await asyncio.gather(*(kick((replica, other)[n % 2], b"same") for n in range(8)))
    assert len({(answer.disconnect_id, answer.ban_id) for answer in answers}) == 1
    with pytest.raises(IdempotencyConflictError):
        await kick(other, b"another")
    assert len((await replica.ban_store.changes(0)).bans) == 1
    assert len(await replica.store.due_sweeps(REGION, NOW, 100)) == 1


async def test_pending_calls_of_one_participant_are_folded_and_take_the_better_rank(replica, other):
    requests = []
    for at in (replica, other):
        made = await at.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
        requests.append(await at.store.get(made.disconnect_id))

    def call(rank: int, exp: float) -> NewCall:
        return NewCall("disconnect", STAGE_TEXT, "p1", "alice", rank, exp)

    await asyncio.gather(
        replica.calls.enqueue(requests[0], [call(ISSUED, NOW + 9)], NOW),
        other.calls.enqueue(requests[1], [call(CONNECTED, NOW + 5)], NOW),
    )
    await replica.calls.enqueue(requests[0], [call(ISSUED, NOW + 9)], NOW)
    (due,) = await replica.calls.due_calls(REGION, NOW, 10)
    assert (due.rank, due.exp, due.attempts, due.user_id) == (CONNECTED, NOW + 9, 0, "alice")
    await replica.calls.settle(due, "disconnected", attempts=1, error=None, now=NOW)
    for request in requests:
        progress = await other.store.progress(request.disconnect_id, now=NOW)
        assert progress.counts == {"disconnected": 1}
    # Asked for anew, it is called anew; a late answer to the old call changes nothing.
    again = await replica.revocations.disconnect(
        DisconnectAsk.of_participant(STAGE, "p1"), caller_id=None
    )
    await replica.calls.settle(due, "failed", attempts=2, error="x", now=NOW)
    progress = await replica.store.progress(again.disconnect_id, now=NOW)
    assert progress.counts == {"pending": 1}


async def test_of_many_those_are_told_whom_ivs_is_still_to_be_told_of(replica, other):
    made = await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
    request = await replica.store.get(made.disconnect_id)
    ids = [f"p{n:03d}" for n in range(2 * IDS_PER_STATEMENT + 1)]
    await replica.calls.enqueue(
        request,
        [NewCall("disconnect", STAGE_TEXT, one, None, ISSUED, NOW + 9) for one in ids[::2]],
        NOW,
    )
    elsewhere = DisconnectAsk.of_participant(OTHER_STAGE, ids[1])
    await replica.revocations.disconnect(elsewhere, caller_id=None)
    await replica.issue_connection_token("c1")
    await replica.issue_connection_token("c2")
    await replica.revoke_connection_token("c1")
    of_stage = [(STAGE_TEXT, one) for one in ids]
    others = [(str(OTHER_STAGE), ids[0]), (str(OTHER_STAGE), ids[1]), (None, "c1"), (None, "c2")]
    assert await other.calls.pending_of([*of_stage, *others, *of_stage]) == {
        *of_stage[::2],
        (str(OTHER_STAGE), ids[1]),
        (None, "c1"),
    }
    for due in await other.calls.due_calls(REGION, NOW, len(ids)):
        state = "disconnected" if due.target_id != ids[0] else "failed"
        await other.calls.settle(due, state, attempts=1, error=None, now=NOW)
    assert await replica.calls.pending_of([*of_stage, *others]) == set()
    assert await replica.calls.pending_of([]) == set()


async def test_a_call_that_ends_while_it_is_asked_for_again_is_made_anew_or_shared(replica, other):
    requests = []
    for at in (replica, other):
        made = await at.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
        requests.append(await at.store.get(made.disconnect_id))
    for number in range(15):
        call = NewCall("disconnect", STAGE_TEXT, f"p{number}", None, ISSUED, NOW + 9)
        await replica.calls.enqueue(requests[0], [call], NOW)
        (due,) = await replica.calls.due_calls(REGION, NOW, 10)
        await asyncio.gather(
            replica.calls.settle(due, "disconnected", attempts=1, error=None, now=NOW),
            other.calls.enqueue(requests[1], [call], NOW),
        )
        for left in await replica.calls.due_calls(REGION, NOW, 10):
            await replica.calls.settle(left, "disconnected", attempts=1, error=None, now=NOW)
    for request in requests:
        progress = await other.store.progress(request.disconnect_id, now=NOW)
        assert progress.counts == {"disconnected": 15}


async def test_a_call_that_ends_between_our_insert_and_our_look_is_made_anew(postgres, ivs, time):
    """PostgreSQL alone: SQLite's write lock lets nobody in between."""
    url = postgres.database()
    engine = open_engine(url)
    replica = Replica(engine, ivs, time)
    asks = [
        await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
        for _ in range(2)
    ]
    first, second = [await replica.store.get(ask.disconnect_id) for ask in asks]
    call = NewCall("disconnect", STAGE_TEXT, "p1", None, ISSUED, NOW + 9)
    await replica.calls.enqueue(first, [call], NOW)
    settled: list[str] = []

    def settle(_connection, _cursor, statement, *_) -> None:
        if statement.startswith("INSERT INTO disconnect_calls") and not settled:
            settled.append(statement)
            postgres.sql(
                "UPDATE disconnect_calls SET state = 'disconnected'",
                database=url.rpartition("/")[2],
            )

    event.listen(engine.sync_engine, "after_cursor_execute", settle)
    await replica.calls.enqueue(second, [call], NOW)
    assert settled
    assert (await replica.store.progress(first.disconnect_id, now=NOW)).counts == {
        "disconnected": 1
    }
    assert (await replica.store.progress(second.disconnect_id, now=NOW)).counts == {"pending": 1}
    await replica.close()
    await engine.dispose()
    postgres.release(url)


async def test_calls_are_due_by_rank_then_by_time_and_some_that_wait_among_them(replica):
    made = await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
    request = await replica.store.get(made.disconnect_id)
    ranks = {
        "w1": WAITING,
        "w2": WAITING,
        "i": ISSUED,
        "c": CONNECTED,
        "k": OF_KEY,
        "u": OF_USER,
        "later": FIRST,
        "f": FIRST,
    }
    await replica.calls.enqueue(
        request,
        [NewCall("disconnect", STAGE_TEXT, name, None, rank, NOW) for name, rank in ranks.items()],
        NOW,
    )
    by_name = {call.target_id: call for call in await replica.calls.due_calls(REGION, NOW, 10)}
    await replica.calls.put_off(
        by_name["later"], until=NOW + 1, attempts=1, error="ivs_unavailable", now=NOW
    )
    names = [call.target_id for call in await replica.calls.due_calls(REGION, NOW, 10)]
    assert names == ["f", "u", "c", "k", "i", "w1", "w2"]
    names = [call.target_id for call in await replica.calls.due_calls(REGION, NOW, 3)]
    assert names == ["f", "c", "w1"]
    assert await replica.calls.due_calls("us-east-1", NOW, 10) == []
    assert await replica.calls.ahead(request) == 6
    one = dataclasses.replace(request, kind="user", user_id="alice")
    assert await replica.calls.ahead(one) == 3


@pytest.mark.parametrize(
    ("full", "shares"),
    [
        ((FIRST, CONNECTED, WAITING), (6, 2, 2)),
        ((FIRST, CONNECTED), (8, 2)),
        ((CONNECTED, WAITING), (8, 2)),
        ((OF_USER, WAITING), (8, 2)),
        ((FIRST,), (10,)),
    ],
)
async def test_nobody_in_the_queue_starves_behind_others(replica, full, shares):
    made = await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
    request = await replica.store.get(made.disconnect_id)
    found = [
        NewCall("disconnect", STAGE_TEXT, f"p{rank}-{n}", None, rank, NOW + 9)
        for rank in full
        for n in range(12)
    ]
    await replica.calls.enqueue(request, found, NOW)
    due = await replica.calls.due_calls(REGION, NOW, 10)
    assert [sum(call.rank == rank for call in due) for rank in full] == list(shares)


async def test_a_version_that_knows_no_ranks_below_0_takes_those_first_and_ours_its(replica):
    """While replicas are replaced one by one, either may make the calls that the other one stored."""
    assert (CONNECTED, OF_KEY, ISSUED, WAITING) == (0, 1, 2, 3)
    made = await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
    request = await replica.store.get(made.disconnect_id)
    ranks = {"i": 2, "n": 1, "c": 0, "u": OF_USER, "f": FIRST}
    await replica.calls.enqueue(
        request,
        [NewCall("disconnect", STAGE_TEXT, name, None, rank, NOW) for name, rank in ranks.items()],
        NOW,
    )
    before = (
        select(disconnect_calls.c.target_id)
        .where(disconnect_calls.c.rank < 3)
        .order_by(disconnect_calls.c.rank, disconnect_calls.c.next_attempt_at)
    )
    names = [row[0] for row in await replica.calls._all(before)]
    assert names == ["f", "u", "c", "n", "i"]
    assert [call.target_id for call in await replica.calls.due_calls(REGION, NOW, 10)] == names


async def test_a_lease_has_one_holder_and_its_fence_grows(engine, replica, second_engine, other):
    leases = [
        LeaseStore(engine, replica.transactions),
        LeaseStore(second_engine, other.transactions),
    ]
    taken = await asyncio.gather(
        *(leases[n % 2].take("work", f"h{n}", seconds=10, now=NOW) for n in range(6))
    )
    (lease,) = [one for one in taken if one is not None]
    assert (lease.fence, lease.expires_at) == (1, NOW + 10)
    assert lease.may_work(NOW + 10 - SAFETY_SECONDS - 0.1)
    assert not lease.may_work(NOW + 10 - SAFETY_SECONDS)
    assert await leases[0].take("work", "late", seconds=10, now=NOW + 9.9) is None
    assert await leases[0].take("other work", "late", seconds=10, now=NOW) is not None
    renewed = await leases[1].renew(lease, seconds=10, now=NOW + 5)
    assert (renewed.fence, renewed.expires_at) == (1, NOW + 15)
    assert await leases[0].take("work", "late", seconds=10, now=NOW + 10) is None
    second = await leases[0].take("work", "late", seconds=10, now=NOW + 15)
    assert (second.holder, second.fence) == ("late", 2)
    assert await leases[1].renew(lease, seconds=10, now=NOW + 15) is None
    await leases[1].give_back(lease, free_at=NOW + 15)
    assert await leases[1].take("work", "x", seconds=10, now=NOW + 16) is None
    await leases[0].give_back(second, free_at=NOW + 16)
    third = await leases[1].take("work", "x", seconds=10, now=NOW + 16)
    assert third.fence == 3
    # A clock that is hours behind the holder's, or ahead: the fence says whose it is.
    assert await leases[0].still_held(third)
    assert not await leases[0].still_held(second)
    fourth = await leases[0].take("work", "late", seconds=10, now=NOW - 3600)
    assert fourth.fence == 4
    assert not await leases[1].still_held(third)
    assert await leases[1].take("work", "x", seconds=10, now=NOW - 3600 - 40) is None
    # A holder that took it again is not held to what it had before.
    again = await leases[0].take("work", "late", seconds=10, now=fourth.expires_at)
    assert (again.holder, again.fence) == (fourth.holder, 5)
    assert await leases[0].renew(fourth, seconds=99, now=NOW) is None
    assert not await leases[0].still_held(fourth)


async def test_the_whole_way_of_a_kick(replica, other, ivs):
    await replica.issue("p1")
    await other.issue("p2")
    ivs.join(STAGE, "p2", "alice")
    made = await replica.revocations.disconnect(
        DisconnectAsk.of_user(STAGE, "alice", ban=0), caller_id=None
    )
    await other.work(rounds=3)
    progress = await replica.revocations.progress(made.disconnect_id)
    assert {p.target_id: p.state for p in progress.participants} == {
        "p1": "pending",
        "p2": "disconnected",
    }
    replica.time.now = NOW + 3600
    await other.bans.refresh()
    await other.work(rounds=3)
    assert (await replica.revocations.progress(made.disconnect_id)).done
    replica.time.now += 3601
    await replica.revocations.tidy()
    assert await replica.calls.due_calls(REGION, replica.time.now, 10) == []
