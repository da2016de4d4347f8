"""Rounds of wrk against a service, each beside the raw signature that its core makes in the same moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.figures import PER_SECOND, Figure
from tests.bench.load import Requests, ask
from tests.bench.machine import cpu_seconds, load_cores, raw_signatures

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
    kinds: dict[str, Requests],
    pid: int,
    options: Options,
    *,
    servers: int = 1,
    x: float | None = None,
    only_rate: bool = False,
    warm_up: Callable[[], None] | None = None,
) -> list[Figure]:
    """Ask for each kind of request in turn, `options.rounds` times; `pid` is the service's.

    Gives tokens a second, and unless `only_rate`, the processor time of a token and the latency of a
    request while all connections always ask.
    """
    found: dict[str, list[_Round]] = {name: [] for name in kinds}
    for requests in kinds.values():
        _round(requests, pid, 1.0, servers)  # so that every round meets a warm service
    if warm_up:
        warm_up()
    for _ in range(options.rounds):
        for name, requests in kinds.items():
            found[name].append(_round(requests, pid, options.seconds, servers))
    figures = []
    for name, rounds in found.items():
        rates, ratios = [one.per_second for one in rounds], [one.ratio for one in rounds]
        figures.append(Figure(section, name, PER_SECOND, rates, ratios, x))
        if only_rate:
            continue
        cpu, cpu_ratios = [one.cpu_us for one in rounds], [one.cpu_ratio for one in rounds]
        figures += [
            Figure(section, f"{name}: processor time a token", "us", cpu, cpu_ratios, x),
            Figure(
                section, f"{name}: p50, always asked", "ms", [one.p50_ms for one in rounds], x=x
            ),
            Figure(
                section, f"{name}: p99, always asked", "ms", [one.p99_ms for one in rounds], x=x
            ),
        ]
    return figures


def _round(requests: Requests, pid: int, seconds: float, servers: int) -> _Round:
    raw = raw_signatures()
    before = cpu_seconds(pid)
    said = ask(
        requests,
        cores=load_cores(servers),
        seconds=seconds,
        connections=CONNECTIONS[requests.tokens],
    )
    tokens = said["requests"] * requests.tokens
    cpu = (cpu_seconds(pid) - before) / tokens
    rate = tokens / said["seconds"]
    return _Round(
        rate,
        rate / raw.per_second,
        cpu * 1e6,
        raw.cpu_seconds / cpu,
        said["p50_ms"],
        said["p99_ms"],
    )
