"""Who is on which stage: sessions, participants, their events, and who may not come back.

A stage session begins when the first participant joins and ends when the last one leaves, and is
remembered until there are too many. Belongs to one event loop and does no I/O; a live connection is
known here only as a `Link`, which is told when its participant has been removed.

What survives a restart is who may not come back: the ids that DisconnectParticipant and
RevokeConnectionToken took, for as long as a token of theirs could live. No token is kept.
"""

from __future__ import annotations

import secrets
import string
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, TypeAlias

from tokensvc.emulator.verification import ParticipantClaims, TokenRefusedError
from tokensvc.tokens.limits import MAX_CONNECTION_TTL_SECONDS, MAX_PARTICIPANT_TTL_SECONDS

__all__ = [
    "EventName",
    "Link",
    "ParticipantEvent",
    "ParticipantRecord",
    "Sessions",
    "SharedLink",
    "StageSessionRecord",
    "TokenFacts",
]

EventName: TypeAlias = Literal["JOINED", "LEFT", "JOIN_ERROR", "TOKEN_EXCHANGED"]

_MAX_EVENTS: Final = 200
"""Events kept of a participant in a session; the oldest go first."""
_MAX_REVOCATIONS: Final = 200_000
"""Ids kept of each kind; far above what 5 calls a second of a development machine come to."""
_SESSION_ID_CHARS: Final = 13
_ALPHANUMERIC: Final = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What is told about a token: ExchangedParticipantToken of the API model."""

    capabilities: tuple[str, ...]
    attributes: Mapping[str, str]
    user_id: str | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class ParticipantEvent:
    """One event of ListParticipantEvents; `at` is Unix seconds.

    A JOIN_ERROR has no error code here: the model's codes are about media, none is about tokens.
    """

    name: EventName
    participant_id: str
    at: float
    previous_token: TokenFacts | None = None
    new_token: TokenFacts | None = None


@dataclass(frozen=True, slots=True)
class ParticipantRecord:
    """A participant of a stage session. Nobody ever publishes here: there is no media plane."""

    participant_id: str
    state: Literal["CONNECTED", "DISCONNECTED"]
    first_joined_at: float
    token: TokenFacts

    @property
    def user_id(self) -> str | None:
        """The user id of the token that is in use."""
        return self.token.user_id

    @property
    def attributes(self) -> Mapping[str, str]:
        """The attributes of the token that is in use."""
        return self.token.attributes


@dataclass(frozen=True, slots=True)
class StageSessionRecord:
    """A session of a stage; `ended_at` is None while somebody is connected."""

    session_id: str
    started_at: float
    ended_at: float | None = None


class Link(Protocol):
    """The live connection of one participant."""

    def kicked(self, code: str, reason: str) -> None:
        """Tell the client that it was removed; must not block, nor call back."""


class SharedLink(Protocol):
    """A live shared connection (RealTimeConnection)."""

    def revoked(self) -> None:
        """Leave every stage and tell the client that its connection token was revoked."""


class _Session:
    def __init__(self, stage_arn: str, record: StageSessionRecord) -> None:
        self.stage_arn = stage_arn
        self.record = record
        self.participants: dict[str, ParticipantRecord] = {}
        self.events: dict[str, deque[ParticipantEvent]] = {}
        self.connected = 0

    @property
    def active(self) -> bool:
        return self.record.ended_at is None


class Sessions:
    """The stages' sessions, past and present, of one account in all Regions."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        changed: Callable[[], None] | None = None,
        max_connected: int = 10_000,
        max_remembered: int = 50_000,
    ) -> None:
        """`changed` is called when what `snapshot` returns has changed.

        At most `max_connected` participants are connected at a time, and at most `max_remembered`
        are remembered with their events; the oldest ended session is forgotten first.
        """
        if max_remembered <= max_connected:
            raise ValueError("max_remembered must be above max_connected")
        self._now = now
        self._changed = changed
        self._max_connected = max_connected
        self._max_remembered = max_remembered
        self._remembered = 0
        self._by_stage: dict[str, dict[str, _Session]] = {}
        self._ended: OrderedDict[tuple[str, str], _Session] = OrderedDict()
        self._live: dict[tuple[str, str], tuple[Link, _Session]] = {}
        self._shared: defaultdict[tuple[str, str], set[SharedLink]] = defaultdict(set)
        self._disconnected: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._revoked: OrderedDict[tuple[str, str], float] = OrderedDict()

    # What the events socket does

    def join(self, claims: ParticipantClaims, link: Link) -> None:
        """Connect a participant whose token was verified; its other connection, if any, is kicked.

        Raises TokenRefusedError with INTERNAL where there are too many connections.
        """
        key = (claims.stage_arn, claims.participant_id)
        session = self._taken_over(key) or self._admitted(claims)
        self._live[key] = (link, session)
        known = session.participants.get(claims.participant_id)
        session.participants[claims.participant_id] = ParticipantRecord(
            participant_id=claims.participant_id,
            state="CONNECTED",
            first_joined_at=self._now() if known is None else known.first_joined_at,
            token=_facts(claims),
        )
        self._note(session, "JOINED", claims.participant_id)
        self._forget_surplus(session)

    def join_refused(self, claims: ParticipantClaims) -> None:
        """Put JOIN_ERROR on record, where the stage has a session that it belongs to."""
        sessions = self._by_stage.get(claims.stage_arn, {})
        for session in reversed(sessions.values()):
            if session.active or claims.participant_id in session.participants:
                self._note(session, "JOIN_ERROR", claims.participant_id)
                self._forget_surplus(session)
                return

    def exchange(self, claims: ParticipantClaims, link: Link) -> bool:
        """Put a participant's new token in place of its old one; False where `link` is not its."""
        live = self._live.get((claims.stage_arn, claims.participant_id))
        if live is None or live[0] is not link:
            return False
        session = live[1]
        known = session.participants[claims.participant_id]
        new = _facts(claims)
        session.participants[claims.participant_id] = replace(known, token=new)
        self._note(session, "TOKEN_EXCHANGED", claims.participant_id, known.token, new)
        return True

    def leave(self, stage_arn: str, participant_id: str, link: Link) -> None:
        """End the participant's connection, unless another than `link` has taken its place."""
        live = self._live.get((stage_arn, participant_id))
        if live is not None and live[0] is link:
            self._end((stage_arn, participant_id))

    def open_shared(self, region: str, token_id: str, link: SharedLink) -> None:
        """Take note of a shared connection; `close_shared` must follow."""
        self._shared[region, token_id].add(link)

    def close_shared(self, region: str, token_id: str, link: SharedLink) -> None:
        """Forget a shared connection."""
        links = self._shared[region, token_id]
        links.discard(link)
        if not links:
            del self._shared[region, token_id]

    # What the control plane does

    def disconnect(self, stage_arn: str, participant_id: str, reason: str = "") -> bool:
        """DisconnectParticipant: kick, and never let in again with this id.

        False, and nothing is done, for a participant that was never on the stage: IVS's answer to
        that is not documented.
        """
        key = (stage_arn, participant_id)
        if key not in self._disconnected and not self._was_on_stage(stage_arn, participant_id):
            return False
        self._revoke(self._disconnected, key, MAX_PARTICIPANT_TTL_SECONDS)
        if key in self._live:
            self._remove(key, "PARTICIPANT_DISCONNECTED", reason or "disconnected by the API")
        return True

    def stage_deleted(self, stage_arn: str) -> None:
        """Kick everybody from a stage that was deleted, and forget its sessions."""
        for key in [key for key in self._live if key[0] == stage_arn]:
            self._remove(key, "STAGE_DELETED", "the stage was deleted")
        for session in list(self._by_stage.get(stage_arn, {}).values()):
            self._forget(session)

    def revoke_connection_token(self, region: str, token_id: str) -> None:
        """RevokeConnectionToken: close the connections with this token, and take it never again."""
        self._revoke(self._revoked, (region, token_id), MAX_CONNECTION_TTL_SECONDS)
        for link in list(self._shared.get((region, token_id), ())):
            link.revoked()

    def is_disconnected(self, stage_arn: str, participant_id: str) -> bool:
        """Tell whether DisconnectParticipant has barred the participant from the stage."""
        return (stage_arn, participant_id) in self._disconnected

    def is_revoked(self, region: str, token_id: str) -> bool:
        """Tell whether RevokeConnectionToken has taken the connection token's id."""
        return (region, token_id) in self._revoked

    # What the control plane reads

    def stage_sessions(self, stage_arn: str) -> list[StageSessionRecord]:
        """Return the stage's sessions, newest first."""
        sessions = self._by_stage.get(stage_arn, {})
        return [session.record for session in reversed(sessions.values())]

    def active_session_id(self, stage_arn: str) -> str | None:
        """Return the id of the session that goes on, or None where nobody is connected."""
        session = self._active_session(stage_arn)
        return None if session is None else session.record.session_id

    def stage_session(self, stage_arn: str, session_id: str) -> StageSessionRecord | None:
        """Return the session, or None."""
        session = self._session(stage_arn, session_id)
        return None if session is None else session.record

    def participants(self, stage_arn: str, session_id: str) -> list[ParticipantRecord]:
        """Return the session's participants in the order in which they first joined."""
        session = self._session(stage_arn, session_id)
        return [] if session is None else list(session.participants.values())

    def participant(
        self, stage_arn: str, session_id: str, participant_id: str
    ) -> ParticipantRecord | None:
        """Return a participant of the session, or None."""
        session = self._session(stage_arn, session_id)
        return None if session is None else session.participants.get(participant_id)

    def events(
        self, stage_arn: str, session_id: str, participant_id: str
    ) -> list[ParticipantEvent]:
        """Return the participant's latest events in the session, oldest first."""
        session = self._session(stage_arn, session_id)
        return [] if session is None else list(session.events.get(participant_id, ()))

    # State file

    def snapshot(self) -> dict[str, Any]:
        """Return what must survive a restart, as JSON: ids, never a token."""
        return {
            "disconnected": [[*key, at] for key, at in self._disconnected.items()],
            "revoked_connection_tokens": [[*key, at] for key, at in self._revoked.items()],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over what `snapshot` returned."""
        self._disconnected = _restored(snapshot.get("disconnected", []))
        self._revoked = _restored(snapshot.get("revoked_connection_tokens", []))

    # Within

    def _taken_over(self, key: tuple[str, str]) -> _Session | None:
        """Kick the connection that has the token already; the session goes on."""
        if key not in self._live:
            return None
        link, session = self._live.pop(key)
        self._note(session, "LEFT", key[1])
        link.kicked("TOKEN_REUSED", "the token was used by another connection")
        return session

    def _admitted(self, claims: ParticipantClaims) -> _Session:
        if len(self._live) >= self._max_connected:
            raise TokenRefusedError("INTERNAL", "too many connections", claims)
        session = self._active_session(claims.stage_arn) or self._start_session(claims.stage_arn)
        session.connected += 1
        return session

    def _session(self, stage_arn: str, session_id: str) -> _Session | None:
        return self._by_stage.get(stage_arn, {}).get(session_id)

    def _active_session(self, stage_arn: str) -> _Session | None:
        sessions = self._by_stage.get(stage_arn)
        if not sessions:
            return None
        latest = next(reversed(sessions.values()))
        return latest if latest.active else None

    def _start_session(self, stage_arn: str) -> _Session:
        session_id = "st-" + "".join(
            secrets.choice(_ALPHANUMERIC) for _ in range(_SESSION_ID_CHARS)
        )
        session = _Session(stage_arn, StageSessionRecord(session_id, self._now()))
        self._by_stage.setdefault(stage_arn, {})[session_id] = session
        return session

    def _was_on_stage(self, stage_arn: str, participant_id: str) -> bool:
        sessions = self._by_stage.get(stage_arn, {})
        return any(participant_id in session.participants for session in sessions.values())

    def _remove(self, key: tuple[str, str], code: str, reason: str) -> None:
        link, _ = self._live[key]
        self._end(key)
        link.kicked(code, reason)

    def _end(self, key: tuple[str, str]) -> None:
        _, session = self._live.pop(key)
        participant_id = key[1]
        session.participants[participant_id] = replace(
            session.participants[participant_id], state="DISCONNECTED"
        )
        self._note(session, "LEFT", participant_id)
        session.connected -= 1
        if session.connected == 0:
            session.record = replace(session.record, ended_at=self._now())
            self._ended[session.stage_arn, session.record.session_id] = session

    def _note(
        self,
        session: _Session,
        name: EventName,
        participant_id: str,
        previous_token: TokenFacts | None = None,
        new_token: TokenFacts | None = None,
    ) -> None:
        if participant_id not in session.events:
            session.events[participant_id] = deque(maxlen=_MAX_EVENTS)
            self._remembered += 1
        session.events[participant_id].append(
            ParticipantEvent(name, participant_id, self._now(), previous_token, new_token)
        )

    def _forget_surplus(self, session: _Session) -> None:
        while self._remembered > self._max_remembered and self._ended:
            self._forget(next(iter(self._ended.values())))
        if self._remembered > self._max_remembered:
            self._forget_one(session)

    def _forget_one(self, session: _Session) -> None:
        for participant_id in session.events:
            if (session.stage_arn, participant_id) not in self._live:
                session.participants.pop(participant_id, None)
                del session.events[participant_id]
                self._remembered -= 1
                return

    def _forget(self, session: _Session) -> None:
        session_id = session.record.session_id
        self._remembered -= len(session.events)
        self._ended.pop((session.stage_arn, session_id), None)
        sessions = self._by_stage[session.stage_arn]
        del sessions[session_id]
        if not sessions:
            del self._by_stage[session.stage_arn]

    def _revoke(
        self, ids: OrderedDict[tuple[str, str], float], key: tuple[str, str], max_ttl: int
    ) -> None:
        now = self._now()
        ids[key] = now
        ids.move_to_end(key)
        while len(ids) > _MAX_REVOCATIONS or next(iter(ids.values())) < now - max_ttl:
            ids.popitem(last=False)
        if self._changed is not None:
            self._changed()


def _facts(claims: ParticipantClaims) -> TokenFacts:
    return TokenFacts(
        capabilities=claims.capabilities,
        attributes=claims.attributes,
        user_id=claims.user_id,
        expires_at=claims.expires_at,
    )


def _restored(rows: list[list[Any]]) -> OrderedDict[tuple[str, str], float]:
    return OrderedDict(((str(scope), str(name)), float(at)) for scope, name, at in rows)
