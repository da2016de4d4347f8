"""Promise: overload is answered with 503 and `Retry-After`, at once, and nothing grows without bound."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.http.held import Held
from tests.http.support import Service, problem_in, running, stage_arn
from tokensvc import errors
from tokensvc.errors import TokenServiceError
from tokensvc.http.facts import keep_facts, read_facts
from tokensvc.http.problems import problem_answer
from tokensvc.ledger import LedgerWriter
from tokensvc.ledger.writer import SHED_AFTER_SECONDS

ROWS = 6
ASKED = 30
MINT = {"stageArn": stage_arn()}


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[LedgerWriter]:
    """The ledger's writers of services that start from now on; each has a short queue."""
    made: list[LedgerWriter] = []

    def make(*parts: Any, **options: Any) -> LedgerWriter:
        made.append(LedgerWriter(*parts, **options, max_waiting_rows=ROWS, max_rows_per_commit=1))
        return made[-1]

    monkeypatch.setattr("tokensvc.http.parts.LedgerWriter", make)
    return made


async def test_a_saturated_ledger_sheds_at_once_and_forgets_nobody(
    stopped: Service, writers: list[LedgerWriter]
):
    async with running(stopped) as service:
        await service.mint()
        held = await asyncio.to_thread(Held, service)
        asked = {asyncio.create_task(service.post("/v1/tokens", MINT)) for _ in range(ASKED)}
        # One commit is under way, so many rows wait, and whoever comes on top is told to go.
        while len(asked) > ROWS + 1:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                problem_in(task.result(), 503, "ledger_busy")
                assert int(task.result().headers["retry-after"]) >= 1
        assert 0 < writers[0].waiting_rows <= ROWS
        # Who asks for nothing of the ledger is served.
        assert (await service.get("/healthz")).status_code == 200
        batch = await service.post("/v1/tokens/batch", {"tokens": [MINT] * (ROWS + 1)})
        problem_in(batch, 503, "ledger_busy")
        await asyncio.to_thread(held.release)
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {201}
        await service.mint()


async def test_a_slow_ledger_sheds_before_waiting_gets_longer(
    stopped: Service, writers: list[LedgerWriter]
):
    async with running(stopped) as service:
        await service.mint()
        held = await asyncio.to_thread(Held, service)
        first = asyncio.create_task(service.post("/v1/tokens", MINT))
        while writers[0]._under_way_since is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        service.now += SHED_AFTER_SECONDS + 0.1
        problem_in(await service.post("/v1/tokens", MINT), 503, "ledger_busy")
        await asyncio.to_thread(held.release)
        assert (await first).status_code == 201
        await service.mint()


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in map(errors.__dict__.get, errors.__all__)
        if isinstance(kind, type)
        and issubclass(kind, TokenServiceError)
        and kind.status in (429, 503)
    ],
)
def test_every_429_and_503_says_when_to_come_again(kind: type[TokenServiceError]):
    assert retry_after(kind("no")) == "5"
    assert retry_after(kind("no", retry_after=0.1)) == "1"
    assert retry_after(kind("no", retry_after=2.1)) == "3"


def retry_after(error: TokenServiceError) -> str | None:
    scope: Any = {"type": "http", "method": "POST", "path": "/v1/tokens"}
    keep_facts(scope, read_facts([], 0.0))
    request: Any = httpx.Request("POST", "http://x/")
    request.scope = scope
    fields = dict(problem_answer(request, error).fields)
    return {name.lower(): value for name, value in fields.items()}.get("retry-after")
