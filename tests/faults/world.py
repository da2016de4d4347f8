"""The service as it runs, an Amazon IVS that answers over HTTP, and a database: all in one process.

Time is the test's, so nothing waits for a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx

from tests.emulator.support import RunningEmulator
from tests.faults.asking import Subject, outcome, request_of
from tests.http.support import NOW, REGION, Service, install, running, settings_for
from tokensvc.emulator.verification import TokenVerifier

__all__ = ["Installation", "World", "install_once"]

USER: Final = "ana"
MINT_COLUMNS: Final = ("mint", "mint, new stage", "mint by IVS", "exchange")


@dataclass
class World:
    """A service that runs, and what it stands on."""

    service: Service
    subject: Subject
    _start: Callable[[int], RunningEmulator]
    emulator: RunningEmulator = field(init=False)
    turn: Callable[[], Awaitable[None]] = field(init=False)
    """What happens again and again while an answer is waited for."""
    tokens: list[str] = field(default_factory=list)
    """All that were handed out."""
    disconnects: list[str] = field(default_factory=list)
    """Ids of all that were accepted."""

    def __post_init__(self) -> None:
        self.emulator = self._start(0)
        self.turn = self._nudge

    async def let_pass(self, seconds: float) -> None:
        """Let time pass, and the work in the background have its turn."""
        self.service.now += seconds
        await self.service.sleeper.wake()

    def stop_ivs(self) -> None:
        """Let nobody listen where IVS was; blocks."""
        self.emulator.close()

    def start_ivs(self) -> None:
        """Let IVS be there again; blocks."""
        self.emulator = self._start(self.emulator.port)

    async def ask(self, column: str) -> str:
        """Do what a column of the table is about, and say what came of it."""
        assert self.service.client is not None
        method, path, body = request_of(column, self.subject)
        headers = self.service.authorization()
        task = asyncio.create_task(
            self.service.client.request(method, path, json=body, headers=headers)
        )
        while not task.done():
            await self.turn()
            await asyncio.wait([task], timeout=0.005)
        self._note(column, task.result())
        return outcome(column, task.result())

    async def _nudge(self) -> None:
        # A rotation waits for its turn at IVS on the clock of the test.
        self.service.sleeper.nudge(longest=4.0)

    def _note(self, column: str, answer: httpx.Response) -> None:
        if not answer.is_success:
            return
        body = answer.json()
        if column in MINT_COLUMNS:
            self.tokens.append(body["token"])
        elif column == "batch":
            self.tokens += [one["token"] for one in body["tokens"] if "token" in one]
        elif column == "disconnect":
            self.disconnects.append(body["disconnectId"])

    def refusals(self) -> list[str]:
        """Say why IVS refuses tokens that were handed out; blocks."""
        return self.emulator.run(lambda: [*filter(None, map(self._refusal, self.tokens))])

    def _refusal(self, token: str) -> str | None:
        emulator = self.emulator
        verifier = TokenVerifier(
            emulator.world, emulator.sessions, events_url=emulator.config.events_url
        )
        try:
            verifier.participant(token)
        except Exception as refusal:
            return repr(refusal)
        return None


@dataclass
class Installation:
    """An installation whose Region has its keys, and whose stage has one participant; to be copied."""

    folder: Path
    api_keys: dict[str, str]
    subject: Subject

    @contextlib.asynccontextmanager
    async def copied(
        self, folder: Path, damage: Callable[[Path], None], **settings: Any
    ) -> AsyncIterator[World]:
        """Run a copy of it, and an IVS that holds the same keys and stages.

        `damage` is done to the copy's data before it starts.
        """
        shutil.copytree(self.folder, folder)
        damage(folder / "data")
        async with _running(folder, self.api_keys, self.subject, **settings) as world:
            yield world


async def install_once(folder: Path, now: float = NOW) -> Installation:
    """Make an installation at `now`, in Unix seconds."""
    (folder / "data").mkdir(parents=True)
    api_keys = await asyncio.to_thread(_install, folder / "data")
    subject = Subject("", "", "")
    async with _running(folder, api_keys, subject, now=now) as world:
        create = world.emulator.world.create_stage
        subject.stage, subject.new_stage = (
            world.emulator.run(lambda: create(REGION)).arn for _ in range(2)
        )
        minted = await world.service.mint(stageArn=subject.stage, userId=USER, duration=120)
        subject.participant = minted["participantId"]
    return Installation(folder, api_keys, subject)


@contextlib.asynccontextmanager
async def _running(
    folder: Path,
    api_keys: dict[str, str],
    subject: Subject,
    *,
    host: str = "127.0.0.1",
    now: float = NOW,
    **settings: Any,
) -> AsyncIterator[World]:
    service = Service(
        settings_for(
            folder / "data",
            **{
                # On a busy machine an answer takes its time; only where that is the fault is it short.
                "aws_read_timeout": 20.0,
                "aws_connect_timeout": 20.0,
                "aws_max_attempts": 1,
                "standby_min_age": 0.0,
                **settings,
            },
        ),
        None,  # type: ignore[arg-type] - IVS is asked over HTTP
        now=now,
        api_keys=api_keys,
    )

    def start(port: int) -> RunningEmulator:
        return RunningEmulator(
            port=port,
            clock=lambda: service.now,
            enforce_quotas=False,
            state_file=folder / "ivs.json",
            public_url="wss://events.example",
        )

    world = await asyncio.to_thread(World, service, subject, start)
    try:
        url = f"http://{host}:{world.emulator.port}"
        service.settings = replace(service.settings, aws_endpoint_url=url)
        async with running(service):
            yield world
    finally:
        await asyncio.to_thread(world.emulator.close)


def _install(data: Path) -> dict[str, str]:
    return asyncio.run(install(settings_for(data)))
