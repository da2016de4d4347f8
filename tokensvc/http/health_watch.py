"""What readiness and metrics are told of the host's clock, of the audit record and of the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tokensvc.http.readiness import Check
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.telemetry.audit import Audit, AuditMetrics
from tokensvc.telemetry.logging import log_stream

__all__ = ["READING_SECONDS", "AuditWatch", "DriftWatch", "LogWatch", "describe_drift"]

READING_SECONDS: Final = 900.0
"""How old a reading of AWS's clock may be; the rotation asks IVS far more often."""


class DriftWatch:
    """Compares the host's clock with AWS's; `limit` is in seconds (TOKENSVC_CLOCK_SKEW)."""

    def __init__(self, drift: ClockDrift, limit: float) -> None:
        self._drift = drift
        self._limit = limit

    def checks(self) -> list[Check]:
        """Return one check; where AWS was not heard of for a while, nothing is held against the host."""
        ok, detail = describe_drift(self._drift, self._limit)
        return [Check("clock", ok, True, detail)]


def describe_drift(drift: ClockDrift, limit: float) -> tuple[bool, str]:
    """Tell whether the host's clock is within `limit` seconds of AWS's, and in words how far it is."""
    worst = drift.worst(max_age_seconds=READING_SECONDS)
    if worst is None:
        return True, "AWS has told no time in the last 15 minutes."
    direction = "ahead of" if worst.offset_seconds > 0 else "behind"
    detail = (
        f"The host's clock is {abs(worst.offset_seconds):.1f} s {direction} AWS's in {worst.region},"
        f" give or take {worst.uncertainty_seconds:.1f} s; {limit:g} s is the limit"
        " (TOKENSVC_CLOCK_SKEW)."
    )
    return worst.at_least_seconds <= limit, detail


class AuditWatch(Collector):
    """Watches whether audit records are written."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the counts, as of now; nothing where nothing is recorded."""
        if self._audit.lines is not None:
            yield from AuditMetrics(self._audit.lines).collect()

    def checks(self) -> list[Check]:
        """Return one check where anything is recorded; required where records are."""
        lines = self._audit.lines
        if lines is None:
            return []
        failing = lines.failing
        detail = "Audit records are written." if failing is None else f"Not written: {failing}."
        if lines.dropped:
            detail += f" {lines.dropped} were lost."
        return [Check("audit", failing is None, self._audit.required, detail)]


class LogWatch(Collector):
    """Watches whether log lines are written: where they are not, the log cannot say so."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield how many lines this process lost."""
        lines = log_stream()
        yield CounterMetricFamily(
            "tokensvc_log_lines_lost",
            "Log lines that could not be written.",
            value=0 if lines is None else lines.lost,
        )

    def checks(self) -> list[Check]:
        """Return one check, which no process is taken out of service for; none where nothing is logged."""
        lines = log_stream()
        if lines is None:
            return []
        failing = lines.failing
        detail = "Log lines are written." if failing is None else f"Not written: {failing}."
        if lines.lost:
            detail += f" {lines.lost} were lost."
        return [Check("log", failing is None, False, detail)]
