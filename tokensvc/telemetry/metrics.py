"""Metrics: what an operator sees of the service, in Prometheus' text format.

Each process has one `Metrics` with its own registry; nothing is registered globally. Labels are drawn
from small closed sets (route templates, error codes, Regions served); a token, an API key, a caller,
a stage or a user is never a label. With several workers, a scrape sees the worker that answered it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tokensvc.telemetry.counting import LoopCounter, LoopHistogram

__all__ = ["Metrics"]

_MINT_BUCKETS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.1,
    0.5,
    2.5,
    10.0,
)
"""Seconds. A mint with cached endpoints takes a tenth of a millisecond; one that asks AWS, seconds."""

_STATUS_TEXTS: Final = tuple(str(status) for status in range(1000))


class Metrics:
    """The counters, gauges and histograms of one process."""

    content_type: Final = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._tokens = LoopCounter(
            "tokensvc_tokens_issued",
            "Participant tokens issued, by who signed them and the stage's Region.",
            ["issuer", "region"],
        )
        self._exchanged = Counter(
            "tokensvc_tokens_exchanged",
            "Tokens issued for a participant who had one (token exchange).",
            registry=self.registry,
        )
        self._connection_tokens = Counter(
            "tokensvc_connection_tokens_issued",
            "Connection tokens issued, by Region.",
            ["region"],
            registry=self.registry,
        )
        self._requests = LoopCounter(
            "tokensvc_http_requests",
            "HTTP requests answered, by route template, status and problem code (empty: none).",
            ["method", "route", "status", "code"],
        )
        self._refusals = LoopCounter(
            "tokensvc_batch_items_refused",
            "Batch items answered with a problem, by its code.",
            ["code"],
        )
        self._mint_seconds = LoopHistogram(
            "tokensvc_mint_seconds",
            "Seconds from a parsed request to its token, batches apart.",
            _MINT_BUCKETS,
        )
        for collector in (self._tokens, self._requests, self._refusals, self._mint_seconds):
            self.registry.register(collector)
        self._ages = Gauge(
            "tokensvc_view_age_seconds",
            "Seconds since a view (ring, callers, bans, stages) was last read from the store.",
            ["view"],
            registry=self.registry,
        )
        self._canary = Gauge(
            "tokensvc_signer_canary_ok",
            "1 when the last canary signature of the Region's key verified, else 0.",
            ["region"],
            registry=self.registry,
        )

    def token_issued(self, issuer: str, region: str, count: int = 1) -> None:
        """Count tokens; `issuer` is local or ivs, `region` one that is served."""
        self._tokens.add((issuer, region), count)

    def token_exchanged(self) -> None:
        """Count one token issued to be exchanged for another."""
        self._exchanged.inc()

    def connection_token_issued(self, region: str) -> None:
        """Count one connection token of a Region that is served."""
        self._connection_tokens.labels(region).inc()

    def item_refused(self, code: str) -> None:
        """Count one batch item answered with a problem of this code."""
        self._refusals.add((code,))

    def request_answered(self, method: str, route: str, status: int, code: str) -> None:
        """Count one HTTP answer; `route` is the template, never the path that was asked for."""
        self._requests.add((method, route, _STATUS_TEXTS[status], code))

    def minted(self, seconds: float) -> None:
        """Record how long one mint took, from the parsed request to its token."""
        self._mint_seconds.observe(seconds)

    def watch_lookups(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Report look-ups of stage endpoints by what the cache had, as counted at each scrape."""
        self.registry.register(_EndpointLookups(counts))

    def watch(self, collector: Collector) -> None:
        """Report what `collector` has at each scrape."""
        self.registry.register(collector)

    def canary_signed(self, region: str, *, ok: bool) -> None:
        """Record whether the Region's key passed its last canary signature."""
        self._canary.labels(region).set(ok)

    def watch_circuits(self, states: Callable[[], Mapping[str, str]]) -> None:
        """Report the fallback's circuit breakers, by Region, as of each scrape."""

        def not_closed() -> Mapping[str, float]:
            return {region: state != "closed" for region, state in states().items()}

        self.registry.register(
            _ByRegion(
                "tokensvc_fallback_circuit_open",
                "1 where CreateParticipantToken is not asked, or only probed, for lack of answers.",
                not_closed,
            )
        )

    def watch_clock(self, offsets: Callable[[], Mapping[str, float]]) -> None:
        """Report how far the host's clock is ahead of AWS's, by Region, as of the last answer."""
        self.registry.register(
            _ByRegion(
                "tokensvc_clock_offset_seconds",
                "Seconds by which the host's clock is ahead of AWS's, half a second more or less.",
                offsets,
            )
        )

    def watch_age(self, view: str, age: Callable[[], float]) -> None:
        """Report the age of a view, in seconds, as of each scrape."""
        self._ages.labels(view).set_function(age)

    def watch_policy(self, refused: Callable[[], bool]) -> None:
        """Report at each scrape whether the policy file, as it is now, was refused."""
        gauge = Gauge(
            "tokensvc_policy_file_refused",
            "1 while the policy file has faults or is gone, and an older one is in force, else 0.",
            registry=self.registry,
        )
        gauge.set_function(lambda: float(refused()))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)


class _ByRegion(Collector):
    def __init__(self, name: str, what: str, values: Callable[[], Mapping[str, float]]) -> None:
        self._name = name
        self._what = what
        self._values = values

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._what, labels=["region"])
        for region, value in self._values().items():
            family.add_metric([region], value)
        yield family


class _EndpointLookups(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "tokensvc_stage_endpoint_lookups",
            "Look-ups of stage endpoints, by what the cache had.",
            labels=["outcome"],
        )
        for outcome, count in self._counts().items():
            family.add_metric([outcome], count)
        yield family
