"""What refuses a mint refuses it by both ways: policy, limits, bans, scopes, the key, IVS, the ledger."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.both_ways import BATCH, MINT, Seen, Watcher
from tests.http.support import NOW, Service, stage_arn
from tests.http.test_server import listening
from tokensvc.callers import SqlCallerStore
from tokensvc.errors import (
    IvsAccessDeniedError,
    LedgerBusyError,
    StoreUnavailableError,
    TokenServiceError,
)
from tokensvc.ledger import LedgerWriter
from tokensvc.store import open_engine

POLICY = f"""\
version: 1
limits: {{tokensPerSecond: 10000, burst: 10000}}
roles:
  host:
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: {{default: 240, max: 720}}
    attributes: {{kind: host}}
  viewer: {{capabilities: [SUBSCRIBE], duration: 60}}
callers:
  all:
    stages: ["{stage_arn()}"]
    roles: [host, viewer]
    defaultRole: viewer
    attributes: {{allowed: [team]}}
    issuer: [auto, local]
    limits: {{tokensPerSecond: 5000, burst: 5000, perUserPerMinute: 600}}
"""
LIMITED = POLICY.replace("tokensPerSecond: 5000, burst: 5000", "tokensPerSecond: 0.5, burst: 3")
USER_LIMITED = POLICY.replace("perUserPerMinute: 600", "perUserPerMinute: 1")
ANA = {"stageArn": stage_arn(), "userId": "ana"}

Start = Callable[..., AbstractAsyncContextManager[Watcher]]


@pytest.fixture
def watching(stopped: Service, log: io.StringIO, tmp_path: Path) -> Start:
    """Run the service, under a policy where one is given, and watch it."""

    @asynccontextmanager
    async def run(policy: str | None = None, **changes: Any) -> AsyncIterator[Watcher]:
        if policy is not None:
            changes["policy_file"] = tmp_path / "policy.yaml"
            changes["policy_file"].write_text(policy)
        stopped.settings = replace(stopped.settings, audit=str(tmp_path / "audit.log"), **changes)
        async with listening(stopped) as server:
            yield Watcher(server, log)

    return run


def batch(*tokens: object) -> bytes:
    return json.dumps({"tokens": tokens}).encode()


async def both(watcher: Watcher, body: object, **headers: bytes) -> Seen:
    """See a mint and a batch of it by both ways, each the same; return the mint."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for path, content in ((BATCH, batch(body, body)), (MINT, json.dumps(body).encode())):
        # What is looked up once is looked up by neither of the two.
        await watcher.see(content, named, short=True, path=path)
        short, long = [
            await watcher.see(content, named, short=way, path=path) for way in (True, False)
        ]
        left_short, left_long = _take_what_is_left(short), _take_what_is_left(long)
        assert short == long
        assert short.audited
        # What the second may still have is less by what the first took.
        taken = 2 if path == BATCH else 1
        assert left_short in (left_long, [each + taken for each in left_long])
    return short


def _take_what_is_left(seen: Seen) -> list[int]:
    """Take the numbers that go down with every request out of the headers."""
    told = seen.headers.pop("ratelimit", "")
    return [int(number) for number in re.findall(r"r=(\d+)", told)]


def refused(seen: Seen, status: int, code: str) -> None:
    assert (seen.status, seen.body["code"]) == (status, code)
    assert seen.rows == []
    assert [line["code"] for line in seen.lines if line["event"] == "request"] == [code]


async def test_a_mint_under_a_policy_with_limits_is_the_same_by_both_ways(watching: Start):
    async with watching(POLICY) as watcher:
        seen = await both(watcher, {**ANA, "role": "host", "attributes": {"team": "red"}})
        assert seen.status == 201
        assert seen.body["attributes"] == {"team": "red", "kind": "host"}
        assert '"caller"' in seen.headers["ratelimit-policy"]
        assert len(seen.rows) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"stageArn": stage_arn("stage2")},
        {"role": "owner"},
        {"capabilities": ["PUBLISH", "SUBSCRIBE"]},
        {"duration": 61},
        {"attributes": {"colour": "red"}},
        {"issuer": "ivs"},
        {"duration": 61, "capabilities": ["PUBLISH"], "attributes": {"kind": "x"}},
    ],
)
async def test_the_policy_denies_by_both_ways(watching: Start, changes: dict[str, object]):
    async with watching(POLICY) as watcher:
        refused(await both(watcher, {**ANA, **changes}), 403, "policy_denied")


async def test_a_caller_without_a_rule_is_denied_by_both_ways(watching: Start):
    async with watching("{version: 1, callers: {}}") as watcher:
        refused(await both(watcher, ANA), 403, "policy_denied")


async def test_what_is_beyond_a_limit_is_refused_by_both_ways(watching: Start):
    async with watching(LIMITED) as watcher:
        spent = await watcher.see(batch(ANA, ANA, ANA, ANA), {}, short=True, path=BATCH)
        assert (spent.body["issued"], spent.body["failed"]) == (3, 1)
        seen = await both(watcher, ANA)
        refused(seen, 429, "rate_limited")
        assert int(seen.headers["retry-after"]) >= 1


