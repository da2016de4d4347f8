"""The whole life of a ring under everything that goes wrong at once (issue 3's invariants).

Two rotators and two replicas work on one store and one IVS. Any call to either may fail, lose its
answer, or be where the process dies; keys are deleted in the console, others take slots, the clock
jumps, operators rotate and invalidate. Whatever happens in whatever order:

- no token fails at join before its expiry unless its key was invalidated, or deleted by others;
- IVS never holds more than three keys, and no key of another owner is ever deleted;
- one ACTIVE key at most, and none that did not pass a self-check;
- once the faults end, the ring heals by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from random import Random
from typing import Any

import jwt
import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.keyring.support import REGION, SLOTS, FakeClock, Killed, World
from tokensvc.errors import IvsUnavailableError, NoSigningKeyError, TokenServiceError
from tokensvc.keyring.follower import RingFollower
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import DeleteReason, KeyPhase, key_tags
from tokensvc.signing import generate_private_key, load_public_key, public_key_pem

POLICY = RotationPolicy(
    period=1000.0,
    longest_participant_ttl=600.0,
    skew=10.0,
    standby_min_age=50.0,
    view_max_age=30.0,
    overdue_after=100.0,
)
FOREIGN_PEM = public_key_pem(generate_private_key())


@dataclass(frozen=True)
class Token:
    kid: str
    exp: float


class Faults:
    """Fails at the n-th point (before or after the effect of a call) from when it is armed."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.kills = False

    def arm(self, point: int | None, *, kills: bool) -> None:
        self.left, self.kills = point, kills

    def point(self, operation: str) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise Killed if self.kills else IvsUnavailableError(f"lost at {operation}")


