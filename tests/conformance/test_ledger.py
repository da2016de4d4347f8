"""What the ledger must do on every kind of database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import event, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.ledger.support import ENDPOINTS, NOW, OTHER_STAGE, STAGE, row
from tokensvc.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    StoreRefusedError,
    StoreUnavailableError,
)
from tokensvc.ledger import (
    Claim,
    IdempotencyStore,
    Ledger,
    LedgerJanitor,
    LedgerWriter,
    idempotency,
    idempotency_ref,
    mark_disconnected,
)
from tokensvc.store.many import IDS_PER_STATEMENT
from tokensvc.store.tables import issued_tokens, stage_endpoints
from tokensvc.store.transactions import Transactions, open_transactions
from tokensvc.tokens.claims import StageEndpoints


async def start_writer(engine: AsyncEngine) -> tuple[LedgerWriter, Transactions]:
    transactions = open_transactions(engine)
    writer = LedgerWriter(transactions, clock=lambda: NOW)
    writer.start()
    return writer, transactions


@pytest.fixture
async def writer(engine: AsyncEngine) -> AsyncIterator[LedgerWriter]:
    writer, transactions = await start_writer(engine)
    yield writer
    await writer.aclose()
    await transactions.aclose()


@pytest.fixture
async def other_writer(second_engine: AsyncEngine) -> AsyncIterator[LedgerWriter]:
    """Another replica's writer."""
    writer, transactions = await start_writer(second_engine)
    yield writer
    await writer.aclose()
    await transactions.aclose()


@pytest.fixture
def ledger(second_engine: AsyncEngine) -> Ledger:
    """Reads over another replica's connections, so only what is committed."""
    return Ledger(second_engine)


async def test_what_was_recorded_is_there_for_every_replica_when_record_returns(writer, ledger):
    issued = row("p1")
    assert await writer.record([issued]) is None
    found = await ledger.latest("p1")
    assert found is not None
    assert (
        found.token_id,
        found.kind,
        found.stage_arn,
        found.region,
        found.user_id,
        found.key_id,
        found.key_arn,
        found.caller_id,
        found.issuer,
        found.iat,
        found.exp,
        found.endpoints,
    ) == issued
    assert found.disconnected_at is None


async def test_a_token_of_ivs_and_a_connection_token_need_fewer_facts(writer, ledger):
    of_ivs = row("ivs1", key_id=None, key_arn=None, issuer="ivs", endpoints=None, user_id=None)
    connection = row("c1", kind="connection", stage_arn=None, user_id=None, endpoints=None)
    await writer.record([of_ivs, connection])
    assert (await ledger.latest("ivs1")).endpoints is None
    assert (await ledger.latest("c1")).kind == "connection"
    assert await ledger.latest("unknown") is None


async def test_names_of_every_script_survive(writer, ledger):
    for name in ("Zoë", "\U0001f600", "O'Brien; --", "a\nb", "%s ? $1"):
        await writer.record([row(user_id=name)])
        assert [t.user_id for t in (await ledger.living(NOW, user_id=name)).tokens] == [name]


async def test_endpoints_are_stored_once_and_what_was_signed_stays(
    writer, other_writer, engine, ledger
):
    changed = StageEndpoints(ENDPOINTS.events, "https://b.whip.live-video.net")
    await writer.record([row("p1"), row("p2")])
    await other_writer.record([row("p3")])
    await writer.record([row("p4", endpoints=changed)])
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(stage_endpoints)) == 2
    assert (await ledger.latest("p3")).endpoints == ENDPOINTS
    assert (await ledger.latest("p4")).endpoints == changed


async def test_an_exchanged_participant_is_found_as_it_was_last_signed(writer, ledger):
    await writer.record([row("p1", exp=NOW + 7200)])
    await writer.record([row("p1", exp=NOW + 60, user_id="alicia"), row("p2", exp=NOW + 9000)])
    found = await ledger.latest("p1")
    assert (found.user_id, found.exp, found.lives_until) == ("alicia", NOW + 60, NOW + 7200)
    assert await ledger.last_expiries(["p1", "unknown"]) == {"p1": NOW + 7200}


