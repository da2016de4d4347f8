"""Which calls came, when, and how many within a second: what a test of a caller's budget asks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["MAX_TIMESTAMPS", "CallLog"]

MAX_TIMESTAMPS: Final = 10_000
"""Timestamps kept for one operation and Region; the oldest go first."""


@dataclass(slots=True)
class _Calls:
    count: int = 0
    max_per_second: int = 0
    timestamps: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_TIMESTAMPS))
    last_second: deque[float] = field(default_factory=deque)
    statuses: dict[str, int] = field(default_factory=dict)


class CallLog:
    """Counts calls for each operation and Region, those that were refused as well."""

    def __init__(self) -> None:
        """Start with no calls."""
        self._calls: dict[tuple[str, str], _Calls] = {}

    def record(self, operation: str, region: str, now: float) -> None:
        """Note a call that arrived at `now`, in seconds."""
        calls = self._calls.setdefault((operation, region), _Calls())
        calls.count += 1
        calls.timestamps.append(now)
        calls.last_second.append(now)
        while calls.last_second[0] <= now - 1:
            calls.last_second.popleft()
        calls.max_per_second = max(calls.max_per_second, len(calls.last_second))

    def record_outcome(self, operation: str, region: str, outcome: str) -> None:
        """Note how a call ended: a status code, or `dropped`."""
        statuses = self._calls.setdefault((operation, region), _Calls()).statuses
        statuses[outcome] = statuses.get(outcome, 0) + 1

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()

    def report(self) -> list[dict[str, Any]]:
        """Return one entry for each operation and Region.

        `maxPerSecond` is the most calls that came within any second, `timestamps` are Unix seconds.
        """
        return [
            {
                "operation": operation,
                "region": region,
                "count": calls.count,
                "maxPerSecond": calls.max_per_second,
                "statuses": dict(calls.statuses),
                "timestamps": list(calls.timestamps),
            }
            for (operation, region), calls in sorted(self._calls.items())
        ]
