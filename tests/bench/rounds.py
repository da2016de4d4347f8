"""Rounds of wrk against a service, each between raw signatures that its core makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from tests.bench.figures import PER_SECOND, Figure
from tests.bench.load import Requests, ask
from tests.bench.machine import cpu_seconds, load_cores, raw_signatures, wait_until_idle

__all__ = ["CONNECTIONS", "Options", "rounds_of"]

CONNECTIONS = {1: 64, 100: 16, 1000: 4}
"""By the tokens of a request: enough for group commit, and for batches as many as wait elsewhere."""


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure, and how much."""

    rounds: int = 5
    seconds: float = 3.0
    rows: int = 1_000_000


@dataclass(frozen=True, slots=True)
class _Round:
    per_second: float
    ratio: float
    cpu_us: float
    cpu_ratio: float
    p50_ms: float
    p99_ms: float


def rounds_of(
    section: str,
    kinds: Mapping[str, Requests],
    options: Options,
    *,
    servers: int = 1,
    x: Mapping[str, float] | None = None,
    only_rate: bool = False,
) -> list[Figure]:
    """Ask for each kind of request in turn, `options.rounds` times; of one server, or of several.

    What is asked for in turn meets the same machine, so kinds of one call may be compared with each other,
    round by round. Gives tokens a second, and unless `only_rate`, the processor time of a token and the
    latency of a request while all connections always ask. `x` is where a kind stands in a plot.
    """
    found: dict[str, list[_Round]] = {name: [] for name in kinds}
    for requests in kinds.values():
        _round(requests, 1.0, servers)  # so that every round meets a warm service
    for _ in range(options.rounds):
        for name, requests in kinds.items():
            found[name].append(_round(requests, options.seconds, servers))
    figures = []
    for name, rounds in found.items():
        at = x.get(name) if x else None
        rates, ratios = [one.per_second for one in rounds], [one.ratio for one in rounds]
        figures.append(Figure(section, name, PER_SECOND, rates, ratios, at))
        if only_rate:
            continue
        cpu, cpu_ratios = [one.cpu_us for one in rounds], [one.cpu_ratio for one in rounds]
        p50, p99 = [one.p50_ms for one in rounds], [one.p99_ms for one in rounds]
        figures += [
            Figure(section, f"{name}: processor time a token", "us", cpu, cpu_ratios, at),
            Figure(section, f"{name}: p50, always asked", "ms", p50, x=at),
            Figure(section, f"{name}: p99, always asked", "ms", p99, x=at),
        ]
    return figures


def _round(requests: Requests, seconds: float, servers: int) -> _Round:
    wait_until_idle(requests.pid)
    raw_before = raw_signatures()
    before = cpu_seconds(requests.pid)
    said = ask(
        requests,
        cores=load_cores(servers),
        seconds=seconds,
        connections=CONNECTIONS[requests.tokens],
    )
    tokens = said["requests"] * requests.tokens
    cpu = (cpu_seconds(requests.pid) - before) / tokens
    rate = tokens / said["seconds"]
    wait_until_idle(requests.pid)
    raws = (raw_before, raw_signatures())
    return _Round(
        rate,
        rate / fmean([raw.per_second for raw in raws]),
        cpu * 1e6,
        fmean([raw.cpu_seconds for raw in raws]) / cpu,
        said["p50_ms"],
        said["p99_ms"],
    )
