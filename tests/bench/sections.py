"""What is measured, section by section; `docs/performance.md` has what the letters stand for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import quantiles

from tests.bench import filling
from tests.bench.figures import PER_SECOND, Figure
from tests.bench.installation import Installation, Service, installed, postgres_installed
from tests.bench.load import Requests, always_asking, pace
from tests.bench.machine import load_cores, memory_mb, on_cores, server_cores
from tests.bench.others import OTHERS
from tests.bench.rounds import Options, rounds_of
from tokensvc.cli.measuring import AWS_LC, MINT, measure, subjects

__all__ = ["RUNS"]

ONE, BATCH = "one mint a request", "batches of 100"
LOADS = (10, 25, 50, 65, 80, 90)
"""Percent of what (c) takes."""
BESIDE = 50
LEDGERS = (10_000, 100_000, 1_000_000, 10_000_000)
BANS = 100_000
LOOK_UPS = 300


def signatures(options: Options) -> Iterator[Figure]:
    """Measure (a) raw signatures and (b) mints, in this process on the core of the service."""
    with on_cores(server_cores()):
        found = measure(subjects(), rounds=options.rounds, seconds=options.seconds / 3)
    for name, rates in found.items():
        per_second = [rate.per_second for rate in rates]
        ratios = [
            rate.per_second / base.per_second
            for rate, base in zip(rates, found[AWS_LC], strict=True)
        ]
        yield Figure("b" if name == MINT else "a", name, PER_SECOND, per_second, ratios)


def mints(options: Options) -> Iterator[Figure]:
    """Measure (c) single mints, (d) batches, and (i) memory and start of the same worker."""
    with installed() as installation:
        ready = [_ready_seconds(installation) for _ in range(options.rounds)]
        with installation.service() as service:
            idle = memory_mb(service.pid)
            kinds = {
                ONE: service.requests(),
                f"{ONE}, Idempotency-Key": service.requests(idempotency=True),
            }
            yield from rounds_of("c", kinds, service.pid, options)
            after_mints = memory_mb(service.pid)
            yield from rounds_of("d", {BATCH: service.requests(100)}, service.pid, options)
            yield Figure("i", "memory of a worker, idle", "MB", [idle])
            yield Figure("i", "memory of a worker, after (c)", "MB", [after_mints])
            yield Figure("i", "memory of a worker, after (d)", "MB", [memory_mb(service.pid)])
        yield Figure("i", "start to ready", "s", ready)


def latency(options: Options) -> Iterator[Figure]:
    """Measure (e) latency under a given load, and with batches of 1,000 beside it."""
    with installed() as installation, installation.service() as service:
        capacity = rounds_of("e", {ONE: service.requests()}, service.pid, options, only_rate=True)
        full = capacity[0].value
        yield Figure("e", "taken as 100 %", PER_SECOND, capacity[0].rounds)
        for percent in LOADS:
            yield from _paced(service, f"{percent} % load", full * percent / 100, options)
        rate, thousand = full * BESIDE / 100, service.requests(1000)
        every_second = partial(_batches_every_second, thousand, options)
        yield from _paced(
            service, f"{BESIDE} % load, a batch of 1,000 every second", rate, options, every_second
        )
        always = partial(
            always_asking,
            thousand,
            cores=load_cores(),
            connections=1,
            seconds=_paced_seconds(options) + 2,
        )
        yield from _paced(
            service, f"{BESIDE} % load, one batch of 1,000 after another", rate, options, always
        )


def workers(options: Options) -> Iterator[Figure]:
    """Measure (f) two workers on two cores, which they share with the load."""
    for name, opened in (("SQLite", installed), ("PostgreSQL", postgres_installed)):
        with opened() as installation:
            with installation.service():
                pass  # It makes the key: one worker would be ready a moment before the other has it.
            with installation.service(workers=2) as service:
                kinds = {
                    f"two workers, {name}, {ONE}": service.requests(),
                    f"two workers, {name}, {BATCH}": service.requests(100),
                }
                yield from rounds_of("f", kinds, service.pid, options, servers=2, only_rate=True)
                memory = [memory_mb(worker) for worker in service.workers]
                yield Figure("f", f"two workers, {name}: memory of each", "MB", memory)


def databases(options: Options) -> Iterator[Figure]:
    """Measure (g) both databases, one worker."""
    for name, opened in (("SQLite", installed), ("PostgreSQL", postgres_installed)):
        with opened() as installation, installation.service() as service:
            kinds = {
                f"{name}, {ONE}": service.requests(),
                f"{name}, {BATCH}": service.requests(100),
            }
            yield from rounds_of("g", kinds, service.pid, options)


def rows(options: Options) -> Iterator[Figure]:
    """Measure (h) mints and look-ups with ever more living tokens in the ledger, and with many bans."""
    with installed() as installation:
        with installation.service():
            pass  # It makes the key that the rows are of.
        filled = 0
        for count in (count for count in LEDGERS if count <= options.rows):
            filling.add_rows(installation.sqlite_path, count - filled)
            filled = count
            yield from _with_rows(installation, f"{count:,} rows", count, options)
    with installed() as installation:
        filling.add_bans(installation.database_url, installation.stage, BANS)
        yield from _with_rows(installation, f"{BANS:,} bans", None, options)


def others(options: Options) -> Iterator[Figure]:
    """Measure (j) the same POST, served by what one would write instead."""
    with installed() as installation, installation.service() as service:
        yield from rounds_of(
            "j", {"tokensvc": service.requests()}, service.pid, options, only_rate=True
        )
    for other in OTHERS:
        reason = other.install()
        if reason:
            yield Figure("j", f"{other.name}: not measured, {reason}", PER_SECOND, [0.0])
            continue
        with other.running() as (pid, requests):
            yield from rounds_of("j", {other.name: requests}, pid, options, only_rate=True)


RUNS: dict[str, Callable[[Options], Iterator[Figure]]] = {
    run.__name__: run for run in (signatures, mints, latency, workers, databases, rows, others)
}


def _ready_seconds(installation: Installation) -> float:
    with installation.service() as service:
        return service.ready_seconds


def _paced_seconds(options: Options) -> float:
    return max(5.0, options.seconds)


def _paced(
    service: Service,
    name: str,
    rate: float,
    options: Options,
    beside: Callable[[], object] | None = None,
) -> Iterator[Figure]:
    said = []
    for number in range(options.rounds):
        with beside() if beside else _nothing():
            said.append(
                pace(
                    service.requests(),
                    cores=load_cores(),
                    rate=rate,
                    seconds=_paced_seconds(options),
                    seed=number + 1,
                )
            )
    for label, key in (("p50", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p99_9_ms")):
        yield Figure("e", f"{name}: {label}", "ms", [one[key] for one in said], x=rate)
    late = [one["late_p99_ms"] for one in said]
    yield Figure("e", f"{name}: p99 of the load's own lateness", "ms", late, x=rate)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _batches_every_second(thousand: Requests, options: Options) -> Iterator[None]:
    with ThreadPoolExecutor(1) as pool:
        batches = pool.submit(
            pace,
            thousand,
            cores=load_cores(),
            rate=1.0,
            seconds=_paced_seconds(options),
            connections=4,
            seed=random.randrange(1, 1000),
        )
        yield
        batches.result()


def _with_rows(
    installation: Installation, name: str, x: float | None, options: Options
) -> Iterator[Figure]:
    with installation.service() as service:
        yield from rounds_of(
            "h", {f"{name}: {ONE}": service.requests()}, service.pid, options, x=x, only_rate=True
        )
        if x is not None:
            by_user = [{"userId": filling.user()} for _ in range(LOOK_UPS)]
            by_both = [{"stageArn": filling.stage(), **query} for query in by_user]
            for label, queries in (("a user's", by_user), ("a user's on a stage", by_both)):
                took = service.look_up(queries)
                p99 = quantiles(took, n=100)[98]
                yield Figure("h", f"{name}: look-up of {label} tokens, p50", "ms", took[50:], x=x)
                yield Figure("h", f"{name}: look-up of {label} tokens, p99", "ms", [p99], x=x)
        yield Figure("h", f"{name}: memory of the worker", "MB", [memory_mb(service.pid)], x=x)
        yield Figure("h", f"{name}: start to ready", "s", [service.ready_seconds], x=x)
