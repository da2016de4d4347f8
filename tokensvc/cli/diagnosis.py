"""What `tokensvc doctor` looks at: each part by itself, so that one fault does not hide the next.

It reads and asks, and changes nothing: no database is migrated, no key imported, no record written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.callers import SqlCallerStore
from tokensvc.callers.jwks import WAIT_SECONDS, open_fetch, read_keys
from tokensvc.callers.oidc import OidcConfig
from tokensvc.errors import (
    ConfigurationError,
    IdentityProviderError,
    IvsAccessDeniedError,
    KeyMismatchError,
    TokenServiceError,
)
from tokensvc.http.admission import oidc_config
from tokensvc.http.auditing import check_audit
from tokensvc.http.database import open_database
from tokensvc.http.hardening import complaints
from tokensvc.http.health_watch import describe_drift
from tokensvc.http.parts import open_gateway, rotation_policy
from tokensvc.http.sealers import open_sealers
from tokensvc.http.server import bind_socket
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.ivs.gateway import IvsGateway, PublicKeySummary
from tokensvc.keyring import KeyPhase, RingState, Sealer, SqlRingStore
from tokensvc.keyring.holdings import Holdings
from tokensvc.keyring.opener import KeyOpener
from tokensvc.keyring.policy import SLOTS
from tokensvc.policy import Policy
from tokensvc.settings import Settings
from tokensvc.signing import self_check
from tokensvc.store import ensure_current

__all__ = ["Diagnosis", "Verdict", "diagnose"]

Verdict: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at; `fail`: tokens are not issued, or not safely, until it is mended."""

    check: str
    verdict: Verdict
    detail: str


