"""Callers that come with a token of an OIDC issuer instead of an API key.

A token is a JWT (RFC 7519, profile of RFC 9068) signed by one of the issuer's keys with one of the
algorithms that the operator allows; the key's own algorithm is the only one that is tried. `iss`, `aud`
and `exp` are required; times are judged by our clock, with a leeway. One claim is the caller's name,
one holds its scopes; scopes that are not ours are somebody else's and ignored.

The name of such a caller, for policies and logs, is `oidc:<claim>`, which no API key's caller can have.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import jwt
from cachetools import LRUCache

from tokensvc.callers.directory import Authenticated, CallerDirectory
from tokensvc.callers.jwks import MAX_KEY_ID_CHARS, Fetch, IssuerKeys, check_url, open_fetch
from tokensvc.callers.scopes import Scope
from tokensvc.errors import ConfigurationError, UnauthenticatedError

__all__ = ["ALGORITHMS", "CallerAuthenticator", "OidcCallers", "OidcConfig"]

ALGORITHMS: Final = ("RS256", "ES256", "ES384", "EdDSA")
"""Asymmetric ones only, so that nobody can sign with what everybody can read."""

PREFIX: Final = "oidc:"
MAX_TOKEN_CHARS: Final = 8192
MAX_NAME_CHARS: Final = 128
_REMEMBERED: Final = 1024

# RFC 7515, section 7.1, behind RFC 6750's scheme.
_BEARER: Final = re.compile(
    r"(?i:bearer) +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)", re.ASCII
)
_SCOPES: Final = {scope.value: scope for scope in Scope}


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """Whose tokens are taken, and how they are read; `leeway` is in seconds.

    `jwks_url` None: where the issuer's discovery document points. `scope_prefix` stands before our
    scopes in the claim, as some issuers have it (`https://api.example/tokens:mint`).

    Raises ConfigurationError.
    """

    issuer: str
    audience: str
    jwks_url: str | None = None
    algorithms: tuple[str, ...] = ALGORITHMS
    scope_claim: str = "scope"
    scope_prefix: str = ""
    name_claim: str = "sub"
    leeway: float = 30.0

    def __post_init__(self) -> None:
        check_url("TOKENSVC_OIDC_ISSUER", self.issuer)
        if self.jwks_url is not None:
            check_url("TOKENSVC_OIDC_JWKS_URL", self.jwks_url)
        if not self.audience:
            raise ConfigurationError(
                "TOKENSVC_OIDC_AUDIENCE is not set: without it, tokens that the issuer gave to"
                " others for other services would be taken"
            )
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown or not self.algorithms:
            raise ConfigurationError(
                f"TOKENSVC_OIDC_ALGORITHMS may name {', '.join(ALGORITHMS)};"
                f" not {', '.join(unknown) or 'nothing'}"
            )


@dataclass(frozen=True, slots=True)
class _Verified:
    who: Authenticated
    not_before: float
    expires_at: float


class OidcCallers:
    """Checks the tokens of one issuer; belongs to one event loop."""

    def __init__(
        self, config: OidcConfig, clock: Callable[[], float], fetch: Fetch | None = None
    ) -> None:
        """`clock` gives Unix seconds; `fetch` stands in for the issuer's own address."""
        self._config = config
        self._clock = clock
        self.keys = IssuerKeys(
            fetch or open_fetch(config.issuer, config.jwks_url),
            frozenset(config.algorithms),
            clock,
        )
        # A caller sends the same token for as long as it lasts; verifying it takes longer than a mint.
        self._verified: LRUCache[bytes, _Verified] = LRUCache(_REMEMBERED)
        self._verified_with: Mapping[str, jwt.PyJWK] | None = None

    async def authenticate(self, authorization: str) -> Authenticated:
        """Return who sends this `Authorization` header.

        Raises UnauthenticatedError, which says in public always the same, and in its context why;
        IdentityProviderError where the issuer's keys cannot be had.
        """
        match = _BEARER.fullmatch(authorization) if len(authorization) <= MAX_TOKEN_CHARS else None
        if match is None:
            _refuse("not_a_token")
        token = match[1]
        digest = hashlib.sha256(token.encode("ascii")).digest()
        verified = self._remembered(digest)
        if verified is None:
            verified = await self._verify(token)
            self._verified[digest] = verified
        now, leeway = self._clock(), self._config.leeway
        if now >= verified.expires_at + leeway:
            _refuse("token_expired", verified.who.name)
        if now < verified.not_before - leeway:
            _refuse("token_not_valid_yet", verified.who.name)
        return verified.who

    async def aclose(self) -> None:
        """End what is under way."""
        await self.keys.aclose()

    def _remembered(self, digest: bytes) -> _Verified | None:
        self._forget_if_keys_changed()
        return self._verified.get(digest)

    def _forget_if_keys_changed(self) -> None:
        keys = self.keys.current()
        if keys is None or keys is not self._verified_with:
            # The key of any of them may have been withdrawn.
            self._verified.clear()
            self._verified_with = keys

    async def _verify(self, token: str) -> _Verified:
        key_id = _key_id(token)
        key = await self.keys.find(key_id)
        if key is None:
            _refuse("unknown_key")
        self._forget_if_keys_changed()
        config = self._config
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(config.algorithms),
                audience=config.audience,
                issuer=config.issuer,
                # Times are judged by our own clock, below.
                options={
                    "require": ["iss", "aud", "exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as fault:
            _refuse(f"token_{type(fault).__name__}")
        return self._read(claims)

    def _read(self, claims: Mapping[str, Any]) -> _Verified:
        name = claims.get(self._config.name_claim)
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= MAX_NAME_CHARS
            or not name.isprintable()
        ):
            _refuse("no_name")
        times = [_moment(claims.get("exp")), _moment(claims.get("nbf", 0))]
        times.append(_moment(claims.get("iat", 0)))
        if any(math.isnan(moment) for moment in times):
            _refuse("bad_times")
        expires_at, not_before, issued_at = times
        who = Authenticated(
            _caller_id(self._config.issuer, name),
            PREFIX + name,
            self._scopes(claims.get(self._config.scope_claim)),
        )
        return _Verified(who, max(not_before, issued_at), expires_at)

    def _scopes(self, claim: object) -> frozenset[Scope]:
        listed = claim.split(" ") if isinstance(claim, str) else claim
        if not isinstance(listed, list):
            return frozenset()
        prefix = self._config.scope_prefix
        named = (
            text.removeprefix(prefix)
            for text in listed
            if isinstance(text, str) and text.startswith(prefix)
        )
        return frozenset(_SCOPES[text] for text in named if text in _SCOPES)


class CallerAuthenticator:
    """Takes API keys, and tokens of an OIDC issuer where one is configured."""

    def __init__(self, directory: CallerDirectory, oidc: OidcCallers | None = None) -> None:
        self._directory = directory
        self._oidc = oidc

    async def authenticate(self, authorization: str | None) -> Authenticated:
        """Return who sends this `Authorization` header, even if its key was made a moment ago.

        Raises UnauthenticatedError, StoreUnavailableError and IdentityProviderError.
        """
        oidc = self._oidc_of(authorization)
        if oidc is not None and authorization is not None:
            return await oidc.authenticate(authorization)
        try:
            return self._directory.authenticate(authorization)
        except UnauthenticatedError as refusal:
            if not await self._directory.catch_up(refusal):
                raise
        return self._directory.authenticate(authorization)

    def recognise(self, authorization: str | None) -> Authenticated | None:
        """Return who sends this header, where that is known at once; None: ask `authenticate`."""
        if self._oidc_of(authorization) is not None:
            return None
        try:
            return self._directory.authenticate(authorization)
        except UnauthenticatedError:
            return None

    def _oidc_of(self, authorization: str | None) -> OidcCallers | None:
        # No API key has a dot in it.
        is_token = authorization is not None and authorization.count(".") == 2
        return self._oidc if is_token else None


def _key_id(token: str) -> str:
    try:
        # This refuses critical extensions that it does not know (RFC 7515, section 4.1.11).
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        _refuse("not_a_token")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
        _refuse("no_key_id")
    return key_id


def _moment(value: object) -> float:
    """Return a NumericDate (RFC 7519, section 2); not a number where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def _caller_id(issuer: str, name: str) -> str:
    """Return an id as short as others are: the same for the same caller, on every replica."""
    digest = hashlib.sha256(f"{issuer}\0{name}".encode()).digest()
    return PREFIX + base64.b32encode(digest[:16]).decode("ascii").rstrip("=").lower()


def _refuse(reason: str, caller: str | None = None) -> NoReturn:
    raise UnauthenticatedError(
        "A valid API key, or a token of the configured issuer, is needed:"
        " Authorization: Bearer <key or token>.",
        reason=reason,
        caller=caller,
    )
