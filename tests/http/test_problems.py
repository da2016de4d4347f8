"""What goes wrong inside is answered by a problem, too, and tells nothing of the inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.http.support import Service, problem_in, stage_arn
from tokensvc.errors import IvsUnavailableError

MINT = {"stageArn": stage_arn()}


async def test_a_fault_of_ivs_is_told_without_its_context(service: Service):
    service.ivs.fault = IvsUnavailableError(
        "Amazon IVS did not answer in time.", retry_after=1.2, endpoint="internal.example"
    )
    answer = await service.post("/v1/tokens", MINT)
    problem_in(answer, 503, "ivs_unavailable")
    assert answer.headers["retry-after"] == "2"
    assert "internal.example" not in answer.text


async def test_a_bug_is_an_answer_and_not_a_traceback(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the inner secret")

    monkeypatch.setattr("tokensvc.http.token_routes.read_wanted_token", broken)
    answer = await service.post("/v1/tokens", MINT)
    problem_in(answer, 500, "internal")
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text


async def test_a_fault_while_answering_is_an_answer_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> Any:
        raise RuntimeError("answering failed")

    monkeypatch.setattr("tokensvc.http.problems._headers", broken)
    problem_in(await service.get("/nowhere"), 500, "internal")


async def test_a_body_that_does_not_come_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    from tokensvc.http import bodies, token_routes

    read: Callable[..., Any] = bodies.read_json_body
    monkeypatch.setattr(
        token_routes,
        "read_json_body",
        lambda request, limit: read(_Silent(request), limit, seconds=0.0),
    )
    answer = await service.post("/v1/tokens", MINT)
    problem_in(answer, 408, "request_timeout")
    assert answer.headers["connection"] == "close"


class _Silent:
    """A request whose body never comes."""

    def __init__(self, request: Any) -> None:
        self.scope = request.scope

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


@pytest.mark.parametrize("path", ["/healthz", "/schema", "/v1/keys", "/nowhere"])
async def test_every_answer_carries_the_security_headers(service: Service, path: str):
    for caller in (None, "all"):
        headers = (await service.get(path, caller=caller)).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert policy == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control-")]
