"""The public keys of an OIDC issuer, remembered: fetched when needed, rarely, and never by two at once.

Keys older than `REFRESH_SECONDS` are fetched anew behind the answers that still use them; where that was not
tried for `IDLE_SECONDS`, before the answer, since a key may have been withdrawn meanwhile. A token that names
an unknown key may mean that the issuer has rotated, so the keys are fetched before it is refused, though not
more often than every `PAUSE_SECONDS`, however many unknown keys are named. While the issuer does not answer,
what is known stays for a day; then tokens can no longer be checked.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from types import MappingProxyType
from typing import IO, Any, Final, NoReturn
from urllib.parse import urlsplit

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tokensvc.errors import ConfigurationError, IdentityProviderError

__all__ = ["Fetch", "IssuerKeys", "check_url", "fetch_json", "open_fetch", "read_keys"]

REFRESH_SECONDS: Final = 300.0
IDLE_SECONDS: Final = 600.0
PAUSE_SECONDS: Final = 10.0
MAX_AGE_SECONDS: Final = 86_400.0
TIMEOUT_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 30.0
"""The longest that a request waits for a fetch: what discovery and keys may take, each three timeouts.

A server that sends its head byte by byte keeps a fetch longer, and must not keep requests.
"""
MAX_BYTES: Final = 262_144
MAX_KEYS: Final = 64
MAX_KEY_ID_CHARS: Final = 256
MIN_RSA_BITS: Final = 2048
"""RFC 7518, section 3.3."""

_KEY_TYPES: Final = ("RSA", "EC", "OKP")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Fetch = Callable[[], object]
"""Returns the JWK set as decoded JSON; blocks, and raises IdentityProviderError."""

_log = structlog.get_logger(__name__)


class IssuerKeys:
    """Keys by `kid`; belongs to one event loop; `aclose` ends the fetch under way."""

    def __init__(
        self, fetch: Fetch, algorithms: frozenset[str], clock: Callable[[], float]
    ) -> None:
        """Know no key yet. `clock` gives Unix seconds; `fetch` is called in a thread."""
        self._fetch = fetch
        self._algorithms = algorithms
        self._clock = clock
        self._keys: Mapping[str, jwt.PyJWK] = MappingProxyType({})
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._flight: asyncio.Task[None] | None = None
        self._is_awaited = False
        """Whether the keys that are known may be used only once the fetch under way has ended."""
        self._fault: IdentityProviderError | None = None

    def current(self) -> Mapping[str, jwt.PyJWK] | None:
        """Return the keys as they were fetched last: another object after every fetch.

        None where they are too old, or were never fetched: then `find` fetches them. Where they are
        getting old, a fetch is started, which `find` waits for if it is the first one for long.
        """
        now = self._clock()
        if self._fetched_at is None or not 0 <= now - self._fetched_at < MAX_AGE_SECONDS:
            return None
        if now - self._fetched_at >= REFRESH_SECONDS and self._may_try(now):
            tried_at = self._tried_at or 0.0
            self._start()
            self._is_awaited = now - tried_at >= IDLE_SECONDS
        return None if self._is_awaited else self._keys

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """Return the key, asking the issuer where it is not known; None where it has no such key.

        Raises IdentityProviderError where there are no keys to look at.
        """
        keys = self.current()
        if keys is not None and key_id in keys:
            return keys[key_id]
        if self._flight is not None or self._may_try(self._clock()):
            await self._join(self._flight or self._start())
        keys = self.current()
        if keys is None:
            self._raise_fault()
        return keys.get(key_id)

    def age(self) -> float:
        """Return the seconds since keys were fetched; infinity if they never were."""
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    async def aclose(self) -> None:
        """End the fetch under way; its thread ends within its timeout."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)

    async def _join(self, flight: asyncio.Task[None]) -> None:
        # The fetch belongs to nobody: it goes on when the request that began it is cancelled.
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await asyncio.shield(flight)
        except TimeoutError:
            self._is_awaited = False
            _log.warning("issuer_keys_not_waited_for", seconds=WAIT_SECONDS)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the fetch, by `aclose`.
            self._raise_fault()

    def _may_try(self, now: float) -> bool:
        return self._flight is None and (
            self._tried_at is None or not 0 <= now - self._tried_at < PAUSE_SECONDS
        )

    def _start(self) -> asyncio.Task[None]:
        self._tried_at = self._clock()
        self._flight = asyncio.create_task(self._refresh(), name="fetch issuer keys")
        return self._flight

    async def _refresh(self) -> None:
        asked_at = self._clock()
        try:
            keys = read_keys(await asyncio.to_thread(self._fetch), self._algorithms)
        except IdentityProviderError as fault:
            self._fault = fault
            _log.warning("issuer_keys_not_fetched", reason=fault.detail, context=fault.context)
        except Exception as fault:  # noqa: BLE001 - logged; whoever waits is told that there are none
            self._fault = IdentityProviderError("The issuer's keys cannot be read.")
            _log.error("issuer_keys_fetch_crashed", exc_info=fault)
        else:
            if keys.keys() != self._keys.keys():
                _log.info("issuer_keys_changed", keys=len(keys), before=len(self._keys))
            self._keys = MappingProxyType(keys)
            self._fetched_at = asked_at
            self._fault = None
        finally:
            self._flight = None
            self._is_awaited = False

    def _raise_fault(self) -> NoReturn:
        raise IdentityProviderError(
            "The keys of the OIDC issuer are not known, so its tokens cannot be checked.",
            retry_after=PAUSE_SECONDS,
            reason=None if self._fault is None else self._fault.detail,
        )


