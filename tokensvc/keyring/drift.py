"""Where the stored ring and what IVS holds differ, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tokensvc.keyring.record import KeyPhase, RingState
from tokensvc.keyring.rotator import Facts
from tokensvc.keyring.status import RegionStatus

__all__ = ["Finding", "ReconcileReport", "findings"]

Kind: TypeAlias = Literal["gone", "stray", "orphan", "foreign", "unfinished"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `repair` says what reconciling does about it, empty where nothing."""

    kind: Kind
    key_id: str | None
    arn: str | None
    detail: str
    repair: str


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What was found in a Region, and, unless `dry_run`, how it stands after the repair.

    `planned` are the steps that a repair would take first; `status` is None in a dry run.
    """

    region: str
    dry_run: bool
    findings: tuple[Finding, ...]
    planned: tuple[str, ...]
    status: RegionStatus | None


def findings(ring: RingState, facts: Facts) -> tuple[Finding, ...]:
    """Return every difference between `ring` and the facts about it."""
    return (*_of_keys(ring, facts), *_of_holdings(facts))


def _of_keys(ring: RingState, facts: Facts) -> Iterator[Finding]:
    for key in ring.keys:
        if key.key_id in facts.gone:
            yield Finding(
                "gone",
                key.key_id,
                key.arn,
                f"IVS no longer holds this {key.phase} key; its living tokens cannot join",
                "marked DELETED, and replaced where it was needed",
            )
        elif key.phase is KeyPhase.GENERATED:
            imported = key.key_id in facts.holdings.imported
            held = "IVS holds it" if imported else "IVS does not hold it yet"
            yield Finding(
                "unfinished",
                key.key_id,
                None,
                f"it was generated and its import is not stored; {held}",
                "its import is finished",
            )
        elif key.phase is KeyPhase.RETIRING and key.delete_reason is not None:
            yield Finding(
                "unfinished",
                key.key_id,
                key.arn,
                f"it is to be deleted at IVS ({key.delete_reason})",
                "deleted at IVS",
            )


def _of_holdings(facts: Facts) -> Iterator[Finding]:
    for arn in facts.holdings.strays:
        yield Finding("stray", None, arn, "ours, and no token needs it", "deleted at IVS")
    for orphan in facts.holdings.orphans:
        yield Finding(
            "orphan",
            orphan.key_id,
            orphan.arn,
            "it carries this ring's tags and the store does not know it",
            "kept as RETIRING until any token of it must have expired, then deleted",
        )
    for arn in facts.holdings.foreign:
        yield Finding("foreign", None, arn, "somebody else's; it takes a slot", "")
