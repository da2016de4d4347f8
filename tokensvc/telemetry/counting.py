"""Counters and a histogram for what happens with every token: an addition each, and no lock.

prometheus_client's own take a lock and walk through checks for each count, which with three of them is
five microseconds of a mint. These belong to the one thread that runs the event loop, which alone counts
and alone renders; the text that a scrape gets is the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

__all__ = ["LoopCounter", "LoopHistogram"]


class LoopCounter(Collector):
    """Totals by labels."""

    def __init__(self, name: str, what: str, labels: Sequence[str]) -> None:
        """`what` is for people; the name is without `_total`."""
        self._name = name
        self._what = what
        self._labels = labels
        self._totals: dict[tuple[str, ...], int] = {}

    def add(self, labels: tuple[str, ...], count: int = 1) -> None:
        """Count; `labels` are values in the order of the names."""
        totals = self._totals
        totals[labels] = totals.get(labels, 0) + count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the totals as of now."""
        family = CounterMetricFamily(self._name, self._what, labels=self._labels)
        for labels, total in self._totals.items():
            family.add_metric(labels, total)
        yield family


class LoopHistogram(Collector):
    """How often a figure was at most so and so much."""

    def __init__(self, name: str, what: str, buckets: Sequence[float]) -> None:
        """`buckets` are upper bounds, ascending, from 0.0001 on and below 10^6."""
        self._name = name
        self._what = what
        self._bounds = tuple(buckets)
        # The last one is for what is above all bounds.
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, figure: float) -> None:
        """Count one figure."""
        self._counts[bisect_left(self._bounds, figure)] += 1
        self._sum += figure

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Return the counts as of now, each with those of the smaller bounds."""
        buckets: list[tuple[str, float]] = []
        count = 0
        for bound, found in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            count += found
            buckets.append((str(bound), count))
        yield HistogramMetricFamily(self._name, self._what, buckets=buckets, sum_value=self._sum)
