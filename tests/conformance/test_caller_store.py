"""What every CallerStore must do, on every kind of database."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from tokensvc.callers import ApiKey, Caller, CallerStore, Scope, SqlCallerStore
from tokensvc.callers.record import MAX_CALLERS, MAX_LIFETIME_SECONDS, MAX_OVERLAP_SECONDS
from tokensvc.errors import InvalidRequestError, NotFoundError, StoreUnavailableError
from tokensvc.store.tables import caller_secrets, callers, feeds

MINT = ("tokens:mint",)


@pytest.fixture
def store(engine: AsyncEngine, clock: Any) -> CallerStore:
    return SqlCallerStore(engine, clock)


@pytest.fixture
def other_replica(second_engine: AsyncEngine, clock: Any) -> CallerStore:
    return SqlCallerStore(second_engine, clock)


def digest(api_key: ApiKey) -> bytes:
    """What is stored of a key, computed as a reader of the documentation would."""
    prefix, caller_id, secret = api_key.reveal().split("_", 2)
    assert prefix == "tsk"
    assert caller_id == api_key.caller_id
    return hashlib.sha256(secret.encode()).digest()


def digests(caller: Caller) -> list[bytes]:
    return [secret.sha256 for secret in caller.secrets]


async def test_a_new_store_has_no_callers(store):
    assert await store.list() == ()
    assert await store.version() == 0


async def test_what_was_added_is_listed_by_every_replica(store, other_replica, clock):
    expires_at = clock.now + 60
    zoe, zoe_key = await store.add("zoe", ["keys:read", "tokens:mint"], expires_at)
    ana, ana_key = await store.add("ana", MINT)
    assert await other_replica.list() == (ana, zoe)
    assert zoe.name == "zoe"
    assert zoe.scopes == {Scope.KEYS_READ, Scope.TOKENS_MINT}
    assert (zoe.created_at, zoe.expires_at, zoe.revoked_at) == (clock.now, expires_at, None)
    assert ana.expires_at is None
    assert digests(zoe) == [digest(zoe_key)]
    assert digests(ana) == [digest(ana_key)]
    assert zoe.caller_id != ana.caller_id


async def test_of_a_key_only_the_hash_of_its_secret_is_stored(store, engine):
    _, api_key = await store.add("ana", MINT)
    async with engine.connect() as connection:
        for table in (callers, caller_secrets, feeds):
            for row in await connection.execute(select(table)):
                for value in row:
                    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
                    assert api_key.reveal().split("_", 2)[2] not in text


@pytest.mark.parametrize(
    ("name", "scopes", "expires_in", "field", "code"),
    [
        ("", MINT, None, "name", "pattern"),
        ("x" * 65, MINT, None, "name", "too_long"),
        ("1st", MINT, None, "name", "pattern"),
        ("a b", MINT, None, "name", "pattern"),
        ("é", MINT, None, "name", "pattern"),
        ("ana\n", MINT, None, "name", "pattern"),
        ("ana", (), None, "scopes", "missing"),
        ("ana", ("tokens:mint", "tokens:burn"), None, "scopes", "unknown"),
        ("ana", ("callers:write",), None, "scopes", "unknown"),
        ("ana", MINT, 0.0, "expiresAt", "past"),
        ("ana", MINT, MAX_LIFETIME_SECONDS + 1.0, "expiresAt", "too_far"),
        ("ana", MINT, float("nan"), "expiresAt", "not_a_time"),
        ("ana", MINT, float("inf"), "expiresAt", "not_a_time"),
    ],
)
async def test_a_caller_that_breaks_a_rule_is_refused(
    store, clock, name, scopes, expires_in, field, code
):
    expires_at = None if expires_in is None else clock.now + expires_in
    with pytest.raises(InvalidRequestError) as caught:
        await store.add(name, scopes, expires_at)
    (error,) = caught.value.errors
    assert (error.field, error.code) == (field, code)
    assert caught.value.detail == f"{field}: {error.detail}"
    assert await store.list() == ()
    assert await store.version() == 0


async def test_the_limits_themselves_are_allowed(store, clock):
    longest = "a" + "Z9._-" * 12 + "zzz"
    assert len(longest) == 64
    caller, _ = await store.add(longest, list(Scope), clock.now + MAX_LIFETIME_SECONDS)
    assert caller.scopes == set(Scope)
    assert await store.list() == (caller,)


async def test_a_name_is_given_once_and_stays_taken(store):
    await store.add("ana", MINT)
    with pytest.raises(InvalidRequestError, match="name of a caller"):
        await store.add("ana", MINT)
    await store.revoke("ana")
    with pytest.raises(InvalidRequestError, match="name of a revoked caller"):
        await store.add("ana", MINT)
    assert len(await store.list()) == 1


async def test_names_differ_by_case(store):
    await store.add("ana", MINT)
    await store.add("Ana", MINT)
    assert {caller.name for caller in await store.list()} == {"ana", "Ana"}


async def test_there_is_an_end_to_how_many(store, engine):
    rows = [
        {"caller_id": f"{n:012}", "name": f"c{n}", "scopes": "tokens:mint", "created_at": 1.0}
        for n in range(MAX_CALLERS)
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(callers), rows)
    with pytest.raises(InvalidRequestError, match=str(MAX_CALLERS)) as caught:
        await store.add("ana", MINT)
    assert caught.value.errors[0].limit == MAX_CALLERS
    await store.revoke("c7")
    await store.add("ana", MINT)
    assert len(await store.list()) == MAX_CALLERS + 1


async def test_the_old_secret_ends_when_it_was_told_to(store, other_replica, clock):
    added, first = await store.add("ana", MINT)
    clock.now += 10
    until = clock.now + MAX_OVERLAP_SECONDS
    rotated, second = await store.rotate(added.caller_id, old_valid_until=until)
    assert (await other_replica.list()) == (rotated,)
    assert digests(rotated) == [digest(first), digest(second)]
    assert [secret.expires_at for secret in rotated.secrets] == [until, None]
    assert digests(rotated) == [secret.sha256 for secret in rotated.valid_secrets(until - 1)]
    assert [secret.sha256 for secret in rotated.valid_secrets(until)] == [digest(second)]
    assert (rotated.name, rotated.scopes) == (added.name, added.scopes)


async def test_an_overlap_has_a_limit(store, clock):
    await store.add("ana", MINT)
    for until in (clock.now + MAX_OVERLAP_SECONDS + 1, float("inf"), float("nan")):
        with pytest.raises(InvalidRequestError) as caught:
            await store.rotate("ana", old_valid_until=until)
        assert caught.value.errors[0].field == "oldValidUntil"
    assert await store.version() == 1


async def test_without_an_overlap_only_the_new_secret_is_left(store, clock):
    await store.add("ana", MINT)
    await store.rotate("ana", old_valid_until=clock.now + 60)
    rotated, newest = await store.rotate("ana", old_valid_until=clock.now)
    assert digests(rotated) == [digest(newest)]
    assert await store.list() == (rotated,)


async def test_a_third_secret_is_refused_until_the_first_has_ended(store, clock):
    await store.add("ana", MINT)
    _, second = await store.rotate("ana", old_valid_until=clock.now + 60)
    with pytest.raises(InvalidRequestError) as caught:
        await store.rotate("ana", old_valid_until=clock.now + 90)
    assert caught.value.errors[0].code == "changing_over"
    clock.now += 60
    rotated, third = await store.rotate("ana", old_valid_until=clock.now + 90)
    assert digests(rotated) == [digest(second), digest(third)]
    assert await store.list() == (rotated,)


async def test_a_rotation_whose_key_was_lost_is_restarted(store, clock):
    _, in_use = await store.add("ana", MINT)
    await store.rotate("ana", old_valid_until=clock.now + 60)
    until = clock.now + 90
    rotated, third = await store.rotate("ana", old_valid_until=until, restart=True)
    assert digests(rotated) == [digest(in_use), digest(third)]
    assert [secret.expires_at for secret in rotated.secrets] == [until, None]
    assert await store.list() == (rotated,)


async def test_which_secret_is_older_does_not_depend_on_a_clock_that_went_back(store, clock):
    _, first = await store.add("ana", MINT)
    clock.now -= 3600
    rotated, second = await store.rotate("ana", old_valid_until=clock.now + 60)
    assert digests(rotated) == [digest(first), digest(second)]
    assert await store.list() == (rotated,)


async def test_a_revoked_caller_stays_revoked_and_on_record(store, clock):
    added, _ = await store.add("ana", MINT)
    kept, _ = await store.add("zoe", MINT)
    clock.now += 5
    revoked = await store.revoke("ana")
    assert (revoked.caller_id, revoked.revoked_at) == (added.caller_id, clock.now)
    assert revoked.secrets == ()
    clock.now += 5
    assert await store.revoke(added.caller_id) == revoked
    assert await store.list() == (revoked, kept)
    assert await store.list(revoked=False) == (kept,)
    with pytest.raises(InvalidRequestError, match="revoked"):
        await store.rotate("ana", old_valid_until=clock.now)


async def test_an_expired_caller_is_not_rotated_and_can_be_revoked(store, clock):
    await store.add("ana", MINT, clock.now + 60)
    clock.now += 60
    with pytest.raises(InvalidRequestError, match="expired"):
        await store.rotate("ana", old_valid_until=clock.now)
    assert (await store.revoke("ana")).state(clock.now) == "revoked"


async def test_an_unknown_caller_is_not_found_and_what_was_asked_for_not_repeated(store, clock):
    _, api_key = await store.add("ana", MINT)
    for work in (
        store.revoke(api_key.reveal()),
        store.rotate(api_key.reveal(), old_valid_until=clock.now),
    ):
        with pytest.raises(NotFoundError) as caught:
            await work
        assert api_key.reveal() not in f"{caught.value!r}{caught.value.context}"
    assert await store.version() == 1


async def test_the_version_grows_with_every_change(store, other_replica, clock):
    seen = [await other_replica.version()]
    await store.add("ana", MINT)
    seen.append(await other_replica.version())
    await store.rotate("ana", old_valid_until=clock.now + 1)
    seen.append(await other_replica.version())
    await store.revoke("ana")
    seen.append(await other_replica.version())
    assert seen == sorted(set(seen))


async def test_of_two_that_take_a_name_at_once_one_gets_it(store, other_replica):
    answers = await asyncio.gather(
        *(replica.add("ana", MINT) for replica in (store, other_replica) * 3),
        return_exceptions=True,
    )
    added = [answer for answer in answers if isinstance(answer, tuple)]
    refused = [answer for answer in answers if isinstance(answer, InvalidRequestError)]
    assert (len(added), len(refused)) == (1, 5)
    assert await store.list() == (added[0][0],)
    assert await store.version() == 1


async def test_changes_at_once_are_all_made(store, other_replica):
    added = await asyncio.gather(
        *((store, other_replica)[n % 2].add(f"c{n}", MINT) for n in range(8))
    )
    assert {caller.caller_id for caller in await store.list()} == {
        caller.caller_id for caller, _ in added
    }
    assert await store.version() == 8


async def test_rotations_at_once_never_make_three_secrets(store, other_replica, clock):
    await store.add("ana", MINT)
    answers = await asyncio.gather(
        *(r.rotate("ana", old_valid_until=clock.now + 60) for r in (store, other_replica) * 2),
        return_exceptions=True,
    )
    done = [answer for answer in answers if isinstance(answer, tuple)]
    assert len(done) == 1
    assert await store.list() == (done[0][0],)


@pytest.mark.parametrize("change", ["add", "rotate", "revoke"])
async def test_a_change_cut_off_before_its_end_changes_nothing(store, engine, clock, change):
    await store.add("ana", MINT)
    before = await store.list(), await store.version()

    class CutOffError(Exception):
        pass

    def cut(_connection, _cursor, statement, *_):
        if statement.startswith(("INSERT INTO caller_secrets", "DELETE FROM caller_secrets")):
            raise CutOffError

    event.listen(engine.sync_engine, "before_cursor_execute", cut)
    work = {
        "add": lambda: store.add("zoe", MINT),
        "rotate": lambda: store.rotate("ana", old_valid_until=clock.now + 60),
        "revoke": lambda: store.revoke("ana"),
    }
    with pytest.raises(CutOffError):
        await work[change]()
    event.remove(engine.sync_engine, "before_cursor_execute", cut)
    assert (await store.list(), await store.version()) == before


async def test_a_damaged_row_takes_no_other_caller_with_it(store, engine):
    good, _ = await store.add("ana", MINT)
    bad, _ = await store.add("zoe", MINT)
    async with engine.begin() as connection:
        await connection.execute(
            update(caller_secrets)
            .where(caller_secrets.c.caller_id == bad.caller_id)
            .values(secret_sha256=b"short")
        )
    with capture_logs() as logs:
        assert await store.list() == (good,)
    assert [(line["event"], line["caller"]) for line in logs] == [
        ("caller_row_damaged", bad.caller_id)
    ]


async def test_a_scope_of_a_later_version_permits_nothing_and_stops_nothing(store, engine):
    ana, _ = await store.add("ana", MINT)
    async with engine.begin() as connection:
        await connection.execute(update(callers).values(scopes="tokens:mint moon:land"))
    assert await store.list() == (ana,)


async def test_without_its_feed_nothing_is_changed(store, engine):
    async with engine.begin() as connection:
        await connection.execute(delete(feeds))
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await store.add("ana", MINT)
    with pytest.raises(StoreUnavailableError, match="damaged"):
        await store.version()
    assert await store.list() == ()


async def test_faults_of_the_database_are_ours(store, engine, clock):
    async with engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE callers RENAME TO gone")
    for work in (
        store.list(),
        store.add("ana", MINT),
        store.revoke("ana"),
        store.rotate("ana", old_valid_until=clock.now),
    ):
        with pytest.raises(StoreUnavailableError) as caught:
            await work
        assert "SELECT" not in str(caught.value) + repr(caught.value.context)
