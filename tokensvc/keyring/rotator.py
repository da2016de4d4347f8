"""Decides what a ring needs next. Pure: no I/O, no key material, the clock is an argument.

`plan` lists every step that may be taken now, the most urgent first, and ends with why and until when
there is nothing else to do. Whoever takes a step looks at the ring anew and asks again, so a step
never relies on the one before it, and a process that dies between two steps loses nothing.

The order is: what must not sign is taken out; a Region without a signing key gets one; slots are
freed; then the next standby; then the rotation that is due.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tokensvc.keyring.drain import delete_at, drained
from tokensvc.keyring.holdings import Holdings, Orphan
from tokensvc.keyring.phases import Drained
from tokensvc.keyring.policy import SLOTS, RotationPolicy
from tokensvc.keyring.record import DeleteReason, KeyPhase, KeyRecord, RingState

__all__ = [
    "Adopt",
    "Check",
    "Condemn",
    "Delete",
    "Extend",
    "Facts",
    "Forget",
    "Generate",
    "Import",
    "Promote",
    "Rotate",
    "RotateNow",
    "Step",
    "Sweep",
    "Wait",
    "plan",
]


@dataclass(frozen=True, slots=True)
class Forget:
    """IVS no longer holds `key`: DELETED, and `successor` signs in its place where there is one."""

    key: KeyRecord
    successor: KeyRecord | None


@dataclass(frozen=True, slots=True)
class Promote:
    """`key` signs, where no key did."""

    key: KeyRecord


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a condemned key at IVS."""

    key: KeyRecord


@dataclass(frozen=True, slots=True)
class Sweep:
    """Delete at IVS a key of ours that no token needs."""

    arn: str


@dataclass(frozen=True, slots=True)
class Condemn:
    """Decide to delete `key`."""

    key: KeyRecord
    evidence: Drained


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take an orphan into the ring as RETIRING, to be deleted when its tokens have expired."""

    orphan: Orphan


@dataclass(frozen=True, slots=True)
class Check:
    """Check a new standby against what IVS holds."""

    key: KeyRecord


@dataclass(frozen=True, slots=True)
class Import:
    """Import the public half of `key`."""

    key: KeyRecord


@dataclass(frozen=True, slots=True)
class Extend:
    """Let the ACTIVE key sign as long tokens as the policy allows now."""

    key: KeyRecord


@dataclass(frozen=True, slots=True)
class Rotate:
    """`new` signs instead of `old`."""

    old: KeyRecord
    new: KeyRecord


@dataclass(frozen=True, slots=True)
class Generate:
    """Make a key that is to become the next standby."""

    region: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing more to do until `until` (Unix seconds; None: until something changes), and why.

    `blocked` where something should happen and cannot.
    """

    until: float | None
    reason: str
    blocked: bool = False


Step: TypeAlias = (
    Forget
    | Promote
    | Delete
    | Sweep
    | Condemn
    | Adopt
    | Check
    | Import
    | Extend
    | Rotate
    | Generate
    | Wait
)