class EveryRow:
    """A pace that breathes after every row."""

    def __init__(self) -> None:
        self.breaths = 0

    def spent(self) -> bool:
        return True

    async def breathe(self) -> None:
        self.breaths += 1


TOKENS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["first", "exchanged", "of ivs", "connection", "disconnected"]),
        st.integers(1, 9000),
    ),
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(histories=TOKENS, repeated=st.booleans())
async def test_many_are_found_as_each_of_them_is(writer, ledger, engine, histories, repeated):
    changes = {
        "exchanged": {"user_id": "alicia", "key_id": "k2"},
        "of ivs": {"key_id": None, "key_arn": None, "issuer": "ivs", "endpoints": None},
        "connection": {"kind": "connection", "stage_arn": None, "endpoints": None},
    }
    ids = [row().token_id for _ in range(6)]
    for number, what, lives in histories:
        await writer.record([row(ids[number], exp=NOW + lives, **changes.get(what, {}))])
        if what == "disconnected":
            async with engine.begin() as connection:
                await connection.run_sync(mark_disconnected, ids[number], NOW + lives)
    each = {one: found for one in ids if (found := await ledger.latest(one)) is not None}
    assert set(each) == {ids[number] for number, _, _ in histories}
    asked = [*ids, "unknown", *(ids if repeated else [])]
    assert await ledger.latest_of(asked, EveryRow()) == each


async def test_more_than_one_statement_asks_for_are_found_in_few(writer, ledger, second_engine):
    ids = [row().token_id for _ in range(2 * IDS_PER_STATEMENT + 1)]
    await writer.record([row(one, iat=NOW - number) for number, one in enumerate(ids)])
    asked: list[str] = []
    event.listen(
        second_engine.sync_engine, "before_cursor_execute", lambda *it: asked.append(it[2])
    )
    pace = EveryRow()
    found = await ledger.latest_of(ids, pace)
    assert {one: of_one.iat for one, of_one in found.items()} == {
        one: NOW - number for number, one in enumerate(ids)
    }
    assert sum("issued_tokens" in statement for statement in asked) == 3
    assert pace.breaths == len(ids)
    asked.clear()
    assert await ledger.latest_of([], pace) == {}
    assert not asked


async def test_living_tokens_of_a_user_of_a_stage_and_of_a_key(writer, ledger):
    await writer.record(
        [
            row("a"),
            row("b", user_id="bob"),
            row("c", stage_arn=OTHER_STAGE),
            row("d", key_id="k2"),
            row("e", exp=NOW),
            row("f", user_id=None),
        ]
    )

    async def ids(**filters: str) -> set[str]:
        return {token.token_id for token in (await ledger.living(NOW, **filters)).tokens}

    assert await ids() == {"a", "b", "c", "d", "f"}
    assert await ids(stage_arn=STAGE, user_id="alice") == {"a", "d"}
    assert await ids(user_id="alice") == {"a", "c", "d"}
    assert await ids(stage_arn=STAGE) == {"a", "b", "d", "f"}
    assert await ids(key_id="k1") == {"a", "b", "c", "f"}
    assert await ids(key_id="k2", stage_arn=OTHER_STAGE) == set()
    assert await ledger.count_living(NOW, stage_arn=STAGE, user_id="alice") == 2
    assert await ledger.count_living(NOW + 3600) == 0