class _Doctor:
    """Looks at one installation; `gateway` and `clock` (Unix seconds) are asked where given."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        gateway: IvsGateway | None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._clock = clock
        self._drift = ClockDrift(clock)
        self._gateway = gateway
        self._engine: AsyncEngine | None = None
        self._sealer: Sealer | None = None
        self._listed: dict[str, tuple[PublicKeySummary, ...]] = {}

    async def look(self, closing: AsyncExitStack) -> AsyncIterator[Diagnosis]:
        """Yield one diagnosis after the other; what is opened is closed by `closing`."""
        settings = self._settings
        yield self._rotation()
        yield await self._tried("database", self._database, closing)
        yield await self._tried("master key", self._master_key, closing)
        if self._gateway is None:
            own = open_gateway(settings, self._drift)
            closing.push_async_callback(own.aclose)
            self._gateway = own
        for region in settings.regions:
            yield await self._tried(f"aws {region}", self._aws, region)
        if settings.regions:
            within, detail = describe_drift(self._drift, settings.clock_skew)
            known = self._drift.offsets() != {}
            yield Diagnosis("clock", ("ok" if within else "fail") if known else "warn", detail)
        if self._engine is not None:
            for region in settings.regions:
                yield await self._tried(f"key ring {region}", self._ring, self._engine, region)
            yield await self._tried("callers", self._callers, self._engine)
        if settings.oidc_issuer is not None:
            yield await self._tried("oidc", self._oidc)
        yield await self._tried("policy", self._policy)
        yield await self._tried("port", self._port)
        yield await self._tried("audit", self._audit)
        for line in complaints(settings, self._environ):
            yield Diagnosis("hardening", "fail" if settings.hardened else "warn", line)

    async def _tried(
        self, check: str, look: Callable[..., Awaitable[Diagnosis]], *about: Any
    ) -> Diagnosis:
        try:
            return await look(*about)
        except TokenServiceError as error:
            return Diagnosis(check, "fail", error.detail)

    def _rotation(self) -> Diagnosis:
        try:
            self._settings.require_regions()
            rotation_policy(self._settings)
        except ConfigurationError as error:
            return Diagnosis("settings", "fail", error.detail)
        return Diagnosis("settings", "ok", f"Regions: {', '.join(self._settings.regions)}.")

    async def _database(self, closing: AsyncExitStack) -> Diagnosis:
        engine = open_database(self._settings)
        closing.push_async_callback(engine.dispose)
        await ensure_current(engine)
        self._engine = engine
        name = engine.dialect.name
        return Diagnosis("database", "ok", f"{name} answers, and its schema is current.")

    async def _master_key(self, closing: AsyncExitStack) -> Diagnosis:
        sealers = await closing.enter_async_context(open_sealers(self._settings))
        self._sealer = sealers.sealer
        if self._settings.kms_key_id is not None:
            return Diagnosis("master key", "ok", f"AWS KMS: {self._settings.kms_key_id}.")
        return Diagnosis("master key", "ok", f"{self._settings.master_key_file} is readable.")

    async def _aws(self, region: str) -> Diagnosis:
        check = f"aws {region}"
        gateway = cast("IvsGateway", self._gateway)
        try:
            listed = await gateway.list_public_keys(region)
        except IvsAccessDeniedError as error:
            hint = "the credentials need ivs:ListPublicKeys, and must not have expired"
            return Diagnosis(check, "fail", f"{error.detail} ({hint})")
        self._listed[region] = tuple(listed)
        return Diagnosis(
            check, "ok", f"ListPublicKeys answers: {len(listed)} of {SLOTS} slots used."
        )

    async def _ring(self, engine: AsyncEngine, region: str) -> Diagnosis:
        check = f"key ring {region}"
        store = SqlRingStore(engine, self._settings.ring_id, self._clock)
        ring = await store.load(region)
        active = ring.active
        if active is None:
            verdict: Verdict = "warn" if not ring.keys else "fail"
            return Diagnosis(
                check,
                verdict,
                "No key signs yet; `tokensvc serve` or `tokensvc keys rotate` makes one.",
            )
        if self._sealer is not None:
            opener = KeyOpener(self._sealer, self._settings.ring_id, None)
            key = await opener.open(active)
            self_check(key, active.public_key_pem)
        words = f"Key {active.key_id} signs, and its signature verifies."
        listed = self._listed.get(region)
        if listed is None:
            return Diagnosis(check, "warn", f"{words} Whether IVS holds it is not known.")
        return self._held(check, words, ring, listed)

    def _held(
        self, check: str, words: str, ring: RingState, listed: tuple[PublicKeySummary, ...]
    ) -> Diagnosis:
        arns = {summary.arn for summary in listed}
        active = ring.active
        if active is not None and active.arn not in arns:
            raise KeyMismatchError(
                f"IVS does not hold {active.arn}, which signs: no token joins. Run `tokensvc keys"
                " reconcile`."
            )
        foreign = Holdings.sort(ring, self._settings.ring_id, listed).foreign
        if len(foreign) > SLOTS - 2:
            return Diagnosis(
                check,
                "fail",
                f"{words} {len(foreign)} of {SLOTS} slots hold keys of others"
                f" ({', '.join(foreign)}): no rotation is possible.",
            )
        if foreign:
            return Diagnosis(
                check,
                "warn",
                f"{words} Keys of others take {len(foreign)} of {SLOTS} slots: {', '.join(foreign)}.",
            )
        if not ring.in_phase(KeyPhase.STANDBY):
            return Diagnosis(
                check, "warn", f"{words} There is no STANDBY key to take over from it."
            )
        return Diagnosis(check, "ok", words)

    async def _callers(self, engine: AsyncEngine) -> Diagnosis:
        now = self._clock()
        found = await SqlCallerStore(engine, self._clock).list()
        active = sum(caller.state(now) == "active" for caller in found)
        if not active:
            return Diagnosis(
                "callers", "warn", "Nobody may call; `tokensvc callers add` lets somebody."
            )
        return Diagnosis("callers", "ok", f"{active} may call.")

    async def _oidc(self) -> Diagnosis:
        config = cast("OidcConfig", oidc_config(self._settings))
        fetch = open_fetch(config.issuer, config.jwks_url)
        try:
            answer = await asyncio.wait_for(asyncio.to_thread(fetch), WAIT_SECONDS)
            keys = read_keys(answer, frozenset(config.algorithms))
        except IdentityProviderError as error:
            why = "".join(f" ({name}: {value})" for name, value in error.context.items())
            return Diagnosis("oidc", "fail", f"{config.issuer}: {error.detail}{why}")
        except TimeoutError:
            late = f"{config.issuer} does not answer within {WAIT_SECONDS:.0f} s."
            return Diagnosis("oidc", "fail", late)
        return Diagnosis("oidc", "ok", f"{config.issuer} has {len(keys)} keys that may be used.")

    async def _policy(self) -> Diagnosis:
        path = self._settings.policy_file
        if path is None:
            return Diagnosis("policy", "warn", "There is no policy file: scopes alone decide.")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
        Policy.parse(text, max_duration=self._settings.max_duration)
        return Diagnosis("policy", "ok", f"{path} is in order.")

    async def _port(self) -> Diagnosis:
        settings = self._settings
        try:
            bind_socket(settings.host, settings.port).close()
        except ConfigurationError as error:
            # A service that runs already is the usual reason, and a good one.
            return Diagnosis("port", "warn", error.detail)
        return Diagnosis("port", "ok", f"{settings.host}:{settings.port} is free.")

    async def _audit(self) -> Diagnosis:
        settings = self._settings
        if settings.audit is None:
            return Diagnosis("audit", "warn", "Nothing is recorded: TOKENSVC_AUDIT is not set.")
        check_audit(settings)
        return Diagnosis("audit", "ok", f"Records go to {settings.audit}.")


async def diagnose(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.time,
    gateway: IvsGateway | None = None,
) -> list[Diagnosis]:
    """Look at everything; never raises for what is wrong with the installation.

    With `gateway`, that one is asked instead of AWS, and stays open.
    """
    async with AsyncExitStack() as closing:
        doctor = _Doctor(settings, environ, clock, gateway)
        return [found async for found in doctor.look(closing)]