def points() -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.integers(0, 40))


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.truth = FakeClock()
        self.offset = 0.0
        self.world = World(policy=POLICY)
        self.faults = Faults()
        for part in (self.world.ivs, self.world.store):
            part.before = part.after = self.faults.point
        self.rotators = [self._manager(), self._manager()]
        self.replicas = [self._replica(), self._replica()]
        self.tokens: list[Token] = []
        self.dropped: set[str] = set()
        self.foreign: set[str] = set()

    def _clock(self) -> float:
        return self.truth.now + self.offset

    def _manager(self) -> RingManager:
        return self.world.manager(
            clock=self._clock,
            sleep=self.truth.sleep,
            clock_off=lambda region: max(0.0, abs(self.offset) - 1.0),
        )

    def _replica(self) -> RingFollower:
        return RingFollower(self._manager(), clock=self.truth, max_age=POLICY.view_max_age)

    def _run(self, work: Awaitable[Any], index: int, fault: int | None, *, kills: bool) -> None:
        """Let rotator `index` work, and be another process if it dies."""
        self.faults.arm(fault, kills=kills)
        try:
            self.loop.run_until_complete(work)  # type: ignore[arg-type]
        except Killed:
            self.rotators[index] = self._manager()
        except TokenServiceError as error:
            # An operator would be told, and the invariants hold all the same.
            assert error.detail
        finally:
            self.faults.arm(None, kills=False)

    @initialize(conflicts=st.booleans())
    def begin(self, conflicts: bool) -> None:
        # Whether IVS refuses the same material twice is not documented.
        self.world.ivs.same_material_conflicts = conflicts

    # --- what goes on -----------------------------------------------------------------------------

    @rule(index=st.integers(0, 1), fault=points(), kills=st.booleans())
    def tick(self, index: int, fault: int | None, kills: bool) -> None:
        self._run(self.rotators[index].tick(REGION), index, fault, kills=kills)

    @rule(index=st.integers(0, 1), fault=points(), kills=st.booleans())
    def prepare_at_start(self, index: int, fault: int | None, kills: bool) -> None:
        async def prepare() -> None:
            try:
                await self.rotators[index].prepare(REGION)
            except NoSigningKeyError:
                assert len(self.world.ivs.of(REGION)) == SLOTS

        self._run(prepare(), index, fault, kills=kills)

    @rule(seed=st.integers(0, 1 << 16))
    def both_tick_at_once(self, seed: int) -> None:
        random = Random(seed)

        async def pause() -> None:
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)

        async def both() -> None:
            await asyncio.gather(*(rotator.tick(REGION) for rotator in self.rotators))

        self.world.ivs.pause = self.world.store.pause = pause
        try:
            self.loop.run_until_complete(both())
        finally:
            self.world.ivs.pause = self.world.store.pause = _no_pause

    @rule(index=st.integers(0, 1), fault=points(), kills=st.booleans())
    def rotate_now(self, index: int, fault: int | None, kills: bool) -> None:
        self._run(self.rotators[index].rotate(REGION), index, fault, kills=kills)

    @precondition(lambda self: self.world.ring().keys)
    @rule(data=st.data(), index=st.integers(0, 1), fault=points(), kills=st.booleans())
    def invalidate(self, data: Any, index: int, fault: int | None, kills: bool) -> None:
        keys = [k for k in self.world.ring().keys if k.phase is not KeyPhase.DELETED]
        if keys:
            key = data.draw(st.sampled_from(keys))
            work = self.rotators[index].invalidate(REGION, key.key_id)
            self._run(work, index, fault, kills=kills)

    @rule(seconds=st.sampled_from([1.0, 20.0, 60.0, 200.0, 700.0, 1100.0]))
    def time_passes(self, seconds: float) -> None:
        self.truth.now += seconds

    @rule(offset=st.sampled_from([0.0, 0.0, 5.0, -5.0, 3_000.0, -3_000.0]))
    def clock_jumps(self, offset: float) -> None:
        self.offset = offset

    @rule(replica=st.integers(0, 1))
    def replica_starts(self, replica: int) -> None:
        self.replicas[replica] = self._replica()

    @rule(
        replica=st.integers(0, 1),
        ttl=st.sampled_from([600.0, 60.0]),
        reads_first=st.sampled_from([True, True, False]),
    )
    def mint(self, replica: int, ttl: float, reads_first: bool) -> None:
        if reads_first:
            self.loop.run_until_complete(self.replicas[replica].refresh())
        view = self.replicas[replica].view()
        try:
            key = view.signing_key(REGION)
        except NoSigningKeyError:
            return
        exp = self._clock() + min(ttl, view.longest_ttl(REGION))
        marks = self.world.ledger.marks
        marks[key.key_id] = max(exp, marks.get(key.key_id, 0.0))
        self.tokens.append(Token(key.arn, exp))
        token = key.mint({"exp": 1})
        held = self.world.ivs.keys.get(jwt.get_unverified_header(token)["kid"])
        if held is not None:
            public_key = load_public_key(held.public_key_pem)
            options = {"verify_exp": False}
            jwt.decode(token, public_key, algorithms=["ES384"], options=options)  # type: ignore[arg-type]

    @rule(seconds=st.sampled_from([60.0, 60.0, 200.0, 1100.0]), stale=st.booleans())
    def a_calm_rotation(self, seconds: float, stale: bool) -> None:
        """What happens nearly always: a token is signed, the key rotates, time passes."""
        self.mint(0, 600.0, True)
        for _ in range(2):
            self.truth.now += POLICY.standby_min_age
            self.loop.run_until_complete(self.replicas[1].refresh())
            self.rotate_now(0, None, False)
            if stale:
                self.mint(1, 600.0, False)
                self.no_token_fails_before_its_expiry()
            self.truth.now += seconds
            self.tick(1, None, False)
            if stale:
                # By now the other replica's view is too old to sign with.
                self.mint(1, 60.0, False)
            self.no_token_fails_before_its_expiry()

    @precondition(lambda self: self.world.ivs.keys)
    @rule(data=st.data(), really=st.sampled_from([False, False, True]))
    def key_deleted_in_the_console(self, data: Any, really: bool) -> None:
        if not really:
            return
        arn = data.draw(st.sampled_from(sorted(self.world.ivs.keys)))
        self.world.ivs.drop(arn)
        self.dropped.add(arn)

    @precondition(lambda self: self.foreign & set(self.world.ivs.keys))
    @rule()
    def others_delete_theirs(self) -> None:
        for arn in self.foreign & set(self.world.ivs.keys):
            self.world.ivs.drop(arn)

    @precondition(lambda self: len(self.world.ivs.keys) < SLOTS)
    @rule(like_ours=st.booleans())
    def others_import_a_key(self, like_ours: bool) -> None:
        tags = key_tags("test-ring", "another database", "k1") if like_ours else {}
        self.foreign.add(self.world.ivs.put(REGION, FOREIGN_PEM, tags=tags).arn)

    # --- what must never be -----------------------------------------------------------------------

    @invariant()
    def no_token_fails_before_its_expiry(self) -> None:
        compromised = {
            key.arn
            for key in self.world.ring().keys
            if key.delete_reason is DeleteReason.COMPROMISED
        }
        excused = compromised | self.dropped
        for token in self.tokens:
            if token.exp > self.truth.now and token.kid not in excused:
                assert token.kid in self.world.ivs.keys, f"{token} cannot join"

    @invariant()
    def no_key_of_another_owner_is_deleted(self) -> None:
        assert not self.foreign & self.world.ivs.deleted

    @invariant()
    def never_more_than_three_keys(self) -> None:
        assert len(self.world.ivs.keys) <= SLOTS

    @invariant()
    def an_active_key_has_passed_a_self_check(self) -> None:
        active = self.world.ring().active
        if active is not None:
            assert active.checked_at is not None
            assert active.imported_at is not None
            assert active.checked_at >= active.imported_at

    @invariant()
    def an_invalidated_key_signs_nowhere_after_the_bound(self) -> None:
        for replica in self.replicas:
            assert replica.age() > POLICY.view_max_age or replica.view() is not None
        for key in self.world.ring().keys:
            if key.phase in {KeyPhase.RETIRING, KeyPhase.DELETED}:
                assert key.sealed_private_key is None

    def teardown(self) -> None:
        self.offset = 0.0
        for arn in self.foreign & set(self.world.ivs.keys):
            self.world.ivs.drop(arn)
        rotator = self.rotators[0]
        # From here on it has to come right by itself: what is settled, drained and due.
        for seconds in (61.0, 61.0, POLICY.period, 61.0, POLICY.drain, 4_000.0, 4_000.0, 61.0):
            self.truth.now += seconds
            self.no_token_fails_before_its_expiry()
            status = self.loop.run_until_complete(rotator.tick(REGION))
        self.no_token_fails_before_its_expiry()
        assert status.problems == ()
        counts = self.world.phases()
        assert (counts["ACTIVE"], counts["STANDBY"]) == (1, 1), counts
        assert counts.get("GENERATED", 0) == 0
        held = {key.arn for key in self.world.ring().keys if key.phase is not KeyPhase.DELETED}
        assert set(self.world.ivs.keys) == held
        self.loop.close()


async def _no_pause() -> None:
    return


@pytest.mark.timeout(120)
def test_the_whole_ring() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        run_state_machine_as_test(
            RingMachine,
            settings=settings(
                max_examples=40,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )
    finally:
        structlog.reset_defaults()
