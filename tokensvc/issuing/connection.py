"""Issues connection tokens (RealTimeUserGuide, "Stage switching"); only ever signed here.

IVS has no operation that makes one, so there is no fallback: a Region without a key answers 503.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.issuing.issued import Identity
from tokensvc.issuing.issuer import Admit, View, require_key_outlives
from tokensvc.ledger.row import CONNECTION, LedgerRow
from tokensvc.tokens.arn import PublicKeyArn
from tokensvc.tokens.connection import ConnectionRequest, connection_claims
from tokensvc.tokens.ids import new_participant_id
from tokensvc.tokens.limits import MAX_CONNECTION_TTL_SECONDS

__all__ = ["ConnectionDraft", "ConnectionSigner", "ConnectionToken"]


class ConnectionToken(msgspec.Struct, frozen=True, rename="camel"):
    """A connection token; encodes to the body of a 201.

    `duration` is in minutes; `token_id` is what `DELETE /v1/connection-tokens/{tokenId}` takes.
    """

    token: str
    token_id: str
    region: str
    account_id: str
    duration: int
    expiration_time: datetime
    key_arn: str

    def __repr__(self) -> str:
        return f"<ConnectionToken {self.token_id} {self.region}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("token_id", self.token_id), ("region", self.region)]


class ConnectionDraft(NamedTuple):
    """A connection token with its ledger row; it leaves only after the row is committed."""

    token: ConnectionToken
    row: LedgerRow


class ConnectionSigner:
    """Signs connection tokens; `iat_backdate` is in seconds, as in `TokenIssuer`."""

    def __init__(
        self,
        *,
        view: Callable[[], View],
        admit: Admit,
        clock: Callable[[], float],
        iat_backdate: int,
        events_url: str,
        new_id: Callable[[], str] = new_participant_id,
    ) -> None:
        self._view = view
        self._admit = admit
        self._clock = clock
        self._iat_backdate = iat_backdate
        self._events_url = events_url
        self._new_id = new_id

    def admit(self, request: ConnectionRequest, token_id: str | None = None) -> None:
        """Refuse a user who is banned everywhere; raises BannedError."""
        self._admit(None, request.user_id, token_id)

    def sign(
        self, request: ConnectionRequest, caller_id: str | None, identity: Identity | None = None
    ) -> ConnectionDraft:
        """Sign a token now; raises NoSigningKeyError, and InvalidRequestError for another account."""
        view = self._view()
        key = view.signing_key(request.region)
        account = PublicKeyArn.parse(key.arn).account
        if request.account is not None and request.account != account:
            detail = f"is of AWS account {request.account}; the Region's key is of {account}"
            raise InvalidRequestError(
                f"stageArn: {detail}",
                errors=(FieldError("stageArn", "account", detail, account),),
            )
        identity = identity or self._times(request)
        require_key_outlives(
            identity.exp - int(self._clock()),
            view.longest_ttl(request.region),
            "TOKENSVC_MAX_CONNECTION_DURATION",
        )
        claims = connection_claims(
            token_id=identity.participant_id,
            account=account,
            region=request.region,
            events_url=self._events_url,
            iat=identity.iat,
            exp=identity.exp,
        )
        token = ConnectionToken(
            token=key.mint(claims),
            token_id=identity.participant_id,
            region=request.region,
            account_id=account,
            duration=request.duration,
            expiration_time=datetime.fromtimestamp(identity.exp, UTC),
            key_arn=key.arn,
        )
        row = LedgerRow(
            token_id=identity.participant_id,
            kind=CONNECTION,
            stage_arn=None,
            region=request.region,
            user_id=request.user_id,
            key_id=key.key_id,
            key_arn=key.arn,
            caller_id=caller_id,
            issuer="local",
            iat=identity.iat,
            exp=identity.exp,
            endpoints=None,
        )
        return ConnectionDraft(token, row)

    def _times(self, request: ConnectionRequest) -> Identity:
        now = int(self._clock())
        exp = now + request.duration * 60
        iat = max(now - self._iat_backdate, exp - MAX_CONNECTION_TTL_SECONDS)
        return Identity(self._new_id(), iat, exp)
