"""Two replicas over one PostgreSQL: what one does the other knows at once, and both outlive a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from tests.http.support import (
    NOW,
    FakeIvs,
    Service,
    Sleeper,
    install,
    problem_in,
    running,
    settings_for,
    stage_arn,
)
from tests.postgres import PASSWORD, PostgresServer
from tokensvc.callers import SqlCallerStore
from tokensvc.store import open_engine

REFUSED_SECONDS = 0.1


class NoPolls(Sleeper):
    """No poll's time ever comes, so what is known in spite of that was heard."""

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        if seconds < REFUSED_SECONDS:
            return asyncio.sleep(seconds)
        return super().sleep(seconds)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.database()
    yield url
    postgres.release(url)


@pytest.fixture
async def replicas(url: str, tmp_path: Path) -> AsyncIterator[tuple[Service, Service]]:
    folder = tmp_path / "data"
    folder.mkdir()
    settings = settings_for(folder, database_url=url, database_pool_size=1)
    api_keys = await install(settings)
    ivs = FakeIvs()
    first = Service(settings, ivs, NoPolls(), api_keys=api_keys)
    second = Service(settings, ivs, NoPolls(), api_keys=api_keys)
    async with running(first), running(second):
        yield first, second


async def until(
    ask: Callable[[], Awaitable[httpx.Response]], fits: Callable[[httpx.Response], bool]
) -> httpx.Response:
    async with asyncio.timeout(20):
        while not fits(answer := await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return answer


async def mint(service: Service, user: str = "alice") -> httpx.Response:
    return await service.post("/v1/tokens", {"stageArn": stage_arn(), "userId": user})


async def test_a_token_of_one_replica_is_known_to_the_other(replicas):
    first, second = replicas
    minted = await first.mint(userId="alice")
    listed = await second.get("/v1/tokens?userId=alice")
    assert [token["tokenId"] for token in listed.json()["tokens"]] == [minted["participantId"]]


async def test_a_ban_on_one_replica_holds_on_the_other_before_its_next_poll(replicas):
    first, second = replicas
    assert (await mint(second)).status_code == 201
    made = await first.post("/v1/bans", {"userId": "alice"})
    assert made.status_code == 201, made.text
    problem_in(await until(lambda: mint(second), lambda a: a.status_code != 201), 403, "banned")
    assert (await mint(second, "bob")).status_code == 201


async def test_a_caller_that_is_revoked_is_refused_before_the_next_poll(replicas, url):
    first, second = replicas
    engine = open_engine(url)
    await SqlCallerStore(engine, lambda: NOW).revoke("all")
    await engine.dispose()
    for replica in (first, second):
        answer = await until(lambda r=replica: mint(r), lambda a: a.status_code != 201)
        problem_in(answer, 401, "unauthenticated")


async def test_a_repeated_request_gets_one_answer_whoever_is_asked(replicas):
    answers = await asyncio.gather(
        *(
            replicas[number % 2].send(
                "/v1/tokens",
                b'{"stageArn": "%s", "userId": "alice"}' % stage_arn().encode(),
                idempotency_key="one",
            )
            for number in range(10)
        )
    )
    assert {answer.status_code for answer in answers} <= {200, 201}, answers[0].text
    assert len({answer.json()["participantId"] for answer in answers}) == 1


async def test_one_replica_looks_after_keys_and_the_next_one_when_it_has_ended(url, tmp_path):
    """Three calls a second about public keys are all that IVS allows us together."""
    folder = tmp_path / "data"
    folder.mkdir()
    settings = settings_for(folder, database_url=url)
    api_keys = await install(settings)
    ivs = FakeIvs()
    first, second = (Service(settings, ivs, api_keys=api_keys) for _ in range(2))

    def about_keys() -> int:
        return sum(count for name, count in ivs.calls.items() if name.endswith(("Key", "Keys")))

    async with AsyncExitStack() as closing:
        await closing.enter_async_context(running(first))
        asked = about_keys()
        async with running(second):
            await second.sleeper.wake()
            assert about_keys() == asked
            assert (await mint(second)).status_code == 201
            (region,) = (await second.get("/v1/keys")).json()["regions"]
            assert region["healthy"] is True
            await closing.aclose()
            second.now += 2
            await second.sleeper.wake()
            assert about_keys() > asked


async def test_no_process_opens_more_connections_than_the_pool_and_three(replicas, url):
    """docs/postgresql.md: `max_connections` must hold workers x (pool size + 3)."""
    engine = open_engine(url)
    # Not those of the server itself, such as autovacuum's, which `max_connections` does not count either.
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend'"
    )
    async with engine.connect() as other:
        asked = asyncio.gather(
            *(
                ask
                for service in replicas
                for number in range(20)
                for ask in (
                    mint(service, f"u{number}"),
                    service.get(f"/v1/tokens?userId=u{number}"),
                    service.post("/v1/bans", {"userId": f"b{number}"}),
                    service.get("/v1/keys"),
                )
            )
        )
        most = 0
        while not asked.done():
            most = max(most, (await other.execute(query)).scalar_one() - 1)
            # In a transaction the server would tell the same again.
            await other.rollback()
        answers = await asked
    await engine.dispose()
    assert {answer.status_code for answer in answers} <= {200, 201, 503}
    # Two writers, a reader and a listener in each: they were wanted, and there are no more.
    assert most == len(replicas) * (1 + 3)


