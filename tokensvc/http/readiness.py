"""May this process be sent requests? Asked by a load balancer, answered from what is known already.

`/readyz` needs no API key, so it does no work: the canary signs, and the copies of the ring and of the
callers are renewed, in the background, and readiness only says what came of it. A Region without a key
is told but does not take the process out of service, since its tokens come from IVS and the other
Regions sign; a key whose signature does not verify does, and so does having no key at all. What such
a key would have signed goes to IVS meanwhile (`RingFollower.trust`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

import structlog

from tokensvc.errors import KeyMismatchError, NoSigningKeyError
from tokensvc.keyring.view import RingView
from tokensvc.signing import self_check
from tokensvc.telemetry.metrics import Metrics

__all__ = ["CANARY_SECONDS", "Check", "Readiness"]

CANARY_SECONDS: Final = 5.0
"""Between two canary signatures of each Region; one takes less than a millisecond."""

_MIN_AGE_SECONDS: Final = 10.0
_ROUNDS: Final = 5

_Verdict: TypeAlias = Literal["verified", "no_key", "broken"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; where it is `required` and not `ok`, the process is not ready."""

    name: str
    ok: bool
    required: bool
    detail: str


@dataclass(frozen=True, slots=True)
class _Canary:
    verdict: _Verdict
    detail: str
    signed_at: float


class Trust(Protocol):
    """Takes a key out of signing."""

    def __call__(self, arn: str, *, unless: str | None = None) -> None:
        """Let the key under `arn` sign again, or not: `unless` is why not."""
        ...


class Readiness:
    """What is known of one process's health. Ages and periods are in seconds.

    A copy counts as too old after five of its periods, at least 10 seconds.
    """

    def __init__(
        self,
        *,
        regions: tuple[str, ...],
        view: Callable[[], RingView],
        trust: Trust,
        ring_age: Callable[[], float],
        ring_refresh: float,
        other_checks: Callable[[], list[Check]],
        callers_age: Callable[[], float],
        caller_refresh: float,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """`view` has every key, so that one that is not trusted can win trust again."""
        self._regions = regions
        self._view = view
        self._trust = trust
        self._ring_age = ring_age
        self._max_ring_age = max(_MIN_AGE_SECONDS, _ROUNDS * ring_refresh)
        self._other_checks = other_checks
        self._callers_age = callers_age
        self._max_callers_age = max(_MIN_AGE_SECONDS, _ROUNDS * caller_refresh)
        self._metrics = metrics
        self._clock = clock
        self._canaries: dict[str, _Canary] = {}

    async def sign_canaries(self) -> None:
        """Sign with each Region's key, and verify with the public half that IVS was given.

        A key whose signature does not verify signs nothing, until one does.
        """
        view = self._view()
        for region in self._regions:
            canary = self._canary(view, region)
            before = self._canaries.get(region)
            self._canaries[region] = canary
            self._metrics.canary_signed(region, ok=canary.verdict == "verified")
            if canary.verdict == "broken" and (before is None or before.verdict != "broken"):
                _log.error("canary_failed", region=region, detail=canary.detail)

    def checks(self) -> list[Check]:
        """Return what is known now: store, ring, callers, and a canary and the ring of each Region."""
        ring, callers = self._ring_age(), self._callers_age()
        ages = (
            _young("ring", "The key ring", ring, self._max_ring_age),
            _young("callers", "The list of callers", callers, self._max_callers_age),
        )
        # Both copies are read from the store, so the younger one says when it last answered.
        answered = min(ring, callers)
        reachable = answered <= max(self._max_ring_age, self._max_callers_age)
        store = Check("store", reachable, True, f"The store answered {_ago(answered)}.")
        signing = [self._signing(region) for region in self._regions]
        any_signs = any(check.ok for check in signing)
        none = Check("signing", any_signs, True, _SIGNING[any_signs])
        return [store, *ages, none, *signing, *self._other_checks()]

    def _canary(self, view: RingView, region: str) -> _Canary:
        now = self._clock()
        try:
            key = view.signing_key(region)
        except NoSigningKeyError as error:
            return _Canary("no_key", error.detail, now)
        public_key = view.public_key_pem(key.arn)
        if public_key is None:
            return self._broken(key.arn, f"The public half of key {key.key_id} is not known.", now)
        try:
            self_check(key, public_key)
        except Exception as fault:  # noqa: BLE001 - a signer that fails is broken, however it does
            if not isinstance(fault, KeyMismatchError):
                _log.error("canary_not_signed", region=region, exc_info=fault)
                return self._broken(key.arn, f"Key {key.key_id} cannot sign.", now)
            return self._broken(key.arn, fault.detail, now)
        self._trust(key.arn)
        return _Canary("verified", f"A signature of key {key.key_id} verified", now)

    def _broken(self, arn: str, detail: str, now: float) -> _Canary:
        self._trust(arn, unless=f"Its canary signature failed: {detail}")
        return _Canary("broken", detail, now)

    def _signing(self, region: str) -> Check:
        name = f"signing:{region}"
        canary = self._canaries.get(region)
        if canary is None:
            return Check(name, False, False, "No canary has been signed yet.")
        if canary.verdict != "verified":
            return Check(name, False, canary.verdict == "broken", canary.detail)
        age = self._clock() - canary.signed_at
        fresh = age <= max(_MIN_AGE_SECONDS, _ROUNDS * CANARY_SECONDS)
        return Check(name, fresh, not fresh, f"{canary.detail} {_ago(age)}.")


_SIGNING: Final = {
    True: "At least one Region signs.",
    False: "No Region has a key whose canary signature verified.",
}


def _young(name: str, what: str, age: float, limit: float) -> Check:
    return Check(
        name, age <= limit, True, f"{what} was read {_ago(age)}; {limit:.0f} s ago is the limit."
    )


def _ago(age: float) -> str:
    return "never" if math.isinf(age) else f"{max(0.0, age):.1f} s ago"
