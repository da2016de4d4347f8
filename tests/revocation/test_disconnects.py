"""A kick is stored before it is answered, and made until IVS has taken it, at IVS's pace."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import pairwise

import pytest
from sqlalchemy import select, text
from structlog.testing import capture_logs

from tests.revocation.support import NOW, OTHER_STAGE, REGION, STAGE
from tokensvc.errors import (
    BannedError,
    IdempotencyConflictError,
    InvalidRequestError,
    IvsAccessDeniedError,
    IvsNotFoundError,
    IvsRejectedError,
    NotFoundError,
    StoreUnavailableError,
)
from tokensvc.ledger import idempotency_ref
from tokensvc.revocation import DisconnectAsk
from tokensvc.revocation.sweeper import SETTLE_SECONDS
from tokensvc.revocation.worker import (
    HANDOVER_SECONDS,
    IDLE_SECONDS,
    LEASE_SECONDS,
    REPAIR_SECONDS,
)
from tokensvc.store.tables import disconnect_calls, disconnect_members, disconnects

ASK_ALICE = DisconnectAsk.of_user(STAGE, "alice")


async def kick(replica, ask, **options):
    return await replica.revocations.disconnect(ask, caller_id="backend", **options)


async def states(replica, accepted) -> dict[str, str]:
    progress = await replica.revocations.progress(accepted.disconnect_id, limit=1000)
    return {one.target_id: one.state for one in progress.participants}


async def test_a_connected_participant_is_disconnected_and_its_tokens_say_so(replica, ivs):
    await replica.issue("p1")
    ivs.join(STAGE, "p1", "alice")
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1", reason="spam"))
    assert replica.woken == [REGION]
    before = await replica.revocations.progress(accepted.disconnect_id)
    assert (before.done, before.counts) == (False, {"pending": 1})
    await replica.work()
    after = await replica.revocations.progress(accepted.disconnect_id)
    assert (after.done, after.counts, after.expected_completion) == (
        True,
        {"disconnected": 1},
        None,
    )
    assert after.participants[0].attempts == 1
    assert not ivs.connected
    assert (await replica.ledger.latest("p1")).disconnected_at is not None


async def test_a_participant_that_no_ledger_knows_is_disconnected_too(replica, ivs):
    ivs.join(STAGE, "foreign")
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "foreign"))
    await replica.work()
    assert await states(replica, accepted) == {"foreign": "disconnected"}


async def test_a_user_means_living_tokens_and_who_is_connected_under_that_id(replica, ivs):
    await replica.issue("living")
    await replica.issue("short", ttl=60)
    await replica.issue("bob's", "bob")
    await replica.issue("elsewhere", stage=OTHER_STAGE)
    ivs.join(STAGE, "short", "alice")
    ivs.join(STAGE, "unknown", "alice")
    ivs.join(STAGE, "bob's", "bob")
    replica.time.now += 120
    accepted = await kick(replica, ASK_ALICE)
    await replica.work()
    assert await states(replica, accepted) == {
        "living": "not_connected",
        "short": "disconnected",
        "unknown": "disconnected",
    }
    assert {p for _, p in ivs.connected} == {"bob's"}


async def test_everybody_on_a_stage_connected_ones_first(replica, ivs):
    for number in range(30):
        await replica.issue(f"p{number:02d}", f"user{number}")
    for number in (7, 19, 28):
        ivs.join(STAGE, f"p{number:02d}", f"user{number}")
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE))
    assert accepted.expected_completion == pytest.approx(NOW + 30 * 0.205)
    await replica.work(rounds=5)
    assert set(ivs.calls_of("DisconnectParticipant")[:3]) == {"p07", "p19", "p28"}
    progress = await replica.revocations.progress(accepted.disconnect_id)
    assert progress.counts == {"disconnected": 3, "not_connected": 27}
    assert len(ivs.calls) == 30
    assert ivs.busiest_second() <= 5


async def test_every_token_of_a_key_whatever_its_kind(replica, ivs):
    await replica.issue("p1")
    await replica.issue("p2", "bob", OTHER_STAGE)
    await replica.issue_connection_token("c1")
    ivs.join(STAGE, "p1", "alice")
    ivs.join(OTHER_STAGE, "p2", "bob")
    accepted = await kick(replica, DisconnectAsk.of_key(REGION, "k1"))
    await replica.work()
    assert await states(replica, accepted) == dict.fromkeys(("p1", "p2", "c1"), "disconnected")
    assert ivs.calls_of("RevokeConnectionToken") == ["c1"]


async def test_a_ban_that_comes_with_a_kick_holds_when_the_kick_is_answered(replica):
    for ask in (
        DisconnectAsk.of_user(STAGE, "alice", ban=60),
        DisconnectAsk.of_participant(STAGE, "p1", ban=60),
        DisconnectAsk.of_stage(OTHER_STAGE, ban=0),
    ):
        accepted = await kick(replica, ask)
        stored = await replica.ban_store.get(accepted.ban_id)
        assert stored.until == (NOW + 60 if ask.ban else None)
    for user, stage, token in (
        ("alice", STAGE, "p0"),
        ("bob", STAGE, "p1"),
        ("x", OTHER_STAGE, "p2"),
    ):
        with pytest.raises(BannedError):
            await replica.issue(token, user, stage)


async def test_whom_ivs_lists_late_as_connected_is_not_called_again(replica, ivs):
    ivs.join(STAGE, "p1", "alice")
    listed = dict(ivs.connected)
    accepted = await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=0))
    await replica.work(rounds=2)
    ivs.connected.update(listed)
    replica.time.now += SETTLE_SECONDS
    await replica.work(rounds=2)
    assert ivs.lists == 2
    assert ivs.calls_of("DisconnectParticipant") == ["p1"]
    assert await states(replica, accepted) == {"p1": "disconnected"}


async def test_two_requests_for_one_participant_share_one_call(replica, ivs):
    await replica.issue("p1")
    ivs.join(STAGE, "p1", "alice")
    asks = [DisconnectAsk.of_participant(STAGE, "p1"), ASK_ALICE, DisconnectAsk.of_stage(STAGE)]
    accepted = [await kick(replica, ask) for ask in asks]
    await replica.work(rounds=3)
    assert ivs.calls_of("DisconnectParticipant") == ["p1"]
    for one in accepted:
        assert await states(replica, one) == {"p1": "disconnected"}


async def test_what_fails_is_tried_again_with_growing_pauses_until_ivs_takes_it(replica, ivs):
    await replica.issue("p1")
    ivs.join(STAGE, "p1", "alice")
    ivs.faults.extend(["down", "throttled", "broken", "lost"])
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    await replica.work(rounds=60)
    assert await states(replica, accepted) == {"p1": "disconnected"}
    moments = [moment for moment, _, _ in ivs.calls]
    assert len(moments) == 5
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert all(
        lowest <= pause <= highest + 1.1
        for pause, lowest, highest in zip(pauses, (0.5, 1, 2, 4), (1, 2, 4, 8), strict=True)
    )


async def test_after_a_throttled_call_the_quota_is_given_time_to_fill(replica, ivs):
    for number in range(3):
        ivs.join(STAGE, f"p{number}")
        await kick(replica, DisconnectAsk.of_participant(STAGE, f"p{number}"))
    ivs.faults.append("throttled")
    await replica.work()
    first, second, third = (moment for moment, _, _ in ivs.calls[:3])
    assert second - first >= 1.0, "what IVS asked for, for everybody"
    assert third - second < 1.0


async def test_other_calls_go_on_while_one_fails(replica, ivs):
    for name in ("p1", "p2", "p3"):
        await replica.issue(name)
        ivs.join(STAGE, name, "alice")
    ivs.faults.extend(["broken"])
    await kick(replica, ASK_ALICE)
    await replica.work()
    assert len(ivs.revoked) == 2


async def test_a_call_that_ivs_refuses_for_good_is_not_repeated(replica, ivs, monkeypatch):
    async def refuse(*_: object, **__: object) -> None:
        raise IvsRejectedError("no")

    monkeypatch.setattr(ivs, "disconnect_participant", refuse)
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    await replica.work(rounds=10)
    progress = await replica.revocations.progress(accepted.disconnect_id)
    assert [(p.state, p.attempts, p.last_error) for p in progress.participants] == [
        ("failed", 1, "ivs_rejected")
    ]


async def test_not_connected_ends_it_where_no_ban_stands(replica, ivs):
    await replica.issue("p1")
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    await replica.work()
    assert await states(replica, accepted) == {"p1": "not_connected"}
    assert (await replica.ledger.latest("p1")).disconnected_at is None


async def test_where_a_ban_stands_who_comes_later_with_a_living_token_is_caught(replica, ivs):
    await replica.issue("p1")
    accepted = await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=0))
    await replica.work(rounds=30)
    progress = await replica.revocations.progress(accepted.disconnect_id)
    assert progress.participants[0].last_error == "not_connected"
    assert progress.expected_completion == NOW + 3600
    ivs.join(STAGE, "p1", "alice")
    replica.time.now += 60
    await replica.work()
    assert await states(replica, accepted) == {"p1": "disconnected"}


async def test_once_the_ban_is_lifted_not_connected_ends_it(replica, ivs):
    await replica.issue("p1")
    accepted = await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=600))
    await replica.work(rounds=2)
    await replica.revocations.lift(accepted.ban_id)
    replica.time.now += 60
    await replica.work()
    assert await states(replica, accepted) == {"p1": "not_connected"}


async def test_when_its_token_has_expired_a_last_call_tells_that_nobody_came(replica, ivs):
    await replica.issue("p1", ttl=100)
    accepted = await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=0))
    await replica.work(rounds=2)
    replica.time.now = NOW + 99
    await replica.work()
    made = len(ivs.calls)
    replica.time.now = NOW + 100
    await replica.work()
    assert await states(replica, accepted) == {"p1": "expired"}
    await replica.work(rounds=5)
    assert len(ivs.calls) == made + 1


async def test_who_joined_just_before_the_token_expired_is_caught_by_the_last_call(replica, ivs):
    await replica.issue("p1", ttl=100)
    accepted = await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=0))
    await replica.work(rounds=2)
    ivs.join(STAGE, "p1", "alice")
    replica.time.now = NOW + 100
    await replica.work()
    assert await states(replica, accepted) == {"p1": "disconnected"}


async def test_of_a_full_stage_what_expires_in_the_queue_costs_no_call(replica, ivs):
    for number in range(60):
        await replica.issue(f"p{number}", f"user{number}", ttl=60)
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.work(rounds=2)
    replica.time.now = NOW + 60
    await replica.work(rounds=6)
    progress = await replica.revocations.progress(accepted.disconnect_id)
    assert progress.counts == {"not_connected": 20, "expired": 40}
    assert len(ivs.calls) == 20


async def test_who_joined_between_two_looks_just_before_the_token_expired_is_caught(replica, ivs):
    for number in range(60):
        await replica.issue(f"p{number}", f"user{number}", ttl=60)
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE, ban=0))
    await replica.work(rounds=2)
    replica.time.now = NOW + 45
    await replica.worker.keep_lease()
    await replica.worker.sweep()
    ivs.join(STAGE, "p59", "user59")
    replica.time.now = NOW + 60
    await replica.worker.keep_lease()
    while await replica.worker.call():
        pass
    assert (await states(replica, accepted))["p59"] == "expired"
    replica.time.now = NOW + 80
    await replica.work(rounds=2)
    assert ivs.revoked == {"p59"}
    progress = await replica.revocations.progress(accepted.disconnect_id)
    assert progress.done
    assert progress.counts == {"expired": 59, "disconnected": 1}


async def test_who_joins_while_a_full_stage_is_being_cleared_goes_first(replica, ivs):
    for number in range(300):
        await replica.issue(f"p{number}", f"user{number}")
    await kick(replica, DisconnectAsk.of_stage(STAGE, ban=0))
    await replica.work(rounds=2)
    replica.time.now += SETTLE_SECONDS
    await replica.work()
    ivs.join(STAGE, "p299", "user299")
    replica.time.now += 30
    await replica.bans.refresh()
    await replica.work()
    assert "p299" in ivs.revoked
    assert len(ivs.calls) < 50


async def test_a_call_that_keeps_failing_is_given_up_a_day_after_the_token_s_expiry(replica, ivs):
    await replica.issue("p1", ttl=60)
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    ivs.faults.extend(["down"] * 100)
    await replica.work()
    replica.time.now = NOW + 60 + 86_399
    await replica.work()
    assert await states(replica, accepted) == {"p1": "pending"}
    replica.time.now += 60
    await replica.work()
    assert await states(replica, accepted) == {"p1": "expired"}
    assert len(ivs.calls) == 2


async def test_who_may_be_connected_is_tried_beyond_the_token_s_expiry(replica, ivs):
    await replica.issue("p1", ttl=60)
    ivs.join(STAGE, "p1", "alice")
    ivs.faults.extend(["down"] * 8)
    accepted = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    for _ in range(12):
        await replica.work()
        replica.time.now += 60
    assert await states(replica, accepted) == {"p1": "disconnected"}


async def test_while_ivs_lists_nobody_what_was_issued_is_called_and_listing_is_retried(
    replica, ivs
):
    await replica.issue("p1")
    ivs.join(STAGE, "p1", "alice")
    ivs.join(STAGE, "unknown", "alice")
    ivs.faults.extend(["unlisted"])
    accepted = await kick(replica, ASK_ALICE)
    await replica.work()
    assert await states(replica, accepted) == {"p1": "disconnected"}
    await replica.work(rounds=5)
    assert (await states(replica, accepted))["unknown"] == "disconnected"
    assert (await replica.revocations.progress(accepted.disconnect_id)).done


@pytest.mark.parametrize(
    "ask",
    [ASK_ALICE, DisconnectAsk.of_stage(STAGE), DisconnectAsk.of_participant(STAGE, "p1")],
    ids=["user", "stage", "participant"],
)
async def test_whom_ivs_lists_is_called_however_long_ago_the_token_expired(replica, ivs, ask):
    await replica.issue("p1", ttl=60)
    ivs.join(STAGE, "p1", "alice")
    replica.time.now += 60 + 86_400
    accepted = await kick(replica, ask)
    ivs.faults.append("down")
    await replica.work(rounds=5)
    assert await states(replica, accepted) == {"p1": "disconnected"}


async def test_who_comes_back_after_a_kick_without_a_ban_is_left_alone(replica, ivs):
    await kick(replica, ASK_ALICE)
    replica.time.now += 5  # no worker was there at once
    await replica.issue("again")
    ivs.join(STAGE, "again", "alice")
    await replica.work(rounds=3)
    assert ivs.calls == []


async def test_who_comes_back_to_a_stage_that_is_still_being_cleared_is_left_alone(replica, ivs):
    for number in range(60):
        await replica.issue(f"p{number}", f"user{number}")
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.work()
    await replica.issue("again", "user0", backdate=5)
    ivs.join(STAGE, "again", "user0")
    replica.time.now += 30
    await replica.work(rounds=8)
    replica.time.now += 30
    await replica.work(rounds=2)
    assert (await replica.revocations.progress(accepted.disconnect_id)).done
    assert ivs.lists > 1
    assert "again" not in ivs.revoked


async def test_a_token_that_was_being_issued_elsewhere_when_the_ban_came_is_found(
    replica, other, ivs
):
    accepted = await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=0))
    await replica.work()
    await other.issue("late")  # has not refreshed since
    ivs.join(STAGE, "late", "alice")
    replica.time.now += SETTLE_SECONDS
    await replica.bans.refresh()
    await replica.work()
    assert await states(replica, accepted) == {"late": "disconnected"}
    assert (await replica.revocations.progress(accepted.disconnect_id)).done


async def test_a_connection_token_is_revoked_and_an_unknown_one_not_found(replica, ivs):
    await replica.issue_connection_token("c1")
    ivs.faults.extend(["lost"])
    accepted = await replica.revoke_connection_token("c1")
    await replica.work(rounds=5)
    assert await states(replica, accepted) == {"c1": "disconnected"}
    assert ivs.calls_of("RevokeConnectionToken") == ["c1", "c1"]
    assert (await replica.ledger.latest("c1")).disconnected_at is not None
    await replica.issue("p1")
    for unknown in ("c2", "p1"):
        with pytest.raises(NotFoundError):
            await replica.revoke_connection_token(unknown)


async def test_two_workers_never_double_the_rate(replica, other, ivs):
    for number in range(40):
        await replica.issue(f"p{number}", f"user{number}")
    await kick(replica, DisconnectAsk.of_stage(STAGE))
    for _ in range(4):
        await asyncio.gather(replica.work(), other.work())
    assert len(ivs.calls) == 40
    assert ivs.busiest_second() <= 5


async def test_after_a_crash_the_next_worker_goes_on_when_the_lease_is_over(replica, other, ivs):
    for number in range(8):
        await replica.issue(f"p{number}", f"user{number}")
        ivs.join(STAGE, f"p{number}", f"user{number}")
    await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.worker.keep_lease()
    await replica.worker.sweep()
    working = asyncio.create_task(replica.worker.call())
    ivs.on_call = lambda: len(ivs.calls) == 3 and working.cancel()  # killed in mid-round
    with pytest.raises(asyncio.CancelledError):
        await working
    ivs.on_call = lambda: None
    await other.work(rounds=3)
    assert len(ivs.calls) == 3
    other.time.now += LEASE_SECONDS
    await other.work(rounds=3)
    assert len(ivs.revoked) == 8
    assert ivs.busiest_second() <= 5


async def test_a_holder_that_was_suspended_does_not_work_on(replica, other, ivs):
    ivs.join(STAGE, "p1")
    await replica.work()
    await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    replica.time.now += LEASE_SECONDS
    await other.worker.keep_lease()
    assert await replica.worker.call() is False
    await replica.worker.keep_lease()
    assert await replica.worker.call() is False
    assert ivs.calls == []
    await other.worker.call()
    assert len(ivs.calls) == 1


async def test_a_holder_whose_clock_was_set_back_does_not_double_the_rate(replica, other, ivs):
    for number in range(20):
        ivs.join(STAGE, f"p{number}")
    await replica.work()
    await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.worker.sweep()
    replica.clock_ahead = -3600.0
    await replica.worker.keep_lease()
    await other.worker.keep_lease()
    replica.time.now += HANDOVER_SECONDS
    # By its own clock the first one's lease is far from over, and it has not looked again yet.
    await asyncio.gather(replica.worker.call(), other.worker.call(), replica.worker.call())
    assert ivs.busiest_second() <= 5
    assert len(ivs.calls) == 10, "only the second one works"


async def test_a_lease_of_a_clock_that_was_far_ahead_stops_nobody(replica, other, ivs):
    ivs.join(STAGE, "p1")
    await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    replica.clock_ahead = 86_400.0
    await replica.worker.keep_lease()
    await other.work(rounds=3)
    assert ivs.revoked == {"p1"}
    assert await replica.worker.call() is False or len(ivs.calls) == 1


async def test_nothing_is_given_up_by_a_clock_that_is_not_believed(replica, ivs, time):
    await replica.issue("p1")
    await replica.issue("p2", "bob")
    await kick(replica, DisconnectAsk.of_user(STAGE, "alice", ban=7200))
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE))
    replica.clock_ahead, replica.clock_is_right = 30 * 86_400.0, False
    await replica.work(rounds=8)
    assert not (await replica.revocations.progress(accepted.disconnect_id)).done
    # Put right, it goes on at once, and not in a month.
    replica.clock_ahead, replica.clock_is_right = 0.0, True
    time.now += REPAIR_SECONDS
    ivs.first_joins |= dict.fromkeys(("p1", "p2"), NOW)
    with capture_logs() as logs:
        await replica.work(rounds=60)
    assert ivs.revoked == {"p1", "p2"}
    assert "disconnects_brought_forward" in [entry["event"] for entry in logs]


async def test_a_call_is_made_and_repeated_though_its_token_has_expired_by_a_wrong_clock(
    replica, ivs
):
    for participant in ("p1", "p2"):
        await replica.issue(participant, participant)
    ivs.join(STAGE, "p1", "p1")
    for participant in ("p1", "p2"):
        ask = DisconnectAsk.of_participant(STAGE, participant, ban=7200)
        accepted = await kick(replica, ask)
    replica.clock_ahead, replica.clock_is_right = 30 * 86_400.0, False
    await replica.work(rounds=3)
    assert ivs.revoked == {"p1"}
    (one,) = (await replica.revocations.progress(accepted.disconnect_id)).participants
    assert (one.state, one.last_error) == ("pending", "not_connected")


async def test_a_worker_that_stops_lets_the_next_one_in_after_a_second(replica, other, ivs):
    await replica.worker.keep_lease()
    running = asyncio.create_task(replica.worker.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    stopped = replica.time.now
    other.time.now = stopped + 1.0
    ivs.join(STAGE, "p1")
    await kick(other, DisconnectAsk.of_participant(STAGE, "p1"))
    await other.work()
    assert len(ivs.calls) == 1
    assert ivs.calls[0][0] >= stopped + 2.0


async def test_the_loops_do_all_of_it_by_themselves(replica, ivs):
    await replica.issue("p1")
    ivs.join(STAGE, "p1", "alice")
    accepted = await kick(replica, ASK_ALICE)
    noted = asyncio.Event()
    settle = replica.calls.settle

    async def settle_and_tell(*args, **options) -> None:
        await settle(*args, **options)
        noted.set()

    replica.calls.settle = settle_and_tell
    running = asyncio.create_task(replica.worker.run())
    async with asyncio.timeout(20):
        await noted.wait()
    running.cancel()
    await asyncio.wait([running])
    assert await states(replica, accepted) == {"p1": "disconnected"}


async def test_whom_a_kick_means_is_called_as_soon_as_that_is_known(replica, ivs):
    await replica.issue("p1")
    ivs.join(STAGE, "p1", "alice")
    noted = asyncio.Event()
    settle = replica.calls.settle

    async def settle_and_tell(*args, **options) -> None:
        await settle(*args, **options)
        noted.set()

    async def sleep_only_for_the_pace(seconds: float) -> None:
        if seconds == IDLE_SECONDS:
            await asyncio.Event().wait()  # whoever is idle has to be woken
        await replica.time.sleep(seconds)

    replica.calls.settle = settle_and_tell
    replica.worker._times = dataclasses.replace(
        replica.worker._times, sleep=sleep_only_for_the_pace
    )
    await replica.worker.keep_lease()
    running = asyncio.create_task(replica.worker.run())
    for _ in range(20):
        await asyncio.sleep(0)
    await kick(replica, ASK_ALICE)
    replica.worker.wake()
    async with asyncio.timeout(20):
        await noted.wait()
    running.cancel()
    await asyncio.wait([running])
    assert ivs.revoked == {"p1"}


async def test_a_call_that_cannot_be_noted_as_expired_holds_up_no_other(replica, ivs):
    await replica.issue("short", "short", ttl=60)
    await replica.issue("long", "long")
    ivs.join(STAGE, "long", "long")
    await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.worker.keep_lease()
    await replica.worker.sweep()
    replica.time.now = NOW + 60
    await replica.worker.keep_lease()
    settle = replica.calls.settle

    async def settle_unless_expired(call, state, **options) -> None:
        if state == "expired":
            raise StoreUnavailableError("busy")
        await settle(call, state, **options)

    replica.calls.settle = settle_unless_expired
    with capture_logs() as logs:
        await replica.worker.call()
    assert ivs.revoked == {"long"}
    assert "disconnect_call_not_noted" in {entry["event"] for entry in logs}


async def empty_a_full_stage(replica, ivs, connected: int = 200) -> None:
    for number in range(connected):
        ivs.join(STAGE, f"p{number}", f"user{number}")
    await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.work(rounds=2)
    ivs.calls.clear()


@pytest.mark.parametrize("kind", ["participant", "user", "connection_token"])
async def test_one_who_is_asked_for_does_not_wait_behind_a_stage_that_is_being_emptied(
    replica, ivs, kind
):
    ivs.join(OTHER_STAGE, "connected", "mallory")
    await replica.issue("another", "mallory", OTHER_STAGE)
    await replica.issue_connection_token("c1")
    await empty_a_full_stage(replica, ivs)
    if kind == "participant":
        accepted = await kick(replica, DisconnectAsk.of_participant(OTHER_STAGE, "connected"))
        become = {"connected": "disconnected"}
    elif kind == "user":
        accepted = await kick(replica, DisconnectAsk.of_user(OTHER_STAGE, "mallory"))
        become = {"connected": "disconnected", "another": "not_connected"}
    else:
        accepted = await replica.revoke_connection_token("c1")
        become = {"c1": "disconnected"}
    assert accepted.expected_completion == pytest.approx(replica.time.now + 0.205)
    await replica.work()
    assert [target for _, _, target in ivs.calls][: len(become)] == list(become)
    assert await states(replica, accepted) == become


async def test_a_stage_is_emptied_while_many_are_asked_for_one_by_one(replica, ivs):
    await empty_a_full_stage(replica, ivs, connected=40)
    for number in range(200):
        await kick(replica, DisconnectAsk.of_participant(OTHER_STAGE, f"never{number}"))
    emptied = len(ivs.revoked)
    await replica.work(rounds=10)
    assert len(ivs.revoked) - emptied == 20
    assert len(ivs.calls) == 100


async def test_those_that_wait_do_not_starve_behind_a_full_stage(replica, ivs):
    await replica.issue("banned", "mallory")
    await kick(replica, DisconnectAsk.of_user(STAGE, "mallory", ban=0))
    await replica.work(rounds=2)
    waiting = len(ivs.calls_of("DisconnectParticipant"))
    for number in range(150):
        await replica.issue(f"p{number}", f"user{number}")
    await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.work(rounds=8)
    tries = ivs.calls_of("DisconnectParticipant").count("banned")
    assert tries >= waiting + 1
    assert len(ivs.calls) < 150


async def test_the_same_key_and_request_is_the_same_disconnect_on_every_replica(replica, other):
    ref = idempotency_ref("backend", "POST /v1/disconnects", "key", b"body")
    ask = DisconnectAsk.of_user(STAGE, "alice", ban=60)
    first = await kick(replica, ask, ref=ref)
    again = await kick(other, ask, ref=ref)
    assert (again.disconnect_id, again.ban_id) == (first.disconnect_id, first.ban_id)
    assert len((await replica.ban_store.changes(0)).bans) == 1
    with pytest.raises(IdempotencyConflictError):
        await kick(
            other, ask, ref=idempotency_ref("backend", "POST /v1/disconnects", "key", b"other")
        )
    replica.time.now += 3600
    renewed = await kick(replica, ask, ref=ref)
    assert renewed.disconnect_id != first.disconnect_id


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (disconnects, "created_at"),
        (disconnects, "next_sweep_at"),
        (disconnects, "sweeps"),
        (disconnects, "failed_sweeps"),
        (disconnect_calls, "exp"),
        (disconnect_calls, "attempts"),
        (disconnect_calls, "next_attempt_at"),
        (disconnect_calls, "rank"),
    ],
)
async def test_a_damaged_row_is_told_and_loses_nobody(replica, ivs, table, column):
    for participant in ("p1", "p2", "p3"):
        ivs.join(STAGE, participant, participant)
        await replica.issue(participant, participant)
    of_user, of_participant = (
        DisconnectAsk.of_user(STAGE, "p1"),
        DisconnectAsk.of_participant(STAGE, "p1"),
    )
    damaged = await kick(replica, of_user if table is disconnects else of_participant)
    garbage = text(f"UPDATE {table.name} SET {column} = 'garbage'")
    await replica.transactions.run("damage", lambda connection: connection.execute(garbage))
    await kick(replica, DisconnectAsk.of_user(STAGE, "p2"))
    await kick(replica, DisconnectAsk.of_participant(STAGE, "p3"))
    with capture_logs() as logs:
        await replica.work(rounds=6)
    assert ivs.revoked == {"p1", "p2", "p3"}
    assert {entry["event"] for entry in logs} & {
        "disconnect_damaged",
        "disconnects_brought_forward",
    }
    assert (await replica.revocations.progress(damaged.disconnect_id)).done


@pytest.mark.parametrize("column", ["kind", "iat", "exp", "disconnected_at"])
@pytest.mark.parametrize("ban", [None, 0])
async def test_a_damaged_row_of_the_ledger_keeps_nobody_on_a_stage(replica, ivs, column, ban):
    for participant in ("p1", "p2", "p3"):
        ivs.first_joins[participant] = NOW
        await replica.issue(participant, participant)
    garbage = text(f"UPDATE issued_tokens SET {column} = 'garbage' WHERE token_id <> 'p3'")
    await replica.transactions.run("damage", lambda connection: connection.execute(garbage))
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE, ban=ban))
    with capture_logs() as logs:
        await replica.work(rounds=6)
    assert ivs.revoked == {"p1", "p2", "p3"}
    assert "ledger_row_damaged" in {entry["event"] for entry in logs}
    replica.time.now += 30
    await replica.work(rounds=2)
    assert (await replica.revocations.progress(accepted.disconnect_id)).done


@pytest.mark.parametrize("column", ["kind", "iat", "exp"])
async def test_who_is_named_is_kicked_though_the_row_of_the_token_is_damaged(replica, ivs, column):
    await replica.issue("p1")
    await replica.issue_connection_token("c1")
    ivs.join(STAGE, "p1", "alice")
    garbage = text(f"UPDATE issued_tokens SET {column} = 'garbage'")
    await replica.transactions.run("damage", lambda connection: connection.execute(garbage))
    with capture_logs() as logs:
        await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
        await replica.revoke_connection_token("c1")
    assert {entry["event"] for entry in logs} == {"ledger_row_damaged"}
    await replica.work(rounds=2)
    assert ivs.revoked == {"p1", "c1"}


async def test_progress_comes_in_pages(replica, ivs):
    for number in range(7):
        await replica.issue(f"p{number}", f"user{number}")
    accepted = await kick(replica, DisconnectAsk.of_stage(STAGE))
    await replica.work()
    seen, cursor = [], None
    while True:
        page = await replica.revocations.progress(accepted.disconnect_id, cursor=cursor, limit=3)
        seen += [one.target_id for one in page.participants]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"p{number}" for number in range(7)]
    for bad in ("x", "", "-1", "9" * 19, "²"):
        with pytest.raises(InvalidRequestError):
            await replica.revocations.progress(accepted.disconnect_id, cursor=bad)
    with pytest.raises(NotFoundError):
        await replica.revocations.progress("dis-unknown")


async def test_what_is_done_is_deleted_after_its_retention_what_is_not_stays(replica, ivs):
    done = await kick(replica, DisconnectAsk.of_participant(STAGE, "p1"))
    await replica.issue("p2", ttl=100_000)
    waits = await kick(replica, DisconnectAsk.of_participant(STAGE, "p2", ban=0))
    await replica.work(rounds=3)
    replica.time.now += 3601
    await replica.revocations.tidy()
    with pytest.raises(NotFoundError):
        await replica.revocations.progress(done.disconnect_id)
    assert await states(replica, waits) == {"p2": "pending"}


async def test_a_full_stage_is_forgotten_in_slices_and_takes_no_call_of_another_with_it(
    replica, ivs, monkeypatch
):
    for number in range(25):
        await replica.issue(f"p{number}", "alice" if number < 3 else "bob", ttl=100_000)
    monkeypatch.setattr("tokensvc.revocation.disconnect_store._PURGED_CALLS_AT_ONCE", 10)
    old = await kick(replica, DisconnectAsk.of_stage(STAGE))
    replica.time.now += 10
    young = await kick(replica, ASK_ALICE)
    await replica.work(rounds=4)
    replica.time.now += 30
    await replica.work()
    slices = []
    replica.time.now = NOW + 3605
    while deleted := await replica.store.purge(NOW + 5):
        slices.append(deleted)
    assert slices == [10, 10, 5, 1]
    with pytest.raises(NotFoundError):
        await replica.revocations.progress(old.disconnect_id)
    assert set(await states(replica, young)) == {"p0", "p1", "p2"}
    replica.time.now += 3605
    await replica.revocations.tidy()
    async with replica.store._engine.connect() as connection:
        for table in (disconnects, disconnect_calls, disconnect_members):
            assert (await connection.execute(select(table))).all() == []


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: DisconnectAsk.of_participant(STAGE, "no spaces"), "participantId"),
        (lambda: DisconnectAsk.of_participant(STAGE, ""), "participantId"),
        (lambda: DisconnectAsk.of_connection_token(REGION, "x" * 65), "tokenId"),
        (lambda: DisconnectAsk.of_user(STAGE, ""), "userId"),
        (lambda: DisconnectAsk.of_user(STAGE, "u" * 129), "userId"),
        (lambda: DisconnectAsk.of_stage(STAGE, reason="r" * 129), "reason"),
        (lambda: DisconnectAsk.of_stage(STAGE, ban=-1), "ban"),
    ],
)
def test_a_request_out_of_bounds_is_refused_by_field(make, field):
    with pytest.raises(InvalidRequestError) as refused:
        make()
    assert [fault.field for fault in refused.value.errors] == [field]
    DisconnectAsk.of_user(STAGE, "u" * 128, reason="r" * 128, ban=0)


async def issued_and_joined(replica, ivs, token_id, ttl=3600):
    await replica.bans.refresh()
    await replica.issue(token_id, "alice", STAGE, ttl)
    assert ivs.join(STAGE, token_id, "alice")


async def test_who_is_let_back_in_after_a_ban_was_lifted_stays(replica, ivs):
    await issued_and_joined(replica, ivs, "old")
    ask = DisconnectAsk.of_user(STAGE, "alice", ban=3600)
    made = await replica.revocations.disconnect(ask, caller_id=None)
    await replica.work(12)
    assert ivs.revoked == {"old"}
    await replica.revocations.lift(made.ban_id)
    replica.time.now += 1
    await issued_and_joined(replica, ivs, "new")
    await replica.work(60)
    assert replica.time.now > made.expected_completion + SETTLE_SECONDS
    assert ivs.revoked == {"old"}


async def test_who_comes_after_a_short_ban_stays_though_its_kick_is_tried_again(replica, ivs):
    async def denied(*given, **named):
        raise IvsAccessDeniedError("no")

    ivs.list_participants = denied
    await issued_and_joined(replica, ivs, "old")
    await replica.revocations.disconnect(
        DisconnectAsk.of_user(STAGE, "alice", ban=60), caller_id=None
    )
    await replica.work(10)
    assert ivs.revoked == {"old"}
    replica.time.now += 600
    await issued_and_joined(replica, ivs, "new")
    await replica.work(200)
    assert ivs.revoked == {"old"}


async def test_an_answer_from_before_a_kick_does_not_end_it(replica, other, ivs):
    """The second kick shares the call of the first, which IVS was asked for before."""
    await replica.bans.refresh()
    await replica.issue("p", "alice", STAGE, 3600)
    ask = DisconnectAsk.of_participant(STAGE, "p")
    await replica.revocations.disconnect(ask, caller_id=None)
    asked_ivs, second = ivs.disconnect_participant, []

    async def slow(*given, **named):
        try:
            await asked_ivs(*given, **named)
        except IvsNotFoundError:
            if not second:
                assert ivs.join(STAGE, "p", "alice")
                second.append(await other.revocations.disconnect(ask, caller_id=None))
            raise

    ivs.disconnect_participant = slow
    await replica.work(20)
    assert len(second) == 1
    assert ivs.revoked == {"p"}


async def test_a_key_s_kick_means_those_who_stay_beyond_the_expiry_of_their_token(replica, ivs):
    await issued_and_joined(replica, ivs, "short", ttl=300)
    replica.time.now += 3600
    await replica.bans.refresh()
    await replica.revocations.disconnect(DisconnectAsk.of_key(REGION, "k1"), caller_id=None)
    await replica.work(20)
    assert ivs.revoked == {"short"}


async def test_a_lift_is_learnt_of_after_a_day_without_reading(replica, other, time):
    made = await replica.revocations.ban(user_id="alice", caller_id=None)
    await other.bans.refresh()
    await replica.revocations.lift(made.ban_id)
    time.now += 25 * 3600
    await replica.revocations.tidy()
    await replica.revocations.ban(user_id="bob", caller_id=None)
    await other.bans.refresh()
    other.bans.admit(str(STAGE), "alice")
    with pytest.raises(BannedError):
        other.bans.admit(str(STAGE), "bob")