async def test_the_limit_of_a_user_is_kept_by_both_ways(watching: Start):
    async with watching(USER_LIMITED) as watcher:
        refused(await both(watcher, ANA), 429, "rate_limited")
        assert (await both(watcher, {**ANA, "userId": "ben"})).status == 429
        no_user = await both(watcher, {"stageArn": stage_arn()})
        assert 400 <= no_user.status < 500
        assert no_user.rows == []


@pytest.mark.parametrize(
    "ban",
    [
        {"stageArn": stage_arn(), "userId": "ana"},
        {"userId": "ana"},
        {"stageArn": stage_arn(), "everybody": True},
    ],
)
async def test_who_is_banned_is_refused_by_both_ways(watching: Start, ban: dict[str, str]):
    async with watching() as watcher:
        made = await watcher.post(b"/v1/bans", ban)
        seen = await both(watcher, ANA)
        refused(seen, 403, "banned")
        assert seen.body["banId"] == made["banId"]


async def test_a_repetition_for_who_is_banned_meanwhile_is_refused_by_both_ways(watching: Start):
    async with watching() as watcher:
        body, key = json.dumps(ANA).encode(), {"idempotency-key": b"one"}
        assert (await watcher.see(body, key, short=True)).status == 201
        await watcher.post(b"/v1/bans", {"userId": "ana"})
        short, long = [await watcher.see(body, key, short=way) for way in (True, False)]
        assert short == long
        refused(short, 403, "banned")


async def test_a_caller_without_the_scope_is_refused_by_both_ways(watching: Start):
    async with watching() as watcher:
        reader = watcher.server.service.authorization("reader")["authorization"].encode()
        refused(await both(watcher, ANA, authorization=reader), 403, "forbidden")


async def test_a_revoked_caller_is_refused_by_both_ways(stopped: Service, watching: Start):
    engine = open_engine(stopped.settings.database_url)
    await SqlCallerStore(engine, lambda: NOW).revoke("minter")
    await engine.dispose()
    async with watching() as watcher:
        minter = stopped.authorization("minter")["authorization"].encode()
        refused(await both(watcher, ANA, authorization=minter), 401, "unauthenticated")


async def test_without_a_key_both_ways_do_the_same(stopped: Service, watching: Start):
    stopped.ivs.faulty_regions.add(stopped.settings.regions[0])
    async with watching() as watcher:
        refused(await both(watcher, {**ANA, "issuer": "local"}), 503, "no_signing_key")
        stopped.ivs.faulty_regions.clear()
        seen = await both(watcher, ANA)
        assert (seen.status, seen.body["issuer"]) == (201, "ivs")


async def test_a_fault_of_ivs_is_told_by_both_ways(stopped: Service, watching: Start):
    async with watching() as watcher:
        assert (await both(watcher, {**ANA, "issuer": "ivs"})).status == 201
        stopped.ivs.fault = IvsAccessDeniedError("IVS does not let us.", secret="of the context")
        seen = await both(watcher, {**ANA, "issuer": "ivs"})
        refused(seen, 502, "ivs_access_denied")
        assert "of the context" not in json.dumps(seen.body)


@pytest.mark.parametrize(
    "fault",
    [
        LedgerBusyError("Too many tokens wait to be recorded.", retry_after=3),
        StoreUnavailableError("The database does not answer."),
    ],
)
async def test_without_a_row_in_the_ledger_there_is_no_token_by_either_way(
    watching: Start, monkeypatch: pytest.MonkeyPatch, fault: TokenServiceError
):
    def full(*_: object, **__: object) -> float:
        raise fault

    async with watching() as watcher:
        monkeypatch.setattr(LedgerWriter, "_room_for", full)
        seen = await both(watcher, ANA)
        refused(seen, 503, fault.code)
        assert "token" not in seen.body


@pytest.mark.parametrize(
    "fault", [StoreUnavailableError("The database does not answer."), RuntimeError("out of order")]
)
async def test_without_a_commit_there_is_no_token_by_either_way(
    watching: Start, monkeypatch: pytest.MonkeyPatch, fault: Exception
):
    async def fail(*_: object, **__: object) -> None:
        raise fault

    async with watching() as watcher:
        monkeypatch.setattr(LedgerWriter, "_store", fail)
        for way in (True, False):
            seen = await watcher.see(json.dumps(ANA).encode(), {}, short=way)
            assert (seen.status, seen.body["code"]) == (503, "store_unavailable")
            assert "token" not in seen.body
            assert seen.rows == []


class FullDisk:
    """Where no record is written."""

    failing = "no room"
    written = dropped = 0

    def put(self, line: bytes) -> None:
        """Lose it."""


async def test_an_audit_that_is_required_and_not_written_stops_both_ways(
    watching: Start, monkeypatch: pytest.MonkeyPatch
):
    async with watching(audit_required=True) as watcher:
        assert watcher.app.audit is not None
        audit = watcher.app.audit._audit
        # As the thread that writes sets it, which this test does not wait for.
        monkeypatch.setattr(audit, "_lines", FullDisk())
        refused(await both(watcher, ANA), 503, "audit_unavailable")
