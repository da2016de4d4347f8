"""What a rotator last found and did in a Region, for people and alerts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Problem", "RegionStatus"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A step that failed: the error's `code` and public detail, and the step in words."""

    step: str
    code: str
    detail: str
    retry_after: float | None = None
    """Seconds after which it may succeed, where IVS said so."""


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One Region after a look at it, at `at` (Unix seconds).

    `next_at` is when something is due next (None: not known), `next_step` that in words; `blocked`
    that something should happen and cannot, `problems` what failed. `overdue` is by how many seconds
    the rotation is later than the policy tolerates, 0 where it is not.
    """

    region: str
    at: float
    next_step: str
    next_at: float | None = None
    blocked: bool = False
    problems: tuple[Problem, ...] = ()
    foreign_keys: tuple[str, ...] = ()
    free_slots: int | None = None
    steps: tuple[str, ...] = field(default=())
    """What was done in this look."""
    overdue: float = 0.0

    @property
    def healthy(self) -> bool:
        """Nothing failed, is blocked or overdue."""
        return not (self.blocked or self.problems or self.overdue)

    def same_trouble(self, other: RegionStatus | None) -> bool:
        """Tell whether `other` has the same to complain about, so that it is logged once."""
        return other is not None and _trouble(self) == _trouble(other)


def _trouble(status: RegionStatus) -> tuple[object, ...]:
    return (
        tuple(_without_times(status.problems)),
        status.next_step if status.blocked else "",
        bool(status.overdue),
    )


def _without_times(problems: Iterable[Problem]) -> Iterable[tuple[str, str]]:
    return ((problem.step, problem.code) for problem in problems)
