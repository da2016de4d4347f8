"""What may happen to mints that wait without a task: bans, bugs, slow clients, the end of the service."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.both_ways import Watcher
from tests.http.crowd import Ask, Crowd, Gate, Visitor
from tests.http.issuer import AUDIENCE, Issuer
from tests.http.support import REGION, Service, stage_arn
from tests.http.test_oidc import issuer
from tests.http.test_server import listening, until
from tokensvc.callers.oidc import CallerAuthenticator
from tokensvc.errors import NoSigningKeyError, StoreUnavailableError
from tokensvc.http import direct_mint
from tokensvc.http.protocol import BoundedHttpProtocol
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.keyring.view import RingView
from tokensvc.ledger import IdempotencyStore, LedgerWriter
from tokensvc.policy.gate import PolicyGate
from tokensvc.telemetry.access_log import AccessLog
from tokensvc.telemetry.metrics import Metrics

__all__ = ["issuer"]

USERS = ["ana", "bad", "cem"]
OUT_OF_ORDER = RuntimeError("out of order")
ASKS = [Ask.of(userId=user) for user in USERS]


def keyed(ask: Ask, key: bytes) -> Ask:
    return replace(ask, headers={**ask.headers, "idempotency-key": key})


@pytest.fixture(params=["plain", "keyed"])
def asks(request: pytest.FixtureRequest) -> list[Ask]:
    """Requests without and with an Idempotency-Key of their own."""
    if request.param == "plain":
        return [*ASKS]
    return [keyed(ask, b"key-%d" % number) for number, ask in enumerate(ASKS)]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was answered in a task."""
    ran: list[Any] = []
    run = BoundedHttpProtocol.run

    def noted(protocol: BoundedHttpProtocol, work: Any) -> None:
        ran.append(work)
        run(protocol, work)

    monkeypatch.setattr(BoundedHttpProtocol, "run", noted)
    return ran


@pytest.fixture
async def crowd(stopped: Service, log: io.StringIO) -> AsyncIterator[Crowd]:
    """A service that knows its stage, so that nothing has to be waited for but the ledger."""
    async with listening(stopped) as server:
        crowd = Crowd(server, log)
        await know(crowd, stage_arn())
        yield crowd


async def know(crowd: Crowd, stage: str) -> None:
    (visitor,) = await crowd.arrive(Ask.of(stageArn=stage))
    assert (await visitor.client.answer())[0] == 201
    visitor.client.writer.close()
    await until(lambda: not crowd.server.server.server_state.connections)


def tasks(crowd: Crowd) -> set[Any]:
    found: set[Any] = crowd.server.server.server_state.tasks
    return found


async def statuses(visitors: list[Visitor]) -> list[int]:
    return [(await visitor.client.answer())[0] for visitor in visitors]


async def still_mints(crowd: Crowd) -> None:
    """Expect that the next mint is as good as any."""
    (visitor,) = await crowd.arrive(Ask.of(userId="next"))
    assert await statuses([visitor]) == [201]
    assert crowd.users()[-1] == "next"


# --- between the signature and the commit -----------------------------------------------------------


@pytest.mark.parametrize("ban", [{"userId": "bad"}, {"stageArn": stage_arn(), "userId": "bad"}])
async def test_who_is_banned_before_the_commit_ends_gets_no_token(
    crowd: Crowd,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    asks: list[Ask],
    ban: dict[str, str],
):
    gate = Gate(monkeypatch)
    visitors = await crowd.arrive(*asks)
    await gate.reached.wait()
    assert not tasks(crowd)
    made = await crowd.post("/v1/bans", ban)
    assert not any(visitor.is_answered for visitor in visitors)
    gate.open.set()
    answers = [await visitor.client.answer() for visitor in visitors]
    assert [status for status, _, _ in answers] == [201, 403, 201]
    _, headers, problem = answers[1]
    assert headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem["banId"]) == ("banned", made["banId"])
    assert "token" not in problem
    # It was signed and recorded; it has gone nowhere.
    assert sorted(crowd.users()[-3:]) == USERS  # type: ignore[type-var]
    for _, row in zip(USERS, crowd.rows("token_id")[-3:], strict=True):
        assert row[0] not in json.dumps(problem)
    assert "eyJ" not in json.dumps([problem, headers]) + log.getvalue()
    (line,) = [line for line in await crowd.lines() if line.get("code") == "banned"]
    assert (line["status"], line["request_id"]) == (403, "r1")


