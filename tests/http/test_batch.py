"""A batch answers every item, in order, and holds the event loop from nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.support import OTHER_REGION, Service, problem_in, stage_arn
from tests.http.test_mint import claims_of
from tokensvc.issuing import issuer
from tokensvc.issuing.slices import SLICE_SECONDS, LoopSlices


async def test_one_answer_for_each_item_in_order(service: Service):
    tokens: list[object] = [
        {"userId": "first"},
        {"userId": "u" * 129},
        {"userId": "third", "stageArn": stage_arn("stage2"), "duration": 5},
        {"stageArn": stage_arn("nowhere")},
        "no object",
        {"stageArn": stage_arn(region=OTHER_REGION)},
        {"userId": None, "nonsense": 1},
        {"userId": "last"},
    ]
    answer = await service.post(
        "/v1/tokens/batch",
        {"defaults": {"stageArn": stage_arn(), "duration": 60}, "tokens": tokens},
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["issued"], body["failed"]) == (3, 5)
    items = body["tokens"]
    assert len(items) == len(tokens)
    assert [items[index]["userId"] for index in (0, 2, 7)] == ["first", "third", "last"]
    assert [items[index]["duration"] for index in (0, 2, 7)] == [60, 5, 60]
    assert claims_of(service, items[2]["token"])["resource"] == stage_arn("stage2")
    problems = {index: items[index]["problem"] for index in (1, 3, 4, 5, 6)}
    assert {index: problem["errors"][0]["field"] for index, problem in problems.items()} == {
        1: "tokens[1].userId",
        3: "tokens[3].stageArn",
        4: "tokens[4]",
        5: "tokens[5].stageArn",
        6: "tokens[6].nonsense",
    }
    assert {index: problem["status"] for index, problem in problems.items()} == {
        1: 400,
        3: 404,
        4: 400,
        5: 400,
        6: 400,
    }
    assert all(
        problem["requestId"] == answer.headers["x-request-id"] for problem in problems.values()
    )


async def test_an_item_has_the_bound_of_one_request(service: Service):
    limit = service.settings.max_body_bytes
    fat = b'{"stageArn": "%b"%b}' % (stage_arn().encode(), b" " * limit)
    slim = json.dumps({"stageArn": stage_arn()}).encode()
    answer = await service.send("/v1/tokens/batch", b'{"tokens": [%b, %b]}' % (fat, slim))
    body = answer.json()
    assert (body["issued"], body["failed"]) == (1, 1)
    assert body["tokens"][0]["problem"]["code"] == "body_too_large"
    assert body["tokens"][0]["problem"]["errors"][0] == {
        "field": "tokens[0]",
        "code": "too_large",
        "detail": f"may have {limit} bytes",
        "limit": limit,
    }


async def test_malformed_json_in_an_item_spoils_only_what_it_must(service: Service):
    # The brackets are right, the UTF-8 inside is not: the other item is answered.
    slim = json.dumps({"stageArn": stage_arn()}).encode()
    answer = await service.send("/v1/tokens/batch", b'{"tokens": [{"userId": "\xff"}, %b]}' % slim)
    if answer.status_code == 200:
        body = answer.json()
        assert body["tokens"][0]["problem"]["code"] == "malformed_json"
        assert body["tokens"][1]["token"]
    else:
        problem_in(answer, 400, "malformed_json")


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "tokens", "required"),
        ({"tokens": {}}, "tokens", "type"),
        ({"tokens": None}, "tokens", "type"),
        ({"tokens": [], "default": {}}, "default", "unknown_field"),
        ({"tokens": [{}], "defaults": []}, "defaults", "type"),
        ({"tokens": [{}], "defaults": {"duration": 0}}, "defaults.duration", "too_small"),
        ({"tokens": [{}] * 1001}, "tokens", "too_many"),
    ],
)
async def test_a_bad_envelope_fails_as_a_whole(
    service: Service, body: dict[str, object], field: str, code: str
):
    answer = await service.post("/v1/tokens/batch", body)
    problem = problem_in(answer, 400, "invalid_request")
    assert (problem["errors"][0]["field"], problem["errors"][0]["code"]) == (field, code)


async def test_an_empty_batch_is_answered(service: Service):
    answer = await service.post("/v1/tokens/batch", {"tokens": []})
    assert answer.json() == {"tokens": [], "issued": 0, "failed": 0}


async def test_a_body_above_the_batch_bound_is_refused(service: Service):
    body = b'{"tokens": []}'.ljust(service.settings.max_batch_body_bytes + 1)
    problem_in(await service.send("/v1/tokens/batch", body), 413, "body_too_large")


async def test_a_thousand_tokens_are_issued_and_all_differ(service: Service):
    answer = await service.post(
        "/v1/tokens/batch", {"defaults": {"stageArn": stage_arn()}, "tokens": [{}] * 1000}
    )
    body = answer.json()
    assert (body["issued"], body["failed"]) == (1000, 0)
    assert len({item["participantId"] for item in body["tokens"]}) == 1000
    assert service.ivs.calls["GetStage"] == 1


async def test_no_step_of_a_batch_holds_the_loop_for_longer_than_a_slice(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    """Every signature takes 1 ms of a fake clock, and so does what is looked at by itself.

    What is plain is read and encoded in pieces, of which each item takes 30 us.
    """
    clock = _Clock()
    work, quick = 0.001, 0.000_03

    def encoding(value: object) -> float:
        return quick * len(value) if isinstance(value, list) else work

    for name, seconds in (
        ("tokensvc.http.token_routes.read_plain_tokens", lambda texts: quick * len(texts)),
        ("tokensvc.http.token_routes.read_wanted_token", work),
        ("tokensvc.http.token_routes._encode", encoding),
    ):
        clock.charge(monkeypatch, name, seconds)
    installed = _installed(service)
    begin = issuer.signs_here

    def signs_here(*given: Any) -> Any:
        sign = begin(*given)
        return lambda *each: clock.spend(work) or sign(*each)

    monkeypatch.setattr(issuer, "signs_here", signs_here)
    _install(service, dataclasses.replace(installed, new_slices=lambda: LoopSlices(clock.read)))
    turns: list[float] = []

    async def neighbour() -> None:
        while True:
            turns.append(clock.read())
            await asyncio.sleep(0)

    other = asyncio.create_task(neighbour())
    answer = await service.post(
        "/v1/tokens/batch",
        {"defaults": {"stageArn": stage_arn()}, "tokens": [{}] * 100 + [{"duration": 0}] * 20},
    )
    other.cancel()
    assert answer.json()["issued"] == 100
    held = max(after - before for before, after in itertools.pairwise(turns))
    # A hundred signatures, and 20 problems found and encoded, never 5 ms without a breath.
    assert turns[-1] >= 0.1 + 20 * 2 * work
    assert held <= 0.005
    assert held >= SLICE_SECONDS


async def test_no_step_of_the_largest_batch_holds_the_loop_for_more_than_5_ms(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    """What looks at a whole body takes 3 ms and more of a fake clock, what looks at one item takes 1 ms."""
    clock = _Clock()
    for name, work in (
        ("tokensvc.http.token_routes.request_ref", 0.003),
        ("tokensvc.http.token_routes.BatchAnswer", 0.0035),
        ("tokensvc.http.token_routes._encode", 0.001),
        ("tokensvc.issuing.repeats._keep", 0.001),
        ("tokensvc.issuing.repeats._kept", 0.001),
        ("tokensvc.ledger.lookups._latest", 0.001),
    ):
        clock.charge(monkeypatch, name, work)
    installed = _installed(service)
    cut = installed.cut_batch
    _install(
        service,
        dataclasses.replace(
            installed,
            new_slices=lambda: LoopSlices(clock.read),
            cut_batch=lambda body: clock.spend(0.003) or cut(body),
        ),
    )
    turns: list[float] = []

    async def neighbour() -> None:
        while True:
            turns.append(clock.read())
            await asyncio.sleep(0)

    other = asyncio.create_task(neighbour())
    tokens = [{}] * 20 + [{"duration": 0}] * 20
    body = json.dumps({"defaults": {"stageArn": stage_arn()}, "tokens": tokens}).encode()
    first = await service.send("/v1/tokens/batch", body, Idempotency_Key="once")
    # Three bodies; forty items kept, and encoded; and the answer around them.
    assert clock.read() == pytest.approx(0.0095 + 0.04 + 0.041)
    again = await service.send("/v1/tokens/batch", body, Idempotency_Key="once")
    other.cancel()
    # As much again, with what was kept read; and the twenty tokens looked up.
    assert clock.read() == pytest.approx(2 * (0.0095 + 0.04 + 0.041) + 0.02)
    assert ids_and_problems(again) == ids_and_problems(first)
    held = [after - before for before, after in itertools.pairwise(turns)]
    assert max(held) <= 0.005


def ids_and_problems(answer: httpx.Response) -> list[tuple[object, object]]:
    assert answer.status_code == 200, answer.text
    return [
        (item.get("participantId"), item.get("problem", {}).get("errors"))
        for item in answer.json()["tokens"]
    ]


class _Clock:
    """Stands still unless work is charged to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def charge(
        self,
        monkeypatch: pytest.MonkeyPatch,
        target: str,
        seconds: float | Callable[[Any], float],
    ) -> None:
        module, _, name = target.rpartition(".")
        real: Callable[..., Any] = getattr(importlib.import_module(module), name)

        def charged(*given: Any, **named: Any) -> Any:
            self.spend(seconds(given[0]) if callable(seconds) else seconds)
            return real(*given, **named)

        monkeypatch.setattr(target, charged)


def _installed(service: Service) -> Any:
    assert service.app is not None
    return service.app.app.state.service  # type: ignore[attr-defined]


def _install(service: Service, installed: Any) -> None:
    assert service.app is not None
    service.app.app.state.service = installed  # type: ignore[attr-defined]
