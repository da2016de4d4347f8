"""Sessions know who is on a stage, what happened there, and who may not come back; in bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.verification import ParticipantClaims, TokenRefusedError

STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/abcdefghijkl"
OTHER = "arn:aws:ivs:eu-central-1:123456789012:stage/mnopqrstuvwx"
DAY = 86_400


class Link:
    def __init__(self) -> None:
        self.codes: list[str] = []

    def kicked(self, code: str, reason: str) -> None:
        self.codes.append(code)

    def revoked(self) -> None:
        self.codes.append("revoked")


class Stages:
    """Sessions with a clock that the test turns."""

    def __init__(self, **limits: int) -> None:
        self.time = 1_800_000_000.0
        self.changes = 0
        self.sessions = Sessions(lambda: self.time, changed=self._changed, **limits)

    def _changed(self) -> None:
        self.changes += 1

    def join(self, participant_id: str = "p1", stage_arn: str = STAGE, **claims: Any) -> Link:
        link = Link()
        self.sessions.join(claims_of(participant_id, stage_arn, **claims), link)
        return link

    def event_names(self, participant_id: str = "p1", session: int = 0) -> list[str]:
        session_id = self.sessions.stage_sessions(STAGE)[session].session_id
        events = self.sessions.events(STAGE, session_id, participant_id)
        return [event.name for event in events]


def claims_of(participant_id: str, stage_arn: str = STAGE, **changes: Any) -> ParticipantClaims:
    fields: dict[str, Any] = {
        "stage_arn": stage_arn,
        "participant_id": participant_id,
        "events_url": "ws://127.0.0.1:8090",
        "whip_url": "https://whip",
        "expires_at": 1_800_003_600,
        "capabilities": ("SUBSCRIBE",),
        "attributes": {},
        "user_id": None,
        "exchangeable": True,
    }
    return ParticipantClaims(**(fields | changes))


def test_a_session_lasts_from_the_first_join_to_the_last_leave():
    stages = Stages()
    first = stages.join("p1")
    stages.time += 1
    second = stages.join("p2")
    stages.sessions.leave(STAGE, "p1", first)
    (session,) = stages.sessions.stage_sessions(STAGE)
    assert session.ended_at is None
    assert stages.sessions.active_session_id(STAGE) == session.session_id

    stages.time += 1
    stages.sessions.leave(STAGE, "p2", second)
    (session,) = stages.sessions.stage_sessions(STAGE)
    assert (session.started_at, session.ended_at) == (1_800_000_000, 1_800_000_002)
    assert stages.sessions.active_session_id(STAGE) is None
    assert stages.sessions.stage_session(STAGE, session.session_id) == session

    stages.join("p1")
    newest, oldest = stages.sessions.stage_sessions(STAGE)
    assert oldest == session
    assert newest.session_id != oldest.session_id
    assert len(newest.session_id) == 16
    assert newest.session_id.startswith("st-")


def test_a_participant_that_comes_back_keeps_when_it_first_joined():
    stages = Stages()
    stages.join("other")
    link = stages.join("p1", user_id="u1")
    stages.sessions.leave(STAGE, "p1", link)
    stages.time += 5
    session_id = stages.sessions.stage_sessions(STAGE)[0].session_id
    gone = stages.sessions.participant(STAGE, session_id, "p1")
    assert gone is not None
    assert gone.state == "DISCONNECTED"
    stages.join("p1", user_id="u2", attributes={"a": "b"})

    record = stages.sessions.participant(STAGE, session_id, "p1")
    assert record is not None
    assert (record.state, record.first_joined_at) == ("CONNECTED", 1_800_000_000)
    assert (record.user_id, record.attributes) == ("u2", {"a": "b"})
    names = [p.participant_id for p in stages.sessions.participants(STAGE, session_id)]
    assert names == ["other", "p1"]
    assert stages.event_names() == ["JOINED", "LEFT", "JOINED"]


def test_a_link_that_was_replaced_can_neither_leave_nor_exchange():
    stages = Stages()
    first = stages.join()
    second = stages.join()
    assert first.codes == ["TOKEN_REUSED"]
    stages.sessions.leave(STAGE, "p1", first)
    assert stages.sessions.active_session_id(STAGE) is not None
    assert not stages.sessions.exchange(claims_of("p1"), first)
    assert stages.sessions.exchange(claims_of("p1"), second)
    assert second.codes == []


def test_a_disconnect_bars_the_id_from_that_stage_only():
    stages = Stages()
    link = stages.join()
    assert stages.sessions.disconnect(STAGE, "p1", "why")
    assert link.codes == ["PARTICIPANT_DISCONNECTED"]
    assert stages.sessions.is_disconnected(STAGE, "p1")
    assert not stages.sessions.is_disconnected(OTHER, "p1")
    assert stages.event_names() == ["JOINED", "LEFT"]
    assert stages.sessions.disconnect(STAGE, "p1")
    assert stages.event_names() == ["JOINED", "LEFT"]


def test_a_participant_that_left_can_still_be_barred_but_not_one_that_never_came():
    stages = Stages()
    stages.sessions.leave(STAGE, "p1", stages.join())
    assert stages.sessions.disconnect(STAGE, "p1")
    assert not stages.sessions.disconnect(STAGE, "p2")
    assert not stages.sessions.is_disconnected(STAGE, "p2")
    assert stages.changes == 1


def test_a_deleted_stage_is_emptied_and_forgotten():
    stages = Stages()
    links = [stages.join("p1"), stages.join("p2")]
    other = stages.join("p1", OTHER)
    stages.sessions.stage_deleted(STAGE)
    assert [link.codes for link in links] == [["STAGE_DELETED"]] * 2
    assert stages.sessions.stage_sessions(STAGE) == []
    assert other.codes == []
    assert stages.sessions.active_session_id(OTHER) is not None


def test_a_join_error_is_put_on_the_session_that_it_belongs_to():
    stages = Stages()
    stages.sessions.join_refused(claims_of("p1"))
    assert stages.sessions.stage_sessions(STAGE) == []
    stages.sessions.leave(STAGE, "p1", stages.join("p1"))
    stages.sessions.join_refused(claims_of("p1"))
    assert stages.event_names() == ["JOINED", "LEFT", "JOIN_ERROR"]
    stages.sessions.join_refused(claims_of("p2"))
    assert stages.event_names("p2") == []

    stages.join("p3")
    stages.sessions.join_refused(claims_of("p2"))
    assert stages.event_names("p2") == ["JOIN_ERROR"]


def test_a_revoked_connection_token_closes_all_its_links_and_no_others():
    stages = Stages()
    mine, also_mine, other = Link(), Link(), Link()
    stages.sessions.open_shared("eu-central-1", "c1", mine)
    stages.sessions.open_shared("eu-central-1", "c1", also_mine)
    stages.sessions.open_shared("us-east-1", "c1", other)
    stages.sessions.close_shared("eu-central-1", "c1", also_mine)
    stages.sessions.revoke_connection_token("eu-central-1", "c1")
    assert (mine.codes, also_mine.codes, other.codes) == (["revoked"], [], [])
    assert stages.sessions.is_revoked("eu-central-1", "c1")
    assert not stages.sessions.is_revoked("us-east-1", "c1")


def test_who_may_not_come_back_survives_a_restart():
    stages = Stages()
    stages.join()
    stages.sessions.disconnect(STAGE, "p1")
    stages.sessions.revoke_connection_token("eu-central-1", "c1")
    assert stages.changes == 2
    kept = json.loads(json.dumps(stages.sessions.snapshot()))

    restarted = Stages()
    restarted.sessions.restore(kept)
    assert restarted.sessions.is_disconnected(STAGE, "p1")
    assert restarted.sessions.is_revoked("eu-central-1", "c1")
    assert restarted.sessions.disconnect(STAGE, "p1")
    restarted.sessions.restore({})
    assert not restarted.sessions.is_disconnected(STAGE, "p1")


def test_ids_are_barred_as_long_as_a_token_of_theirs_could_live():
    stages = Stages()
    for participant_id in ("p1", "p2"):
        stages.join(participant_id)
        stages.sessions.disconnect(STAGE, participant_id)
        stages.sessions.revoke_connection_token("eu-central-1", participant_id)
        stages.time += 14 * DAY
    assert stages.sessions.is_disconnected(STAGE, "p1")

    stages.time += 1
    stages.join("p3")
    stages.sessions.disconnect(STAGE, "p3")
    stages.sessions.revoke_connection_token("eu-central-1", "p3")
    assert not stages.sessions.is_disconnected(STAGE, "p1")
    assert not stages.sessions.is_revoked("eu-central-1", "p1")
    assert stages.sessions.is_revoked("eu-central-1", "p2")


def test_connections_are_bounded_but_a_token_in_use_can_move():
    stages = Stages(max_connected=1)
    stages.join("p1")
    with pytest.raises(TokenRefusedError, match="too many"):
        stages.join("p2")
    stages.join("p1")


def test_the_oldest_ended_sessions_are_forgotten_first():
    stages = Stages(max_connected=1, max_remembered=3)
    for number in range(5):
        stages.sessions.leave(STAGE, f"p{number}", stages.join(f"p{number}"))
    kept = [
        stages.sessions.participants(STAGE, session.session_id)[0].participant_id
        for session in stages.sessions.stage_sessions(STAGE)
    ]
    assert kept == ["p4", "p3", "p2"]


def test_a_session_that_never_ends_forgets_those_who_left():
    stages = Stages(max_connected=2, max_remembered=3)
    stages.join("host")
    for number in range(20):
        stages.sessions.leave(STAGE, f"p{number}", stages.join(f"p{number}"))
    for number in range(20):
        stages.sessions.join_refused(claims_of(f"q{number}"))
    (session,) = stages.sessions.stage_sessions(STAGE)
    present = stages.sessions.participants(STAGE, session.session_id)
    assert present[0].participant_id == "host"
    assert len(present) <= 3
    assert stages.event_names("q0") == []
    assert stages.event_names("q19") == ["JOIN_ERROR"]


def test_events_of_a_participant_are_bounded():
    stages = Stages()
    link = stages.join()
    for _ in range(500):
        stages.sessions.exchange(claims_of("p1"), link)
    assert stages.event_names() == ["TOKEN_EXCHANGED"] * 200


def test_unknown_sessions_are_empty():
    sessions = Stages().sessions
    assert sessions.participants(STAGE, "st-0") == []
    assert sessions.participant(STAGE, "st-0", "p1") is None
    assert sessions.events(STAGE, "st-0", "p1") == []
    assert sessions.stage_session(STAGE, "st-0") is None
    with pytest.raises(ValueError, match="max_remembered"):
        Sessions(lambda: 0.0, max_connected=5, max_remembered=5)


class SessionsMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, the books agree with the links."""

    ids = st.sampled_from(["p1", "p2", "p3", "p4"])
    arns = st.sampled_from([STAGE, OTHER])

    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages(max_connected=5, max_remembered=6)
        self.live: dict[tuple[str, str], Link] = {}
        self.old: list[tuple[str, str, Link]] = []
        self.barred: set[tuple[str, str]] = set()

    @rule(arn=arns, name=ids)
    def join(self, arn: str, name: str) -> None:
        if (arn, name) in self.barred:
            return
        try:
            link = self.stages.join(name, arn)
        except TokenRefusedError:
            assert len(self.live) == 5
            return
        replaced = self.live.get((arn, name))
        if replaced is not None:
            assert replaced.codes == ["TOKEN_REUSED"]
        self.live[arn, name] = link
        self.old.append((arn, name, link))

    @rule(position=st.integers(0, 50))
    def leave(self, position: int) -> None:
        if not self.old:
            return
        arn, name, link = self.old[position % len(self.old)]
        self.stages.sessions.leave(arn, name, link)
        if self.live.get((arn, name)) is link:
            del self.live[arn, name]

    @rule(arn=arns, name=ids)
    def disconnect(self, arn: str, name: str) -> None:
        link = self.live.pop((arn, name), None)
        done = self.stages.sessions.disconnect(arn, name)
        if link is not None:
            assert done
            assert link.codes == ["PARTICIPANT_DISCONNECTED"]
        if done:
            self.barred.add((arn, name))

    @rule(arn=arns, name=ids)
    def refuse(self, arn: str, name: str) -> None:
        self.stages.sessions.join_refused(claims_of(name, arn))

    @rule(arn=arns)
    def delete(self, arn: str) -> None:
        self.stages.sessions.stage_deleted(arn)
        for key in [key for key in self.live if key[0] == arn]:
            assert self.live.pop(key).codes == ["STAGE_DELETED"]

    @invariant()
    def the_connected_are_those_with_a_live_link(self) -> None:
        connected, remembered = set(), 0
        for arn in (STAGE, OTHER):
            for session in self.stages.sessions.stage_sessions(arn):
                here = self.stages.sessions.participants(arn, session.session_id)
                remembered += len(here)
                now_here = {(arn, p.participant_id) for p in here if p.state == "CONNECTED"}
                assert bool(now_here) == (session.ended_at is None)
                connected |= now_here
        assert connected == set(self.live)
        assert all(link.codes == [] for link in self.live.values())
        assert remembered <= 6 + 5

    @invariant()
    def the_barred_stay_barred(self) -> None:
        for arn, name in self.barred:
            assert self.stages.sessions.is_disconnected(arn, name)


SessionsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSessionsMachine = SessionsMachine.TestCase
