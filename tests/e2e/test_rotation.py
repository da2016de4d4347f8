"""Keys change under load and through crashes, and nobody notices; a stolen key is dead at once."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from tests.e2e.installation import REGION, HeldCalls, Installation, Replica
from tests.e2e.support import PATIENCE_SECONDS
from tests.emulator.support import RunningEmulator
from tokensvc.cli.running import Stop, serving
from tokensvc.http.app import create_app
from tokensvc.http.server import bind_socket, server_config
from tokensvc.keyring import KeyPhase, KeyRecord
from tokensvc.revocation import BanList
from tokensvc.settings import Settings
from tokensvc.telemetry.logging import configure_logging

# --- kill -9 at each step -------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Where the process dies: at which call to IVS, of which command, after how many before it."""

    name: str
    operation: str
    command: tuple[str, ...]
    prepared: bool
    """Whether the ring has an ACTIVE and a STANDBY key before."""


STEPS = (
    Step("first look", "ListPublicKeys", ("rotate", "--if-due"), prepared=False),
    Step("first import", "ImportPublicKey", ("rotate", "--if-due"), prepared=False),
    Step("self-check of the first key", "GetPublicKey", ("rotate", "--if-due"), prepared=False),
    Step("import of the next standby", "ImportPublicKey", ("rotate",), prepared=True),
    Step("check of the next standby", "GetPublicKey", ("rotate",), prepared=True),
    Step("deletion", "DeletePublicKey", ("invalidate",), prepared=True),
)


@pytest.fixture
def held() -> HeldCalls:
    return HeldCalls()


@pytest.fixture
def emulator(held: HeldCalls) -> Iterator[RunningEmulator]:
    with RunningEmulator(enforce_quotas=False, sleep=held.sleep) as running:
        yield running
        held.let_go()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_killed_in_the_middle_of_a_step(
    tmp_path: Path, emulator: RunningEmulator, held: HeldCalls, step: Step
):
    """Restarted, it ends in a healthy ring of at most three keys, and none at IVS is an orphan."""
    site = Installation.make(tmp_path / "site", emulator, standby_min_age="0")
    command = step.command
    if step.prepared:
        site.prepare()
    if step.name == "deletion":
        active = phases(site)[KeyPhase.ACTIVE]
        command = (*command, active.key_id)
    emulator.post_faults({"operation": step.operation, "kind": "delay", "seconds": 1})
    victim = site.start("keys", *command)
    held.wait()
    victim.kill()
    # IVS does what it was asked for, and the answer is lost.
    held.let_go()

    answer = site.keys("rotate", "--if-due", "--wait", "30")["regions"][0]
    assert answer["status"]["healthy"], answer
    ring = site.stored()
    assert {KeyPhase.ACTIVE, KeyPhase.STANDBY} <= set(phases(site))
    assert len(ring) <= 3
    assert site.at_ivs() == {key.arn for key in ring}
    if step.name == "deletion":
        assert active.arn not in site.at_ivs()


def test_a_killed_service_goes_on_where_it_was(
    tmp_path: Path, emulator: RunningEmulator, held: HeldCalls
):
    site = Installation.make(tmp_path / "site", emulator, standby_min_age="0")
    emulator.post_faults({"operation": "ImportPublicKey", "kind": "delay", "seconds": 1})
    victim = site.start("serve")
    held.wait()
    victim.kill()
    held.let_go()
    with site.serving() as replica:
        replica.process.event("public_key_found_again")
        replica.process.event("key_ring_loaded", saying=f'"signing":["{REGION}"]')
        assert asyncio.run(site.joins(replica.mint()["token"]))
    ring = site.stored()
    assert len(ring) <= 3
    assert site.at_ivs() == {key.arn for key in ring}


def phases(site: Installation) -> dict[KeyPhase, KeyRecord]:
    """Return the stored keys by phase; of two RETIRING ones, the later."""
    return {key.phase: key for key in site.stored()}


# --- rotation under load --------------------------------------------------------------------------

# A clock that runs faster than the world's, for the service and for IVS, so that keys live seconds.
SPEED = 40.0
PERIOD, TTL_MINUTES, VIEW_AGE, SKEW = 200.0, 3, 120.0, 10.0


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the service logs in this process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = before


class FastClock:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._base = time.time()

    def elapsed(self) -> float:
        return (time.monotonic() - self._started) * SPEED

    def time(self) -> float:
        return self._base + self.elapsed()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / SPEED)


