"""A ban stops the mint: on this replica before the answer, on the others within a second."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import update
from structlog.testing import capture_logs

from tests.revocation.support import NOW, OTHER_STAGE, STAGE
from tokensvc.errors import BannedError, NotFoundError, StoreUnavailableError
from tokensvc.ledger import idempotency_ref
from tokensvc.revocation import Ban, BanList, DisconnectAsk
from tokensvc.revocation.ban_store import TOMBSTONE_SECONDS, add_ban
from tokensvc.revocation.bans import BanChanges
from tokensvc.store.tables import bans as bans_table
from tokensvc.store.tables import feeds

STAGE_TEXT = str(STAGE)


def admitted(replica, user_id="alice", stage=STAGE, participant_id=None) -> bool:
    try:
        replica.bans.admit(str(stage), user_id, participant_id)
    except BannedError:
        return False
    return True


async def test_each_kind_of_ban_keeps_out_whom_it_means_and_nobody_else(replica):
    ban = replica.revocations.ban
    await ban(stage_arn=STAGE_TEXT, user_id="alice", caller_id=None)
    assert not admitted(replica)
    assert admitted(replica, "bob")
    assert admitted(replica, stage=OTHER_STAGE)
    assert admitted(replica, None)
    await ban(user_id="bob", caller_id=None)
    assert not admitted(replica, "bob", OTHER_STAGE)
    assert admitted(replica, None, OTHER_STAGE)
    await ban(participant_id="p1", caller_id=None)
    assert not admitted(replica, "carol", participant_id="p1")
    assert admitted(replica, "carol", participant_id="p2")
    await ban(stage_arn=str(OTHER_STAGE), caller_id=None)
    assert not admitted(replica, None, OTHER_STAGE)
    assert admitted(replica, None)


@pytest.mark.parametrize(
    "subject",
    [
        {},
        {"stage_arn": STAGE_TEXT, "participant_id": "p1"},
        {"user_id": "a", "participant_id": "b"},
    ],
)
async def test_a_ban_of_nobody_or_of_a_mixture_is_refused(replica, subject):
    with pytest.raises(ValueError, match="a ban is of"):
        await replica.revocations.ban(**subject, caller_id=None)


async def test_the_refusal_names_the_ban_and_its_end(replica):
    made = await replica.revocations.ban(user_id="alice", until=NOW + 60, caller_id=None)
    with pytest.raises(BannedError) as refused:
        replica.bans.admit(STAGE_TEXT, "alice")
    assert made.ban_id in refused.value.detail
    assert "2027-01-15T08:01:00+00:00" in refused.value.detail
    assert (refused.value.ban_id, refused.value.until) == (made.ban_id, NOW + 60)


async def test_of_two_bans_the_longer_one_is_named_and_its_end_is_exact(replica, time):
    await replica.revocations.ban(user_id="alice", until=NOW + 60, caller_id=None)
    longer = await replica.revocations.ban(stage_arn=STAGE_TEXT, until=NOW + 90, caller_id=None)
    assert replica.bans.check(STAGE_TEXT, "alice", None, NOW) == longer
    time.now = NOW + 89.9
    await replica.bans.refresh()
    assert not admitted(replica)
    time.now = NOW + 90
    assert admitted(replica)


async def test_another_replica_learns_of_bans_and_lifts_with_its_next_refresh(replica, other):
    made = await replica.revocations.ban(user_id="alice", caller_id=None)
    assert admitted(other)
    await other.bans.refresh()
    assert not admitted(other)
    await other.revocations.lift(made.ban_id)
    assert admitted(other)
    assert not admitted(replica)
    await replica.bans.refresh()
    assert admitted(replica)
    assert (await replica.ban_store.get(made.ban_id)).lifted_at == NOW


async def test_the_other_processes_of_the_replica_are_told_before_a_ban_is_answered(replica):
    ref = idempotency_ref("backend", "bans", "key", b"")
    for _ in range(2):
        await replica.revocations.ban(user_id="alice", caller_id=None, ref=ref)
    ask = DisconnectAsk.of_user(STAGE, "bob", ban=60)
    kicked = idempotency_ref("backend", "disconnects", "key", b"")
    for _ in range(2):
        await replica.revocations.disconnect(ask, caller_id=None, ref=kicked)
    assert replica.told == [1, 1, 2, 2]
    await replica.revocations.disconnect(DisconnectAsk.of_stage(STAGE), caller_id=None)
    assert len(replica.told) == 4


async def test_a_lift_is_repeatable_and_an_unknown_ban_is_not_found(replica, time):
    made = await replica.revocations.ban(user_id="alice", caller_id=None)
    await replica.revocations.lift(made.ban_id)
    time.now += 5
    assert (await replica.revocations.lift(made.ban_id)).lifted_at == NOW
    with pytest.raises(NotFoundError):
        await replica.revocations.lift("ban-unknown")


async def test_nobody_is_admitted_before_the_first_read_nor_long_after_the_last(replica, time):
    fresh = BanList(replica.ban_store, time)
    with pytest.raises(StoreUnavailableError):
        fresh.admit(STAGE_TEXT, "alice")
    await fresh.refresh()
    time.now += 10
    fresh.admit(STAGE_TEXT, "alice")
    time.now += 0.1
    with pytest.raises(StoreUnavailableError) as refused:
        fresh.admit(STAGE_TEXT, "alice")
    assert refused.value.retry_after == 1.0
    assert fresh.age() == pytest.approx(10.1)


async def test_a_restarted_replica_knows_every_ban_before_its_first_mint(replica, make_replica):
    def add_many(connection):
        for number in range(1100):
            ban = Ban(f"b{number}", "user", None, f"user{number}", None, None, "", None, NOW)
            add_ban(connection, ban)

    await replica.transactions.run("add bans", add_many)
    restarted = await make_replica()
    assert len(restarted.bans) == 1100
    assert not admitted(restarted, "user0")
    assert not admitted(restarted, "user1099")


async def test_a_database_that_went_back_is_read_anew(replica, time):
    kept = await replica.revocations.ban(user_id="alice", caller_id=None)
    gone = await replica.revocations.ban(user_id="bob", caller_id=None)
    await replica.bans.refresh()
    async with replica.ledger._engine.begin() as connection:  # a backup is restored
        await connection.execute(update(feeds).where(feeds.c.name == "bans").values(version=1))
        await connection.execute(bans_table.delete().where(bans_table.c.ban_id == gone.ban_id))
    with capture_logs() as logs:
        await replica.bans.refresh()
    assert logs[0]["event"] == "bans_went_back"
    assert admitted(replica, "bob")
    assert replica.bans.check(None, "alice", None, NOW) == kept


class SlowSource:
    """Bans whose reading waits until the test lets it go on."""

    def __init__(self) -> None:
        self.versions = [5, 1]
        self.go_on = asyncio.Event()

    async def version(self) -> int:
        return self.versions.pop(0)

    async def changes(self, after: int) -> BanChanges:
        if not self.versions:
            await self.go_on.wait()
        return BanChanges((), after, complete=True)


async def test_a_clock_that_was_ahead_and_is_set_back_has_forgotten_no_ban(replica, time):
    await replica.revocations.ban(user_id="alice", until=NOW + 3600, caller_id=None)
    await replica.revocations.ban(user_id="bob", until=NOW + 60, caller_id=None)
    time.now = NOW + 7200
    await replica.bans.refresh()
    assert admitted(replica), "by this clock the ban is over"
    time.now = NOW + 120
    with capture_logs() as logs:
        for _ in range(3):
            await replica.bans.refresh()
    assert not admitted(replica)
    assert admitted(replica, "bob"), "it ended by this clock, too"
    assert [entry["event"] for entry in logs] == ["clock_set_back"], "read anew once"


async def test_a_clock_that_is_set_back_does_not_make_an_old_list_young(replica, time):
    time.now = NOW - 3600
    with pytest.raises(StoreUnavailableError):
        replica.bans.admit(STAGE_TEXT, "alice")
    await replica.bans.refresh()
    assert admitted(replica)


async def test_a_ban_that_is_answered_while_all_are_read_anew_is_not_lost(time):
    source = SlowSource()
    bans = BanList(source, time)
    await bans.refresh()
    reading = asyncio.create_task(bans.refresh())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bans.apply([Ban("b", "user", None, "alice", None, None, "", None, NOW, version=2)])
    source.go_on.set()
    await reading
    assert bans.check(None, "alice", None, NOW) is not None


async def test_a_ban_whose_end_is_damaged_goes_on_and_is_logged(replica, make_replica):
    await replica.revocations.ban(user_id="alice", until=NOW + 60, caller_id=None)
    async with replica.ledger._engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE bans SET until = 'x', kind = 'y'")
    with capture_logs() as logs:
        restarted = await make_replica()
    assert not admitted(restarted)
    assert {log["column"] for log in logs if log["event"] == "ban_damaged"} == {"until", "kind"}


@pytest.mark.parametrize("column", ["lifted_at", "version", "created_at", "until"])
async def test_a_damaged_ban_goes_on_and_hides_no_other(replica, make_replica, column):
    made = await replica.revocations.ban(user_id="alice", until=NOW + 60, caller_id=None)
    async with replica.ledger._engine.begin() as connection:
        await connection.exec_driver_sql(f"UPDATE bans SET {column} = 'x'")
    await replica.revocations.ban(user_id="bob", caller_id=None)
    restarted = await make_replica()
    await restarted.bans.refresh()
    assert not admitted(restarted)
    assert not admitted(restarted, "bob")
    assert (await restarted.revocations.find_ban(made.ban_id)).lifted_at is None


async def test_the_list_of_standing_bans_leaves_out_what_is_over(replica, time):
    await replica.revocations.ban(user_id="a", until=NOW + 1, caller_id=None)
    lifted = await replica.revocations.ban(user_id="b", caller_id=None)
    await replica.revocations.lift(lifted.ban_id)
    standing = [
        await replica.revocations.ban(stage_arn=STAGE_TEXT, user_id=user, caller_id=None)
        for user in "cde"
    ]
    time.now += 1
    found = await replica.ban_store.standing(limit=2)
    found += await replica.ban_store.standing(after=found[-1].ban_id)
    assert sorted(ban.ban_id for ban in found) == sorted(ban.ban_id for ban in standing)
    assert [b.user_id for b in await replica.ban_store.standing(user_id="c")] == ["c"]
    assert len(await replica.ban_store.standing(stage_arn=STAGE_TEXT)) == 3


async def test_what_is_over_for_a_day_is_deleted_and_forgotten(replica, time):
    await replica.revocations.ban(user_id="a", until=NOW + 1, caller_id=None)
    kept = await replica.revocations.ban(user_id="b", caller_id=None)
    lifted = await replica.revocations.ban(user_id="c", caller_id=None)
    await replica.revocations.lift(lifted.ban_id)
    time.now += TOMBSTONE_SECONDS + 0.5
    await replica.revocations.tidy()
    assert len((await replica.ban_store.changes(0)).bans) == 2
    time.now += 1
    await replica.revocations.tidy()
    await replica.bans.refresh()
    assert [ban.ban_id for ban in (await replica.ban_store.changes(0)).bans] == [kept.ban_id]
    assert len(replica.bans) == 1


async def test_the_loop_goes_on_after_a_fault_and_logs_it_once(time):
    outcomes = [OSError("x"), StoreUnavailableError("y"), None, None]

    class Source:
        async def version(self) -> int:
            outcome = outcomes.pop(0)
            if outcome is not None:
                raise outcome
            return 0

        async def changes(self, after: int) -> BanChanges:
            return BanChanges((), after, complete=True)

    class StopError(BaseException):
        pass

    bans = BanList(Source(), time)
    pauses = 0

    async def sleep(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses > 4:
            raise StopError

    with capture_logs() as logs, pytest.raises(StopError):
        await bans.run(sleep)
    assert [log["event"] for log in logs] == ["bans_not_refreshed", "bans_refreshed_again"]
    bans.admit(STAGE_TEXT, "alice")


stages, users, people = st.sampled_from(["s1", "s2"]), st.sampled_from(["u1", "u2"]), st.just("p1")
SUBJECTS = st.one_of(
    st.tuples(stages, users, st.none()),
    st.tuples(st.none(), users, st.none()),
    st.tuples(st.none(), st.none(), people),
    st.tuples(stages, st.none(), st.none()),
)


@st.composite
def histories(draw):
    """Bans and lifts in the order of their versions, and in the order in which they are applied."""
    states: list[Ban] = []
    for version in range(1, draw(st.integers(1, 12)) + 1):
        standing = [s for s in states if s.lifted_at is None]
        if standing and draw(st.booleans()):
            lifted = draw(st.sampled_from(standing))
            states.append(replace(lifted, version=version, lifted_at=0.0))
        else:
            subject = draw(SUBJECTS)
            until = draw(st.one_of(st.none(), st.floats(0, 100)))
            states.append(Ban(f"b{version}", "user", *subject, until, "", None, 0.0, version))
    return states, draw(st.permutations(states))


@given(histories(), st.floats(0, 100))
def test_in_whatever_order_changes_come_the_list_says_what_a_slow_reader_would(history, now):
    states, order = history
    bans = BanList(SlowSource(), lambda: now)
    for state in order:
        bans.apply([state])
    last = {state.ban_id: state for state in states}
    assert len(bans) == sum(ban.lifted_at is None for ban in last.values())
    for stage in ("s1", "s2"):
        for user in ("u1", "u2", None):
            for participant in ("p1", None):
                stands = any(
                    ban.holds(now)
                    and ban.stage_arn in (None, stage)
                    and ban.user_id in (None, user)
                    and ban.participant_id in (None, participant)
                    for ban in last.values()
                )
                assert (bans.check(stage, user, participant, now) is not None) == stands


def test_a_stage_whose_last_ban_is_lifted_takes_no_room():
    bans = BanList(NoBans(), lambda: NOW)
    standing = [
        Ban(f"b{n}", "user_on_stage", STAGE_TEXT, f"u{n}", None, None, "", None, NOW, version=n + 1)
        for n in range(2)
    ]
    bans.apply(standing)
    for lifted, left in ((standing[0], 1), (standing[1], 0)):
        bans.apply([replace(lifted, lifted_at=NOW, version=9)])
        assert len(bans) == left
        assert len(bans._on_stage) == left


async def test_the_age_of_the_list_counts_from_the_question_and_not_from_the_answer(time):
    class Slow:
        async def version(self) -> int:
            time.now += 8
            return 0

        async def changes(self, after: int) -> BanChanges:
            return BanChanges((), after, complete=True)

    bans = BanList(Slow(), time)
    await bans.refresh()
    assert bans.age() == 8


SOME = st.sampled_from([None, "alice", "bob"])


@st.composite
def some_bans(draw):
    """Bans of every kind, some of which have ended."""
    subjects = st.sampled_from(
        [
            ("stage", STAGE_TEXT, None, None),
            ("user", None, "alice", None),
            ("user_on_stage", STAGE_TEXT, "bob", None),
            ("user_on_stage", str(OTHER_STAGE), "alice", None),
            ("participant", None, None, "p1"),
        ]
    )
    drawn = draw(st.lists(st.tuples(subjects, st.sampled_from([None, NOW - 1, NOW + 1]))))
    return [
        Ban(f"b{n}", *subject, until, "", None, NOW, version=n + 1)
        for n, (subject, until) in enumerate(drawn)
    ]


@given(some_bans(), st.lists(st.tuples(SOME, st.sampled_from(["p0", "p1"])), max_size=6))
async def test_many_are_let_pass_where_each_is(bans, users):
    sut = BanList(NoBans(), lambda: NOW)
    with pytest.raises(StoreUnavailableError):
        sut.admits_all(STAGE_TEXT, ["alice"])
    await sut.refresh()
    sut.apply(bans)
    user_ids = [user_id for user_id, _ in users]
    participant_ids = [participant_id for _, participant_id in users]

    def alone(user_id, participant_id=None) -> bool:
        return sut.check(STAGE_TEXT, user_id, participant_id, NOW) is None

    if sut.admits_all(STAGE_TEXT, user_ids):
        assert all(alone(user_id) for user_id in user_ids)
    else:
        # One that has ended may still be known, which then is asked for by itself.
        assert bans
        assert any(ban.until == NOW - 1 for ban in bans) or not all(map(alone, user_ids or [None]))
    if sut.admits_all(STAGE_TEXT, user_ids, participant_ids):
        assert all(alone(*one) for one in users)


class NoBans:
    async def version(self) -> int:
        return 0

    async def changes(self, after: int) -> BanChanges:
        return BanChanges((), after, True)


async def test_nobody_passes_a_list_that_is_too_old(time):
    sut = BanList(NoBans(), time)
    await sut.refresh()
    assert sut.admits_all(STAGE_TEXT, ["alice"])
    time.now += 10.1
    with pytest.raises(StoreUnavailableError):
        sut.admits_all(STAGE_TEXT, ["alice"])
