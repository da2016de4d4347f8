"""What the tests of `tokensvc.keyring` share: a model of IVS's public keys that can fail, and clocks.

`MemoryIvs` does what IVS.md section 4.2 says of public keys: three a Region, names that need not be
unique, material that must, an ARN that is never used twice.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokensvc.errors import (
    IvsConflictError,
    IvsError,
    IvsNotFoundError,
    IvsQuotaExceededError,
    IvsUnavailableError,
    RingConflictError,
    TokenServiceError,
)
from tokensvc.ivs.gateway import PublicKey, PublicKeySummary
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState
from tokensvc.keyring.sealing import LocalSealer

REGION = "eu-central-1"
OTHER_REGION = "us-east-1"
ACCOUNT = "123456789012"
RING = "test-ring"
NOW = 1_780_000_000.0
SLOTS = 3


def arn(key: str, region: str = REGION, account: str = ACCOUNT) -> str:
    return f"arn:aws:ivs:{region}:{account}:public-key/{key}"


@dataclass
class FakeClock:
    """A clock that stands still until it is told; `sleep` moves it on."""

    now: float = NOW
    naps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


class Killed(BaseException):
    """The process died here."""


class MemoryIvs:
    """The public keys of one account, Region by Region.

    `before` and `after` are asked at every call with the operation's name and may raise: `before`
    so that the call has no effect, `after` so that only its answer is lost.
    """

    def __init__(self, account: str = ACCOUNT) -> None:
        self.account = account
        self.keys: dict[str, PublicKey] = {}
        self.calls: list[str] = []
        self.hidden: set[str] = set()
        self.deleted: set[str] = set()
        self.lingering: list[PublicKeySummary] = []
        """Deleted, and listed all the same."""
        self.before: Callable[[str], None] = lambda operation: None
        self.after: Callable[[str], None] = lambda operation: None
        self.same_material_conflicts = True
        self.pause: Callable[[], Awaitable[None]] = no_pause
        self._numbers = itertools.count(1)

    def of(self, region: str) -> list[PublicKey]:
        return [key for key in self.keys.values() if f":{region}:" in key.arn]

    def put(
        self, region: str, pem: str, name: str = "", tags: Mapping[str, str] | None = None
    ) -> PublicKey:
        """Import as somebody else, past every fault."""
        key = PublicKey(
            arn=arn(f"n{next(self._numbers):04d}", region, self.account),
            name=name,
            public_key_pem=pem,
            fingerprint="00",
            tags=dict(tags or {}),
        )
        self.keys[key.arn] = key
        return key

    def drop(self, key_arn: str) -> None:
        """Delete as somebody else, past every fault."""
        del self.keys[key_arn]

    def fails(self, operation: str, error: BaseException, *, times: int = 1) -> None:
        """Let the next `times` calls of `operation` fail without effect."""
        self.before = _failing(operation, error, times)

    def loses_answer(self, operation: str, *, times: int = 1) -> None:
        """Let the next `times` calls of `operation` take effect and their answer be lost."""
        self.after = _failing(operation, IvsUnavailableError("lost", retry_after=1.0), times)

    async def import_public_key(
        self, region: str, *, public_key_pem: str, name: str, tags: Mapping[str, str]
    ) -> PublicKey:
        await self._begin("ImportPublicKey")
        there = self.of(region)
        if self.same_material_conflicts and any(k.public_key_pem == public_key_pem for k in there):
            raise IvsConflictError("same material")
        if len(there) >= SLOTS:
            raise IvsQuotaExceededError("A quota of Amazon IVS is used up.")
        key = self.put(region, public_key_pem, name, tags)
        self.after("ImportPublicKey")
        return key

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        await self._begin("GetPublicKey")
        if arn not in self.keys or arn in self.hidden:
            raise IvsNotFoundError("no such key")
        self.after("GetPublicKey")
        return self.keys[arn]

    async def list_public_keys(self, region: str) -> list[PublicKeySummary]:
        await self._begin("ListPublicKeys")
        listed = [
            PublicKeySummary(key.arn, key.name, key.tags)
            for key in self.of(region)
            if key.arn not in self.hidden
        ]
        listed += self.lingering
        self.after("ListPublicKeys")
        return listed

    async def delete_public_key(self, region: str, arn: str) -> None:
        await self._begin("DeletePublicKey")
        if arn not in self.keys or arn in self.hidden:
            raise IvsNotFoundError("no such key")
        del self.keys[arn]
        self.deleted.add(arn)
        self.after("DeletePublicKey")

    async def _begin(self, operation: str) -> None:
        self.calls.append(operation)
        await self.pause()
        self.before(operation)


async def no_pause() -> None:
    return


def _failing(operation: str, error: BaseException, times: int) -> Callable[[str], None]:
    left = times

    def fail(called: str) -> None:
        nonlocal left
        if called == operation and left > 0:
            left -= 1
            raise error

    return fail


def ivs_error(kind: type[IvsError] = IvsUnavailableError) -> IvsError:
    return kind("said by the test", retry_after=1.0)


class MemoryRingStore:
    """A `RingStore` in memory, for tests that make thousands of rings; conformance says it is one."""

    def __init__(self) -> None:
        self.rings: dict[str, RingState] = {}
        self.pause: Callable[[], Awaitable[None]] = no_pause
        self.before: Callable[[str], None] = lambda operation: None
        self.after: Callable[[str], None] = lambda operation: None

    async def load(self, region: str) -> RingState:
        await self.pause()
        self.before("load")
        return self.rings.get(region, RingState(region, 0))

    async def load_all(self) -> tuple[RingState, ...]:
        await self.pause()
        self.before("load")
        return tuple(self.rings[region] for region in sorted(self.rings))

    async def versions(self) -> dict[str, int]:
        await self.pause()
        self.before("load")
        return {region: ring.version for region, ring in self.rings.items()}

    async def save(self, state: RingState, keys: tuple[KeyRecord, ...]) -> RingState:
        successor = state.successor(keys)
        await self.pause()
        self.before("save")
        if self.rings.get(state.region, RingState(state.region, 0)).version != state.version:
            raise RingConflictError("changed since")
        if state.version == 0:
            successor = replace(successor, owner=f"owner-{state.region}")
        self.rings[state.region] = successor
        self.after("save")
        return successor


class MemoryLedger:
    """Drain marks: the latest `exp` by key id."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.fails: TokenServiceError | None = None

    async def latest_expiry(self, key_id: str) -> float | None:
        if self.fails is not None:
            raise self.fails
        return self.marks.get(key_id)