async def test_no_join_fails_while_keys_rotate_under_load(
    tmp_path: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    """Every token minted while keys come, sign, retire and are deleted joins at the emulator."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "emulator")
    # Bounds that are no settings, and would be a fraction of a second here: of a quarter, and, for the
    # ledger, of a twentieth. A minute is what a retired key is kept for the slowest record.
    patient = functools.partial(BanList, max_age=VIEW_AGE)
    monkeypatch.setattr("tokensvc.http.desk_parts.BanList", patient)
    monkeypatch.setattr("tokensvc.ledger.writer.SHED_AFTER_SECONDS", 50.0)
    monkeypatch.setattr("tokensvc.ledger.writer.MAX_RECORD_SECONDS", 55.0)
    clock = FastClock()
    with RunningEmulator(enforce_quotas=False, clock=clock.time) as emulator:
        site = await asyncio.to_thread(Installation.make, tmp_path / "site", emulator)
        settings = Settings(
            data_dir=site.folder,
            regions=(REGION,),
            aws_endpoint_url=emulator.url,
            max_duration=TTL_MINUTES,
            max_connection_duration=0,
            rotation_period=PERIOD,
            rotation_check=20.0,
            standby_min_age=20.0,
            ring_max_age=VIEW_AGE,
            ring_refresh=20.0,
            clock_skew=SKEW,
        )
        app = create_app(settings, clock=clock.time, sleep=clock.sleep, monotonic=clock.elapsed)
        with bind_socket("127.0.0.1", 0) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with serving(server_config(settings, app), listener, Stop()):
                load = Load(site, url)
                await load.run_until(lambda: _enough(emulator, load))
    assert load.failures == [], log.getvalue()[-20_000:]
    assert len(load.signed_by) >= 3
    assert load.joined > 100


def _enough(emulator: RunningEmulator, load: Load) -> bool:
    """Tell whether keys have been through their whole life: three signed, and one was deleted."""
    deleted = emulator.calls().get(("DeletePublicKey", REGION))
    return deleted is not None and len(load.signed_by) >= 3


class Load:
    """Mints over HTTP and joins with each token, several at a time."""

    def __init__(self, site: Installation, url: str) -> None:
        self._site = site
        self._url = url
        self.joined = 0
        self.signed_by: set[str] = set()
        self.failures: list[str] = []

    async def run_until(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        headers = {"Authorization": f"Bearer {self._site.api_key}"}
        async with httpx.AsyncClient(
            base_url=self._url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False
        ) as client:
            await self._wait_for_a_key(client)
            while not await asyncio.to_thread(enough):
                assert time.monotonic() < deadline, "the keys do not rotate"
                async with asyncio.TaskGroup() as group:
                    for _ in range(4):
                        group.create_task(self._mint_and_join(client))

    async def _wait_for_a_key(self, client: httpx.AsyncClient) -> None:
        for _ in range(1000):
            if not (await client.get("/v1/keys")).json()["notSigning"]:
                return
        raise AssertionError("no key signs")

    async def _mint_and_join(self, client: httpx.AsyncClient) -> None:
        body = {"stageArn": self._site.stage_arn, "duration": TTL_MINUTES, "issuer": "local"}
        answer = await client.post("/v1/tokens", json=body)
        if answer.status_code != 201:
            self.failures.append(answer.text)
            return
        minted = answer.json()
        self.signed_by.add(minted["keyArn"])
        if await self._site.joins(minted["token"]):
            self.joined += 1
        else:
            self.failures.append(f"refused, signed by {minted['keyArn']}")


# --- replicas, and a stolen key -------------------------------------------------------------------


def test_replicas_take_a_new_ring_over_and_a_stolen_key_is_dead(tmp_path: Path):
    """Two processes on one store; another one, the command line, changes the ring under both."""
    with RunningEmulator(enforce_quotas=False) as emulator:
        site = Installation.make(tmp_path / "site", emulator, standby_min_age="0")
        site.prepare()
        with site.serving() as one, site.serving() as other:
            first = one.mint()
            assert other.mint()["keyArn"] == first["keyArn"]

            assert site.keys("rotate")["regions"][0]["rotated"]
            second = minted_by_another_key(other, first["keyArn"])
            assert minted_by_another_key(one, first["keyArn"])["keyArn"] == second["keyArn"]
            assert asyncio.run(site.joins(first["token"])), "a rotation breaks no token"

            stolen = phases(site)[KeyPhase.ACTIVE]
            assert stolen.arn == second["keyArn"]
            would = site.keys("invalidate", stolen.key_id, "--dry-run")
            assert would["livingTokens"] >= 2
            assert asyncio.run(site.joins(second["token"])), "a dry run breaks nothing"
            report = site.keys("invalidate", stolen.key_id)
            assert report["deleted"]
            assert {user["stageArn"] for user in report["tokens"]} == {site.stage_arn}
            assert not asyncio.run(site.joins(second["token"]))
            for replica in (one, other):
                third = minted_by_another_key(replica, second["keyArn"])
                assert asyncio.run(site.joins(third["token"]))
            assert asyncio.run(site.joins(first["token"])), "another key's token lives on"
        assert stolen.arn not in site.at_ivs()


def minted_by_another_key(replica: Replica, arn: str) -> dict[str, Any]:
    """Mint until the replica signs with another key than `arn`, and return that token."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        minted = replica.mint()
        if minted["keyArn"] != arn:
            return minted
    raise AssertionError(f"it still signs with {arn}")
