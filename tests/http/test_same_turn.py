"""Mints that arrive in the same turn go on together, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.both_ways import Seen, Watcher, without_fresh
from tests.http.crowd import Ask, Crowd, Gate
from tests.http.support import OTHER_REGION, Service, Sleeper, stage_arn
from tests.http.test_server import listening, until
from tokensvc.http.direct_mint import TOGETHER
from tokensvc.issuing.issuer import TokenIssuer

POLICY = f"""\
version: 1
callers:
  all:
    stages: ["{stage_arn()}", "{stage_arn("nobodys")}", "{stage_arn(region=OTHER_REGION)}", "team=red"]
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: 60
    issuer: [auto, local, ivs]
    attributes: {{allowed: [team]}}
  minter:
    stages: ["{stage_arn()}"]
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: 60
    issuer: [auto]
    limits: {{tokensPerSecond: 0.5, burst: 6, perUserPerMinute: 2}}
"""
UNKNOWN = {"authorization": b"Bearer tsk_000000000000_" + b"A" * 43}
KINDS: dict[str, tuple[Ask, int]] = {
    "good": (Ask.of(userId="ana", attributes={"team": "red"}), 201),
    "least": (Ask.of(), 201),
    "banned": (Ask.of(userId="eve"), 403),
    "denied": (Ask.of(attributes={"colour": "red"}), 403),
    "stage by its tag": (Ask.of(stageArn=stage_arn("stage2"), userId="tagged"), 201),
    "stage without the tag": (Ask.of(stageArn=stage_arn("stage3")), 403),
    "unknown stage": (Ask.of(stageArn=stage_arn("nobodys")), 404),
    "unknown stage under a tag": (Ask.of(stageArn=stage_arn("nowhere")), 404),
    "Region not served": (Ask.of(stageArn=stage_arn(region=OTHER_REGION)), 400),
    "by IVS": (Ask.of(issuer="ivs", userId="by-ivs"), 201),
    "bad JSON": (Ask(b'{"stageArn":'), 400),
    "bad fields": (Ask.of(duration=0, usrId=5), 400),
    "too large": (Ask.of(userId="a" * 9_000), 413),
    "unknown key": (Ask(b"{}", UNKNOWN), 401),
    "no key": (Ask(b"{}", {"authorization": b""}), 401),
    "without the scope": (Ask.of("reader"), 403),
    "media type": (Ask(b"{}", {"content-type": b"text/plain"}), 415),
    "idempotency key": (replace(Ask.of(userId="kept"), headers={"idempotency-key": b"K"}), 201),
    "bad idempotency key": (replace(Ask.of(), headers={"idempotency-key": b"a b"}), 400),
}
LIMITED = [
    *(Ask.of("minter", userId="one") for _ in range(3)),
    Ask.of("minter", userId="eve"),
    Ask(b"{", caller="minter"),
    Ask.of("minter", attributes={"colour": "red"}),
    *(Ask.of("minter", userId=f"u{number}") for number in range(5)),
]
"""Of a caller whose limit runs out before the last of them, and before that one of its users'."""

Start = Callable[..., AbstractAsyncContextManager[Crowd]]


@pytest.fixture
def serving(stopped: Service, log: io.StringIO, tmp_path: Path) -> Start:
    """Run the service anew, with memory of its own, on the same database."""

    @asynccontextmanager
    async def run(policy: str | None = None) -> AsyncIterator[Crowd]:
        changes: dict[str, Any] = {"audit": str(tmp_path / "audit.log"), "max_body_bytes": 8_192}
        if policy is not None:
            changes["policy_file"] = tmp_path / "policy.yaml"
            changes["policy_file"].write_text(policy)
        stopped.settings = replace(stopped.settings, **changes)
        stopped.sleeper = Sleeper()
        async with listening(stopped) as server:
            yield Crowd(server, log)

    return run


async def know_stages(crowd: Crowd) -> None:
    """Let be looked up what is looked up once."""
    for stage in ("stage1", "stage2", "stage3", "nobodys", "nowhere"):
        (visitor,) = await crowd.arrive(Ask.of(stageArn=stage_arn(stage)))
        await visitor.client.answer()
        visitor.client.writer.close()
    await until(lambda: not crowd.server.server.server_state.connections)


def named(asks: list[Ask], run: bytes) -> list[Ask]:
    """Give each a reference of its own, where it has one."""
    return [
        replace(ask, headers={"idempotency-key": b"%b%d" % (run, number)})
        if ask.headers.get("idempotency-key") == b"K"
        else ask
        for number, ask in enumerate(asks)
    ]


def some(counts: Counter[str]) -> dict[str, float]:
    """Leave out commits, of which those who share one need less."""
    return {name: count for name, count in counts.items() if count and "commit" not in name}


