"""A kick is not lost and IVS is not overrun: kill -9, two replicas, and an IVS that throttles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.e2e.installation import REGION, Installation, Replica
from tests.e2e.support import PATIENCE_SECONDS
from tests.emulator.support import RunningEmulator

CALLS_PER_SECOND = 5


@pytest.fixture
def emulator() -> Iterator[RunningEmulator]:
    with RunningEmulator() as running:
        yield running


@pytest.fixture
def installation(tmp_path: Path, emulator: RunningEmulator) -> Installation:
    made = Installation.make(tmp_path / "installation", emulator)
    made.keys("rotate", "--if-due")
    return made


class Guests:
    """Participants who are connected to the stage, each over a socket of its own."""

    def __init__(self, installation: Installation, closing: contextlib.AsyncExitStack) -> None:
        self._installation = installation
        self._closing = closing
        self._sockets: dict[str, ClientConnection] = {}

    @property
    def participant_ids(self) -> set[str]:
        return set(self._sockets)

    async def join(self, minted: dict[str, Any]) -> None:
        socket = await self._closing.enter_async_context(
            connect(
                f"{self._installation.emulator.events_url}/?error_over_ws=1",
                subprotocols=[Subprotocol(minted["token"])],
                proxy=None,
            )
        )
        message = json.loads(await socket.recv())
        assert message["type"] == "aws:ivs:STAGE_STATE"
        self._sockets[minted["participantId"]] = socket

    async def all_out(self) -> None:
        """Wait until IVS has closed every socket."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            for socket in self._sockets.values():
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        await socket.recv()


@contextlib.asynccontextmanager
async def guests_of(installation: Installation) -> AsyncIterator[Guests]:
    async with contextlib.AsyncExitStack() as closing:
        yield Guests(installation, closing)


def disconnect(replica: Replica, **fields: object) -> str:
    """Ask for a disconnect, and return its id."""
    body = {"stageArn": replica.installation.stage_arn, **fields}
    with replica.client() as client:
        answer = client.post("/v1/disconnects", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["disconnectId"])


def body_of(replica: Replica, user_id: str) -> dict[str, str]:
    return {"stageArn": replica.installation.stage_arn, "userId": user_id}


def settled(replica: Replica, disconnect_id: str) -> dict[str, Any]:
    """Ask for the progress until it is done."""
    ends = time.monotonic() + PATIENCE_SECONDS
    with replica.client() as client:
        while time.monotonic() < ends:
            found: dict[str, Any] = client.get(f"/v1/disconnects/{disconnect_id}").json()
            if found["done"]:
                return found
    raise AssertionError(f"not done: {found}")


def let_the_dead_holders_lease_run_out(installation: Installation) -> None:
    """Do what 20 seconds would: a process that was killed gives nothing back."""
    path = installation.folder / "tokensvc.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        changed = database.execute(
            "UPDATE leases SET expires_at = ? WHERE name = ?",
            (time.time(), f"disconnects:{REGION}"),
        )
        assert changed.rowcount == 1


def calls_of_disconnect(emulator: RunningEmulator) -> dict[str, Any]:
    return emulator.calls()["DisconnectParticipant", REGION]


async def test_killed_right_after_the_answer_everybody_is_disconnected_by_the_next_run(
    installation: Installation, emulator: RunningEmulator
) -> None:
    async with guests_of(installation) as guests:
        process = installation.start("serve")
        try:
            replica = installation.replica(process)
            for _ in range(7):
                await guests.join(replica.mint(userId="rude"))
            kind = replica.mint(userId="kind")
            # Whatever this run asks of IVS comes to nothing.
            emulator.post_faults(
                {"operation": "DisconnectParticipant", "kind": "error", "count": 1000}
            )
            disconnect_id = disconnect(replica, userId="rude", reason="rude", ban=3600)
        finally:
            process.kill()
            emulator.clear_faults()
        let_the_dead_holders_lease_run_out(installation)
        with installation.serving() as again:
            # The ban holds from the first answer on.
            with again.client() as client:
                body = {"stageArn": installation.stage_arn, "userId": "rude"}
                refused = client.post("/v1/tokens", json=body)
            assert (refused.status_code, refused.json()["code"]) == (403, "banned")
            await guests.all_out()
            with again.client() as client:
                found = client.get(f"/v1/disconnects/{disconnect_id}").json()
            assert found["banId"] == refused.json()["banId"]
            assert {one["participantId"] for one in found["participants"]} >= guests.participant_ids
            assert await installation.joins(kind["token"])
    assert calls_of_disconnect(emulator)["maxPerSecond"] <= CALLS_PER_SECOND


