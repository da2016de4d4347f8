"""A service of a test's own: real parts over a SQLite file, and an Amazon IVS in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from tokensvc.callers import Scope, SqlCallerStore
from tokensvc.errors import IvsError, IvsNotFoundError, IvsQuotaExceededError
from tokensvc.http.app import create_app
from tokensvc.http.edge import Edge
from tokensvc.ivs.gateway import (
    IvsToken,
    Participant,
    PublicKey,
    PublicKeySummary,
    Stage,
    StageSummary,
)
from tokensvc.keyring import create_master_key
from tokensvc.revocation.bans import REFRESH_SECONDS
from tokensvc.settings import Settings
from tokensvc.store import open_engine, upgrade
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

REGION = "eu-central-1"
OTHER_REGION = "us-west-2"
ACCOUNT = "123456789012"
NOW = 1_780_000_000.75
PATIENCE_SECONDS = 60.0
"""Of real time, until a test gives up on what threads have to do first; for slow and busy machines."""
RING_REFRESH = 1.25
CALLER_REFRESH = 1.5
LOOPS = 11
"""Background loops that sleep on `sleep`: ring, callers, bans, two janitors, queue, canary, sharing, the
reports of Regions, the turns at the keys and the count of living tokens; where another process looks after
keys, none of the janitors, the turns and the count."""
REGION_LOOPS = 4
"""The same for each Region: rotation, and the three of its disconnect worker."""


def stage_arn(name: str = "stage1", region: str = REGION) -> str:
    return f"arn:aws:ivs:{region}:{ACCOUNT}:stage/{name}"


@dataclass
class FakeIvs:
    """Amazon IVS as a gateway sees it; what it holds may be changed by a test."""

    stages: set[str] = field(default_factory=lambda: {stage_arn(), stage_arn("stage2")})
    keys: dict[str, PublicKey] = field(default_factory=dict)
    tags: dict[str, Mapping[str, str]] = field(default_factory=dict)
    fault: IvsError | None = None
    faulty_regions: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    whip: str = "https://whip.example"
    connected: dict[str, Participant] = field(default_factory=dict)
    disconnected: list[tuple[str, str, str]] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)

    def join(self, participant_id: str, user_id: str | None = None) -> None:
        """Let a participant be connected (to any stage that is asked for)."""
        self.connected[participant_id] = Participant(
            participant_id, user_id, "CONNECTED", published=True, first_join_time=NOW
        )

    async def list_participants(
        self, region: str, *, stage_arn: str, user_id: str | None = None
    ) -> list[Participant]:
        self._called("ListParticipants", region)
        assert stage_arn in self.stages
        return [one for one in self.connected.values() if user_id in (None, one.user_id)]

    async def disconnect_participant(
        self, region: str, *, stage_arn: str, participant_id: str, reason: str = ""
    ) -> None:
        self._called("DisconnectParticipant", region)
        if self.connected.pop(participant_id, None) is None:
            raise IvsNotFoundError("no such participant")
        self.disconnected.append((stage_arn, participant_id, reason))

    async def revoke_connection_token(self, region: str, token_id: str) -> None:
        self._called("RevokeConnectionToken", region)
        self.revoked.append(token_id)

    def _called(self, operation: str, region: str) -> None:
        self.calls[operation] += 1
        if self.fault is not None or region in self.faulty_regions:
            raise self.fault or IvsError("IVS is out of order.", secret="of the context")

    async def import_public_key(
        self, region: str, *, public_key_pem: str, name: str, tags: Mapping[str, str]
    ) -> PublicKey:
        self._called("ImportPublicKey", region)
        if sum(f":{region}:" in arn for arn in self.keys) >= 3:
            raise IvsQuotaExceededError("three already")
        arn = f"arn:aws:ivs:{region}:{ACCOUNT}:public-key/{name[-12:]}"
        self.keys[arn] = PublicKey(arn, name, public_key_pem, "00:11", dict(tags))
        return self.keys[arn]

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        self._called("GetPublicKey", region)
        if arn not in self.keys:
            raise IvsNotFoundError("no such key")
        return self.keys[arn]

    async def list_public_keys(self, region: str) -> list[PublicKeySummary]:
        self._called("ListPublicKeys", region)
        return [
            PublicKeySummary(key.arn, key.name, key.tags)
            for key in self.keys.values()
            if f":{region}:" in key.arn
        ]

    async def delete_public_key(self, region: str, arn: str) -> None:
        self._called("DeletePublicKey", region)
        if self.keys.pop(arn, None) is None:
            raise IvsNotFoundError("no such key")

    async def get_stage(self, region: str, arn: str) -> Stage:
        self._called("GetStage", region)
        if arn not in self.stages:
            raise IvsNotFoundError("no such stage")
        endpoints = StageEndpoints("wss://events.example", f"{self.whip}/{arn[-6:]}")
        return Stage(arn, "", endpoints, self.tags.get(arn, {}))

    async def list_stages(self, region: str) -> list[StageSummary]:
        self._called("ListStages", region)
        return [StageSummary(arn, "", {}) for arn in sorted(self.stages) if f":{region}:" in arn]

    async def create_stage(self, region: str, *, name: str, tags: Mapping[str, str]) -> Stage:
        self._called("CreateStage", region)
        self.stages.add(stage_arn(name, region))
        return await self.get_stage(region, stage_arn(name, region))

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        self._called("CreateParticipantToken", request.stage.region)
        if str(request.stage) not in self.stages:
            raise IvsNotFoundError("no such stage")
        return IvsToken(
            token="eyJhbGciOiJLTVMifQ.e30.c2ln",
            participant_id=f"ivs{self.calls['CreateParticipantToken']}",
            user_id=request.user_id,
            attributes=request.attributes,
            duration=request.duration,
            capabilities=request.capabilities,
            expiration_time=int(NOW) + request.duration * 60,
        )


_LOOP: ContextVar[asyncio.Task[Any] | None] = ContextVar("_LOOP", default=None)
"""The task that slept first of those that were begun one by another: a background loop."""


class Sleeper:
    """Stands in for `asyncio.sleep`: background work waits until a test wakes it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, asyncio.Future[None]]] = []
        self._loops: dict[asyncio.Future[None], asyncio.Task[Any]] = {}
        self._woken: set[asyncio.Task[Any]] = set()
        self._wanted = 0
        self._rested = asyncio.Event()

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        # Not `async`: a loop may let a task of its own do the waiting, and its tasks may sleep for it.
        loop = _LOOP.get() or asyncio.current_task()
        assert loop is not None
        _LOOP.set(loop)
        return self._sleep(seconds, loop)

    async def _sleep(self, seconds: float, loop: asyncio.Task[Any]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((seconds, future))
        self._loops[future] = loop
        self._note()
        try:
            await future
        finally:
            del self._loops[future]

    async def wake(self, seconds: float | None = None) -> None:
        """Wake all that wait (or wait so long), and let them come to rest again."""
        due = [entry for entry in self.waiting if seconds is None or entry[0] == seconds]
        self.waiting = [entry for entry in self.waiting if entry not in due]
        for _, future in due:
            if not future.done():
                future.set_result(None)
                self._await(self._loops[future])
        await self.settled(len(self.waiting) + len(due))

    async def wake_copies(self) -> None:
        """Let the copies of the ring, of the callers and of the bans be renewed."""
        await self.wake(RING_REFRESH)
        await self.wake(CALLER_REFRESH)
        await self.wake(REFRESH_SECONDS)

    def nudge(self, longest: float) -> None:
        """Wake all that wait at most so long, and do not wait for them."""
        for seconds, future in self.waiting:
            if seconds <= longest and not future.done():
                future.set_result(None)

    async def settled(self, sleepers: int) -> None:
        """Wait until so many sleep, those that `wake` has woken among them: others may lie down first."""
        self._wanted = sleepers
        self._rested.clear()
        self._note()
        await self._rested.wait()

    def _await(self, loop: asyncio.Task[Any]) -> None:
        if not loop.done():
            self._woken.add(loop)
            # One that ends sleeps no more.
            loop.add_done_callback(lambda _: self._note())

    def _note(self) -> None:
        # A worker that was woken otherwise gives its sleep up.
        self.waiting = [entry for entry in self.waiting if not entry[1].done()]
        asleep = {self._loops[future] for _, future in self.waiting}
        self._woken = {loop for loop in self._woken if loop not in asleep and not loop.done()}
        if len(self.waiting) >= self._wanted and not self._woken:
            self._rested.set()


@dataclass
class Service:
    """A running service, as a test drives it."""

    settings: Settings
    ivs: FakeIvs
    sleeper: Sleeper = field(default_factory=Sleeper)
    now: float = NOW
    ahead: float = 0.0
    """Of the host's clock, in seconds; the monotonic one goes right."""
    api_keys: dict[str, str] = field(default_factory=dict)
    tends_keys: bool = True
    app: Edge | None = None
    client: httpx.AsyncClient | None = None

    async def at_rest(self) -> None:
        """Wait until every Region's key was seen to, and every loop waits for its next round."""
        loops = LOOPS + (self.settings.audit is not None)
        loops += self.settings.policy_file is not None
        # There, one listens for changes as well.
        loops += self.settings.database_url.startswith("postgresql")
        of_region = REGION_LOOPS
        if not self.tends_keys:
            loops, of_region = loops - 4, REGION_LOOPS - 1
        await self.sleeper.settled(loops + of_region * len(self.settings.regions))

    def authorization(self, caller: str = "all") -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_keys[caller]}"}

    async def post(self, path: str, body: object, *, caller: str = "all") -> httpx.Response:
        assert self.client is not None
        return await self.client.post(path, json=body, headers=self.authorization(caller))

    async def send(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        assert self.client is not None
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            path,
            content=content,
            headers={"content-type": "application/json", **self.authorization(), **named},
        )

    async def delete(self, path: str, *, caller: str = "all", **query: str) -> httpx.Response:
        assert self.client is not None
        headers = self.authorization(caller)
        return await self.client.delete(path, headers=headers, params=query or None)

    async def until_done(self, disconnect_id: str) -> dict[str, Any]:
        """Let time pass until a disconnect is done, and return what is told of it."""
        return await self.until(disconnect_id, lambda found: bool(found["done"]))

    async def until(
        self, disconnect_id: str, is_so: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Let time pass until what is told of a disconnect `is_so`, and return that.

        Threads do the work, so how many turns it takes is the machine's business.
        """
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await self.get(f"/v1/disconnects/{disconnect_id}")
                assert answer.status_code == 200, answer.text
                found: dict[str, Any] = answer.json()
                if is_so(found):
                    return found
                self.now += 0.25
                self.sleeper.nudge(longest=4.0)

    async def mint(self, **fields: object) -> dict[str, Any]:
        """Ask for a token, of the first stage unless another is named; expect to get one."""
        answer = await self.post("/v1/tokens", {"stageArn": stage_arn(), **fields})
        assert answer.status_code == 201, answer.text
        minted: dict[str, Any] = answer.json()
        return minted

    async def get(self, path: str, *, caller: str | None = "all") -> httpx.Response:
        assert self.client is not None
        headers = {} if caller is None else self.authorization(caller)
        return await self.client.get(path, headers=headers)

    async def call(self, scope: dict[str, Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """Speak ASGI to the application: what no HTTP client would send."""
        assert self.app is not None
        sent: list[dict[str, Any]] = []
        incoming = iter(messages)

        async def receive() -> dict[str, Any]:
            return next(incoming, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        whole = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/tokens",
            "raw_path": b"/v1/tokens",
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
            **scope,
        }
        await self.app(whole, receive, send)
        return sent


def settings_for(folder: Path, **changes: object) -> Settings:
    """Return settings of an installation under `folder` that serves one Region."""
    settings = Settings(
        data_dir=folder,
        regions=(REGION,),
        stage_cache_ttl=60,
        # Unlike each other and all other waits, so that a test can wake the ones it means.
        ring_refresh=RING_REFRESH,
        caller_refresh=CALLER_REFRESH,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


async def install(settings: Settings) -> dict[str, str]:
    """Make the database, the master key and one caller for each set of scopes."""
    upgrade(settings.database_url)
    create_master_key(settings.master_key_file)
    engine = open_engine(settings.database_url)
    store = SqlCallerStore(engine, lambda: NOW)
    keys = {}
    for name, scopes in {
        "all": list(Scope),
        "minter": [Scope.TOKENS_MINT],
        "reader": [Scope.TOKENS_READ, Scope.KEYS_READ],
        "connector": [Scope.CONNECTION_TOKENS_MINT, Scope.CONNECTION_TOKENS_REVOKE],
    }.items():
        _, api_key = await store.add(name, scopes)
        keys[name] = api_key.reveal()
    await engine.dispose()
    return keys


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    """Run the application's lifespan around the body, as a server does."""
    app = create_app(
        service.settings,
        clock=lambda: service.now + service.ahead,
        gateway=service.ivs,
        sleep=service.sleeper.sleep,
        monotonic=lambda: service.now,
        tend_keys=service.tends_keys,
    )
    async with lifespan(app):
        await service.at_rest()
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            service.app, service.client = app, client
            yield service


@contextlib.asynccontextmanager
async def lifespan(app: Edge) -> AsyncIterator[None]:
    """Speak ASGI's lifespan protocol to `app`; raises what its startup raised."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(app(scope, incoming.get, outgoing.put))  # type: ignore[arg-type]
    await incoming.put({"type": "lifespan.startup"})
    answer = await outgoing.get()
    if answer["type"] != "lifespan.startup.complete":
        await task
    try:
        yield
    finally:
        await incoming.put({"type": "lifespan.shutdown"})
        await task


def problem_in(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check what every problem has in common, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:tokensvc:problem:{code}"
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["requestId"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    return problem
