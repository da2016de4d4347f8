"""The application: the parts wired together, for as long as the server runs.

Startup opens the parts, says in the log who signs and how fast, and starts the work in the background:
following the stored key ring and the stored callers, canary signatures, and the care of the Regions'
keys. Shutdown goes the other way, every step within a bounded time. A start that fails for a reason the
operator can mend leaves it in `startup_error` of the application, for one line instead of a traceback.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import Final

import structlog
from litestar import Litestar

from tokensvc.errors import TokenServiceError
from tokensvc.http.admission import Admission, open_admission
from tokensvc.http.auditing import auditing
from tokensvc.http.background import Sleep, every, running
from tokensvc.http.ban_routes import BAN_ROUTES
from tokensvc.http.bodies import batch_decoder
from tokensvc.http.connection_routes import CONNECTION_ROUTES
from tokensvc.http.database import deleting_writes
from tokensvc.http.direct_mint import DirectMint
from tokensvc.http.disconnect_routes import DISCONNECT_ROUTES
from tokensvc.http.edge import Edge
from tokensvc.http.health_routes import HEALTH_ROUTES
from tokensvc.http.health_watch import AuditWatch, DriftWatch, LogWatch
from tokensvc.http.issued_watch import LOOK_SECONDS, IssuedWatch
from tokensvc.http.key_reports import COUNT_SECONDS, REPORT_SECONDS, KeyReports
from tokensvc.http.key_routes import KEY_ROUTES
from tokensvc.http.key_watch import KeyWatch
from tokensvc.http.ledger_routes import LEDGER_ROUTES
from tokensvc.http.openapi import publish, schema
from tokensvc.http.options import options_of
from tokensvc.http.parts import Parts, open_parts, signer_backend
from tokensvc.http.problems import answer_exception
from tokensvc.http.readiness import CANARY_SECONDS, Check, Readiness
from tokensvc.http.request_audit import RequestAudit, policy_recorder
from tokensvc.http.service import Service, install
from tokensvc.http.sharing import BudgetSharing
from tokensvc.http.short_way import ShortWay, short_ways
from tokensvc.http.siblings import Siblings
from tokensvc.http.token_routes import TOKEN_ROUTES, mint, mint_batch
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ivs.gateway import IvsGateway
from tokensvc.keyring.loop import RotationLoop, longest_pause
from tokensvc.keyring.turns import KEEP_SECONDS, RotationTurns
from tokensvc.ledger import LedgerJanitor
from tokensvc.settings import Settings
from tokensvc.signing import Backend, generate_private_key, load_signer, signatures_per_second
from tokensvc.store.leases import LeaseStore
from tokensvc.telemetry.audit import Audit
from tokensvc.telemetry.metrics import Metrics

__all__ = ["create_app"]

TIDY_SECONDS: Final = 60.0
SWEEP_SECONDS: Final = 10.0

ROUTES: Final = (
    *TOKEN_ROUTES,
    *LEDGER_ROUTES,
    *CONNECTION_ROUTES,
    *DISCONNECT_ROUTES,
    *BAN_ROUTES,
    *KEY_ROUTES,
    *HEALTH_ROUTES,
    schema,
)

_log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    gateway: IvsGateway | None = None,
    sleep: Sleep = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
    tend_keys: bool = True,
    limit_share: float = 1.0,
    siblings: Siblings | None = None,
) -> Edge:
    """Return the ASGI application; nothing is opened before its lifespan begins.

    `clock` gives Unix seconds, `sleep` waits them, and `monotonic` is a clock that nobody sets. With
    `gateway`, that one is asked instead of AWS, and stays open. With `tend_keys` false another
    process looks after the Regions' keys. `limit_share` is this process's part of the policy's limits.
    `siblings` are the other workers of the same `serve`.
    Raises ConfigurationError where no Region is set.
    """
    settings.require_regions()
    metrics = Metrics()
    release = version("tokensvc")

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        try:
            async with (
                auditing(settings, clock) as audit,
                open_parts(
                    settings,
                    clock,
                    gateway=gateway,
                    sleep=sleep,
                    monotonic=monotonic,
                    audit=audit,
                    tell_of_bans=None if siblings is None else siblings.tell,
                ) as parts,
                open_admission(
                    settings,
                    parts.callers,
                    parts.stages,
                    clock=clock,
                    monotonic=monotonic,
                    share=limit_share,
                ) as admission,
                _serving(app, parts, admission, audit),
            ):
                edge.startup_error = None
                yield
        except TokenServiceError as error:
            edge.startup_error = error
            raise

    @asynccontextmanager
    async def _serving(
        app: Litestar, parts: Parts, admission: Admission, audit: Audit
    ) -> AsyncIterator[None]:
        await _say_who_signs(signer_backend(settings))
        reports = _reports(parts, monotonic)
        watch = KeyWatch(
            parts.regions,
            view=parts.ring.view,
            status=reports.status,
            living=reports.living,
            rotation_check=settings.rotation_check,
            clock=clock,
        )
        janitor = LedgerJanitor(
            parts.engine,
            deleting_writes(parts.engine, parts.transactions),
            # A key is kept until the latest `exp` that the ledger knows of it, and the skew.
            retention=max(settings.ledger_retention, 2 * settings.clock_skew),
            clock=clock,
            sleep=sleep,
            monotonic=monotonic,
        )
        issued = _issued_watch(parts, janitor)
        metrics.watch(watch)
        metrics.watch(issued)
        told = AuditWatch(audit)
        metrics.watch(told)
        log = LogWatch()
        metrics.watch(log)
        drift = DriftWatch(parts.drift, settings.clock_skew)
        metrics.watch_clock(parts.drift.offsets)
        readiness = _readiness(
            settings,
            parts,
            metrics,
            lambda: [
                *issued.checks(),
                *watch.checks(),
                *drift.checks(),
                *told.checks(),
                *log.checks(),
                *admission.checks(),
            ],
        )
        await readiness.sign_canaries()
        _watch(parts, metrics)
        admission.watch(metrics)
        ended: list[str] = []
        service = _service(
            settings,
            parts,
            admission,
            readiness,
            metrics,
            audit,
            is_alive=lambda: not ended and not parts.writer.has_ended(),
        )
        install(app.state, service)

        async def follow() -> None:
            await parts.ring.refresh()
            watch.note_signing()

        background = [
            parts.changes.run(),
            every(
                settings.ring_refresh,
                follow,
                name="key ring",
                sleep=parts.changes.sleep_for("rings"),
            ),
            parts.callers.run(settings.caller_refresh, parts.changes.sleep_for("callers")),
            parts.desk.bans.run(parts.changes.sleep_for("bans")),
            *(worker.run() for worker in parts.desk.workers),
            every(LOOK_SECONDS, issued.look, name="disconnect queue", sleep=sleep),
            every(CANARY_SECONDS, readiness.sign_canaries, name="canary", sleep=sleep),
        ]
        if audit.lines is not None:

            async def tell() -> None:
                audit.tell_mints()

            background.append(every(settings.audit_interval, tell, name="audit", sleep=sleep))
        if admission.file is not None:
            admission.file.tell(policy_recorder(audit, settings.policy_file))
            background.append(admission.file.run(settings.policy_refresh, sleep))
        turns = RotationTurns(
            LeaseStore(parts.engine, parts.transactions),
            settings.ring_id,
            secrets.token_hex(8),
            seconds=longest_pause(settings.rotation_check),
            clock=clock,
        )

        def may_delete() -> bool:
            # What a wrong clock takes for expired may be alive. AWS's time is heard of every few
            # seconds where the keys are looked after; and one janitor of all replicas is enough.
            return turns.any and parts.clock_watch.is_right()

        async def sweep() -> None:
            if may_delete():
                await janitor.sweep()
            else:
                janitor.stand_by()

        async def tidy() -> None:
            if may_delete():
                await parts.desk.revocations.tidy()

        if tend_keys:

            async def renew() -> None:
                await parts.ring.refresh(reload=True)
                watch.note_signing()
                await readiness.sign_canaries()

            loop = RotationLoop(
                reports,
                parts.regions,
                interval=settings.rotation_check,
                turns=turns,
                changed=renew,
                clock=clock,
                sleep=sleep,
            )
            background += [
                loop.run(),
                every(KEEP_SECONDS, turns.keep, name="key turns", sleep=sleep),
                every(SWEEP_SECONDS, sweep, name="ledger janitor", sleep=sleep),
                every(TIDY_SECONDS, tidy, name="revocations", sleep=sleep),
                every(COUNT_SECONDS, reports.count, name="living tokens", sleep=sleep),
            ]
        sharing = BudgetSharing(
            parts.budgets, parts.transactions, monotonic, workers=settings.workers
        )
        # Those who look after keys take turns, so that the latest look may be another's for them, too.
        await reports.refresh()
        background += [
            every(REPORT_SECONDS, reports.refresh, name="reports of Regions", sleep=sleep),
            sharing.run(sleep),
        ]
        answering = nullcontext() if siblings is None else siblings.answering(parts.desk.bans)
        async with (
            sharing.taking_part(),
            turns.taking_part(),
            running(background, ended.append),
            answering,
        ):
            _log.info("service_started", regions=parts.regions, version=release)
            edge.audit = RequestAudit(audit)
            edge.reload = admission.reload
            edge.short_ways = short_ways(
                ShortWay(app, service, "POST", "/v1/tokens", mint.fn, DirectMint(service).begin),
                ShortWay(app, service, "POST", "/v1/tokens/batch", mint_batch.fn),
            )
            yield
            edge.short_ways = {}
            _log.info("service_stopping")
        install(app.state, None)

    app = Litestar(
        route_handlers=[*options_of(ROUTES), *ROUTES],
        lifespan=[lifespan],
        exception_handlers={Exception: answer_exception},
        openapi_config=None,
        logging_config=None,
    )
    publish(app, release)
    edge = Edge(app, metrics)
    return edge


def _service(
    settings: Settings,
    parts: Parts,
    admission: Admission,
    readiness: Readiness,
    metrics: Metrics,
    audit: Audit,
    is_alive: Callable[[], bool],
) -> Service:
    return Service(
        desk=parts.desk.tokens,
        revocations=parts.desk.revocations,
        ledger=parts.ledger,
        callers=admission.callers,
        gate=admission.gate,
        keys=parts.keys,
        view=parts.ring.view,
        public_keys=parts.gateway,
        readiness=readiness,
        is_alive=is_alive,
        metrics=metrics,
        audit=audit,
        clock=parts.clock,
        regions=frozenset(parts.regions),
        max_duration=settings.max_duration,
        max_connection_duration=settings.max_connection_duration,
        max_body_bytes=settings.max_body_bytes,
        max_batch_body_bytes=settings.max_batch_body_bytes,
        cut_batch=batch_decoder(settings.max_batch),
        new_slices=lambda: LoopSlices(company=parts.writer.company),
    )


def _reports(parts: Parts, monotonic: Callable[[], float]) -> KeyReports:
    return KeyReports(
        parts.regions,
        ticker=parts.manager,
        own=parts.manager.status,
        reports=parts.reports,
        ledger=parts.ledger,
        view=parts.ring.as_read,
        clock=parts.clock,
        monotonic=monotonic,
    )


def _issued_watch(parts: Parts, janitor: LedgerJanitor) -> IssuedWatch:
    workers = dict(zip(parts.regions, parts.desk.workers, strict=True))
    return IssuedWatch(
        parts.regions,
        writer=parts.writer,
        bans=parts.desk.bans,
        queues=parts.desk.calls,
        calls=lambda: {region: worker.counts() for region, worker in workers.items()},
        deletion_late=janitor.late,
        clock=parts.clock,
    )


def _readiness(
    settings: Settings, parts: Parts, metrics: Metrics, others: Callable[[], list[Check]]
) -> Readiness:
    return Readiness(
        regions=parts.regions,
        view=parts.ring.as_read,
        trust=parts.ring.trust,
        ring_age=parts.ring.age,
        ring_refresh=settings.ring_refresh,
        other_checks=others,
        callers_age=parts.callers.age,
        caller_refresh=settings.caller_refresh,
        metrics=metrics,
        clock=parts.clock,
    )


def _watch(parts: Parts, metrics: Metrics) -> None:
    stages = parts.stages
    metrics.watch_age("ring", parts.ring.age)
    metrics.watch_age("callers", parts.callers.age)
    metrics.watch_age("bans", parts.desk.bans.age)
    metrics.watch_age("changes", parts.changes.lost_for)
    metrics.watch_age("stages", lambda: stages.oldest_age(parts.clock()))
    metrics.watch_lookups(
        lambda: {
            "fresh": stages.hits,
            "stale": stages.stale,
            "miss": stages.misses,
            "unknown": stages.negative_hits,
        }
    )


async def _say_who_signs(backend: Backend | None) -> None:
    # Measured with a key of no ring, so that no use of a real key goes unaccounted for.
    def measure() -> tuple[Backend, float]:
        signer = load_signer(generate_private_key(), backend)
        return signer.backend, signatures_per_second(signer)

    chosen, speed = await asyncio.to_thread(measure)
    _log.info("signer_chosen", signer=chosen, signatures_per_second=round(speed))
