"""Issues one participant token: signed here, or by IVS where the caller allows it.

A local token needs a signing key of the stage's Region and the stage's endpoints. Where the Region has
no key that may sign, a request with `issuer: auto` goes to CreateParticipantToken and its answer says
so: `issuer` is `ivs`, there is no `keyArn`, and the token can never be exchanged (IVS guide, "Token
Exchange"). No other failure falls back: a stage that does not exist does not exist there either, and
an error that is hidden behind a slow path is found late.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, Protocol

import msgspec

from tokensvc.errors import NoSigningKeyError
from tokensvc.ivs.gateway import IvsToken
from tokensvc.signing.signing_key import SigningKey
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest, participant_claims
from tokensvc.tokens.ids import new_participant_id
from tokensvc.tokens.limits import MAX_PARTICIPANT_TTL_SECONDS

__all__ = ["IssuedToken", "StageLookup", "TokenIssuer", "TokenSource", "View"]


class View(Protocol):
    """The key ring as of now."""

    def signing_key(self, region: str) -> SigningKey:
        """Return the key that signs in `region`; raises NoSigningKeyError."""
        ...


class StageLookup(Protocol):
    """Where a stage's endpoints come from."""

    async def get(self, stage: StageArn) -> StageEndpoints:
        """Return the endpoints; raises StageNotFoundError or another IvsError."""
        ...


class TokenSource(Protocol):
    """IVS, as the fallback sees it."""

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        """Let IVS make a token; raises IvsError."""
        ...


class IssuedToken(msgspec.Struct, frozen=True, rename="camel", repr_omit_defaults=True):
    """A token and what its caller needs to know of it; encodes to the body of a 201.

    `duration` is in minutes; `expiration_time` is the token's `exp`.
    """

    token: str
    participant_id: str
    user_id: str | None
    attributes: dict[str, str]
    capabilities: tuple[str, ...]
    duration: int
    expiration_time: datetime
    issuer: Literal["local", "ivs"]
    key_arn: str | None
    exchangeable: bool

    def __repr__(self) -> str:
        return f"<IssuedToken {self.participant_id} issuer={self.issuer}>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("participant_id", self.participant_id), ("issuer", self.issuer)]


class TokenIssuer:
    """Turns valid requests into tokens.

    `view` returns the current key ring, and is asked anew for every signature; `iat_backdate` is in
    seconds, for verifiers whose clock is behind ours.
    """

    def __init__(
        self,
        *,
        view: Callable[[], View],
        endpoints: StageLookup,
        gateway: TokenSource,
        clock: Callable[[], float],
        iat_backdate: int,
        new_id: Callable[[], str] = new_participant_id,
    ) -> None:
        self._view = view
        self._endpoints = endpoints
        self._gateway = gateway
        self._clock = clock
        self._iat_backdate = iat_backdate
        self._new_id = new_id

    async def issue(self, request: TokenRequest) -> IssuedToken:
        """Issue one token.

        Raises NoSigningKeyError (only where the request says `local`), StageNotFoundError, and the
        other IvsError classes for what AWS answers.
        """
        if self.signs(request):
            endpoints = await self._endpoints.get(request.stage)
            # The key may have gone while IVS was asked, so it is looked up again.
            if self.signs(request):
                return self.sign(request, endpoints)
        return await self.ask_ivs(request)

    def signs(self, request: TokenRequest) -> bool:
        """Tell whether a local key signs this request; False sends it to IVS.

        Raises NoSigningKeyError where no key may sign and the request does not allow IVS.
        """
        if request.issuer == "ivs":
            return False
        try:
            self._view().signing_key(request.stage.region)
        except NoSigningKeyError:
            if request.issuer == "local":
                raise
            return False
        return True

    async def stage_endpoints(self, stage: StageArn) -> StageEndpoints:
        """Return a stage's endpoints; raises StageNotFoundError or another IvsError."""
        return await self._endpoints.get(stage)

    def sign(self, request: TokenRequest, endpoints: StageEndpoints) -> IssuedToken:
        """Sign a token now; raises NoSigningKeyError.

        `exp` is exactly `duration` from now. `iat` is set back for slow clocks, though never so far
        that the two are more than 14 days apart, which IVS refuses.
        """
        key = self._view().signing_key(request.stage.region)
        now = int(self._clock())
        exp = now + request.duration * 60
        iat = max(now - self._iat_backdate, exp - MAX_PARTICIPANT_TTL_SECONDS)
        participant_id = self._new_id()
        claims = participant_claims(
            request, endpoints, participant_id=participant_id, iat=iat, exp=exp
        )
        return IssuedToken(
            token=key.mint(claims),
            participant_id=participant_id,
            user_id=request.user_id,
            attributes=dict(request.attributes),
            capabilities=request.capabilities,
            duration=request.duration,
            expiration_time=datetime.fromtimestamp(exp, UTC),
            issuer="local",
            key_arn=key.arn,
            exchangeable=True,
        )

    async def ask_ivs(self, request: TokenRequest) -> IssuedToken:
        """Let IVS issue the token (CreateParticipantToken); raises IvsError."""
        made = await self._gateway.create_participant_token(request)
        return IssuedToken(
            token=made.token,
            participant_id=made.participant_id,
            user_id=made.user_id,
            attributes=dict(made.attributes),
            capabilities=made.capabilities,
            duration=made.duration,
            expiration_time=datetime.fromtimestamp(made.expiration_time, UTC),
            issuer="ivs",
            key_arn=None,
            exchangeable=False,
        )