def requests(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in ("ms", "time")}
        for line in lines
    ]


def written(lines: list[Any]) -> list[str]:
    return sorted(json.dumps(line, sort_keys=True, default=str) for line in lines)


async def one_by_one(crowd: Crowd, log: io.StringIO, asks: list[Ask]) -> list[Seen]:
    watcher = Watcher(crowd.server, log)
    seen = []
    for number, ask in enumerate(asks):
        caller = crowd.server.service.authorization(ask.caller)["authorization"].encode()
        headers = {"x-request-id": b"r%d" % number, "authorization": caller, **ask.headers}
        seen.append(await watcher.see(ask.body, headers, short=False))
    return seen


async def check_together(serving: Start, log: io.StringIO, asks: list[Ask]) -> list[int]:
    """Check that all of them get in one turn what they get one by one; return the statuses."""
    async with serving(POLICY) as crowd:
        service = crowd.server.service
        service.ivs.stages.add(stage_arn("stage3"))
        service.ivs.tags[stage_arn("stage2")] = {"team": "red"}
        await crowd.post("/v1/bans", {"stageArn": stage_arn(), "userId": "eve"})
        await know_stages(crowd)
        alone = await one_by_one(crowd, log, named(asks, b"alone"))
    async with serving(POLICY) as crowd:
        await know_stages(crowd)
        watcher = Watcher(crowd.server, log)
        counts, rows = watcher._counts(), watcher._rows()
        log.seek(0)
        log.truncate()
        visitors = await crowd.arrive(*named(asks, b"together"))
        assert watcher.short == len(asks)
        for visitor, one in zip(visitors, alone, strict=True):
            status, headers, body = await visitor.client.answer()
            del headers["date"], headers["content-length"]
            assert (status, headers, without_fresh(body)) == (one.status, one.headers, one.body)
        lines = requests(await crowd.lines())
        assert written(lines) == written([line for one in alone for line in one.lines])
        assert sorted(watcher._rows()[len(rows) :], key=repr) == sorted(
            (row for one in alone for row in one.rows), key=repr
        )
        told = Counter(watcher._audited)
        assert told == Counter(group for one in alone for group in one.audited)
        more = Counter(
            {name: count - counts.get(name, 0) for name, count in watcher._counts().items()}
        )
        total: Counter[str] = Counter()
        for one in alone:
            total.update(one.counts)
        assert some(more) == some(total)
        return [one.status for one in alone]


async def test_every_kind_gets_in_one_turn_what_it_gets_alone(serving: Start, log: io.StringIO):
    asks = [ask for ask, _ in KINDS.values()]
    assert len(asks) > TOGETHER
    statuses = await check_together(serving, log, asks)
    assert dict(zip(KINDS, statuses, strict=True)) == {
        name: status for name, (_, status) in KINDS.items()
    }


async def test_a_limit_that_runs_out_among_them_runs_out_for_the_same(
    serving: Start, log: io.StringIO
):
    statuses = await check_together(serving, log, LIMITED)
    # The third of one user is one too many; who is banned or denied was counted, bad JSON was not.
    assert statuses == [201, 201, 429, 403, 400, 403, 201, 201, 429, 429, 429]


@pytest.mark.parametrize("seed", range(3))
async def test_many_in_any_order_get_the_same(serving: Start, log: io.StringIO, seed: int):
    chosen = random.Random(seed)
    asks = [ask for ask, _ in KINDS.values()] + LIMITED
    asks += chosen.choices(asks, k=3 * TOGETHER - len(asks))
    chosen.shuffle(asks)
    statuses = await check_together(serving, log, asks)
    assert {201, 400, 401, 403, 404, 413, 415, 429} == set(statuses)


async def test_no_more_than_some_go_on_in_one_turn_and_the_others_follow(
    serving: Start, monkeypatch: pytest.MonkeyPatch
):
    async with serving() as crowd:
        await know_stages(crowd)
        gate = Gate(monkeypatch)
        turn = 0
        signed: list[int] = []
        sign = TokenIssuer.sign

        def noting(*arguments: Any) -> Any:
            signed.append(turn)
            return sign(*arguments)

        monkeypatch.setattr(TokenIssuer, "sign", noting)
        visitors = await crowd.arrive(*[Ask.of(userId=f"u{n}") for n in range(2 * TOGETHER + 1)])
        assert signed == []
        while len(signed) < len(visitors):
            turn += 1
            await asyncio.sleep(0)
        assert list(Counter(signed).values()) == [TOGETHER, TOGETHER, 1]
        gate.open.set()
        users = [(await visitor.client.answer())[2]["userId"] for visitor in visitors]
        assert users == [f"u{n}" for n in range(2 * TOGETHER + 1)]
