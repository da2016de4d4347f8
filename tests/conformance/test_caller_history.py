"""Any history of callers, on every kind of database, against a model in a few lines.

The model knows, for every API key ever made, whether it must be let in now. After each step the store
and a directory that follows it are compared with the model.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.callers.support import Clock
from tests.conformance.conftest import MakeDatabase
from tokensvc.callers import ApiKey, CallerDirectory, SqlCallerStore
from tokensvc.errors import InvalidRequestError, NotFoundError, UnauthenticatedError
from tokensvc.store import open_engine

NAMES = st.sampled_from(["ana", "bo", "cy"])
SECONDS = st.sampled_from([0, 1, 30, 60, 3600])
SCOPES = st.sets(st.sampled_from(["tokens:mint", "keys:read", "bans:write"]), min_size=1)


@dataclass
class Known:
    """A caller as the model has it; `ends` has the end of each key that is not yet dropped."""

    caller_id: str
    scopes: set[str]
    expires_at: float | None
    revoked: bool = False
    ends: dict[str, float | None] = field(default_factory=dict)

    def admits(self, key: str, now: float) -> bool:
        return (
            not self.revoked
            and (self.expires_at is None or now < self.expires_at)
            and key in self.ends
            and (self.ends[key] is None or now < self.ends[key])
        )


class CallerHistory(RuleBasedStateMachine):
    """Adds, rotates, revokes and waits, in any order."""

    def __init__(self, make_database: MakeDatabase) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.make_database = make_database
        self.url = make_database()
        self.engine = open_engine(self.url)
        self.store = SqlCallerStore(self.engine, self.clock)
        self.directory = CallerDirectory(self.store, self.clock)
        self.known: dict[str, Known] = {}
        self.keys: list[tuple[str, str]] = []
        self.changes = 0

    def teardown(self) -> None:
        self.runner.run(self.engine.dispose())
        self.runner.close()
        self.make_database.release(self.url)

    def refusal(self, work: Any) -> str | None:
        try:
            self.runner.run(work)
        except InvalidRequestError as error:
            return error.errors[0].code
        except NotFoundError as error:
            return error.code
        return None

    def target(self, name: str, by_id: bool) -> str:
        return self.known[name].caller_id if by_id and name in self.known else name

    def made(self, name: str, api_key: ApiKey) -> str:
        self.changes += 1
        self.keys.append((name, api_key.reveal()))
        return api_key.reveal()

    @rule(name=NAMES, scopes=SCOPES, lifetime=st.none() | SECONDS)
    def add(self, name: str, scopes: set[str], lifetime: int | None) -> None:
        expires_at = None if lifetime is None else self.clock.now + lifetime
        if lifetime == 0 or name in self.known:
            expected = "past" if lifetime == 0 else "taken"
            assert self.refusal(self.store.add(name, scopes, expires_at)) == expected
            return
        caller, api_key = self.runner.run(self.store.add(name, scopes, expires_at))
        self.known[name] = Known(caller.caller_id, scopes, expires_at)
        self.known[name].ends[self.made(name, api_key)] = None

    @rule(name=NAMES, overlap=SECONDS, restart=st.booleans(), by_id=st.booleans())
    def rotate(self, name: str, overlap: int, restart: bool, by_id: bool) -> None:
        now = self.clock.now
        until = now + overlap
        work = self.store.rotate(self.target(name, by_id), old_valid_until=until, restart=restart)
        known = self.known.get(name)
        if known is None:
            assert self.refusal(work) == "not_found"
            return
        if known.revoked or (known.expires_at is not None and now >= known.expires_at):
            assert self.refusal(work) == ("revoked" if known.revoked else "expired")
            return
        live = [key for key in known.ends if known.admits(key, now)]
        if len(live) == 2 and overlap and not restart:
            assert self.refusal(work) == "changing_over"
            return
        _, api_key = self.runner.run(work)
        known.ends = {live[0]: until} if overlap else {}
        known.ends[self.made(name, api_key)] = None

    @rule(name=NAMES, by_id=st.booleans())
    def revoke(self, name: str, by_id: bool) -> None:
        refusal = self.refusal(self.store.revoke(self.target(name, by_id)))
        if name not in self.known:
            assert refusal == "not_found"
            return
        assert refusal is None
        self.changes += not self.known[name].revoked
        self.known[name].revoked = True

    @rule(seconds=SECONDS)
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def the_directory_admits_what_the_model_admits(self) -> None:
        self.runner.run(self.directory.refresh())
        for name, key in self.keys:
            known = self.known[name]
            try:
                who = self.directory.authenticate(f"Bearer {key}")
            except UnauthenticatedError:
                assert not known.admits(key, self.clock.now)
            else:
                assert known.admits(key, self.clock.now)
                assert (who.caller_id, who.name) == (known.caller_id, name)
                assert who.scopes == known.scopes

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        listed = self.runner.run(self.store.list())
        assert [caller.name for caller in listed] == sorted(self.known)
        for caller in listed:
            known = self.known[caller.name]
            assert caller.caller_id == known.caller_id
            assert (caller.revoked_at is not None) is known.revoked
            assert len(caller.secrets) <= 2
        assert self.runner.run(self.store.version()) >= self.changes


def test_any_history_of_callers(make_database: MakeDatabase) -> None:
    run_state_machine_as_test(
        lambda: CallerHistory(make_database),
        settings=settings(
            max_examples=make_database.examples, stateful_step_count=20, deadline=None
        ),
    )
