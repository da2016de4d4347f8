"""A cluster under load while everything around it fails, and what must hold nevertheless.

`test_cluster.py` runs one round; `make chaos MINUTES=n` runs rounds for n minutes. A round is every
disturbance once (replicas killed, the database restarted and killed, the network to it cut), each
with something asked meanwhile that must not be lost (a rotation, a compromised key, kicks, bans), in
an order that the seed decides. Mints, batches and tokens of CreateParticipantToken go on throughout.

At the end of a round every token that was handed out in it is looked for in the ledger and tried
at the emulator. `Chaos.faults` has every promise that was broken, in words.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from tests.e2e.cluster import Answer, Cluster
from tests.e2e.support import PATIENCE_SECONDS
from tokensvc.ivs.budgets import CALLS_PER_SECOND
from tokensvc.keyring.policy import SLOTS

__all__ = ["SETTINGS", "Chaos"]

SETTINGS: Final = {
    "max_duration": "2",
    "max_connection_duration": "0",
    "rotation_period": "100",
    "rotation_check": "2",
    "ring_max_age": "10",
    "standby_min_age": "0",
    "clock_skew": "1",
    "database_connect_timeout": "1",
    "database_lock_timeout": "1",
    "database_statement_timeout": "2",
    "shutdown_grace": "5",
}
"""Short times, so that keys are rotated and deleted within minutes and a cut is noticed in seconds."""

TTL_MINUTES: Final = 2
WORKERS: Final = 6
PAUSE_SECONDS: Final = 0.12
"""The longest pause of a worker between two requests; the load is bounded, not the largest possible."""

OUTAGE_SECONDS: Final = 1.5
CUT_SECONDS: Final = 3.0
BETWEEN: Final = 40
"""Requests that are answered between two disturbances: the service is back, not just up."""

BURST: Final = 100
"""Tokens of CreateParticipantToken asked for at once: twice what IVS allows in a second."""

BAN_SECONDS: Final = 1.0
"""How late another replica may know of a ban (docs/postgresql.md: the next poll)."""

JOINS_AT_ONCE: Final = 16
NEARLY_EXPIRED_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Handed:
    """A token that a replica has answered with."""

    token: str = field(repr=False)
    participant_id: str
    user_id: str
    key_arn: str | None
    expires_at: float
    answer: Answer = field(repr=False)


@dataclass(frozen=True, slots=True)
class Kick:
    """A disconnect that was answered, and the participants whom it means."""

    disconnect_id: str
    participant_ids: frozenset[str]
    banned: bool


class Chaos:
    """One run over an open cluster."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.max_keys = 0
        self._cluster = cluster
        self._seed = seed
        self._random = random.Random(seed)
        self._round = 0
        self._stopping = False
        self._answered = 0
        self._moved = asyncio.Condition()
        self._handed: list[Handed] = []
        self._ids: set[str] = set()
        self._recorded: set[tuple[str, str]] = set()
        self._bans: dict[str, Answer] = {}
        self._kicks: list[Kick] = []
        self._guests: dict[str, tuple[Handed, ClientConnection]] = {}
        self._invalid: set[str] = set()
        self._signed_by: set[str] = set()
        self._calls: dict[str, dict[str, Any]] = {}

    async def run(self, seconds: float = 0.0) -> None:
        """Run one round, and more until `seconds` are over; then check what holds for the whole."""
        ends = time.monotonic() + seconds
        await self._wait_for_keys()
        while True:
            await self._run_round()
            if self.faults or time.monotonic() >= ends:
                break
        await self._check_budgets()
        await self._cluster.stop_all()
        self._check_logs()

    def figures(self) -> Iterator[str]:
        """Lines that say what was done and what was counted."""
        client = self._cluster.client
        yield f"cluster: seed {self._seed}, {self._round} round(s), {len(self.faults)} fault(s)"
        for name, count in sorted(self.counts.items()):
            yield f"  {name}: {count}"
        yield f"  keys that signed: {len(self._signed_by)}; most keys in the ring: {self.max_keys}"
        yield f"  longest wait of the client for an answer: {client.longest_seconds:.1f} s"
        attempts = ", ".join(f"{name} {count}" for name, count in sorted(client.attempts.items()))
        yield f"  attempts by outcome: {attempts}"
        for operation, call in sorted(self._calls.items()):
            allowed = CALLS_PER_SECOND.get(operation, "-")  # type: ignore[call-overload]
            yield (
                f"  {operation}: {call['count']} calls, at most {call['maxPerSecond']} in a second"
                f" (budget {allowed}), {call['statuses']}"
            )

    # -- load --------------------------------------------------------------------------------------

    async def _run_round(self) -> None:
        self._round += 1
        self._stopping = False
        await self._invite_guests()
        load = [asyncio.create_task(self._mint_for_ever(number)) for number in range(WORKERS)]
        try:
            await self._progress(BETWEEN)
            await self._disturb()
        finally:
            self._stopping = True
            done = await asyncio.gather(*load, return_exceptions=True)
        self.faults += [f"load: {error!r}" for error in done if isinstance(error, BaseException)]
        await self._check_kicks()
        self._check_bans()
        await self._check_ledger()
        await self._check_joins()
        await self._close_guests()
        self._handed.clear()
        self._kicks.clear()
        self._bans.clear()

    async def _mint_for_ever(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {self._round} {number}")
        while not self._stopping:
            kind = chance.choices(("mint", "batch", "ivs"), (80, 14, 6))[0]
            users = [f"u{self._round}-{chance.randrange(20)}" for _ in range(8)]
            if kind == "batch":
                await self._batch(users)
            else:
                await self._mint(users[0], issuer="ivs" if kind == "ivs" else "auto")
            await asyncio.sleep(chance.uniform(0, PAUSE_SECONDS))

    async def _mint(self, user_id: str, *, issuer: str = "auto") -> Handed | None:
        body = {
            "stageArn": self._cluster.stage_arn,
            "userId": user_id,
            "duration": TTL_MINUTES,
            "issuer": issuer,
        }
        answer = await self._ask("/v1/tokens", body)
        if answer.status == 409 and answer.body["code"] == "not_repeatable":
            # IVS made it, and its token was in the answer that was lost: documented, ask anew.
            self.counts["tokens of IVS lost with their answer"] += 1
            answer = await self._ask("/v1/tokens", body)
        if answer.status in (200, 201):
            return self._take(answer.body, user_id, answer)
        self._refused(answer.body, user_id, answer)
        return None

    async def _batch(self, users: list[str]) -> None:
        defaults = {"stageArn": self._cluster.stage_arn, "duration": TTL_MINUTES}
        body = {"defaults": defaults, "tokens": [{"userId": user} for user in users]}
        answer = await self._ask("/v1/tokens/batch", body)
        if answer.status != 200:
            self.faults.append(f"batch: {answer.status} {answer.body}")
            return
        self.counts["batches"] += 1
        for user_id, item in zip(users, answer.body["tokens"], strict=True):
            if "problem" in item:
                self._refused(item["problem"], user_id, answer)
            else:
                self._take(item, user_id, answer)

    async def _ask(self, path: str, body: object) -> Answer:
        answer = await self._cluster.client.ask("POST", path, body, key=secrets.token_hex(12))
        async with self._moved:
            self._answered += 1
            self._moved.notify_all()
        return answer

    def _take(self, minted: dict[str, Any], user_id: str, answer: Answer) -> Handed:
        handed = Handed(
            token=minted["token"],
            participant_id=minted["participantId"],
            user_id=user_id,
            key_arn=minted["keyArn"],
            expires_at=datetime.fromisoformat(minted["expirationTime"]).timestamp(),
            answer=answer,
        )
        if handed.participant_id in self._ids:
            self.faults.append(f"{handed.participant_id} was handed out twice")
        self._ids.add(handed.participant_id)
        self._handed.append(handed)
        self.counts["tokens handed out"] += 1
        if handed.key_arn is None:
            self.counts["of them by CreateParticipantToken"] += 1
        else:
            self._signed_by.add(handed.key_arn)
        return handed

    def _refused(self, problem: dict[str, Any], user_id: str, answer: Answer) -> None:
        if problem["code"] == "banned" and user_id in self._bans:
            self.counts["mints refused as banned"] += 1
        elif problem["status"] == 503:
            # An item of a batch: the client would ask for it again.
            self.counts[f"items refused for now: {problem['code']}"] += 1
        elif problem["code"] == "banned" and self._being_banned == user_id:
            self.counts["mints refused as banned"] += 1
        else:
            self.faults.append(f"{user_id}: {answer.status} {problem}")

    async def _progress(self, requests: int) -> None:
        """Wait until so many more requests were answered."""
        wanted = self._answered + requests
        async with asyncio.timeout(PATIENCE_SECONDS), self._moved:
            await self._moved.wait_for(lambda: self._answered >= wanted)

    # -- disturbances, and what is asked meanwhile -------------------------------------------------

    _being_banned = ""

    async def _disturb(self) -> None:
        disturbances: list[Callable[[], Awaitable[None]]] = [
            self._kill_one,
            self._kill_two,
            self._restart_database,
            self._crash_database,
            self._cut_network,
        ]
        asked: list[Callable[[], Awaitable[None]]] = [
            self._rotate,
            self._invalidate,
            self._kick_participant,
            self._kick_user,
            self._ban,
        ]
        self._random.shuffle(disturbances)
        self._random.shuffle(asked)
        for disturb, ask in zip(disturbances, asked, strict=True):
            self.counts[f"did {disturb.__name__[1:]}"] += 1
            async with asyncio.TaskGroup() as group:
                group.create_task(disturb())
                await asyncio.sleep(self._random.uniform(0, OUTAGE_SECONDS))
                group.create_task(ask())
            await self._look_at_keys()
            await self._progress(BETWEEN)
        await asyncio.gather(self._ban(), self._burst())
        await self._progress(BETWEEN)

    async def _kill_one(self) -> None:
        await self._kill([self._random.randrange(len(self._cluster.ports))])

    async def _kill_two(self) -> None:
        await self._kill(self._random.sample(range(len(self._cluster.ports)), 2))

    async def _kill(self, indexes: list[int]) -> None:
        await asyncio.gather(*(self._cluster.kill(index) for index in indexes))
        await self._progress(BETWEEN)
        await asyncio.gather(*(self._cluster.start(index) for index in indexes))

    async def _restart_database(self) -> None:
        await asyncio.to_thread(self._cluster.postgres.stop)
        await asyncio.sleep(OUTAGE_SECONDS)
        await asyncio.to_thread(self._cluster.postgres.start)

    async def _crash_database(self) -> None:
        await asyncio.to_thread(self._cluster.postgres.kill)
        await asyncio.sleep(OUTAGE_SECONDS)
        await asyncio.to_thread(self._cluster.postgres.start)

    async def _cut_network(self) -> None:
        self._cluster.wire.cut()
        await asyncio.sleep(CUT_SECONDS)
        self._cluster.wire.mend()

    async def _rotate(self) -> None:
        answer = await self._ask("/v1/keys/rotate", {})
        if answer.status == 200 and answer.body["regions"][0]["rotated"]:
            self.counts["rotations asked for and done"] += 1
        elif answer.status == 200:
            # All three slots are taken until a key's last token has expired.
            self.counts["rotations that have to wait"] += 1
        else:
            self.faults.append(f"rotate: {answer.status} {answer.body}")

    async def _invalidate(self) -> None:
        active = next(key for key in await self._keys() if key["phase"] == "ACTIVE")
        path = f"/v1/keys/{active['keyId']}/invalidate"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (answer := await self._ask(path, {})).status == 409:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            if answer.status != 200:
                self.faults.append(f"invalidate: {answer.status} {answer.body}")
                return
            while active["phase"] != "DELETED":
                found = await self._cluster.client.ask("GET", f"/v1/keys/{active['keyId']}")
                active = found.body
        self._invalid.add(active["arn"])
        self.counts["keys invalidated"] += 1

    async def _kick_participant(self) -> None:
        handed, _ = self._guest("by id")
        await self._kick({"participantId": handed.participant_id}, handed, banned=False)

    async def _kick_user(self) -> None:
        handed, _ = self._guest("by user")
        await self._kick({"userId": handed.user_id, "ban": 3600}, handed, banned=True)
        handed, _ = self._guest("by id and banned")
        await self._kick({"participantId": handed.participant_id, "ban": 60}, handed, banned=True)

    async def _kick(self, whom: dict[str, Any], handed: Handed, *, banned: bool) -> None:
        body = {"stageArn": self._cluster.stage_arn, "reason": "chaos", **whom}
        answer = await self._ask("/v1/disconnects", body)
        if answer.status != 202:
            self.faults.append(f"kick: {answer.status} {answer.body}")
            return
        if "userId" in whom:
            self._bans[handed.user_id] = answer
            if await self._mint(handed.user_id) is None:
                self.counts["kicked users who came back and were refused"] += 1
        ids = frozenset({handed.participant_id})
        self._kicks.append(Kick(answer.body["disconnectId"], ids, banned))

    async def _ban(self) -> None:
        free = [f"u{self._round}-{n}" for n in range(20) if f"u{self._round}-{n}" not in self._bans]
        user_id = self._being_banned = self._random.choice(free)
        body = {"userId": user_id, "stageArn": self._cluster.stage_arn, "duration": 3600}
        answer = await self._ask("/v1/bans", body)
        if answer.status != 201:
            self.faults.append(f"ban: {answer.status} {answer.body}")
            return
        self._bans[user_id] = answer
        self.counts["bans"] += 1
        for _ in range(10):
            await self._mint(user_id)

    async def _burst(self) -> None:
        names = [f"burst{self._round}-{number}" for number in range(BURST)]
        await asyncio.gather(*(self._mint(name, issuer="ivs") for name in names))

    # -- participants who are connected ------------------------------------------------------------

    async def _invite_guests(self) -> None:
        for name in ("by id", "by user", "by id and banned", "stays", "stays too"):
            handed = await self._mint(f"guest {self._round} {name}")
            assert handed is not None
            socket = await self._cluster.join(handed.token)
            assert socket is not None, "a fresh token was refused"
            self._guests[name] = (handed, socket)

    def _guest(self, name: str) -> tuple[Handed, ClientConnection]:
        return self._guests[name]

    async def _close_guests(self) -> None:
        for _, socket in self._guests.values():
            await socket.close()
        self._guests.clear()

    # -- checks ------------------------------------------------------------------------------------

    async def _keys(self) -> list[dict[str, Any]]:
        answer = await self._cluster.client.ask("GET", "/v1/keys")
        found: list[dict[str, Any]] = answer.body["keys"]
        return found

    async def _look_at_keys(self) -> None:
        held = [key for key in await self._keys() if key["phase"] not in ("GENERATED", "DELETED")]
        self.max_keys = max(self.max_keys, len(held))
        if len(held) > SLOTS:
            self.faults.append(f"{len(held)} keys in the ring")

    async def _wait_for_keys(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                answer = await self._cluster.client.ask("GET", "/v1/keys")
                phases = {key["phase"] for key in answer.body["keys"]}
                if not answer.body["notSigning"] and {"ACTIVE", "STANDBY"} <= phases:
                    return
                await asyncio.sleep(0.05)

    async def _check_kicks(self) -> None:
        """Every kick is done, to those who were meant and to nobody else."""
        for kick in self._kicks:
            found = await self._settled(kick)
            states = {one["participantId"]: one["state"] for one in found["participants"]}
            gone = {one for one, state in states.items() if state == "disconnected"}
            if gone != kick.participant_ids or (not kick.banned and states.keys() != gone):
                self.faults.append(f"kick of {set(kick.participant_ids)} came to {states}")
            if found["counts"]["failed"] + found["counts"]["expired"]:
                self.faults.append(f"kick: {found['counts']}")
            self.counts["kicks done"] += 1
        meant = {one for kick in self._kicks for one in kick.participant_ids}
        for name, (handed, socket) in self._guests.items():
            if handed.participant_id in meant:
                with contextlib.suppress(ConnectionClosed):
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        while True:
                            await socket.recv()
            elif socket.state is not State.OPEN:
                self.faults.append(f"guest {name!r} was disconnected, and nobody asked for it")

    async def _settled(self, kick: Kick) -> dict[str, Any]:
        ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            path = f"/v1/disconnects/{kick.disconnect_id}"
            found: dict[str, Any] = (await self._cluster.client.ask("GET", path)).body
            pending = {
                one["participantId"] for one in found["participants"] if one["state"] == "pending"
            }
            # A ban's second sweep comes later, and whoever it finds is not one who was connected.
            if found["done"] or (
                kick.banned and found["participants"] and not pending & kick.participant_ids
            ):
                return found
            if time.monotonic() > ends:
                self.faults.append(f"kick not done in {PATIENCE_SECONDS:.0f} s: {found}")
                return found
            await asyncio.sleep(0.2)

    def _check_bans(self) -> None:
        """Nobody is issued a token after the answer to their ban; elsewhere, BAN_SECONDS after it."""
        for handed in self._handed:
            ban = self._bans.get(handed.user_id)
            if ban is None:
                continue
            late = handed.answer.asked_at - ban.answered_at
            allowed = 0.0 if handed.answer.replica == ban.replica else BAN_SECONDS
            if late > allowed:
                self.faults.append(f"a token for a banned user, asked for {late:.2f} s after it")
            elif late > 0:
                self.counts["tokens within the second after a ban, by another replica"] += 1

    async def _check_ledger(self) -> None:
        rows = await asyncio.to_thread(self._cluster.ledger)
        found = [(one, rows[one.participant_id, one.key_arn or ""]) for one in self._handed]
        if wrong := [f"{one.participant_id} {times} times" for one, times in found if times != 1]:
            self.faults.append(f"{len(wrong)} tokens are not once in the ledger: {wrong[:3]}")
        self.counts["tokens handed out and found in the ledger"] += len(found) - len(wrong)
        handed = {(one.participant_id, one.key_arn or "") for one in self._handed} | self._recorded
        self._recorded = handed
        self.counts["rows in the ledger whose answer was lost"] = len(rows.keys() - handed)

    async def _check_joins(self) -> None:
        kicked = {one for kick in self._kicks for one in kick.participant_ids}
        guests = {handed.participant_id for handed, _ in self._guests.values()}
        turn = asyncio.Semaphore(JOINS_AT_ONCE)

        async def check(handed: Handed) -> None:
            async with turn:
                if handed.expires_at - time.time() < NEARLY_EXPIRED_SECONDS:
                    self.counts["tokens not tried, since they expired"] += 1
                    return
                socket = await self._cluster.join(handed.token)
                if socket is not None:
                    await socket.close()
            joined = socket is not None
            dead = handed.key_arn in self._invalid or handed.participant_id in kicked
            if joined and dead:
                self.faults.append(f"joined, though kicked or of an invalidated key: {handed}")
            elif not joined and not dead:
                self.faults.append(f"refused: {handed}")
            self.counts["tokens that joined" if joined else "tokens refused, as they must be"] += 1

        # A second join with a guest's token would push the guest out.
        staying = guests - kicked
        await asyncio.gather(
            *(check(handed) for handed in self._handed if handed.participant_id not in staying)
        )

    async def _check_budgets(self) -> None:
        self._calls = calls = await self._cluster.calls()
        for operation, allowed in CALLS_PER_SECOND.items():
            most = calls.get(operation, {"maxPerSecond": 0})["maxPerSecond"]
            if most > allowed:
                self.faults.append(f"{operation}: {most} calls in a second; IVS allows {allowed}")
        if "402" in calls["ImportPublicKey"]["statuses"]:
            self.faults.append("a fourth key was imported, and refused")
        held = await asyncio.to_thread(self._cluster.public_keys)
        if not 1 <= len(held) <= SLOTS:
            self.faults.append(f"IVS holds {len(held)} keys")
        if held & self._invalid:
            self.faults.append("IVS still holds a key that was invalidated")

    def _check_logs(self) -> None:
        for log in self._cluster.logs:
            for found in re.findall(r'.*(?:Traceback|"level":"critical").*', log):
                self.faults.append(f"log: {found[:200]} ... {found[-1500:]}")


async def main(seconds: float, seed: int) -> int:
    """Run for so long, print the figures; 1 where a promise was broken."""
    with tempfile.TemporaryDirectory(prefix="tokensvc-chaos-") as folder:
        async with Cluster(Path(folder), **SETTINGS) as cluster:
            chaos = Chaos(cluster, seed)
            await chaos.run(seconds)
    lines = [*chaos.figures(), *(f"FAULT {fault}" for fault in chaos.faults)]
    print("\n".join(lines))  # noqa: T201
    return 1 if chaos.faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2)))
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes * 60, given.seed)))