def read_keys(answer: object, algorithms: frozenset[str]) -> dict[str, jwt.PyJWK]:
    """Return the usable signing keys of a JWK set (RFC 7517, section 5); others are left out.

    Raises IdentityProviderError where there is none.
    """
    listed = answer.get("keys") if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        raise IdentityProviderError("The issuer's answer is not a JWK set.")
    keys: dict[str, jwt.PyJWK] = {}
    for entry in listed[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        key_id = entry.get("kid")
        if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID_CHARS:
            continue
        # A symmetric key in a public document is no secret, and no key.
        if entry.get("kty") not in _KEY_TYPES:
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as fault:
            _log.warning("issuer_key_unreadable", kid=key_id, reason=type(fault).__name__)
            continue
        too_short = isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS
        if key.algorithm_name in algorithms and not too_short:
            keys[key_id] = key
    if not keys:
        raise IdentityProviderError("The issuer's JWK set has no key that may be used.")
    return keys


def check_url(name: str, url: str) -> str:
    """Return `url` if it is https, or http to this machine; raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return url
    raise ConfigurationError(f"{name} must begin with https:// (http:// only to this machine)")


def open_fetch(issuer: str, jwks_url: str | None) -> Fetch:
    """Return what fetches the keys of `issuer`, from `jwks_url` or from where discovery points.

    Discovery is OpenID Connect Discovery 1.0, section 4.
    """

    def fetch() -> object:
        if jwks_url is not None:
            return fetch_json(jwks_url)
        found = fetch_json(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        url = found.get("jwks_uri") if isinstance(found, dict) else None
        if not isinstance(url, str) or not isinstance(found, dict) or found.get("issuer") != issuer:
            raise IdentityProviderError(
                "The issuer's configuration is not its own, or has no keys."
            )
        try:
            return fetch_json(check_url("jwks_uri", url))
        except ConfigurationError as fault:
            raise IdentityProviderError(fault.detail) from None

    return fetch


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        """Follow none: where keys come from is for the operator to say."""
        del req, fp, code, msg, headers, newurl


def fetch_json(url: str, timeout: float = TIMEOUT_SECONDS) -> Any:
    """Return the JSON at `url`, at most 256 KiB; `timeout` is in seconds, three of them in all.

    Raises IdentityProviderError.
    """
    deadline = time.monotonic() + 3 * timeout
    opener = urllib.request.build_opener(_NoRedirects)
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - `check_url`
    body = b""
    try:
        with opener.open(request, timeout=timeout) as answer:
            while chunk := answer.read1(65_536):
                body += chunk
                if len(body) > MAX_BYTES or time.monotonic() > deadline:
                    raise IdentityProviderError("The issuer's answer is too large or too slow.")
        return json.loads(body)
    except urllib.error.HTTPError as fault:
        fault.close()
        raise IdentityProviderError("The issuer refuses.", status=fault.code, url=url) from None
    except (OSError, ValueError, RecursionError) as fault:
        raise IdentityProviderError(
            "The issuer does not answer as it should.", fault=type(fault).__name__, url=url
        ) from None
