"""The ring on real parts: boto3 over HTTP to the emulator, a SQLite file, tokens verified as IVS would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.support import RunningEmulator, public_pem
from tests.keyring.support import REGION, RING, FakeClock, MemoryLedger
from tests.keyring.worlds import emulator_gateway
from tokensvc.emulator.verification import TokenVerifier
from tokensvc.errors import IvsUnavailableError, NoSigningKeyError
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.keyring.follower import RingFollower
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyPhase
from tokensvc.keyring.sealing import LocalSealer
from tokensvc.keyring.sql import SqlRingStore
from tokensvc.store import open_engine, upgrade
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest, participant_payload
from tokensvc.tokens.ids import new_participant_id

POLICY = RotationPolicy(
    period=1000.0,
    longest_participant_ttl=600.0,
    skew=10.0,
    standby_min_age=50.0,
    view_max_age=30.0,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ivs(clock: FakeClock) -> Iterator[RunningEmulator]:
    emulator = RunningEmulator(clock=clock)
    yield emulator
    emulator.close()


@dataclass
class Installation:
    """One store and one IVS; `manager` makes a process on them."""

    clock: FakeClock
    ivs: RunningEmulator
    gateway: BotoIvsGateway
    store: SqlRingStore
    ledger: MemoryLedger
    drift: ClockDrift

    def clock_off(self, region: str) -> float:
        reading = self.drift.latest(region)
        return 0.0 if reading is None else reading.at_least_seconds

    def manager(self) -> RingManager:
        return RingManager(
            store=self.store,
            sealer=LocalSealer(bytes(range(32))),
            gateway=self.gateway,
            policy=POLICY,
            drain=self.ledger,
            clock=self.clock,
            clock_off=self.clock_off,
            sleep=self.clock.sleep,
            ring_id=RING,
        )

    async def phases(self) -> list[str]:
        ring = await self.store.load(REGION)
        return sorted(key.phase for key in ring.keys if key.phase is not KeyPhase.DELETED)

    async def at_ivs(self) -> set[str]:
        return {key.arn for key in await self.gateway.list_public_keys(REGION)}


@pytest.fixture
async def here(
    tmp_path: Path, clock: FakeClock, ivs: RunningEmulator
) -> AsyncIterator[Installation]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'rings.db'}"
    upgrade(url)
    engine = open_engine(url)
    drift = ClockDrift(clock)
    gateway = emulator_gateway(ivs, clock, drift)
    store = SqlRingStore(engine, RING, clock)
    yield Installation(clock, ivs, gateway, store, MemoryLedger(), drift)
    await gateway.aclose()
    await engine.dispose()


async def test_no_join_fails_through_rotations_under_load(here: Installation) -> None:
    """Promises 1 and 2: every living token joins after every step."""
    rotator, clock = here.manager(), here.clock
    replicas = [
        RingFollower(here.manager(), clock=clock, max_age=POLICY.view_max_age) for _ in range(2)
    ]
    stage = await here.gateway.create_stage(REGION, name="load", tags={})
    verifier = TokenVerifier(here.ivs.world, here.ivs.sessions, events_url=here.ivs.events_url)
    tokens: list[tuple[int, str]] = []
    signed_by: set[str] = set()
    await rotator.tick(REGION)

    def mint(replica: RingFollower) -> None:
        key = replica.view().signing_key(REGION)
        now = int(clock())
        payload = participant_payload(
            TokenRequest(StageArn.parse(stage.arn)),
            StageEndpoints(stage.endpoints.events, stage.endpoints.whip),
            participant_id=new_participant_id(),
            iat=now,
            exp=now + 600,
        )
        marks = here.ledger.marks
        marks[key.key_id] = max(now + 600.0, marks.get(key.key_id, 0.0))
        tokens.append((now + 600, key.mint_payload(*payload)))
        signed_by.add(key.key_id)

    async def load(busy: asyncio.Event) -> None:
        while not busy.is_set():
            for replica in replicas:
                mint(replica)
            await asyncio.sleep(0.005)

    def join(text: str) -> None:
        verifier.participant(text)

    for round_ in range(36):
        for replica in replicas:
            await replica.refresh()
        done = asyncio.Event()
        minting = asyncio.create_task(load(done))
        status = await rotator.tick(REGION)
        done.set()
        await minting
        assert status.problems == ()
        clock.now += POLICY.view_max_age - replicas[round_ % 2].age()
        # The replica that has not read since signs on, with what may be the old key.
        mint(replicas[round_ % 2])
        tokens = [(exp, text) for exp, text in tokens if exp > clock()]
        for _, text in tokens:
            here.ivs.run(lambda text=text: join(text))
        clock.now += 70
    assert len(signed_by) >= 3
    deleted = (await here.store.load(REGION)).in_phase(KeyPhase.DELETED)
    assert len(deleted) >= 2
    assert len(await here.at_ivs()) <= 3


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "drop_before"}, "ivs_unavailable"),
        ({"kind": "drop_after"}, "ivs_unavailable"),
        ({"kind": "throttle", "count": 3}, "ivs_throttled"),
        ({"kind": "error", "code": "AccessDeniedException"}, "ivs_access_denied"),
        ({"kind": "error", "code": "PendingVerification"}, "ivs_pending_verification"),
        ({"kind": "error", "code": "ServiceQuotaExceededException"}, "ivs_quota_exceeded"),
        ({"kind": "error", "code": "ConflictException"}, "ivs_conflict"),
        ({"kind": "error", "code": "InternalServerException"}, "ivs_unavailable"),
    ],
)
async def test_a_fault_of_an_import_is_a_problem_and_leaves_no_second_key(
    here: Installation, fault: dict[str, Any], code: str
) -> None:
    manager = here.manager()
    await manager.prepare(REGION)
    here.ivs.post_faults({"operation": "ImportPublicKey", **fault})
    status = await manager.tick(REGION)
    assert [problem.code for problem in status.problems] == [code]
    assert (await manager.tick(REGION)).healthy
    assert await here.phases() == ["ACTIVE", "STANDBY"]
    assert len(await here.at_ivs()) == 2


async def test_a_delete_whose_answer_was_lost_is_settled_by_another_process(
    here: Installation,
) -> None:
    manager = here.manager()
    await manager.tick(REGION)
    active = (await here.store.load(REGION)).active
    assert active is not None
    here.ivs.post_faults({"operation": "DeletePublicKey", "kind": "drop_after"})
    report = await manager.invalidate(REGION, active.key_id)
    assert not report.deleted
    assert active.arn not in await here.at_ivs()
    await here.manager().tick(REGION)
    stored = (await here.store.load(REGION)).key(active.key_id)
    assert stored is not None
    assert stored.phase is KeyPhase.DELETED


async def test_a_key_that_shows_up_late_is_waited_for_and_imported_once(
    here: Installation,
) -> None:
    here.ivs.run(lambda: setattr(here.ivs.world, "key_visible_after", 3.0))
    key = await here.manager().prepare(REGION)
    here.clock.now += 5
    assert await here.at_ivs() == {key.arn}


async def test_an_ivs_that_is_down_leaves_the_stored_key_signing(here: Installation) -> None:
    """Promise 9."""
    await here.manager().tick(REGION)
    here.ivs.post_faults({"operation": "*", "kind": "drop_before", "count": 100})
    restarted = here.manager()
    status = await restarted.tick(REGION)
    assert [problem.code for problem in status.problems] == ["ivs_unavailable"]
    with pytest.raises(IvsUnavailableError):
        await restarted.prepare(REGION)
    assert (await restarted.load_view()).signing_key(REGION)


async def test_a_fourth_key_is_refused_by_the_quota_and_said(here: Installation) -> None:
    for number in range(3):
        await here.gateway.import_public_key(
            REGION, public_key_pem=public_pem(), name=f"theirs-{number}", tags={}
        )
    theirs = await here.at_ivs()
    with pytest.raises(NoSigningKeyError, match="3 of them by others"):
        await here.manager().prepare(REGION)
    assert await here.at_ivs() == theirs


async def test_a_clock_that_aws_contradicts_deletes_nothing(here: Installation) -> None:
    """A host whose clock jumps a month ahead must not take every token for expired."""
    manager = here.manager()
    await manager.tick(REGION)
    here.clock.now += POLICY.standby_min_age
    await manager.rotate(REGION)
    before = await here.at_ivs()
    # The emulator keeps the right time: only this host's clock jumps.
    here.clock.now += 30 * 86_400
    here.ivs.set_clock(-30 * 86_400)
    status = await manager.tick(REGION)
    assert "our clock and AWS's are" in status.next_step
    assert await here.at_ivs() == before
    here.clock.now -= 30 * 86_400
    here.ivs.set_clock(0)
    assert (await manager.tick(REGION)).healthy
