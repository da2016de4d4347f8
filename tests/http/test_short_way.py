"""The short way of mint and batch answers as the long one: answers, log lines, counts, rows, audit."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.both_ways import BATCH, MINT, Watcher
from tests.http.support import OTHER_REGION, Service, stage_arn
from tests.http.test_server import listening
from tokensvc.http.answers import Answer
from tokensvc.http.server import KEEP_ALIVE_SECONDS

UNKNOWN_CALLER = b"Bearer tsk_000000000000_" + b"A" * 43


@pytest.fixture
async def watcher(stopped: Service, log: io.StringIO, tmp_path: Path) -> AsyncIterator[Watcher]:
    # Small, so that a body too large still comes in one piece.
    stopped.settings = replace(
        stopped.settings,
        max_body_bytes=8_192,
        max_batch_body_bytes=32_768,
        audit=str(tmp_path / "audit.log"),
    )
    async with listening(stopped) as server:
        yield Watcher(server, log)


REQUESTS: dict[str, tuple[bytes, dict[str, bytes], int]] = {
    "least": (json.dumps({"stageArn": stage_arn()}).encode(), {}, 201),
    "everything": (
        json.dumps(
            {
                "stageArn": stage_arn("stage2"),
                "userId": "Jos\u00e9",
                "duration": 5,
                "capabilities": ["SUBSCRIBE"],
                "attributes": {"name": "\u65e5\u672c"},
                "issuer": "local",
            }
        ).encode(),
        {"content-type": b"application/json; charset=utf-8"},
        201,
    ),
    "by IVS": (json.dumps({"stageArn": stage_arn(), "issuer": "ivs"}).encode(), {}, 201),
    "no key": (b'{"stageArn":"x"}', {"authorization": b""}, 401),
    "unknown caller": (b"{}", {"authorization": UNKNOWN_CALLER}, 401),
    "no JSON": (b"{", {}, 400),
    "blank": (b" ", {}, 400),
    "not UTF-8": (b'"\xff"', {}, 400),
    "bad fields": (b'{"stageArn":5,"userid":"a","duration":0}', {}, 400),
    "Region not served": (
        json.dumps({"stageArn": stage_arn(region=OTHER_REGION)}).encode(),
        {},
        400,
    ),
    "unknown stage": (json.dumps({"stageArn": stage_arn("nobodys")}).encode(), {}, 404),
    "media type": (b"{}", {"content-type": b"text/plain"}, 415),
    "no media type": (b"{}", {"content-type": b""}, 415),
    "bad idempotency key": (b"{}", {"idempotency-key": b"a b"}, 400),
    "id that looks like a token": (b"{}", {"x-request-id": b"eyJhbGciOiJ.eyJleHAiOj.c2ln"}, 400),
    "too large": (b'{"userId":"' + b"a" * 9_000 + b'"}', {}, 413),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_answer_the_same(watcher: Watcher, name: str):
    body, headers, status = REQUESTS[name]
    # What is looked up once is looked up by neither of the two.
    await watcher.see(body, headers, short=True)
    short = await watcher.see(body, headers, short=True)
    long = await watcher.see(body, headers, short=False)
    assert short == long
    assert short.status == status
    assert len(short.rows) == (status == 201)
    assert [line["event"] for line in short.lines] == ["request"]
    assert short.audited


def batch(*tokens: object, **defaults: object) -> bytes:
    return json.dumps(
        {"defaults": {"stageArn": stage_arn(), **defaults}, "tokens": tokens}
    ).encode()


BATCHES: dict[str, tuple[bytes, dict[str, bytes], int, int]] = {
    "many": (batch(*({"userId": f"u{n}"} for n in range(100))), {}, 200, 100),
    "of every kind": (
        batch(
            {"userId": "Jos\u00e9", "attributes": {"name": "\u65e5\u672c"}},
            {"stageArn": stage_arn("stage2"), "duration": 5.0, "capabilities": []},
            {"stageArn": stage_arn("nobodys")},
            {"issuer": "ivs"},
            {"duration": 0, "usrId": "a"},
            {"role": "host"},
            5,
            {"stageArn": stage_arn(region=OTHER_REGION)},
            duration=30,
        ),
        {},
        200,
        3,
    ),
    "empty": (batch(), {}, 200, 0),
    "bad defaults": (batch({}, duration=0), {}, 400, 0),
    "no batch": (b'{"token":[]}', {}, 400, 0),
    "no JSON": (b'{"tokens":[{]}', {}, 400, 0),
    "no key": (batch({}), {"authorization": b""}, 401, 0),
    "media type": (batch({}), {"content-type": b"text/plain"}, 415, 0),
    "bad idempotency key": (batch({}), {"idempotency-key": b"a b"}, 400, 0),
    "too many": (batch(*[{}] * 1001), {}, 400, 0),
    "too large": (batch({"userId": "a" * 50_000}), {}, 413, 0),
    "one that is too large": (batch({"userId": "a" * 9_000}, {}), {}, 200, 1),
    "unknown caller": (batch({}), {"authorization": UNKNOWN_CALLER}, 401, 0),
    "one that is not UTF-8": (b'{"tokens":["\xff"]}', {}, 200, 0),
}


@pytest.mark.parametrize("name", BATCHES)
async def test_both_ways_answer_a_batch_the_same(watcher: Watcher, name: str):
    body, headers, status, rows = BATCHES[name]
    # What is looked up once is looked up by neither of the two.
    await watcher.see(body, headers, short=True, path=BATCH)
    short = await watcher.see(body, headers, short=True, path=BATCH)
    long = await watcher.see(body, headers, short=False, path=BATCH)
    assert short == long
    assert short.status == status
    assert len(short.rows) == rows
    assert [line["event"] for line in short.lines] == ["request"]
    assert short.audited


async def test_a_batch_gives_each_item_what_a_mint_gives_it(watcher: Watcher):
    items: list[dict[str, Any]] = [
        {"userId": "ana"},
        {"userId": "Jos\u00e9", "attributes": {"a": "b"}, "capabilities": ["PUBLISH"]},
        {"stageArn": stage_arn("stage2"), "duration": 7, "issuer": "local"},
        {"issuer": "ivs"},
    ]
    together = await watcher.see(batch(*items), {}, short=True, path=BATCH)
    alone = [
        await watcher.see(json.dumps({"stageArn": stage_arn(), **item}).encode(), {}, short=True)
        for item in items
    ]
    assert together.body["tokens"] == [one.body for one in alone]
    assert together.rows == [row for one in alone for row in one.rows]
    issued = "tokensvc_tokens_issued_total"
    for name, count in together.counts.items():
        if name.startswith((issued, "tokensvc_ledger_rows")):
            assert count == sum(one.counts[name] for one in alone)


async def test_a_repeated_request_gets_its_token_by_either_way(watcher: Watcher):
    body = REQUESTS["least"][0]
    first = await watcher.see(body, {"idempotency-key": b"one"}, short=True)
    again = [
        await watcher.see(body, {"idempotency-key": b"one"}, short=way) for way in (True, False)
    ]
    assert first.status == 201
    assert len(first.rows) == 1
    for seen in again:
        assert (seen.status, seen.body, seen.rows) == (201, first.body, [])


@pytest.mark.parametrize("path", [MINT, BATCH])
async def test_an_idempotency_key_of_another_request_is_a_conflict_by_either_way(
    watcher: Watcher, path: bytes
):
    key = {"idempotency-key": b"one"}
    first = batch({}) if path == BATCH else REQUESTS["least"][0]
    await watcher.see(first, key, short=True, path=path)
    other = batch({"userId": "ana"}) if path == BATCH else REQUESTS["everything"][0]
    short, long = [await watcher.see(other, key, short=way, path=path) for way in (True, False)]
    assert short == long
    assert (short.status, short.body["code"]) == (409, "idempotency_conflict")
    assert short.rows == []
    assert short.audited


async def test_a_fault_of_our_own_is_the_same_problem(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    for module in ("token_routes", "direct_mint"):
        monkeypatch.setattr(f"tokensvc.http.{module}.read_wanted_token", broken)
    short, long = [await watcher.see(REQUESTS["least"][0], {}, short=way) for way in (True, False)]
    for seen in (short, long):
        # The traceback tells which way it was.
        assert "out of order" in seen.lines[0].pop("exception")
    assert short == long
    assert short.status == 500


async def test_requests_that_want_more_of_the_connection_take_the_long_way(watcher: Watcher):
    body = REQUESTS["least"][0]
    mint = watcher.server.mint(body)
    connection = await watcher.server.connect()
    for request in (
        mint.replace(b"/v1/tokens ", b"/v1/tokens?x=1 "),
        mint.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
        .replace(b"Content-Length: %d\r\n" % len(body), b"")
        .replace(body, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        mint.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n"),
    ):
        await connection.say(request)
        status, _, _ = await connection.answer()
        assert status == 201
    assert await connection.is_closed()
    assert watcher.short == 0


async def test_pipelined_mints_are_answered_in_order_by_whichever_way(watcher: Watcher):
    connection = await watcher.server.connect()
    mints = [
        watcher.server.mint(json.dumps({"stageArn": stage_arn(), "userId": str(n)}).encode())
        for n in range(5)
    ]
    await connection.say(b"".join(mints))
    users = [(await connection.answer())[2]["userId"] for _ in mints]
    assert users == ["0", "1", "2", "3", "4"]
    assert watcher.short == 1


async def test_what_the_short_way_accepted_is_answered_after_the_stop(watcher: Watcher):
    connection = await watcher.server.connect()
    await connection.say(watcher.server.mint())
    while not watcher.short:  # noqa: ASYNC110
        await asyncio.sleep(0)
    watcher.server.server.should_exit = True
    status, headers, body = await connection.answer()
    assert (status, body["issuer"]) == (201, "local")
    assert await connection.is_closed()
    assert headers.get("connection") in (None, "close")


async def test_a_client_that_left_costs_nothing_but_its_mint(watcher: Watcher):
    leaving = await watcher.server.connect()
    await leaving.say(watcher.server.mint())
    while not watcher.short:  # noqa: ASYNC110
        await asyncio.sleep(0)
    leaving.writer.transport.abort()
    assert (await watcher.see(REQUESTS["least"][0], {}, short=True)).status == 201
    assert not watcher.server.server.server_state.tasks


@pytest.mark.parametrize("request_line", [b"POST /v1/tokens ", b"POST /v1/tokens?long "])
async def test_an_idle_connection_is_closed_after_either_way(
    stopped: Service, monkeypatch: pytest.MonkeyPatch, request_line: bytes
):
    monkeypatch.setattr("tokensvc.http.server.KEEP_ALIVE_SECONDS", 0)
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(server.mint().replace(b"POST /v1/tokens ", request_line))
        assert (await connection.answer())[0] == 201
        assert await connection.is_closed()


async def test_a_timer_that_comes_early_waits_for_the_rest(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
):
    connection = await watcher.server.connect()
    for _ in range(2):
        await connection.say(watcher.server.mint())
        assert (await connection.answer())[0] == 201
    (protocol,) = watcher.connections()
    first = protocol._idle_timer
    protocol._end_if_idle()
    assert not protocol.transport.is_closing()
    assert protocol._idle_timer is not first
    since = protocol._idle_since
    monkeypatch.setattr(protocol, "_idle_since", since - KEEP_ALIVE_SECONDS)
    protocol._end_if_idle()
    assert await connection.is_closed()


@pytest.mark.parametrize(
    "fields", [(), (("RateLimit", '"caller";r=4;t=1'), ("Connection", "close"))]
)
def test_both_ways_send_the_same_headers_of_an_answer(fields: tuple[tuple[str, str], ...]):
    answer = Answer(b"{}", 201, fields=fields)
    lines = b"".join(b"%b: %b\r\n" % header for header in answer.headers_to_send())
    assert answer.head_to_send() == lines
    assert answer.closes_connection() is bool(fields)