DAY = 86_400.0
POLICY = RotationPolicy(period=30 * DAY, longest_participant_ttl=14 * DAY)


@dataclass
class World:
    """Everything a ring manager stands on; `manager` makes another process on the same store."""

    clock: FakeClock = field(default_factory=FakeClock)
    ivs: MemoryIvs = field(default_factory=MemoryIvs)
    store: MemoryRingStore = field(default_factory=MemoryRingStore)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    sealer: LocalSealer = field(default_factory=lambda: LocalSealer(bytes(range(32))))
    policy: RotationPolicy = POLICY
    clock_off: float = 0.0

    def manager(self, **changed: Any) -> RingManager:
        parts: dict[str, Any] = {
            "store": self.store,
            "sealer": self.sealer,
            "gateway": self.ivs,
            "policy": self.policy,
            "drain": self.ledger,
            "clock": self.clock,
            "clock_off": lambda region: self.clock_off,
            "sleep": self.clock.sleep,
            "ring_id": RING,
        }
        return RingManager(**(parts | changed))

    def ring(self, region: str = REGION) -> RingState:
        return self.store.rings.get(region, RingState(region, 0))

    def phases(self, region: str = REGION) -> dict[str, int]:
        """How many keys are in which phase."""
        return dict(Counter(key.phase.value for key in self.ring(region).keys))

    @property
    def active(self) -> KeyRecord:
        active = self.ring().active
        assert active is not None
        return active

    @property
    def standby(self) -> KeyRecord:
        return self.ring().in_phase(KeyPhase.STANDBY)[0]

    async def settled(self) -> RingManager:
        """Return a manager of a ring with an ACTIVE key and a STANDBY that is old enough."""
        manager = self.manager()
        await manager.tick(REGION)
        self.clock.now += self.policy.standby_min_age
        return manager
