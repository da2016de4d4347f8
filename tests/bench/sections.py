"""What is measured, section by section; `docs/performance.md` has what the letters stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median, quantiles
from time import monotonic, sleep
from typing import NamedTuple, TypeAlias

from tests.bench import filling
from tests.bench.figures import PER_SECOND, Figure
from tests.bench.installation import Installation, Service, installed, postgres_installed
from tests.bench.load import always_asking, asking_every_second, pace
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
LIVING_BESIDE, EXPIRED = 1_000_000, 1_000_000
"""Rows of the ledger that is measured while expired rows are deleted from it."""
LOOK_UPS = 300
PATIENCE_SECONDS = 60.0


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
            yield from rounds_of("c", kinds, options)
            after_mints = memory_mb(service.pid)
            yield from rounds_of("d", {BATCH: service.requests(100)}, options)
            yield Figure("i", "memory of a worker, idle", "MB", [idle])
            yield Figure("i", "memory of a worker, after (c)", "MB", [after_mints])
            yield Figure("i", "memory of a worker, after (d)", "MB", [memory_mb(service.pid)])
        yield Figure("i", "start to ready", "s", ready)


def latency(options: Options) -> Iterator[Figure]:
    """Measure (e) latency under a given load, and with batches of 1,000 beside it.

    In each round all loads are asked for in turn, as parts of what the worker took at its beginning.
    """
    with installed() as installation, installation.service() as service:
        thousand = service.requests(1000)
        loads: dict[str, tuple[int, _Beside | None]] = {
            f"{percent} % load": (percent, None) for percent in LOADS
        }
        for name, asking, connections in (
            ("a batch of 1,000 every second", asking_every_second, 4),
            ("one batch of 1,000 after another", always_asking, 1),
        ):
            beside = partial(
                asking,
                thousand,
                cores=load_cores(),
                connections=connections,
                # The load warms up for a second first, and the service has to be at work on it then.
                seconds=_paced_seconds(options) + 2,
            )
            loads[f"{BESIDE} % load, {name}"] = (BESIDE, beside)
        full: list[float] = []
        said: dict[str, list[_Said]] = {name: [] for name in loads}
        for number in range(options.rounds):
            kinds, once = {ONE: service.requests()}, replace(options, rounds=1)
            full += rounds_of("e", kinds, once, only_rate=True)[0].rounds
            for name, (percent, beside_it) in loads.items():
                rate = full[-1] * percent / 100
                said[name].append(_paced_round(service, rate, options, number, beside_it))
        yield Figure("e", "taken as 100 %", PER_SECOND, full)
        for name, (percent, _) in loads.items():
            yield from _latencies("e", name, median(full) * percent / 100, said[name])


def deletion(options: Options) -> Iterator[Figure]:
    """Measure (k) latency as in (e), while rows that have expired are deleted all the time."""
    with installed() as installation:
        with installation.service():
            pass  # It makes the key that the rows are of.
        database = installation.sqlite_path
        filling.add_rows(database, min(options.rows, LIVING_BESIDE))
        with installation.service() as service:
            kinds = {ONE: service.requests()}
            full = rounds_of("k", kinds, options, only_rate=True)[0].value
        filling.add_rows(database, EXPIRED, filling.long_expired)
        with installation.service() as service:
            due, deadline = filling.still_due(database), monotonic() + PATIENCE_SECONDS
            while filling.still_due(database) == due:
                if monotonic() > deadline:
                    raise RuntimeError("the service deletes nothing")
                sleep(0.1)  # It begins some seconds after its start.
            for percent in (BESIDE // 2, BESIDE):
                due, begun = filling.still_due(database), monotonic()
                rate = full * percent / 100
                said = [
                    _paced_round(service, rate, options, number) for number in range(options.rounds)
                ]
                yield from _latencies("k", f"{percent} % load", rate, said)
                left = filling.still_due(database)
                if not left:
                    raise RuntimeError("too few expired rows: nothing was left to delete")
                deleted = (due - left) / (monotonic() - begun)
                yield Figure("k", f"{percent} % load: rows deleted", PER_SECOND, [deleted])
        yield Figure("k", "taken as 100 %, nothing deleted", PER_SECOND, [full])


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
                yield from rounds_of("f", kinds, options, servers=2, only_rate=True)
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
            yield from rounds_of("g", kinds, options)


def rows(options: Options) -> Iterator[Figure]:
    """Measure (h) mints and look-ups with ever more living tokens in the ledger, and with many bans.

    All of them run at once and are asked in turn, so that what the machine does meanwhile meets all.
    """
    with ExitStack() as running:
        services, x = {}, {}
        for count in (count for count in LEDGERS if count <= options.rows):
            installation = running.enter_context(installed())
            with installation.service():
                pass  # It makes the key that the rows are of.
            filling.add_rows(installation.sqlite_path, count)
            name = f"{count:,} rows"
            services[name], x[name] = running.enter_context(installation.service()), float(count)
        installation = running.enter_context(installed())
        filling.add_bans(installation.database_url, installation.stage, BANS)
        services[f"{BANS:,} bans"] = running.enter_context(installation.service())
        kinds = {f"{name}: {ONE}": service.requests() for name, service in services.items()}
        at = {f"{name}: {ONE}": count for name, count in x.items()}
        yield from rounds_of("h", kinds, options, x=at, only_rate=True)
        for name, count in x.items():
            yield from _look_ups(services[name], name, count, options)
        for name, service in services.items():
            yield Figure(
                "h", f"{name}: memory of the worker", "MB", [memory_mb(service.pid)], x=x.get(name)
            )
            yield Figure(
                "h", f"{name}: start to ready", "s", [service.ready_seconds], x=x.get(name)
            )


def others(options: Options) -> Iterator[Figure]:
    """Measure (j) the same POST, served by what one would write instead; all are asked in turn."""
    with ExitStack() as running:
        service = running.enter_context(running.enter_context(installed()).service())
        kinds = {"tokensvc": service.requests()}
        for other in OTHERS:
            if reason := other.install():
                yield Figure("j", f"{other.name}: not measured, {reason}", PER_SECOND, [0.0])
            else:
                kinds[other.name] = running.enter_context(other.running())
        yield from rounds_of("j", kinds, options, only_rate=True)


RUNS: dict[str, Callable[[Options], Iterator[Figure]]] = {
    run.__name__: run
    for run in (signatures, mints, latency, deletion, workers, databases, rows, others)
}


def _ready_seconds(installation: Installation) -> float:
    with installation.service() as service:
        return service.ready_seconds


def _paced_seconds(options: Options) -> float:
    return max(5.0, options.seconds)


_Beside: TypeAlias = Callable[[], AbstractContextManager[Mapping[str, float]]]
"""Begins to ask for batches, and gives how long they took once it has ended."""


class _Said(NamedTuple):
    paced: Mapping[str, float]
    batches_p50_ms: float | None


def _paced_round(
    service: Service, rate: float, options: Options, number: int, beside: _Beside | None = None
) -> _Said:
    with beside() if beside else nullcontext({}) as batches:
        paced = pace(
            service.requests(),
            cores=load_cores(),
            rate=rate,
            seconds=_paced_seconds(options),
            seed=number + 1,
        )
    return _Said(paced, batches.get("p50_ms"))


def _latencies(section: str, name: str, rate: float, said: list[_Said]) -> Iterator[Figure]:
    for label, key in (("p50", "p50_ms"), ("p99", "p99_ms"), ("p99.9", "p99_9_ms")):
        yield Figure(section, f"{name}: {label}", "ms", [one.paced[key] for one in said], x=rate)
    batches = [one.batches_p50_ms for one in said if one.batches_p50_ms is not None]
    if batches:
        yield Figure(section, f"{name}: p50 of those batches", "ms", batches, x=rate)
    late = [one.paced["late_p99_ms"] for one in said]
    yield Figure(section, f"{name}: p99 of the load's own lateness", "ms", late, x=rate)


def _look_ups(service: Service, name: str, x: float, options: Options) -> Iterator[Figure]:
    found: dict[str, list[list[float]]] = {}
    for _ in range(options.rounds):
        by_user = [{"userId": filling.user()} for _ in range(LOOK_UPS)]
        by_both = [{"stageArn": filling.stage(), **query} for query in by_user]
        for label, queries in (("a user's tokens", by_user), ("a user's on a stage", by_both)):
            found.setdefault(label, []).append(service.look_up(queries))
    for label, rounds in found.items():
        p50 = [median(took) for took in rounds]
        p99 = [quantiles(took, n=100)[98] for took in rounds]
        yield Figure("h", f"{name}: look-up of {label}, p50", "ms", p50, x=x)
        yield Figure("h", f"{name}: look-up of {label}, p99", "ms", p99, x=x)
