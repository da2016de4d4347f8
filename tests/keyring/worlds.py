"""The two grounds on which the state machine of `test_ring_stateful` lives a ring's life.

`MemoryWorld` is a model in memory: fast, and as awkward as IVS's documentation allows it to be.
`EmulatorWorld` is the real thing as far as there is one without AWS: boto3 over HTTP to the emulator, a
SQLite file, AWS's time from the answers' `Date`, and joins judged by the emulator's own verification.
Both let every call fail before and after its effect, and wait for its turn.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Protocol, Self, TypeVar

import jwt

from tests.emulator.support import RunningEmulator, public_pem
from tests.keyring.support import NOW, REGION, RING, FakeClock, MemoryLedger, World, no_pause
from tokensvc.emulator.public_keys import read_material
from tokensvc.emulator.verification import TokenRefusedError, TokenVerifier
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.budgets import CallBudgets
from tokensvc.ivs.clients import ClientSettings, StaticCredentials
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.ivs.gateway import PublicKey, PublicKeySummary
from tokensvc.keyring.imports import PublicKeyGateway
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import KeyRecord, RingState
from tokensvc.keyring.sealing import LocalSealer
from tokensvc.keyring.sql import SqlRingStore
from tokensvc.keyring.store import RingStore
from tokensvc.signing import SigningKey, load_public_key
from tokensvc.store import open_engine, upgrade
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest, participant_payload
from tokensvc.tokens.ids import new_participant_id

__all__ = [
    "EmulatorSite",
    "EmulatorWorld",
    "MemoryWorld",
    "PatientBudgets",
    "RingWorld",
    "Turns",
    "emulator_gateway",
]

_CREDENTIALS = StaticCredentials("AKIDEXAMPLE", "test-secret")
# Of examples that use one emulator after each other: its clock never goes back.
_BETWEEN_EXAMPLES = 10_000_000.0

_Value = TypeVar("_Value")


class RingWorld(Protocol):
    """One IVS, one store and one host with a clock of its own; `clock` is what time it really is."""

    clock: FakeClock
    offset: float
    """By how many seconds the host's clock is ahead."""
    ledger: MemoryLedger

    def run(self, work: Awaitable[_Value]) -> _Value: ...
    def host_clock(self) -> float: ...
    def manager(self) -> RingManager:
        """Return another process on the store."""
        ...

    def watch(self, before: Callable[[str], None], after: Callable[[str], None]) -> None:
        """Have these called before and after the effect of every call to IVS and the store."""
        ...

    def pause_with(self, pause: Callable[[], Awaitable[None]]) -> None:
        """Have every such call wait for `pause` first."""
        ...

    def ring(self) -> RingState:
        """Return what is stored."""
        ...

    def held(self) -> list[str]:
        """Return the ARNs of the keys that IVS shows, oldest first."""
        ...

    def there(self) -> set[str]:
        """Return the ARNs of all keys that take a slot, shown or not."""
        ...

    def import_as_others(self, tags: Mapping[str, str]) -> str: ...
    def drop(self, arn: str) -> None:
        """Delete a key in the console."""
        ...

    def mint(self, key: SigningKey, exp: int) -> str: ...
    def refused(self, tokens: Iterable[str]) -> dict[str, str]:
        """Return which of the tokens cannot join now, and why."""
        ...

    def heal(self) -> None:
        """Take away what was asked to go wrong."""
        ...

    def close(self) -> None: ...


class Turns:
    """Lets one of several tasks run on at a time, chosen at random whenever all of them wait.

    So one seed is one interleaving, however long the calls between two turns take.
    """

    def __init__(self, random: Random, players: int) -> None:
        self._random = random
        self._playing = players
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._next()
        await turn

    async def play(self, work: Awaitable[_Value]) -> _Value:
        try:
            return await work
        finally:
            self._playing -= 1
            self._next()

    def _next(self) -> None:
        if self._waiting and len(self._waiting) == self._playing:
            self._waiting.pop(self._random.randrange(len(self._waiting))).set_result(None)


