"""Who may call and what each may ask for, put together as the settings say.

Apart from the other parts, since the operator's own commands ask neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from tokensvc.callers import CallerDirectory
from tokensvc.callers.oidc import CallerAuthenticator, OidcCallers, OidcConfig
from tokensvc.http.readiness import Check
from tokensvc.policy import Limiter, Policy, PolicyFile, PolicyGate, StageTags
from tokensvc.settings import Settings
from tokensvc.telemetry.metrics import Metrics

__all__ = ["Admission", "oidc_config", "open_admission", "read_policy"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """How one process tells its callers apart; `file` and `oidc` are None where none is configured."""

    callers: CallerAuthenticator
    gate: PolicyGate
    file: PolicyFile | None
    oidc: OidcCallers | None

    def watch(self, metrics: Metrics) -> None:
        """Report ages, and whether the policy file was refused."""
        file, oidc = self.file, self.oidc
        if file is not None:
            metrics.watch_age("policy", file.age)
            metrics.watch_policy(lambda: file.refused is not None)
        if oidc is not None:
            metrics.watch_age("oidc_keys", oidc.keys.age)

    def checks(self) -> list[Check]:
        """Return what readiness tells of the policy file; an old policy is one to serve with."""
        if self.file is None:
            return []
        refused = self.file.refused
        in_force = f"The policy file {self.file.digest} is in force."
        detail = in_force if refused is None else f"{in_force} A newer one has faults: see the log."
        return [Check("policy", refused is None, False, detail)]

    def reload(self) -> None:
        """Read the policy file at once, for a SIGHUP."""
        if self.file is None:
            _log.info("nothing_to_reload", detail="no policy file is set (TOKENSVC_POLICY_FILE)")
        else:
            self.file.wake()


@asynccontextmanager
async def open_admission(
    settings: Settings,
    directory: CallerDirectory,
    stages: StageTags,
    *,
    clock: Callable[[], float],
    monotonic: Callable[[], float],
    share: float,
) -> AsyncIterator[Admission]:
    """Read the policy file, and get ready to know callers; `share` is this process's part of limits.

    `clock` gives Unix seconds, `monotonic` seconds of a clock that nobody sets. Raises
    ConfigurationError for a policy file with faults, one line each, and for an issuer that could not
    be trusted.
    """
    file = await asyncio.to_thread(read_policy, settings, clock)
    if file is None:
        _log.warning(
            "no_policy_file", detail="the scopes of callers alone say what they may ask for"
        )
    open_policy = Policy.open(settings.max_duration)
    config = oidc_config(settings)
    oidc = None if config is None else OidcCallers(config, clock)
    gate = PolicyGate(
        policy=(lambda: open_policy) if file is None else (lambda: file.policy),
        stage_tags=stages,
        limiter=Limiter(monotonic, share=share),
    )
    try:
        yield Admission(CallerAuthenticator(directory, oidc), gate, file, oidc)
    finally:
        if oidc is not None:
            await oidc.aclose()


def read_policy(settings: Settings, clock: Callable[[], float]) -> PolicyFile | None:
    """Return the policy file, read; None where none is set. Raises ConfigurationError. Blocks."""
    if settings.policy_file is None:
        return None
    file = PolicyFile(settings.policy_file, clock, max_duration=settings.max_duration)
    file.load()
    return file


def oidc_config(settings: Settings) -> OidcConfig | None:
    """Return whose tokens are taken beside API keys; raises ConfigurationError."""
    if settings.oidc_issuer is None:
        return None
    return OidcConfig(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        jwks_url=settings.oidc_jwks_url,
        algorithms=settings.oidc_algorithms,
        scope_claim=settings.oidc_scope_claim,
        scope_prefix=settings.oidc_scope_prefix,
        name_claim=settings.oidc_name_claim,
        leeway=settings.oidc_leeway,
    )
