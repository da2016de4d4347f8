"""One participant on one connection: how it joins, exchanges its token, is kicked and leaves.

The same on a stage's own socket and on a shared one; they differ in how a message is wrapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.verification import (
    ConnectionClaims,
    ParticipantClaims,
    TokenRefusedError,
    TokenVerifier,
)

__all__ = ["JOIN_ERROR", "STAGE_STATE", "Door", "Seat"]

STAGE_STATE: Final[Mapping[str, Any]] = {
    "type": "aws:ivs:STAGE_STATE",
    "payload": {"sequenceNumber": 1, "participants": []},
}
"""What a participant is told that has joined. Others on the stage are not shown: how is not known."""

JOIN_ERROR: Final = "aws:ivs:JOIN_ERROR"
_EXCHANGE: Final = "aws:ivs:EXCHANGE_TOKEN"
_DISCONNECT: Final = "aws:ivs:DISCONNECT"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """What the sockets need of the emulator."""

    verifier: TokenVerifier
    sessions: Sessions

    def admit(
        self,
        token: str | None,
        *,
        send: Callable[[Mapping[str, Any]], None],
        gone: Callable[[], None],
        topic: str | None = None,
        connection: ConnectionClaims | None = None,
    ) -> Seat:
        """Verify the token and have its participant join.

        `send` takes messages to the client, `gone` is called after a kick; neither may block.
        `topic` is the stage's id as the client names it, `connection` the shared connection.
        Raises TokenRefusedError.
        """
        try:
            claims = self.verifier.participant(token)
            _check_place(claims, topic, connection)
            seat = Seat(self, claims, _digest(token), send, gone)
            self.sessions.join(claims, seat)
        except TokenRefusedError as error:
            if error.claims is not None:
                self.sessions.join_refused(error.claims)
            _log.info("join_refused", code=error.code, why=error.message)
            raise
        return seat


class Seat:
    """A participant that has joined; the `Link` of its session."""

    def __init__(
        self,
        door: Door,
        claims: ParticipantClaims,
        token_digest: bytes,
        send: Callable[[Mapping[str, Any]], None],
        gone: Callable[[], None],
    ) -> None:
        self._door = door
        self._claims = claims
        self._token_digest = token_digest
        self._send = send
        self._gone = gone

    def kicked(self, code: str, reason: str) -> None:
        """Tell the client why it is no longer on the stage."""
        self._send({"type": _DISCONNECT, "payload": {"code": code, "reason": reason}})
        self._gone()

    def leave(self) -> None:
        """Leave the stage; nothing where the participant has left already or was kicked."""
        self._door.sessions.leave(self._claims.stage_arn, self._claims.participant_id, self)

    def receive(self, message: Mapping[str, Any]) -> None:
        """Act on a message of the client; all but an exchange is about media and passed over."""
        payload = message.get("payload")
        if message.get("type") != _EXCHANGE or not isinstance(payload, dict):
            return
        answer = {name: payload[name] for name in ("requestId", "traceId") if name in payload}
        try:
            self._exchange(payload.get("oldToken"), payload.get("newToken"))
        except TokenRefusedError as error:
            _log.info("exchange_refused", code=error.code, why=error.message)
            # The SDK tries again where an error is not fatal.
            answer["error"] = {
                "type": "BAD_REQUEST",
                "fatal": True,
                "nominal": True,
                "message": f"{error.code}: {error.message}",
            }
        self._send({"type": _EXCHANGE, "payload": answer})

    def _exchange(self, old_token: object, new_token: object) -> None:
        """Put the new token in place of the old one (User Guide, "Token Exchange")."""
        if not isinstance(old_token, str) or not isinstance(new_token, str):
            raise TokenRefusedError("TOKEN_MISSING", "an exchange takes two tokens")
        if _digest(old_token) != self._token_digest:
            raise TokenRefusedError("TOKEN_INVALID", "oldToken is not the token in use")
        new = self._door.verifier.participant(new_token)
        if not (self._claims.exchangeable and new.exchangeable):
            raise TokenRefusedError(
                "TOKEN_INVALID", "tokens of CreateParticipantToken cannot be exchanged"
            )
        if _immutable(new) != _immutable(self._claims):
            raise TokenRefusedError(
                "TOKEN_INVALID", "topic, resource, jti, whip_url and events_url must not change"
            )
        if not self._door.sessions.exchange(new, self):
            raise TokenRefusedError("BAD_REQUEST", "the participant is not on the stage")
        self._claims, self._token_digest = new, _digest(new_token)


def _check_place(
    claims: ParticipantClaims, topic: str | None, connection: ConnectionClaims | None
) -> None:
    if topic is not None and topic != claims.topic:
        raise TokenRefusedError("BAD_REQUEST", "topic is not the token's", claims)
    if connection is not None:
        scope = f"arn:aws:ivs:{connection.region}:{connection.account}:"
        if not claims.stage_arn.startswith(scope):
            raise TokenRefusedError(
                "TOKEN_INVALID", "the stage is not of the connection's Region and account", claims
            )


def _immutable(claims: ParticipantClaims) -> tuple[str, ...]:
    return (claims.stage_arn, claims.participant_id, claims.whip_url, claims.events_url)


def _digest(token: str | None) -> bytes:
    return hashlib.sha256((token or "").encode("utf-8", "surrogatepass")).digest()
