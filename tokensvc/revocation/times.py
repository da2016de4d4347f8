"""Where a worker's time, and its luck, come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["WorkerTimes"]


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """Where a worker's time comes from.

    `clock`: Unix seconds. `monotonic`: seconds of a clock that never steps, for the pace. `luck`: 0 to 1.
    `clock_is_right` says whether `clock` may be believed; while not, nothing is given up by it.
    """

    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[object]]
    luck: Callable[[], float]
    clock_is_right: Callable[[], bool]
