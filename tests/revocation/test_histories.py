"""Kicks, bans, mints, joins, crashes and faults in any order, on two replicas over one database.

After every step: no token was handed out against a ban that was answered (on the same replica at
once, on another after its next refresh), and no second saw more than five calls. In the end, once IVS
answers again: nothing that was asked is left undone, nobody who was to be kicked is connected, nobody
who is banned is.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.revocation.support import OTHER_STAGE, STAGE, IvsModel, Replica, VirtualTime
from tokensvc.errors import BannedError
from tokensvc.revocation import DisconnectAsk
from tokensvc.revocation.worker import LEASE_SECONDS
from tokensvc.store import open_engine, upgrade
from tokensvc.tokens.arn import StageArn

T = TypeVar("T")

USERS = st.sampled_from(["alice", "bob"])
STAGES = st.sampled_from([STAGE, OTHER_STAGE])
REPLICAS = st.integers(0, 1)
FAULTS = st.lists(
    st.sampled_from(["", "throttled", "down", "lost", "unlisted", "broken"]), max_size=4
)


@cache
def empty_database() -> Path:
    path = Path(tempfile.mkdtemp()) / "empty.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path


@dataclass
class Token:
    token_id: str
    user_id: str
    stage: StageArn
    exp: float


@dataclass
class Banned:
    """A ban that was answered, and how each replica may be expected to know it."""

    ban_id: str
    stage: StageArn | None
    user_id: str | None
    until: float
    known_to: set[int]
    lifted: bool = False

    def hits(self, user_id: str | None, stage: StageArn, now: float) -> bool:
        return (
            not self.lifted
            and now < self.until
            and self.stage in (None, stage)
            and self.user_id in (None, user_id)
        )


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "store.db"
        shutil.copy(empty_database(), path)
        self.url = f"sqlite+aiosqlite:///{path}"
        self.time = VirtualTime()
        self.ivs = IvsModel(self.time)
        self.engines: list[AsyncEngine] = []
        self.replicas = [self.run(self.new_replica()) for _ in range(2)]
        self.tokens: list[Token] = []
        self.bans: list[Banned] = []
        self.accepted: list[str] = []
        self.to_leave: set[str] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def new_replica(self) -> Replica:
        engine = open_engine(self.url)
        self.engines.append(engine)
        replica = Replica(engine, self.ivs, self.time)
        await replica.bans.refresh()
        return replica

    # --- what callers and users do ----------------------------------------------------------------

    @rule(at=REPLICAS, user=USERS, stage=STAGES, ttl=st.sampled_from([60, 3600]))
    def mint(self, at: int, user: str, stage: StageArn, ttl: int) -> None:
        token = Token(f"p{len(self.tokens)}", user, stage, int(self.time.now) + ttl)
        known = [b for b in self.bans if at in b.known_to and b.hits(user, stage, self.time.now)]
        try:
            self.run(self.replicas[at].issue(token.token_id, user, stage, ttl))
        except BannedError as refused:
            assert refused.ban_id in {
                b.ban_id for b in self.bans if b.hits(user, stage, self.time.now)
            }
        else:
            assert not known, "a token was handed out after the answer to a ban"
            self.tokens.append(token)

    @rule(at=REPLICAS, user=USERS, stage=STAGES, ttl=st.sampled_from([60, 3600]))
    def mint_for_a_crowd(self, at: int, user: str, stage: StageArn, ttl: int) -> None:
        """More tokens than one round of calls takes, so that some expire before their turn."""
        for _ in range(12):
            self.mint(at, user, stage, ttl)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.tokens))
        if self.time.now < token.exp:
            self.ivs.join(token.stage, token.token_id, token.user_id)

    @rule(
        at=REPLICAS,
        user=st.one_of(st.none(), USERS),
        stage=STAGES,
        ban=st.sampled_from([None, 0, 30]),
    )
    def kick(self, at: int, user: str | None, stage: StageArn, ban: int | None) -> None:
        ask = (
            DisconnectAsk.of_stage(stage, ban=ban)
            if user is None
            else DisconnectAsk.of_user(stage, user, ban=ban)
        )
        made = self.run(self.replicas[at].revocations.disconnect(ask, caller_id=None))
        self.accepted.append(made.disconnect_id)
        self.to_leave |= {
            participant.participant_id
            for (arn, _), participant in self.ivs.connected.items()
            if arn == str(stage) and user in (None, participant.user_id)
        }
        if made.ban_id is not None:
            until = self.time.now + ban if ban else float("inf")
            self.bans.append(Banned(made.ban_id, stage, user, until, {at}))

    @rule(at=REPLICAS, user=USERS)
    def ban_everywhere(self, at: int, user: str) -> None:
        made = self.run(self.replicas[at].revocations.ban(user_id=user, caller_id=None))
        self.bans.append(Banned(made.ban_id, None, user, float("inf"), {at}))

    @precondition(lambda self: self.bans)
    @rule(at=REPLICAS, data=st.data())
    def lift(self, at: int, data: st.DataObject) -> None:
        ban = data.draw(st.sampled_from(self.bans))
        self.run(self.replicas[at].revocations.lift(ban.ban_id))
        ban.lifted = True
        # Until the others have refreshed, they may still refuse.
        self.refresh_all()

    # --- what time and chance do ------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.3, 1.0, 10.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.time.now += seconds
        self.refresh_all()

    @rule(faults=FAULTS)
    def ivs_will_fail(self, faults: list[str]) -> None:
        self.ivs.faults.extend(faults)

    @rule(at=REPLICAS, rounds=st.integers(1, 3))
    def work(self, at: int, rounds: int) -> None:
        self.run(self.replicas[at].work(rounds))
        self.refresh_all()

    @rule()
    def both_work(self) -> None:
        async def both() -> None:
            await asyncio.gather(*(replica.work() for replica in self.replicas))

        self.run(both())
        self.refresh_all()

    @rule(at=REPLICAS, after=st.integers(1, 6), working=st.booleans())
    def crash(self, at: int, after: int, working: bool) -> None:
        """A replica dies, perhaps just after a call to IVS, and a new one takes its place."""

        async def die() -> None:
            task = asyncio.create_task(self.replicas[at].work())
            calls = len(self.ivs.calls)

            def kill() -> None:
                if len(self.ivs.calls) == calls + after:
                    task.cancel()

            self.ivs.on_call = kill
            await asyncio.wait([task])
            self.ivs.on_call = lambda: None

        if working:
            self.run(die())
        self.run(self.replicas[at].close())
        self.replicas[at] = self.run(self.new_replica())
        for ban in self.bans:
            ban.known_to.add(at)

    def refresh_all(self) -> None:
        for at, replica in enumerate(self.replicas):
            self.run(replica.bans.refresh())
            for ban in self.bans:
                ban.known_to.add(at)

    @invariant()
    def the_quota_is_kept(self) -> None:
        assert self.ivs.busiest_second() <= 5

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            for replica in self.replicas:
                self.run(replica.close())
            for engine in self.engines:
                self.run(engine.dispose())
            self.loop.close()
            self.folder.cleanup()

    def is_quiet(self) -> bool:
        return all(
            self.run(self.replicas[1].revocations.progress(disconnect_id, limit=1)).done
            for disconnect_id in self.accepted
        )

    def settle(self) -> None:
        """IVS answers again; let the workers finish, and see that nothing was forgotten."""
        self.ivs.faults.clear()
        for _ in range(80):
            self.run(self.replicas[0].work())
            self.time.now += LEASE_SECONDS / 2
            self.refresh_all()
            if self.is_quiet():
                break
        for disconnect_id in self.accepted:
            progress = self.run(self.replicas[1].revocations.progress(disconnect_id, limit=1000))
            assert progress.disconnect.next_sweep_at is None, "a request was never looked into"
            for one in progress.participants:
                assert one.state != "pending" or one.last_error == "not_connected"
        still = {participant_id for _, participant_id in self.ivs.connected}
        assert not still & self.to_leave, "a kick was lost"
        kicked_out = [ban for ban in self.bans if ban.stage is not None]
        for (arn, _), participant in self.ivs.connected.items():
            stage = StageArn.parse(arn)
            assert not any(
                ban.hits(participant.user_id, stage, self.time.now) for ban in kicked_out
            ), "somebody who is banned is connected"
        assert self.ivs.busiest_second() <= 5


Histories.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_histories = Histories.TestCase