async def test_no_mint_waits_behind_those_who_read(replicas, url):
    """One connection reads, and it waits for a lock; mints go on."""
    body = b'{"stageArn": "%s"}' % stage_arn().encode()
    engine = open_engine(url)
    async with engine.connect() as other:
        await other.execute(text("LOCK TABLE idempotency_records IN ACCESS EXCLUSIVE MODE"))
        held_up = asyncio.create_task(replicas[0].send("/v1/tokens", body, idempotency_key="one"))
        query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        async with asyncio.timeout(20):
            while not (await other.execute(query)).scalar_one():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await mint(replicas[0])).status_code == 201
        assert not held_up.done()
        await other.rollback()
    assert (await held_up).status_code == 201
    await engine.dispose()


async def test_a_database_that_goes_away_is_said_and_its_return_needs_nobody(replicas, postgres):
    assert (await mint(replicas[0])).status_code == 201
    await asyncio.to_thread(postgres.stop)
    try:
        for replica in replicas:
            answer = await mint(replica)
            problem_in(answer, 503, "store_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert PASSWORD not in answer.text
    finally:
        await asyncio.to_thread(postgres.start)
    for replica in replicas:
        await until(lambda r=replica: mint(r), lambda a: a.status_code == 201)


async def test_no_log_line_shows_the_password(replicas, postgres, log):
    await asyncio.to_thread(postgres.stop)
    await mint(replicas[0])
    await asyncio.to_thread(postgres.start)
    assert "ledger_rows_refused" in log.getvalue()
    assert PASSWORD not in log.getvalue()


async def test_how_long_nothing_was_heard_is_a_metric(replicas):
    metrics = (await replicas[0].get("/metrics", caller=None)).text
    assert 'tokensvc_view_age_seconds{view="changes"} 0.0' in metrics


async def test_text_that_postgresql_cannot_keep_is_the_caller_s_mistake(replicas):
    service = replicas[0]
    body = {"stageArn": stage_arn(), "userId": "a\0b"}
    for path in ("/v1/tokens", "/v1/disconnects", "/v1/bans"):
        problem_in(await service.post(path, body), 400, "invalid_request")
    for path in ("/v1/tokens?userId=%00", "/v1/bans?userId=%00"):
        problem_in(await service.get(path), 400, "invalid_request")
    for path in ("/v1/bans/%00", "/v1/disconnects/%00", "/v1/keys/%00"):
        problem_in(await service.get(path), 404, "not_found")
    for path in ("/v1/bans/%00", "/v1/connection-tokens/%00"):
        problem_in(await service.delete(path), 404, "not_found")
