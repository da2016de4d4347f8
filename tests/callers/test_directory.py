"""Who a request is from, and how the copy in memory follows the store."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import math

import pytest
from structlog.testing import capture_logs

from tests.callers.support import NOW, Clock, ReadOnlyStore, make_caller
from tokensvc.callers import Authenticated, CallerDirectory, CallerSecret, Scope, directory
from tokensvc.callers.api_key import ApiKey
from tokensvc.callers.oidc import CallerAuthenticator
from tokensvc.errors import StoreUnavailableError, UnauthenticatedError


@pytest.fixture
def clock() -> Clock:
    return Clock()


def bearer(api_key: ApiKey) -> str:
    return f"Bearer {api_key.reveal()}"


def refusal(known: CallerDirectory, header: str | None) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as caught:
        known.authenticate(header)
    return caught.value


async def read(clock: Clock, *callers: object) -> CallerDirectory:
    known = CallerDirectory(ReadOnlyStore(*callers), clock)
    await known.refresh()
    return known


async def test_a_caller_is_known_by_its_key(clock):
    ana, ana_key = make_caller("ana")
    zoe, zoe_key = make_caller("zoe", scopes=frozenset(Scope))
    known = await read(clock, ana, zoe)
    assert known.authenticate(bearer(ana_key)) == Authenticated(
        ana.caller_id, "ana", frozenset({Scope.TOKENS_MINT})
    )
    assert known.authenticate(bearer(zoe_key).replace("Bearer", "bearer")).name == "zoe"
    assert "tokens:mint" in known.authenticate(bearer(ana_key)).scopes
    assert len(known) == 2


async def test_every_refusal_says_the_same_in_public(clock):
    ana, ana_key = make_caller()
    other, other_key = make_caller(expires_at=NOW - 1)
    ended, ended_key = make_caller()
    ended = dataclasses.replace(
        ended, secrets=(dataclasses.replace(ended.secrets[0], expires_at=NOW),)
    )
    known = await read(clock, ana, other, ended)
    _, unknown_key = make_caller()
    mixed = f"Bearer tsk_{ana.caller_id}_{other_key.reveal().split('_', 2)[2]}"
    headers = {
        None: "no_api_key",
        "": "not_an_api_key",
        "Basic YTpi": "not_an_api_key",
        bearer(unknown_key): "unknown_caller",
        mixed: "wrong_secret",
        bearer(other_key): "caller_expired",
        bearer(ended_key): "secret_expired",
    }
    refusals = {header: refusal(known, header) for header in headers}
    assert {header: error.context["reason"] for header, error in refusals.items()} == headers
    assert len({(error.detail, error.errors, str(error)) for error in refusals.values()}) == 1
    for header, error in refusals.items():
        if header and header.startswith("Bearer"):
            assert header.split("_", 2)[2] not in f"{error!r}{error.context}"
    assert known.authenticate(bearer(ana_key)).caller_id == ana.caller_id


async def test_expiry_needs_no_refresh(clock):
    ana, ana_key = make_caller(expires_at=NOW + 60)
    known = await read(clock, ana)
    clock.now = NOW + 59.9
    known.authenticate(bearer(ana_key))
    clock.now = NOW + 60
    assert refusal(known, bearer(ana_key)).context["reason"] == "caller_expired"


@pytest.mark.parametrize("ending_first", [True, False])
async def test_two_secrets_are_good_until_the_old_one_ends(clock, ending_first):
    ana, old_key = make_caller()
    new_key = ApiKey.new(ana.caller_id)
    old = dataclasses.replace(ana.secrets[0], expires_at=NOW + 60)
    held = (old, CallerSecret(new_key.secret_sha256, NOW))
    ana = dataclasses.replace(ana, secrets=held if ending_first else held[::-1])
    known = await read(clock, ana)
    assert known.authenticate(bearer(old_key)) == known.authenticate(bearer(new_key))
    clock.now = NOW + 60
    assert refusal(known, bearer(old_key)).context["reason"] == "secret_expired"
    known.authenticate(bearer(new_key))


async def test_a_caller_without_secrets_is_nobody(clock):
    ana, ana_key = make_caller(secrets=())
    known = await read(clock, ana)
    assert refusal(known, bearer(ana_key)).context["reason"] == "wrong_secret"


@pytest.mark.parametrize("who", ["known", "rotating", "unknown", "wrong secret"])
async def test_every_check_compares_twice_and_in_constant_time(clock, monkeypatch, who):
    ana, ana_key = make_caller()
    if who == "rotating":
        ana = dataclasses.replace(ana, secrets=(*ana.secrets, CallerSecret(b"x" * 32, NOW)))
    known = await read(clock, ana)
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(directory, "compare_digest", compare)
    if who in {"known", "rotating"}:
        known.authenticate(bearer(ana_key))
    else:
        _, key = make_caller()
        caller_id = key.caller_id if who == "unknown" else ana.caller_id
        refusal(known, f"Bearer tsk_{caller_id}_{key.reveal().split('_', 2)[2]}")
    assert compared == [(32, 32), (32, 32)]


async def test_nobody_is_refused_before_the_callers_were_read(clock):
    ana, ana_key = make_caller()
    known = CallerDirectory(ReadOnlyStore(ana), clock)
    for header in (None, bearer(ana_key)):
        with pytest.raises(StoreUnavailableError):
            known.authenticate(header)
    assert known.age() == math.inf
    assert len(known) == 0
    await known.refresh()
    known.authenticate(bearer(ana_key))


async def test_callers_are_read_again_only_when_they_have_changed(clock):
    ana, ana_key = make_caller()
    store = ReadOnlyStore(ana)
    known = CallerDirectory(store, clock)
    assert await known.refresh() is True
    assert await known.refresh() is False
    assert store.reads == ["version", "list", "version"]
    store.put()
    assert await known.refresh() is True
    refusal(known, bearer(ana_key))


async def test_a_version_that_went_back_is_a_change(clock):
    ana, ana_key = make_caller()
    store = ReadOnlyStore()
    store.feed = 9
    known = CallerDirectory(store, clock)
    await known.refresh()
    store.callers, store.feed = (ana,), 3
    assert await known.refresh() is True
    known.authenticate(bearer(ana_key))


async def test_a_change_that_left_the_version_alone_is_seen_within_a_minute(clock):
    ana, ana_key = make_caller()
    store = ReadOnlyStore(ana)
    known = CallerDirectory(store, clock)
    await known.refresh()
    store.callers = ()
    clock.now += directory.FULL_RELOAD_SECONDS - 1
    assert await known.refresh() is False
    clock.now += 1
    assert await known.refresh() is True
    refusal(known, bearer(ana_key))


async def test_a_change_between_the_two_reads_is_not_missed(clock):
    ana, ana_key = make_caller("ana")
    zoe, zoe_key = make_caller("zoe")

    class Busy(ReadOnlyStore):
        async def version(self) -> int:
            version = await super().version()
            if self.feed == 1:
                self.put(ana)
            return version

    store = Busy()
    known = CallerDirectory(store, clock)
    await known.refresh()
    known.authenticate(bearer(ana_key))
    assert await known.refresh() is True
    store.put(ana, zoe)
    await known.refresh()
    known.authenticate(bearer(zoe_key))


async def test_a_slow_refresh_does_not_undo_a_later_one(clock):
    ana, ana_key = make_caller()
    answered = asyncio.Event()

    class Slow(ReadOnlyStore):
        async def list(self, *, revoked: bool = True):
            found = await super().list(revoked=revoked)
            if self.reads.count("list") == 1:
                await answered.wait()
            return found

    store = Slow(ana)
    known = CallerDirectory(store, clock)
    slow = asyncio.create_task(known.refresh())
    await asyncio.sleep(0)
    store.put()
    later = asyncio.create_task(known.refresh())
    await asyncio.sleep(0)
    answered.set()
    await asyncio.gather(slow, later)
    refusal(known, bearer(ana_key))


async def test_what_is_known_outlives_the_store_and_shows_its_age(clock):
    ana, ana_key = make_caller(expires_at=NOW + 1_000_000)
    store = ReadOnlyStore(ana)
    known = CallerDirectory(store, clock)
    await known.refresh()
    store.put()
    store.go_down()
    clock.now += 86_400
    with pytest.raises(StoreUnavailableError):
        await known.refresh()
    known.authenticate(bearer(ana_key))
    assert known.age() == 86_400
    clock.now = NOW + 1_000_000
    refusal(known, bearer(ana_key))
    store.fault = None
    assert await known.refresh() is True
    assert known.age() == 0
    assert len(known) == 0


async def test_an_age_is_never_negative(clock):
    known = await read(clock)
    clock.now -= 5
    assert known.age() == 0


async def test_a_key_works_from_the_moment_it_is_made(clock):
    """Whoever is shown an API key uses it at once, and does not wait for the next poll."""
    ana, ana_key = make_caller()
    store = ReadOnlyStore()
    known = CallerDirectory(store, clock)
    await known.refresh()
    keys = CallerAuthenticator(known)
    store.put(ana)
    assert (await keys.authenticate(bearer(ana_key))).caller_id == ana.caller_id
    # A rotated caller's new key as well.
    new_key = ApiKey.new(ana.caller_id)
    new = CallerSecret(new_key.secret_sha256, NOW)
    store.put(dataclasses.replace(ana, secrets=(*ana.secrets, new)))
    clock.now += 2 * directory.CATCH_UP_SECONDS
    assert (await keys.authenticate(bearer(new_key))).caller_id == ana.caller_id


async def test_a_key_that_was_made_while_the_callers_were_being_read_is_found(clock):
    ana, ana_key = make_caller()
    reading = asyncio.Event()

    class Slow(ReadOnlyStore):
        async def version(self) -> int:
            version = await super().version()
            await reading.wait()
            return version

    store = Slow()
    known = CallerDirectory(store, clock)
    reading.set()
    await known.refresh()
    reading.clear()
    store.put(ana)
    poll = asyncio.create_task(known.refresh())
    await asyncio.sleep(0)
    asked = asyncio.create_task(CallerAuthenticator(known).authenticate(bearer(ana_key)))
    await asyncio.sleep(0)
    reading.set()
    # The poll reads the change first, so the second read finds nothing new; the caller is known.
    assert await poll is True
    assert (await asked).caller_id == ana.caller_id


async def test_a_flood_of_wrong_keys_reads_the_store_ten_times_a_second_at_most(clock):
    ana, ana_key = make_caller()
    store = ReadOnlyStore(ana)
    known = CallerDirectory(store, clock)
    await known.refresh()
    keys = CallerAuthenticator(known)
    store.reads.clear()
    wrong = [f"Bearer {make_caller()[1].reveal()}" for _ in range(20)]
    wrong.append(f"Bearer tsk_{ana.caller_id}_{ana_key.reveal().split('_', 2)[2][::-1]}")
    for second in range(3):
        for header in wrong:
            with pytest.raises(UnauthenticatedError):
                await keys.authenticate(header)
        assert store.reads == ["version"] * (second + 1)
        clock.now += 2 * directory.CATCH_UP_SECONDS
    # A clock that was set back looks again instead of never.
    clock.now -= 3_600
    with pytest.raises(UnauthenticatedError):
        await keys.authenticate(wrong[0])
    assert store.reads == [*["version"] * 4, "list"]


async def test_what_can_be_no_new_key_reads_nothing(clock):
    ended, ended_key = make_caller(expires_at=NOW - 1)
    store = ReadOnlyStore(ended)
    known = CallerDirectory(store, clock)
    await known.refresh()
    store.reads.clear()
    for header in (None, "", "Basic YTpi", bearer(ended_key)):
        with pytest.raises(UnauthenticatedError):
            await CallerAuthenticator(known).authenticate(header)
    assert store.reads == []


async def test_an_unknown_key_is_refused_where_the_store_does_not_answer(clock):
    store = ReadOnlyStore()
    known = CallerDirectory(store, clock)
    await known.refresh()
    store.go_down()
    with pytest.raises(UnauthenticatedError):
        await CallerAuthenticator(known).authenticate(bearer(make_caller()[1]))


class Beats:
    """A sleep that a test paces: each beat runs one step, then the loop is cancelled."""

    def __init__(self, clock: Clock, *steps: object) -> None:
        self._clock = clock
        self._steps = list(steps)
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        if not self._steps:
            raise asyncio.CancelledError
        self._clock.now += seconds
        self._steps.pop(0)()


def nothing() -> None:
    """Let a beat pass."""


async def test_the_loop_follows_the_store(clock):
    ana, ana_key = make_caller()
    store = ReadOnlyStore()
    known = CallerDirectory(store, clock)
    beats = Beats(clock, nothing, lambda: store.put(ana))
    with pytest.raises(asyncio.CancelledError):
        await known.run(0.5, beats)
    assert beats.asked == [0.5, 0.5, 0.5]
    known.authenticate(bearer(ana_key))


async def test_the_loop_outlives_faults_and_says_so_without_flooding(clock):
    ana, ana_key = make_caller()
    store = ReadOnlyStore(ana)
    known = CallerDirectory(store, clock)
    await known.refresh()

    def recover() -> None:
        store.fault = None

    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await known.run(0.5, Beats(clock, store.go_down, *[nothing] * 9, recover, nothing))
    assert [(line["event"], line["failures"]) for line in logs] == [
        *[("callers_not_refreshed", failures) for failures in (1, 2, 4, 8)],
        ("callers_refreshed_again", 10),
    ]
    assert logs[0]["age"] == 0.5
    assert "locked" in logs[0]["reason"]
    known.authenticate(bearer(ana_key))
    assert known.age() == 0


async def test_not_even_a_bug_ends_the_loop(clock):
    store = ReadOnlyStore()
    known = CallerDirectory(store, clock)

    def bug() -> None:
        store.fault = ZeroDivisionError("a bug")

    def recover() -> None:
        store.fault = None

    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await known.run(0.5, Beats(clock, bug, recover))
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    assert known.age() == 0
