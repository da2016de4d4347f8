"""The key ring as monitoring sees it: metrics of each Region, and its line in `/readyz`.

What is read at a scrape is in memory already. What the rotator found is reported by every worker, by
those that do not look after keys as they last read it in the store (`key_reports.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tokensvc.errors import NoSigningKeyError
from tokensvc.http.readiness import Check
from tokensvc.keyring import KeyPhase, KeyRecord, RingView
from tokensvc.keyring.status import RegionStatus

__all__ = ["KeyWatch"]

_LIVING: Final = (KeyPhase.STANDBY, KeyPhase.ACTIVE, KeyPhase.RETIRING)
_FAMILIES: Final = {
    "tokensvc_keys": "Keys of the ring that IVS holds, by phase.",
    "tokensvc_active_key_age_seconds": "Seconds since the Region's key began to sign.",
    "tokensvc_key_next_step_timestamp_seconds": "When the rotator acts next, Unix seconds.",
    "tokensvc_rotation_overdue_seconds": "How late the rotation is, 0 within what is tolerated.",
    "tokensvc_key_ring_problems": "Steps of the Region's ring that failed at the last look.",
    "tokensvc_key_ring_blocked": "1 where something should happen to the ring and cannot, else 0.",
    "tokensvc_foreign_keys": "Public keys of other owners at IVS, each of which takes a slot.",
    "tokensvc_key_slots_free": "Public keys that IVS would still take.",
    "tokensvc_key_ring_look_age_seconds": "Seconds since a rotator last looked at the Region.",
    "tokensvc_living_tokens": "Tokens that have not expired, by the phase of their key.",
}
_BY_PHASE: Final = frozenset({"tokensvc_keys", "tokensvc_living_tokens"})
_MIN_LOOK_SECONDS: Final = 300.0
_ROUNDS: Final = 3.0


class KeyWatch(Collector):
    """Watches the rings of `regions`; `clock` gives Unix seconds.

    Where nobody has looked for three of the rotator's rounds, or for 5 minutes if that is longer,
    something is wrong with whoever should.
    """

    def __init__(
        self,
        regions: tuple[str, ...],
        *,
        view: Callable[[], RingView],
        status: Callable[[str], RegionStatus | None],
        living: Callable[[str], Mapping[str, int]],
        rotation_check: float,
        clock: Callable[[], float],
    ) -> None:
        """`living` tells a Region's living tokens by phase; `rotation_check` is in seconds."""
        self._regions = regions
        self._view = view
        self._status = status
        self._living = living
        self._max_look_age = max(_MIN_LOOK_SECONDS, _ROUNDS * rotation_check)
        self._clock = clock
        self._signing: dict[str, str] = {}
        self._rotations: Counter[str] = Counter(dict.fromkeys(regions, 0))

    def note_signing(self) -> None:
        """Take note of who signs, and count it where that is another key than the one before.

        To be called after every refresh of the view.
        """
        view = self._view()
        for region in self._regions:
            try:
                key_id = view.signing_key(region).key_id
            except NoSigningKeyError:
                continue
            if self._signing.setdefault(region, key_id) != key_id:
                self._signing[region] = key_id
                self._rotations[region] += 1

    def checks(self) -> list[Check]:
        """Return a check for each Region whose ring was looked at; none is required to be ready."""
        found = ((region, self._status(region)) for region in self._regions)
        return [self._check(status) for _, status in found if status is not None]

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Return the metrics as of now."""
        families = {
            name: GaugeMetricFamily(
                name, doc, labels=["region", "phase"] if name in _BY_PHASE else ["region"]
            )
            for name, doc in _FAMILIES.items()
        }
        keys = self._view().keys
        for region in self._regions:
            of_region = [key for key in keys if key.region == region]
            for phase in _LIVING:
                count = sum(key.phase is phase for key in of_region)
                families["tokensvc_keys"].add_metric([region, phase.value], count)
            for phase_name, count in self._living(region).items():
                families["tokensvc_living_tokens"].add_metric([region, phase_name], count)
            for name, value in self._values(region, of_region).items():
                families[name].add_metric([region], value)
        yield from families.values()
        rotations = CounterMetricFamily(
            "tokensvc_key_rotations",
            "Times that this process began to sign with another key of the Region.",
            labels=["region"],
        )
        for region, count in self._rotations.items():
            rotations.add_metric([region], count)
        yield rotations

    def _values(self, region: str, keys: list[KeyRecord]) -> Mapping[str, float]:
        values: dict[str, float] = {}
        active = next((key for key in keys if key.phase is KeyPhase.ACTIVE), None)
        if active is not None and active.activated_at is not None:
            age = max(0.0, self._clock() - active.activated_at)
            values["tokensvc_active_key_age_seconds"] = age
        status = self._status(region)
        if status is None:
            return values
        if status.next_at is not None:
            values["tokensvc_key_next_step_timestamp_seconds"] = status.next_at
        if status.free_slots is not None:
            values["tokensvc_key_slots_free"] = status.free_slots
            values["tokensvc_foreign_keys"] = len(status.foreign_keys)
        values["tokensvc_key_ring_look_age_seconds"] = self._age(status)
        values["tokensvc_rotation_overdue_seconds"] = status.overdue
        values["tokensvc_key_ring_problems"] = len(status.problems)
        values["tokensvc_key_ring_blocked"] = float(status.blocked)
        return values

    def _check(self, status: RegionStatus) -> Check:
        reasons = [f"{problem.step}: {problem.detail}" for problem in status.problems]
        if status.overdue:
            reasons.append(f"The rotation is {status.overdue:.0f} s late.")
        unseen = self._age(status) > self._max_look_age
        if unseen:
            reasons.append(f"Nobody has looked for {self._age(status):.0f} s.")
        if status.blocked or not reasons:
            reasons.append(f"Next: {status.next_step}.")
        healthy = status.healthy and not unseen
        return Check(f"keys:{status.region}", healthy, False, " ".join(reasons))

    def _age(self, status: RegionStatus) -> float:
        return max(0.0, self._clock() - status.at)