async def test_a_key_that_stops_signing_before_the_commit_ends_changes_nothing_for_the_signed(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(monkeypatch)
    visitors = await crowd.arrive(ASKS[0])
    await gate.reached.wait()
    fails(monkeypatch, RingView, "signing_key", anything, NoSigningKeyError("Invalidated."))
    gate.open.set()
    _, _, body = await visitors[0].client.answer()
    assert (body["issuer"], crowd.rows("key_arn")[-1]) == ("local", (body["keyArn"],))
    (late,) = await crowd.arrive(Ask.of(issuer="local"))
    status, _, problem = await late.client.answer()
    assert (status, problem["code"]) == (503, "no_signing_key")


# --- bugs -------------------------------------------------------------------------------------------


def is_of_bad(*given: Any) -> bool:
    return any(
        b"bad" in one if isinstance(one, bytes) else getattr(one, "user_id", "") == "bad"
        for one in given
    )


def fails(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    when: Any,
    error: Exception = OUT_OF_ORDER,
) -> None:
    """Let a function fail in one request."""
    right = getattr(owner, name)

    def wrong(*given: Any, **named: Any) -> Any:
        if when(*given, *named.values()):
            raise error
        return right(*given, **named)

    monkeypatch.setattr(owner, name, wrong)


def anything(*_: Any) -> bool:
    return True


def after_the_commit(*given: Any) -> bool:
    return is_of_bad(*given) and isinstance(given[-1], str)


def answers_bad(*given: Any) -> bool:
    return any(getattr(one, "user_id", None) == "bad" for one in given)


def last_of_the_key(*given: Any) -> bool:
    return given[-1] == "Bearer bad"


STEPS: dict[str, tuple[Any, str, Any]] = {
    "recognise": (CallerAuthenticator, "recognise", last_of_the_key),
    "read": (direct_mint, "read_wanted_token", is_of_bad),
    "admit": (PolicyGate, "admit_at_hand", is_of_bad),
    "sign": (TokenIssuer, "sign", is_of_bad),
    "record": (LedgerWriter, "record_for", is_of_bad),
    "admit again": (TokenIssuer, "admit", after_the_commit),
    "answer": (direct_mint, "minted", answers_bad),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_bug_in_one_step_of_one_request_is_that_ones_500(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, asks: list[Ask], step: str
):
    if step == "recognise":
        headers = {**asks[1].headers, "authorization": b"Bearer bad"}
        asks[1] = replace(asks[1], headers=headers)
    owner, name, when = STEPS[step]
    fails(monkeypatch, owner, name, when)
    visitors = await crowd.arrive(*asks)
    answers = [await visitor.client.answer() for visitor in visitors]
    assert [status for status, _, _ in answers] == [201, 500, 201]
    assert answers[1][2]["code"] == "internal"
    assert "out of order" not in json.dumps(answers[1][2])
    lines = await crowd.lines()
    (fault,) = [line for line in lines if "out of order" in line.get("exception", "")]
    assert fault["request_id"] == "r1"
    told = [line["request_id"] for line in lines if line["event"] == "request"][-3:]
    assert sorted(told) == ["r0", "r1", "r2"]
    await still_mints(crowd)


# --- requests that name themselves ------------------------------------------------------------------


async def test_of_the_same_request_twice_in_one_turn_both_get_the_one_token(crowd: Crowd):
    before = len(crowd.users())
    visitors = await crowd.arrive(*[keyed(ASKS[0], b"K")] * 3, ASKS[2])
    answers = [await visitor.client.answer() for visitor in visitors]
    assert [status for status, _, _ in answers] == [201] * 4
    ids = [body["participantId"] for _, _, body in answers]
    assert len(set(ids)) == 2
    assert len(set(ids[:3])) == 1
    assert sorted(crowd.users()[before:]) == ["ana", "cem"]
    # And so does who asks again.
    (again,) = await crowd.arrive(keyed(ASKS[0], b"K"))
    assert (await again.client.answer())[2]["participantId"] == ids[0]
    assert len(crowd.users()) == before + 2


async def test_of_two_requests_under_one_key_in_one_turn_one_is_a_conflict(crowd: Crowd):
    before = len(crowd.users())
    visitors = await crowd.arrive(keyed(ASKS[0], b"K"), keyed(ASKS[1], b"K"))
    answers = [await visitor.client.answer() for visitor in visitors]
    assert [status for status, _, _ in answers] == [201, 409]
    assert answers[1][2]["code"] == "idempotency_conflict"
    assert crowd.users()[before:] == ["ana"]
    await still_mints(crowd)


async def test_new_requests_that_name_themselves_have_no_task(crowd: Crowd, ran: list[Any]):
    count = 2 * direct_mint.TOGETHER + 1
    asks = [keyed(Ask.of(userId=f"u{n}"), b"%d" % n) for n in range(count)]
    visitors = await crowd.arrive(*asks)
    assert await statuses(visitors) == [201] * count
    assert not ran
    (again,) = await crowd.arrive(asks[0])
    assert await statuses([again]) == [201]
    assert len(ran) == 1


@pytest.mark.parametrize("fault", [StoreUnavailableError("Down."), OUT_OF_ORDER])
async def test_where_it_cannot_be_told_whether_a_request_repeats_one_it_is_refused(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, fault: Exception
):
    before = len(crowd.users())
    with monkeypatch.context() as patch:

        async def fails(*_: object) -> None:
            raise fault

        patch.setattr(IdempotencyStore, "_look_up", fails)
        visitors = await crowd.arrive(keyed(ASKS[0], b"K"), ASKS[1], keyed(ASKS[2], b"L"))
        answers = [await visitor.client.answer() for visitor in visitors]
    refused = 503 if isinstance(fault, StoreUnavailableError) else 500
    assert [status for status, _, _ in answers] == [refused, 201, refused]
    assert crowd.users()[before:] == ["bad"]
    visitors = await crowd.arrive(keyed(ASKS[0], b"K"))
    assert await statuses(visitors) == [201]


class BrokenTransport:
    """Fails to send; all else is the transport's own."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, _: bytes) -> None:
        raise RuntimeError("out of order")


@pytest.mark.parametrize("fault", ["metrics", "access log", "transport"])
async def test_a_bug_in_answering_closes_that_connection_alone(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, fault: str
):
    gate = Gate(monkeypatch)
    visitors = await crowd.arrive(*ASKS)
    await gate.reached.wait()
    if fault == "metrics":
        calls = iter(range(100))
        fails(monkeypatch, Metrics, "request_answered", lambda *_: next(calls) == 1)
    elif fault == "access log":
        fails(monkeypatch, AccessLog, "note", lambda *given: "r1" in given)
    else:
        protocol: Any = visitors[1].protocol
        protocol.transport = BrokenTransport(protocol.transport)
    gate.open.set()
    assert await statuses([visitors[0], visitors[2]]) == [201, 201]
    assert await visitors[1].client.is_closed()
    failed = [line for line in await crowd.lines() if line["event"] == "answer_failed"]
    assert [line["request_id"] for line in failed] == ["r1"]
    assert "out of order" in failed[0]["exception"]
    await still_mints(crowd)


async def test_a_bug_in_what_a_task_answers_later_is_logged_and_closes_the_connection(
    crowd: Crowd,
):
    visitor = await crowd.visit()
    visitor.protocol.pause_writing()
    visitor.feed(crowd.request(ASKS[0]))
    await until(lambda: bool(tasks(crowd)))
    protocol: Any = visitor.protocol
    protocol.transport = BrokenTransport(protocol.transport)
    visitor.protocol.resume_writing()
    assert await visitor.client.is_closed()
    (failed,) = [line for line in await crowd.lines() if line["event"] == "answer_failed"]
    assert "out of order" in failed["exception"]
    assert not tasks(crowd)
    await still_mints(crowd)


# --- clients that are slow, or have left ------------------------------------------------------------


async def test_an_answer_waits_for_a_client_that_has_not_taken_the_one_before(crowd: Crowd):
    slow, other = await crowd.visits(2)
    slow.protocol.pause_writing()
    for visitor, ask in ((slow, ASKS[0]), (other, ASKS[2])):
        visitor.feed(crowd.request(ask))
    assert await statuses([other]) == [201]
    await until(lambda: bool(tasks(crowd)))
    assert len(tasks(crowd)) == 1
    assert not slow.is_answered
    # The next request on it waits for its turn.
    slow.feed(crowd.request(Ask.of(userId="second")))
    await still_mints(crowd)
    assert not slow.is_answered
    slow.protocol.resume_writing()
    users = [(await slow.client.answer())[2]["userId"] for _ in range(2)]
    assert users == ["ana", "second"]
    await until(lambda: not tasks(crowd))


@pytest.mark.parametrize("waits_for", ["commit", "client"])
async def test_a_client_that_left_costs_its_row_and_nothing_else(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, waits_for: str
):
    gate = Gate(monkeypatch)
    left, stays = await crowd.visits(2)
    if waits_for == "client":
        left.protocol.pause_writing()
    for visitor, ask in ((left, ASKS[0]), (stays, ASKS[2])):
        visitor.feed(crowd.request(ask))
    await gate.reached.wait()
    if waits_for == "client":
        gate.open.set()
        await until(lambda: bool(tasks(crowd)))
    left.client.writer.transport.abort()
    await until(lambda: left.protocol.cycle.disconnected)
    gate.open.set()
    assert await statuses([stays]) == [201]
    await until(lambda: not tasks(crowd))
    assert crowd.users()[-2:] == ["ana", "cem"]
    assert {line["event"] for line in await crowd.lines() if line["level"] == "error"} == set()
    await still_mints(crowd)


# --- the end of the service -------------------------------------------------------------------------


async def test_at_the_end_every_mint_that_waits_is_answered_and_its_connection_closed(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(monkeypatch)
    slow, *others = await crowd.visits(2 * direct_mint.TOGETHER)
    slow.protocol.pause_writing()
    for number, visitor in enumerate((slow, *others)):
        visitor.feed(crowd.request(Ask.of(userId=f"u{number}"), number))
    await gate.reached.wait()
    crowd.server.server.should_exit = True
    await until(lambda: crowd.app.is_draining)
    gate.open.set()
    for number, visitor in enumerate(others, start=1):
        status, headers, body = await visitor.client.answer()
        assert (status, headers["connection"]) == (201, "close")
        assert body["userId"] == f"u{number}"
        assert await visitor.client.is_closed()
    await until(lambda: bool(tasks(crowd)))
    slow.protocol.resume_writing()
    status, headers, _ = await slow.client.answer()
    assert (status, headers["connection"]) == (201, "close")
    assert await slow.client.is_closed()
    assert len(crowd.users()) == 1 + 2 * direct_mint.TOGETHER


async def test_what_comes_while_the_service_ends_is_answered_too(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(monkeypatch)
    first, begun = await crowd.visits(2)
    first.feed(crowd.request(ASKS[0]))
    request = crowd.request(ASKS[2])
    begun.feed(request[:30])
    await gate.reached.wait()
    crowd.server.server.should_exit = True
    await until(lambda: crowd.app.is_draining)
    begun.feed(request[30:])
    gate.open.set()
    for visitor in (first, begun):
        status, headers, _ = await visitor.client.answer()
        assert (status, headers["connection"]) == (201, "close")
        assert await visitor.client.is_closed()


# --- what is not at hand ----------------------------------------------------------------------------

LIMITED = f"""\
version: 1
callers:
  CALLER:
    stages: ["{stage_arn()}", "{stage_arn("stage2")}"]
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: 60
    issuer: [auto, local]
    limits: {{tokensPerSecond: 0.5, burst: 10}}
"""


def limited(service: Service, folder: Path, caller: str = "all") -> None:
    path = folder / "policy.yaml"
    path.write_text(LIMITED.replace("CALLER", json.dumps(caller)))
    service.settings = replace(service.settings, policy_file=path)


async def test_mints_of_a_stage_that_is_not_known_yet_are_counted_once_and_answered_in_tasks(
    stopped: Service, log: io.StringIO, tmp_path: Path, ran: list[Any]
):
    limited(stopped, tmp_path)
    async with listening(stopped) as server:
        crowd = Crowd(server, log)
        answers = []
        for _ in range(2):
            visitors = await crowd.arrive(*[Ask.of(stageArn=stage_arn("stage2"))] * 3)
            answers += [await visitor.client.answer() for visitor in visitors]
        assert [status for status, _, _ in answers] == [201] * 6
        assert len(ran) == 3, "the others find it at hand"
        left = [headers["ratelimit"].split(";")[1] for _, headers, _ in answers]
        assert left[3:] == ["r=6", "r=5", "r=4"]
        assert {headers["ratelimit-policy"] for _, headers, _ in answers} == {
            answers[0][1]["ratelimit-policy"]
        }
        first, second = answers[0], answers[-1]
        assert first[1].keys() == second[1].keys()
        assert {key for _, _, body in answers for key in (body["keyArn"],)} == {first[2]["keyArn"]}
        assert stopped.ivs.calls["GetStage"] == 1
        assert len(crowd.rows("1")) == 6


@pytest.mark.parametrize(("wanted", "status"), [("auto", 201), ("local", 503)])
async def test_mints_without_a_key_are_counted_once(
    stopped: Service, log: io.StringIO, tmp_path: Path, wanted: str, status: int
):
    limited(stopped, tmp_path)
    stopped.ivs.faulty_regions.add(REGION)
    async with listening(stopped) as server:
        crowd = Crowd(server, log)
        stopped.ivs.faulty_regions.clear()
        visitors = await crowd.arrive(*[Ask.of(issuer=wanted)] * 3)
        assert await statuses(visitors) == [status] * 3
        # One more tells how many are left.
        (last,) = await crowd.arrive(Ask.of(issuer="auto"))
        _, headers, body = await last.client.answer()
        assert body["issuer"] == "ivs"
        assert ";r=6;" in headers["ratelimit"]
        assert stopped.ivs.calls["CreateParticipantToken"] == 1 + 3 * (status == 201)


async def test_a_caller_of_an_issuer_gets_the_same_and_is_counted_once(
    stopped: Service, log: io.StringIO, tmp_path: Path, issuer: Issuer
):
    limited(stopped, tmp_path, "oidc:lobby")
    stopped.settings = replace(stopped.settings, oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    async with listening(stopped) as server:
        crowd, watcher = Crowd(server, log), Watcher(server, log)
        headers = {"authorization": issuer.token(stopped.now)["authorization"].encode()}
        ask = Ask.of(userId="ana")
        seen = [await watcher.see(ask.body, headers, short=way) for way in (True, True, False)]
        left = [one.headers.pop("ratelimit").split(";")[1] for one in seen]
        assert left == ["r=9", "r=8", "r=7"]
        assert seen[1] == seen[2]
        assert seen[1].status == 201
        assert seen[1].lines[0]["caller"].startswith("oidc:")
        bad = {"authorization": headers["authorization"][:-4] + b"AAAA"}
        short, long = [await watcher.see(ask.body, bad, short=way) for way in (True, False)]
        assert short == long
        assert (short.status, short.rows) == (401, [])
        visitors = await crowd.arrive(*[replace(ask, headers=headers)] * 3)
        answers = [await visitor.client.answer() for visitor in visitors]
        assert [status for status, _, _ in answers] == [201] * 3
        assert sorted(told["ratelimit"].split(";")[1] for _, told, _ in answers) == [
            "r=4", "r=5", "r=6",
        ]  # fmt: skip


async def test_an_issuer_that_does_not_answer_is_told_by_both_ways(
    stopped: Service, log: io.StringIO, issuer: Issuer
):
    stopped.settings = replace(stopped.settings, oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    issuer.down = True
    async with listening(stopped) as server:
        watcher = Watcher(server, log)
        headers = {"authorization": issuer.token(stopped.now)["authorization"].encode()}
        short, long = [
            await watcher.see(Ask.of().body, headers, short=way) for way in (True, False)
        ]
        assert (short.status, short.body["code"]) == (long.status, long.body["code"])
        assert (short.status, short.rows) == (503, [])