class MemoryWorld:
    """A `RingWorld` in memory."""

    def __init__(self, policy: RotationPolicy) -> None:
        self.parts = World(policy=policy)
        self.clock, self.ledger = self.parts.clock, self.parts.ledger
        self.offset = 0.0
        self._loop = asyncio.new_event_loop()

    def run(self, work: Awaitable[_Value]) -> _Value:
        return self._loop.run_until_complete(work)

    def host_clock(self) -> float:
        return self.clock.now + self.offset

    def manager(self) -> RingManager:
        return self.parts.manager(
            clock=self.host_clock, clock_off=lambda region: max(0.0, abs(self.offset) - 1.0)
        )

    def watch(self, before: Callable[[str], None], after: Callable[[str], None]) -> None:
        for part in (self.parts.ivs, self.parts.store):
            part.before, part.after = before, after

    def pause_with(self, pause: Callable[[], Awaitable[None]]) -> None:
        self.parts.ivs.pause = self.parts.store.pause = pause

    def ring(self) -> RingState:
        return self.parts.ring()

    def held(self) -> list[str]:
        return list(self.parts.ivs.keys)

    def there(self) -> set[str]:
        return set(self.parts.ivs.keys)

    def import_as_others(self, tags: Mapping[str, str]) -> str:
        return self.parts.ivs.put(REGION, _foreign_pem(), tags=tags).arn

    def drop(self, arn: str) -> None:
        self.parts.ivs.drop(arn)

    def mint(self, key: SigningKey, exp: int) -> str:
        return key.mint({"exp": exp})

    def refused(self, tokens: Iterable[str]) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for token in tokens:
            kid = jwt.get_unverified_header(token)["kid"]
            key = self.parts.ivs.keys.get(kid)
            if key is None:
                reasons[token] = "there is no such public key"
            elif not _is_signed(token, key.public_key_pem):
                reasons[token] = "the signature is not the key's"
        return reasons

    def heal(self) -> None:
        self.offset = 0.0

    def close(self) -> None:
        self._loop.close()


@lru_cache
def _foreign_pem() -> str:
    return public_pem()


# Neither a token nor the material under an ARN ever changes.
@lru_cache(4096)
def _is_signed(token: str, pem: str) -> bool:
    public_key: Any = load_public_key(pem)
    try:
        jwt.decode(token, public_key, algorithms=["ES384"], options={"verify_exp": False})
    except jwt.InvalidTokenError:
        return False
    return True