@dataclass(frozen=True, slots=True)
class RotateNow:
    """An operator wants `active` (a key id) replaced now, by `to` if that is not None.

    `active` is None where no key signs.
    """

    active: str | None
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the world outside the ring's store is like.

    `gone` are ids of keys that IVS was found not to hold; `latest_expiry` what the ledger says of
    RETIRING keys (a key that is not in it was not asked about, and is not drained); `clock_off` by
    how many seconds our clock is off AWS's for certain; `unfit` ids of keys that failed a self-check.
    """

    holdings: Holdings
    gone: frozenset[str] = frozenset()
    latest_expiry: Mapping[str, float | None] = field(default_factory=dict)
    clock_off: float = 0.0
    unfit: frozenset[str] = frozenset()


def plan(
    ring: RingState,
    policy: RotationPolicy,
    facts: Facts,
    now: float,
    wish: RotateNow | None = None,
) -> tuple[Step, ...]:
    """Return the steps that may be taken now, most urgent first; the last one is a Wait."""
    return (*_Plan(ring, policy, facts, now, wish).steps(),)


class _Plan:
    def __init__(
        self,
        ring: RingState,
        policy: RotationPolicy,
        facts: Facts,
        now: float,
        wish: RotateNow | None,
    ) -> None:
        self.ring = ring
        self.policy = policy
        self.facts = facts
        self.now = now
        self.wish = wish
        self.standbys = tuple(
            key for key in ring.in_phase(KeyPhase.STANDBY) if key.key_id not in facts.gone
        )
        self.retiring = ring.in_phase(KeyPhase.RETIRING)

    def steps(self) -> Iterator[Step]:
        yield from self._take_out()
        if self.ring.active is None and (successor := self._successor()) is not None:
            yield Promote(successor)
        yield from self._free_slots()
        yield from self._prepare()
        yield from self._change_active()
        yield self._wait()

    def _take_out(self) -> Iterator[Step]:
        for key in self.ring.keys:
            if key.key_id in self.facts.gone and key.phase in _AT_IVS:
                yield Forget(key, self._successor() if key is self.ring.active else None)
        for key in self.retiring:
            if key.delete_reason is not None and key.key_id not in self.facts.gone:
                yield Delete(key)

    def _free_slots(self) -> Iterator[Step]:
        for arn in self.facts.holdings.strays:
            if self._may_sweep(arn):
                yield Sweep(arn)
        if self._clock_is_right():
            for key in self.retiring:
                evidence = self._evidence(key)
                if key.delete_reason is None and evidence is not None:
                    yield Condemn(key, evidence)
            for orphan in self.facts.holdings.orphans:
                yield Adopt(orphan)

    def _prepare(self) -> Iterator[Step]:
        for key in self.standbys:
            if key.checked_at is None:
                yield Check(key)
        generated = self.ring.in_phase(KeyPhase.GENERATED)
        if generated:
            key = generated[0]
            if self.facts.holdings.free_slots or key.key_id in self.facts.holdings.imported:
                yield Import(key)
        elif not self.standbys and self.facts.holdings.free_slots:
            yield Generate(self.ring.region)

    def _change_active(self) -> Iterator[Step]:
        active = self.ring.active
        if active is None or active.key_id in self.facts.gone:
            return
        if active.longest_ttl is not None and active.longest_ttl < self.policy.longest_ttl:
            yield Extend(active)
        if active.key_id in self.facts.unfit:
            # It may not sign now, so whatever is checked is better.
            if (successor := self._successor()) is not None:
                yield Rotate(active, successor)
        elif self._due(active) <= self.now and self._clock_is_right():
            ready = [key for key in self.standbys if self._ready_at(key, active) <= self.now]
            if ready:
                yield Rotate(active, ready[0])

    def _successor(self) -> KeyRecord | None:
        # Where no key signs, a young standby is better than none, and any is better than to wait for
        # the one that was asked for.
        wanted = None if self.wish is None else self.wish.to
        fit = [
            key
            for key in self.standbys
            if key.key_id not in self.facts.unfit and key.checked_at is not None
        ]
        return next((key for key in fit if key.key_id == wanted), next(iter(fit), None))

    def _due(self, active: KeyRecord) -> float:
        if self._wished(active):
            return self.now
        activated_at = active.activated_at or 0.0
        # The clock was ahead when it was activated: how long it has signed is not known.
        if activated_at > self.now + self.policy.skew:
            return self.now
        return activated_at + self.policy.period

    def _wished(self, active: KeyRecord) -> bool:
        return self.wish is not None and self.wish.active == active.key_id

    def _ready_at(self, key: KeyRecord, active: KeyRecord) -> float:
        wanted = self.wish.to if self.wish is not None and self._wished(active) else None
        if key.checked_at is None or (wanted is not None and key.key_id != wanted):
            return float("inf")
        # Seen at IVS just now, so that the rotation itself need not ask.
        if key.arn not in self.facts.holdings.arns:
            return float("inf")
        imported_at = key.imported_at or 0.0
        if imported_at > self.now + self.policy.skew:
            return self.now
        return imported_at + self.policy.standby_min_age

    def _clock_is_right(self) -> bool:
        return self.facts.clock_off <= self.policy.skew

    def _evidence(self, key: KeyRecord) -> Drained | None:
        if key.key_id not in self.facts.latest_expiry:
            return None
        return drained(key, self.facts.latest_expiry[key.key_id], self.policy, self.now)

    def _may_sweep(self, arn: str) -> bool:
        key = next((key for key in self.ring.keys if key.arn == arn), None)
        if key is None or key.delete_reason is not DeleteReason.GONE:
            return True
        # It was not to be found, was given up, and is back: its tokens, too, live again.
        lives_until = (key.deleted_at or 0.0) + self.policy.drain
        return self._clock_is_right() and lives_until <= self.now

    def _wait(self) -> Wait:
        active = self.ring.active
        reasons: list[str] = []
        note = "the next rotation is not due"
        times = [time for key in self.retiring if (time := self._delete_at(key)) is not None]
        if not self._clock_is_right():
            reasons.append(
                f"our clock and AWS's are {self.facts.clock_off:.0f} s apart: no key is rotated "
                "or deleted by it"
            )
        if active is None:
            reasons.append("no key is ACTIVE")
        elif active.key_id in self.facts.unfit:
            reasons.append(f"key {active.key_id} failed its self-check and nothing can replace it")
        elif self._due(active) > self.now:
            times.append(self._due(active))
        elif self._clock_is_right():
            ready = min((self._ready_at(key, active) for key in self.standbys), default=None)
            if ready is None or ready == float("inf"):
                reasons.append("a rotation is due and no STANDBY key is fit for it")
            elif ready > self.now:
                times.append(ready)
                note = "the rotation waits for the standby to be old enough"
        if not self.standbys and not self.facts.holdings.free_slots:
            if self.facts.holdings.foreign or not self.retiring:
                reasons.append(self._no_slot())
            else:
                note = "the next standby waits for a RETIRING key to be drained"
        until = min((time for time in times if time > self.now), default=None)
        return Wait(until, "; ".join(reasons) or note, blocked=bool(reasons))

    def _delete_at(self, key: KeyRecord) -> float | None:
        return delete_at(key, self.facts.latest_expiry.get(key.key_id), self.policy)

    def _no_slot(self) -> str:
        foreign = self.facts.holdings.foreign
        text = f"no STANDBY key: all {SLOTS} public keys of {self.ring.region} are taken"
        if not foreign:
            return f"{text}, by this ring"
        return f"{text}, {len(foreign)} of them by others ({', '.join(foreign)})"


_AT_IVS = frozenset({KeyPhase.STANDBY, KeyPhase.ACTIVE, KeyPhase.RETIRING})
