"""IVS as far as kicks go, virtual time, and replicas over one database."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from itertools import count

from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.errors import IvsNotFoundError, IvsThrottledError, IvsUnavailableError
from tokensvc.ivs.gateway import Participant
from tokensvc.ledger import Ledger, LedgerRow, LedgerWriter
from tokensvc.revocation import (
    Accepted,
    BanList,
    BanStore,
    CallQueue,
    DisconnectStore,
    DisconnectWorker,
    Revocations,
    WorkerTimes,
)
from tokensvc.store.leases import LeaseStore
from tokensvc.store.transactions import open_transactions
from tokensvc.tokens.arn import StageArn

NOW = 1_800_000_000.0
REGION = "eu-central-1"
STAGE = StageArn.parse("arn:aws:ivs:eu-central-1:123456789012:stage/AbCdEf012345")
OTHER_STAGE = StageArn.parse("arn:aws:ivs:eu-central-1:123456789012:stage/zzzzzzzzzzzz")


class VirtualTime:
    """Time that passes only where somebody sleeps or the test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class IvsModel:
    """Stages with who is connected; what may go wrong with a call is queued in `faults`."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self.connected: dict[tuple[str, str], Participant] = {}
        self.revoked: set[str] = set()
        self.first_joins: dict[str, float] = {}
        """Of participants that joined once; IVS answers 404 for others."""
        self.faults: deque[str] = deque()
        self.calls: list[tuple[float, str, str]] = []
        self.lists = 0
        self.on_call: Callable[[], None] = lambda: None

    def join(self, stage: StageArn, participant_id: str, user_id: str | None = None) -> bool:
        if participant_id in self.revoked:
            return False
        first_join = self.first_joins.setdefault(participant_id, self._time.now)
        self.connected[str(stage), participant_id] = Participant(
            participant_id, user_id, "CONNECTED", False, first_join
        )
        return True

    def calls_of(self, operation: str) -> list[str]:
        return [target for _, made, target in self.calls if made == operation]

    def busiest_second(self) -> int:
        moments = [moment for moment, _, _ in self.calls]
        return max((sum(m <= n < m + 1 for n in moments) for m in moments), default=0)

    async def list_participants(
        self, region: str, *, stage_arn: str, user_id: str | None = None
    ) -> list[Participant]:
        self.lists += 1
        if self.faults and self.faults[0] == "unlisted":
            self.faults.popleft()
            raise IvsUnavailableError("down")
        return [
            participant
            for (stage, _), participant in self.connected.items()
            if stage == stage_arn and user_id in (None, participant.user_id)
        ]

    async def disconnect_participant(
        self, region: str, *, stage_arn: str, participant_id: str, reason: str = ""
    ) -> None:
        assert region == REGION
        lost = self._meet("DisconnectParticipant", participant_id)
        if participant_id not in self.first_joins:
            raise IvsNotFoundError("no such participant")
        self.revoked.add(participant_id)
        self.connected.pop((stage_arn, participant_id), None)
        if lost:
            raise IvsUnavailableError("no answer")

    async def revoke_connection_token(self, region: str, token_id: str) -> None:
        lost = self._meet("RevokeConnectionToken", token_id)
        self.revoked.add(token_id)
        if lost:
            raise IvsUnavailableError("no answer")

    def _meet(self, operation: str, target: str) -> bool:
        self.calls.append((self._time.now, operation, target))
        self.on_call()
        fault = self.faults.popleft() if self.faults else ""
        if fault == "throttled":
            raise IvsThrottledError("too fast", retry_after=1.0)
        if fault == "down":
            raise IvsUnavailableError("down")
        if fault == "broken":
            raise RuntimeError("a fault nobody foresaw")
        return fault == "lost"


class Replica:
    """The parts of one process that have to do with revocation."""

    numbers = count()

    def __init__(
        self, engine: AsyncEngine, ivs: IvsModel, time: VirtualTime, *, seed: int = 0
    ) -> None:
        self.time = time
        self.clock_is_right = True
        self.clock_ahead = 0.0
        """Of this process alone, against all others' and IVS's; the monotonic one goes right."""
        self.transactions = open_transactions(engine)
        self.ledger = Ledger(engine)
        self.ban_store = BanStore(engine, self.transactions, time)
        self.bans = BanList(self.ban_store, time)
        self.store = DisconnectStore(engine, self.transactions)
        self.calls = CallQueue(engine, self.transactions)
        self.writer = LedgerWriter(self.transactions, clock=time, monotonic=time)
        self.writer.start()
        self.woken: list[str] = []
        self.told: list[int] = []
        self.revocations = Revocations(
            store=self.store,
            calls=self.calls,
            ban_store=self.ban_store,
            bans=self.bans,
            ledger=self.ledger,
            clock=time,
            wake=self.woken.append,
            tell=self._tell,
            idempotency_window=3600,
            retention=3600,
        )
        self.worker = DisconnectWorker(
            REGION,
            f"replica{next(self.numbers)}",
            store=self.store,
            calls=self.calls,
            leases=LeaseStore(engine, self.transactions),
            ledger=self.ledger,
            bans=self.bans,
            gateway=ivs,
            times=WorkerTimes(
                clock=lambda: time() + self.clock_ahead,
                monotonic=time,
                sleep=time.sleep,
                luck=random.Random(seed).random,
                clock_is_right=lambda: self.clock_is_right,
            ),
        )

    async def _tell(self, version: int) -> None:
        self.told.append(version)

    async def issue(
        self,
        token_id: str,
        user_id: str | None = "alice",
        stage: StageArn = STAGE,
        ttl: int = 3600,
        backdate: int = 0,
    ) -> None:
        """Issue a token as the mint does: asked before and after the row is recorded."""
        self.bans.admit(str(stage), user_id, token_id)
        now = int(self.time.now)
        made = LedgerRow(
            token_id, "participant", str(stage), REGION, user_id, "k1", None, "backend", "local",
            now - backdate, now + ttl, None,
        )  # fmt: skip
        await self.writer.record([made])
        self.bans.admit(str(stage), user_id, token_id)

    async def issue_connection_token(self, token_id: str, ttl: int = 3600) -> None:
        iat = int(self.time.now)
        made = LedgerRow(
            token_id, "connection", None, REGION, None, "k1", None, "backend", "local",
            iat, iat + ttl, None,
        )  # fmt: skip
        await self.writer.record([made])

    async def revoke_connection_token(self, token_id: str) -> Accepted:
        token = await self.revocations.connection_token(token_id)
        return await self.revocations.revoke(token, caller_id=None)

    async def work(self, rounds: int = 1) -> None:
        """Let the worker go through its loops, with half a second between the rounds."""
        for _ in range(rounds):
            await self.worker.keep_lease()
            await self.worker.sweep()
            await self.worker.call()
            self.time.now += 0.5

    async def close(self) -> None:
        await self.writer.aclose()
        await self.transactions.aclose()