async def test_pages_show_every_token_once_though_rows_come_and_go(writer, ledger, second_engine):
    await writer.record([row(f"p{n:03d}", exp=NOW + 1 + n // 7) for n in range(100)])
    seen: list[str] = []
    cursor = None
    while True:
        page = await ledger.living(NOW, stage_arn=STAGE, cursor=cursor, limit=9)
        seen += [token.token_id for token in page.tokens]
        assert len(page.tokens) <= 9
        cursor = page.next_cursor
        if cursor is None:
            break
        await writer.record([row(exp=NOW + 1)])  # before the cursor, so on no later page
    assert seen == [f"p{n:03d}" for n in range(100)]


@pytest.mark.parametrize("cursor", ["", "x", "!!!", "bnVsbA", "W10", "WzEsMiwzXQ", "é"])
async def test_a_cursor_that_is_none_is_refused_by_name(ledger, cursor):
    with pytest.raises(InvalidRequestError) as refused:
        await ledger.living(NOW, cursor=cursor)
    assert refused.value.errors[0].field == "cursor"


async def test_a_cursor_belongs_to_its_filter(writer, ledger):
    await writer.record([row(), row()])
    cursor = (await ledger.living(NOW, stage_arn=STAGE, limit=1)).next_cursor
    with pytest.raises(InvalidRequestError):
        await ledger.living(NOW, user_id="alice", cursor=cursor)


async def test_the_latest_expiry_of_a_key_is_that_of_all_its_tokens(writer, ledger):
    await writer.record([row(exp=NOW + 50), row(exp=NOW + 900), row(key_id="k2", exp=NOW + 9000)])
    await writer.record([row(exp=NOW + 60)])
    assert await ledger.latest_expiry("k1") == NOW + 900
    assert await ledger.latest_expiry("unused") is None


async def test_what_a_key_s_deletion_breaks_is_summed_by_stage_and_caller(writer, ledger):
    await writer.record(
        [
            row(),
            row(exp=NOW + 4000),
            row(caller_id="tool"),
            row(stage_arn=None, kind="connection"),
            row(exp=NOW),
            row(key_id="k2"),
        ]
    )
    use = await ledger.key_use("k1", NOW)
    assert (use.living, use.latest_expiry) == (4, NOW + 4000)
    assert {(u.stage_arn, u.caller_id): (u.living, u.latest_expiry) for u in use.users} == {
        (STAGE, "backend"): (2, NOW + 4000),
        (STAGE, "tool"): (1, NOW + 3600),
        (None, "backend"): (1, NOW + 3600),
    }
    nothing = await ledger.key_use("k9", NOW)
    assert (nothing.living, nothing.latest_expiry, nothing.users) == (0, None, ())


async def test_a_disconnect_is_noted_on_every_token_of_the_participant(writer, ledger, engine):
    await writer.record([row("p1"), row("p1", exp=NOW + 10), row("p2")])
    async with engine.begin() as connection:
        await connection.run_sync(mark_disconnected, "p1", NOW + 5.5)
    noted = {(t.token_id, t.disconnected_at) for t in (await ledger.living(NOW)).tokens}
    assert noted == {("p1", NOW + 5.5), ("p2", None)}
    # An exchange that was under way is recorded after it.
    await writer.record([row("p1")])
    assert (await ledger.latest("p1")).disconnected_at == NOW + 5.5
    assert (await ledger.latest("p2")).disconnected_at is None


async def test_a_value_that_no_database_takes_fails_its_own_request_alone(writer, ledger):
    others = [asyncio.create_task(writer.record([row(f"p{n}")])) for n in range(7)]
    bad = asyncio.create_task(writer.record([row("bad", user_id="\ud800"), row("with-it")]))
    others += [asyncio.create_task(writer.record([row(f"q{n}")])) for n in range(7)]
    with pytest.raises(StoreRefusedError) as refused:
        await bad
    assert "\ud800" not in str(refused.value)
    await asyncio.gather(*others)
    found = {token.token_id for token in (await ledger.living(NOW)).tokens}
    assert found == {f"p{n}" for n in range(7)} | {f"q{n}" for n in range(7)}


async def test_a_damaged_row_is_named_not_passed_on(writer, ledger, engine):
    await writer.record([row("p1")])
    async with engine.begin() as connection:
        await connection.execute(update(issued_tokens).values(kind="?"))
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await ledger.latest("p1")
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await ledger.latest_of(["p0", "p1"], EveryRow())


TWO_DAYS = 2 * 86_400
"""PostgreSQL drops a day as a whole once all of it is due; what is due before is deleted row by row."""


class Ticking:
    """A clock on which every reading is `step` seconds after the one before."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


async def test_retention_deletes_what_is_due_in_slices_and_nothing_else(
    writer, ledger, engine, transactions
):
    due = NOW - 100 - TWO_DAYS
    await writer.record([row(exp=due - n) for n in range(25)] + [row("kept", exp=NOW - 99)])
    ref = idempotency_ref("backend", "mint", "key", b"{}")
    await writer.record([row("living")], Claim(ref, "{}", NOW - 1))
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    janitor = LedgerJanitor(
        engine, transactions, retention=100, clock=lambda: NOW + 0.5, sleep=sleep, slice_rows=10
    )
    assert await janitor.sweep() == 26
    assert len(pauses) == 2
    assert {t.token_id for t in (await ledger.living(due - 100)).tokens} == {"kept", "living"}
    assert await janitor.sweep() == 0


@pytest.mark.parametrize(
    ("late", "sqlite", "postgresql"),
    [(0, 0.02, 0.3), (6 * 3600, 0.26, 0.4), (12 * 3600, 0.5, 0.5), (TWO_DAYS, 0.5, 0.5)],
)
async def test_the_later_rows_are_deleted_the_less_the_janitor_rests(
    writer, engine, transactions, late, sqlite, postgresql
):
    busy = {"sqlite": sqlite, "postgresql": postgresql}[engine.dialect.name]
    exp = NOW - TWO_DAYS
    await writer.record([row(exp=exp) for _ in range(15)])
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    janitor = LedgerJanitor(
        engine, transactions, retention=TWO_DAYS - late, clock=lambda: NOW, sleep=sleep,
        monotonic=Ticking(0.001), slice_rows=10,
    )  # fmt: skip
    assert await janitor.sweep() == 15
    # A slice is read off as one step of the clock.
    assert pauses == [pytest.approx(0.001 / busy - 0.001)]
    assert janitor.late() == 0


async def test_a_sweep_ends_after_a_minute_and_says_how_late_it_is(writer, engine, transactions):
    await writer.record([row(exp=NOW - TWO_DAYS - n) for n in range(30)])
    refs = [idempotency_ref("backend", "mint", f"key {n}", b"{}") for n in range(30)]
    for ref in refs:
        await writer.record([row("living")], Claim(ref, "{}", NOW - 50))

    async def sleep(_: float) -> None:
        pass

    # Three readings for a slice: 15 s each, and the time of both kinds is the same minute.
    janitor = LedgerJanitor(
        engine, transactions, retention=TWO_DAYS - 100, clock=lambda: NOW, sleep=sleep,
        monotonic=Ticking(5), slice_rows=10,
    )  # fmt: skip
    assert await janitor.sweep() == 50
    assert janitor.late() == 100 + 29, "as it was when it last looked"
    janitor.stand_by()
    assert janitor.late() == 0
    assert await janitor.sweep() == 10
    assert janitor.late() == 0


def claim(
    result: str, *, key: str = "key", body: bytes = b"{}", expires_at: float = NOW + 60
) -> Claim:
    return Claim(idempotency_ref("backend", "POST /v1/tokens", key, body), result, expires_at)


async def test_a_claim_is_stored_with_its_rows_and_found_by_every_replica(
    writer, ledger, second_engine
):
    mine = claim('{"id":"p1"}')
    store = IdempotencyStore(second_engine)
    assert await store.find(mine.ref, NOW) is None
    assert await writer.record([row("p1")], mine) is None
    assert await store.find(mine.ref, NOW) == '{"id":"p1"}'
    assert await store.find(mine.ref, NOW + 60) is None
    with pytest.raises(IdempotencyConflictError):
        await store.find(claim("", body=b"other").ref, NOW)


async def test_of_many_requests_under_one_key_one_wins_and_all_learn_it(
    writer, other_writer, ledger
):
    claims = [claim(f'"p{n}"') for n in range(10)]
    answers = await asyncio.gather(
        *((writer if n % 2 else other_writer).record([row(f"p{n}")], claims[n]) for n in range(10))
    )
    winners = [n for n, answer in enumerate(answers) if answer is None]
    assert len(winners) == 1
    assert {answer for answer in answers if answer is not None} == {f'"p{winners[0]}"'}
    recorded = [token.token_id for token in (await ledger.living(NOW)).tokens]
    assert recorded == [f"p{winners[0]}"]


async def test_a_late_claim_of_another_request_is_a_conflict_and_stores_nothing(
    writer, other_writer, ledger
):
    await writer.record([row("p1")], claim('"p1"'))
    with pytest.raises(IdempotencyConflictError):
        await other_writer.record([row("p2")], claim('"p2"', body=b"other"))
    assert await ledger.latest("p2") is None


async def test_keys_of_other_callers_and_routes_do_not_meet(writer):
    mine = claim('"p1"')
    await writer.record([row()], mine)
    for other in (replace(mine.ref, caller_id="tool"), replace(mine.ref, route="x")):
        assert await writer.record([row()], Claim(other, '"p2"', NOW + 60)) is None


async def test_an_expired_claim_gives_way(writer):
    await writer.record([row()], claim('"p1"', expires_at=NOW))
    assert await writer.record([row()], claim('"p2"')) is None


@pytest.mark.parametrize("times", [1, 3, 9])
async def test_a_claim_whose_place_was_taken_and_is_free_again_is_stored(
    writer, ledger, monkeypatch, times
):
    """What was in the way of the INSERT had expired for another replica, which deleted it."""
    insert, left = idempotency.insert_absent, times

    def in_the_way(*given):
        nonlocal left
        left -= 1
        return insert(*given) if left < 0 else 0

    monkeypatch.setattr(idempotency, "insert_absent", in_the_way)
    mine = claim('"p1"')
    if times == 9:
        with pytest.raises(StoreUnavailableError):
            await writer.record([row("p1")], mine)
        assert await ledger.latest("p1") is None
        return
    assert await writer.record([row("p1")], mine) is None
    assert await writer.record([row("p2")], claim('"p2"')) == '"p1"'
    assert await ledger.latest("p2") is None


async def test_a_claim_whose_commit_had_landed_unknown_to_us_is_still_ours(writer):
    again = claim('"p1"')
    await writer.record([row()], again)
    assert await writer.record([row()], again) is None


async def test_many_claims_fit_in_one_commit(writer, ledger):
    claims = [claim(f'"{n}"', key=f"key{n}") for n in range(450)]
    answers = await asyncio.gather(*(writer.record([row(f"p{n}")], claims[n]) for n in range(450)))
    assert set(answers) == {None}
    assert await ledger.count_living(NOW) == 450


async def test_many_look_ups_at_once_are_few_and_each_gets_its_own_answer(
    writer, second_engine, monkeypatch
):
    stored = [
        Claim(replace(claim("", key=f"key{n}").ref, caller_id=f"c{n % 3}"), f'"{n}"', NOW + 1 + n)
        for n in range(250)
    ]
    await asyncio.gather(*(writer.record([row(f"p{n}")], one) for n, one in enumerate(stored)))
    store = IdempotencyStore(second_engine)
    look_up = store._look_up
    looked_up: list[int] = []

    async def counted(refs):
        looked_up.append(len(refs))
        return await look_up(refs)

    monkeypatch.setattr(store, "_look_up", counted)
    unknown = [claim("", key=f"new{n}").ref for n in range(50)]
    refs = [*(one.ref for one in stored), *unknown]
    gone = asyncio.create_task(store.find(refs[0], NOW))
    answers = asyncio.gather(*(store.find(ref, NOW + 1) for ref in refs))
    await asyncio.sleep(0)
    gone.cancel()
    # The first has expired at that moment; who asked for another request than was stored, is told so.
    assert await answers == [None, *(f'"{n}"' for n in range(1, 250)), *([None] * 50)]
    assert len(looked_up) == 2
    with pytest.raises(IdempotencyConflictError):
        await store.find(replace(refs[5], request_sha256=b"x" * 32), NOW)


async def test_a_look_up_that_fails_fails_for_all_who_asked_and_not_for_the_next(
    writer, second_engine, monkeypatch
):
    mine = claim('"p1"')
    await writer.record([row("p1")], mine)
    store = IdempotencyStore(second_engine)
    with monkeypatch.context() as broken:
        broken.setattr("tokensvc.ledger.idempotency._STANDING", text("SELECT nothing FROM nowhere"))
        faults = await asyncio.gather(
            *(store.find(mine.ref, NOW) for _ in range(3)), return_exceptions=True
        )
    assert [type(fault) for fault in faults] == [StoreUnavailableError] * 3
    assert len({id(fault) for fault in faults}) == 3
    assert await store.find(mine.ref, NOW) == '"p1"'


async def test_a_batch_larger_than_one_statement_is_recorded_whole(writer, ledger):
    await writer.record([row() for _ in range(3000)])
    assert await ledger.count_living(NOW) == 3000