class PatientBudgets(CallBudgets):
    """Waits for its turn, as our budgets do, on the clock of the test: three calls a second."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    async def take(self, operation: str, region: str, *, urgent: bool = False) -> None:
        self.clock.now += 0.34


def emulator_gateway(ivs: RunningEmulator, clock: FakeClock, drift: ClockDrift) -> BotoIvsGateway:
    """Return the gateway that the service uses; `clock` goes on with each call."""
    return BotoIvsGateway(
        # One attempt: what a lost answer does is for the ring to settle, not for botocore.
        ClientSettings(endpoint_url=ivs.url, total_max_attempts=1),
        budgets=PatientBudgets(clock),
        credentials=_CREDENTIALS,
        drift=drift,
    )


@dataclass
class _Points:
    before: Callable[[str], None] = lambda operation: None
    after: Callable[[str], None] = lambda operation: None
    pause: Callable[[], Awaitable[None]] = field(default=no_pause)

    async def around(self, operation: str, call: Callable[[], Awaitable[_Value]]) -> _Value:
        await self.pause()
        self.before(operation)
        answer = await call()
        self.after(operation)
        return answer


class _WatchedGateway:
    """A `PublicKeyGateway` that stops at points before and after each call."""

    def __init__(self, gateway: PublicKeyGateway, points: _Points) -> None:
        self._gateway = gateway
        self._points = points

    async def import_public_key(
        self, region: str, *, public_key_pem: str, name: str, tags: Mapping[str, str]
    ) -> PublicKey:
        return await self._points.around(
            "ImportPublicKey",
            lambda: self._gateway.import_public_key(
                region, public_key_pem=public_key_pem, name=name, tags=tags
            ),
        )

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        return await self._points.around(
            "GetPublicKey", lambda: self._gateway.get_public_key(region, arn)
        )

    async def list_public_keys(self, region: str) -> list[PublicKeySummary]:
        return await self._points.around(
            "ListPublicKeys", lambda: self._gateway.list_public_keys(region)
        )

    async def delete_public_key(self, region: str, arn: str) -> None:
        await self._points.around(
            "DeletePublicKey", lambda: self._gateway.delete_public_key(region, arn)
        )


class _WatchedStore:
    """A `RingStore` that stops at points before and after each call."""

    def __init__(self, store: RingStore, points: _Points) -> None:
        self._store = store
        self._points = points

    async def load(self, region: str) -> RingState:
        return await self._points.around("load", lambda: self._store.load(region))

    async def load_all(self) -> tuple[RingState, ...]:
        return await self._points.around("load", self._store.load_all)

    async def versions(self) -> dict[str, int]:
        return await self._points.around("load", self._store.versions)

    async def save(self, state: RingState, keys: tuple[KeyRecord, ...]) -> RingState:
        return await self._points.around("save", lambda: self._store.save(state, keys))


class EmulatorSite:
    """An emulator and the gateway to it, for one example after the other; `fresh` begins one."""

    def __init__(self, folder: Path, policy: RotationPolicy) -> None:
        self.policy = policy
        self.clock = FakeClock()
        self.offset = 0.0
        self.loop = asyncio.new_event_loop()
        self.ivs = RunningEmulator(clock=self.clock)
        self.drift = ClockDrift(self.host_clock)
        self.gateway = emulator_gateway(self.ivs, self.clock, self.drift)
        self.verifier = TokenVerifier(
            self.ivs.world, self.ivs.sessions, events_url=self.ivs.events_url
        )
        self.stage = self.loop.run_until_complete(
            self.gateway.create_stage(REGION, name="stateful", tags={})
        )
        self._folder = folder
        self._empty = folder / "empty.db"
        upgrade(_url(self._empty))
        self._examples = 0

    def host_clock(self) -> float:
        return self.clock.now + self.offset

    def fresh(self) -> EmulatorWorld:
        """Return a world without keys, on an empty database."""
        self._examples += 1
        self.clock.now = max(self.clock.now + 100, NOW + self._examples * _BETWEEN_EXAMPLES)
        stages, _, _ = self.ivs.world.snapshot()
        self.ivs.run(lambda: self.ivs.world.restore(stages, {}, {}))
        path = self._folder / f"ring-{self._examples}.db"
        shutil.copy(self._empty, path)
        return EmulatorWorld(self, _url(path))

    def close(self) -> None:
        self.loop.run_until_complete(self.gateway.aclose())
        self.loop.close()
        self.ivs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EmulatorWorld:
    """A `RingWorld` on an emulator and a SQLite file of its own."""

    def __init__(self, site: EmulatorSite, url: str) -> None:
        self.clock, self.ledger = site.clock, MemoryLedger()
        self._site = site
        self._engine = open_engine(url)
        self._store = SqlRingStore(self._engine, RING, self.host_clock)
        self._points = _Points()
        self.heal()

    @property
    def offset(self) -> float:
        return self._site.offset

    @offset.setter
    def offset(self, seconds: float) -> None:
        self._site.offset = seconds

    def run(self, work: Awaitable[_Value]) -> _Value:
        return self._site.loop.run_until_complete(work)

    def host_clock(self) -> float:
        return self._site.host_clock()

    def manager(self) -> RingManager:
        return RingManager(
            store=_WatchedStore(self._store, self._points),
            sealer=LocalSealer(bytes(range(32))),
            gateway=_WatchedGateway(self._site.gateway, self._points),
            policy=self._site.policy,
            drain=self.ledger,
            clock=self.host_clock,
            clock_off=self._clock_off,
            sleep=self.clock.sleep,
            ring_id=RING,
        )

    def _clock_off(self, region: str) -> float:
        reading = self._site.drift.latest(region)
        return 0.0 if reading is None else reading.at_least_seconds

    def watch(self, before: Callable[[str], None], after: Callable[[str], None]) -> None:
        self._points.before, self._points.after = before, after

    def pause_with(self, pause: Callable[[], Awaitable[None]]) -> None:
        self._points.pause = pause

    def post_faults(self, *rules: dict[str, Any], **others: Any) -> None:
        """Ask the emulator for faults on the wire; see `RunningEmulator.post_faults`."""
        self._site.ivs.post_faults(*rules, **others)

    def ring(self) -> RingState:
        return self.run(self._store.load(REGION))

    def held(self) -> list[str]:
        ivs = self._site.ivs
        return ivs.run(lambda: [key.arn for key in ivs.world.public_keys(REGION)])

    def there(self) -> set[str]:
        _, keys, _ = self._site.ivs.run(self._site.ivs.world.snapshot)
        return set(keys)

    def import_as_others(self, tags: Mapping[str, str]) -> str:
        ivs, material = self._site.ivs, read_material(public_pem())
        return ivs.run(
            lambda: (
                ivs.world.import_public_key(
                    REGION,
                    public_key_pem=material.public_key_pem,
                    fingerprint=material.fingerprint,
                    tags=tags,
                ).arn
            )
        )

    def drop(self, arn: str) -> None:
        self._site.ivs.run(lambda: self._site.ivs.world.delete_public_key(arn))

    def mint(self, key: SigningKey, exp: int) -> str:
        stage = self._site.stage
        return key.mint_payload(
            *participant_payload(
                TokenRequest(StageArn.parse(stage.arn)),
                StageEndpoints(stage.endpoints.events, stage.endpoints.whip),
                participant_id=new_participant_id(),
                # By IVS's clock, whatever ours is: an `iat` that lies ahead would be refused, and so
                # hide from the judge what becomes of the key.
                iat=int(self.clock.now),
                exp=exp,
            )
        )

    def refused(self, tokens: Iterable[str]) -> dict[str, str]:
        return self._site.ivs.run(lambda: self._judge(tokens))

    def _judge(self, tokens: Iterable[str]) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for token in tokens:
            try:
                self._site.verifier.participant(token)
            except TokenRefusedError as error:
                reasons[token] = str(error)
        return reasons

    def heal(self) -> None:
        self.offset = 0.0
        self._site.ivs.clear_faults()

    def close(self) -> None:
        self.run(self._engine.dispose())


def _url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"