async def test_a_ban_holds_in_every_worker_of_the_replica_that_took_it_when_it_is_answered(
    installation: Installation,
) -> None:
    installation.environment["TOKENSVC_WORKERS"] = "3"
    process = installation.start("serve")
    try:
        listening = process.event("listening")
        for worker in range(3):
            process.event("service_started", f'"worker":{worker}')
        replica = Replica(installation, f"http://127.0.0.1:{listening['port']}", process)
        async with contextlib.AsyncExitStack() as closing:
            clients = await a_client_of_each_worker(replica, 3, closing)
            for number in range(6):
                user = f"rude{number}"
                path, ban = (
                    ("/v1/bans", {"userId": user})
                    if number % 2
                    else ("/v1/disconnects", {**body_of(replica, user), "ban": 3600})
                )
                answer = await clients[number % 3].post(path, json=ban)
                assert answer.status_code in (201, 202)
                minted = await asyncio.gather(
                    *(client.post("/v1/tokens", json=body_of(replica, user)) for client in clients)
                )
                assert [answer.json().get("code") for answer in minted] == ["banned"] * 3
    finally:
        process.kill()


async def a_client_of_each_worker(
    replica: Replica, count: int, closing: contextlib.AsyncExitStack
) -> list[httpx.AsyncClient]:
    """Return clients that keep one connection each, which stays with the worker that took it."""
    pids = [
        int(replica.process.event("worker_started", f'"worker":{worker}')["pid"])
        for worker in range(count)
    ]
    clients = []
    for pid in pids:
        others = [other for other in pids if other != pid]
        client = await closing.enter_async_context(replica.async_client())
        try:
            for other in others:
                os.kill(other, signal.SIGSTOP)
            assert (await client.get("/healthz")).status_code == 200
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)
        clients.append(client)
    return clients


async def test_two_replicas_and_a_throttling_ivs_lose_nobody_and_keep_the_rate(
    installation: Installation, emulator: RunningEmulator
) -> None:
    with installation.serving() as one, installation.serving() as two:
        async with guests_of(installation) as guests:
            by_user = [one.mint(userId="rude") for _ in range(6)]
            by_id = [two.mint() for _ in range(4)]
            for minted in by_user + by_id:
                await guests.join(minted)
            emulator.post_faults(
                {"operation": "DisconnectParticipant", "kind": "throttle", "count": 2},
                {"operation": "DisconnectParticipant", "kind": "drop_after"},
                {"operation": "DisconnectParticipant", "kind": "error"},
            )
            ids = [disconnect(two, userId="rude")]
            ids += [disconnect(one, participantId=minted["participantId"]) for minted in by_id]
            await guests.all_out()
        found = [settled(one, disconnect_id) for disconnect_id in ids]
    assert {
        participant["participantId"] for part in found for participant in part["participants"]
    } == {minted["participantId"] for minted in by_user + by_id}
    assert sum(part["counts"]["failed"] + part["counts"]["expired"] for part in found) == 0
    calls = calls_of_disconnect(emulator)
    assert calls["maxPerSecond"] <= CALLS_PER_SECOND
    assert calls["count"] >= len(by_user + by_id) + 3


async def test_the_command_line_stores_and_waits_for_the_service(
    installation: Installation, emulator: RunningEmulator
) -> None:
    with installation.serving() as replica:
        async with guests_of(installation) as guests:
            minted = replica.mint(userId="rude")
            await guests.join(minted)
            options = ("--stage-arn", installation.stage_arn, "--user-id", "rude")
            printed = await asyncio.to_thread(
                installation.run, "disconnect", *options, "--wait", "--json"
            )
            await guests.all_out()
    answer = json.loads(printed)
    assert answer["done"] is True
    assert [(one["participantId"], one["state"]) for one in answer["participants"]] == [
        (minted["participantId"], "disconnected")
    ]
