"""The parts of the service, put together; for the server and for the commands that do its work.

`open_parts` opens everything that a mint needs and closes it in the reverse order, each within a bounded
time. It never migrates a database and never creates a master key: what is missing is a
ConfigurationError that says what to run. Besides `app.py` and `server.py`, nothing of this package reads
settings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.callers import CallerDirectory, SqlCallerStore
from tokensvc.http.background import Sleep
from tokensvc.http.database import database_limits, open_database, open_writes
from tokensvc.http.desk_parts import Desk, DeskBasis, make_desk
from tokensvc.http.key_operations import KeyOperations
from tokensvc.http.sealers import Sealers, open_sealers
from tokensvc.issuing.endpoint_store import SqlEndpointStore
from tokensvc.ivs.boto import BotoIvsGateway
from tokensvc.ivs.budgets import CallBudgets
from tokensvc.ivs.clients import ClientSettings
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.ivs.clock_watch import ClockWatch
from tokensvc.ivs.gateway import IvsGateway
from tokensvc.ivs.stages import StageEndpointCache
from tokensvc.keyring import (
    RingManager,
    RingStore,
    RotationPolicy,
    SqlRingStore,
)
from tokensvc.keyring.audited import AuditedRingStore
from tokensvc.keyring.follower import RingFollower
from tokensvc.keyring.reports import RegionReports, SqlRegionReports
from tokensvc.ledger import Ledger, LedgerWriter
from tokensvc.ledger.writer import Durability
from tokensvc.settings import Settings
from tokensvc.signing import Backend
from tokensvc.store import ensure_current
from tokensvc.store.notify import Changes, open_changes
from tokensvc.store.transactions import Transactions
from tokensvc.telemetry.audit import Audit

__all__ = ["Parts", "open_gateway", "open_parts", "rotation_policy", "signer_backend"]

_CLOSE_SECONDS: Final = 10.0
_SMALLEST_LEAP_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What one process works with; belongs to one event loop."""

    regions: tuple[str, ...]
    ring_id: str
    clock: Callable[[], float]
    engine: AsyncEngine
    changes: Changes
    ledger: Ledger
    writer: LedgerWriter
    rings: RingStore
    sealers: Sealers
    gateway: IvsGateway
    drift: ClockDrift
    clock_watch: ClockWatch
    budgets: CallBudgets
    transactions: Transactions
    manager: RingManager
    ring: RingFollower
    reports: RegionReports
    keys: KeyOperations
    stages: StageEndpointCache
    desk: Desk
    callers: CallerDirectory


def open_gateway(
    settings: Settings, drift: ClockDrift | None = None, budgets: CallBudgets | None = None
) -> BotoIvsGateway:
    """Return a gateway to IVS as the settings say; whoever asks for it calls `aclose`.

    `drift`, where given, learns AWS's time from every answer. Without `budgets` it has its own.
    """
    return BotoIvsGateway(
        ClientSettings(
            endpoint_url=settings.aws_endpoint_url,
            connect_timeout_seconds=settings.aws_connect_timeout,
            read_timeout_seconds=settings.aws_read_timeout,
            total_max_attempts=settings.aws_max_attempts,
        ),
        budgets=budgets or CallBudgets(share=settings.aws_call_share),
        drift=drift,
    )


@asynccontextmanager
async def open_parts(
    settings: Settings,
    clock: Callable[[], float],
    *,
    gateway: IvsGateway | None = None,
    sleep: Sleep = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
    audit: Audit | None = None,
    tell_of_bans: Callable[[int], Awaitable[None]] | None = None,
) -> AsyncIterator[Parts]:
    """Open the parts; the key ring and the callers have been read once when the body begins.

    `clock` gives Unix seconds, `monotonic` seconds of a clock that nobody sets. A `gateway` that is
    given stays open at the end; `audit` is told of every change of a key; `tell_of_bans`, see `Revocations`.
    Raises ConfigurationError
    where Regions, database, schema or master key are missing, and StoreUnavailableError where the
    database does not answer.
    """
    regions = settings.require_regions()
    policy = rotation_policy(settings)
    drift = ClockDrift(clock)
    watch = ClockWatch(
        drift, monotonic=monotonic, limit=max(settings.clock_skew, _SMALLEST_LEAP_SECONDS)
    )
    async with AsyncExitStack() as closing:
        engine = open_database(settings)
        closing.push_async_callback(_close, "store", engine.dispose)
        await ensure_current(engine)
        sealers = await closing.enter_async_context(open_sealers(settings))
        budgets = CallBudgets(share=settings.aws_call_share)
        if gateway is None:
            own = open_gateway(settings, drift, budgets)
            closing.push_async_callback(_close, "ivs", own.aclose)
            gateway = own
        ledger = Ledger(engine)
        transactions = open_writes(settings, engine)
        closing.push_async_callback(_close, "store writer", transactions.aclose)
        writer = LedgerWriter(
            transactions,
            clock=clock,
            durability=cast("Durability", settings.ledger),
            monotonic=monotonic,
        )
        writer.start()
        closing.push_async_callback(_close, "ledger", writer.aclose)
        rings: RingStore = SqlRingStore(engine, settings.ring_id, clock)
        if audit is not None:
            rings = AuditedRingStore(rings, audit)
        manager = RingManager(
            store=rings,
            sealer=sealers.sealer,
            gateway=gateway,
            policy=policy,
            drain=ledger,
            clock=clock,
            clock_off=lambda region: _clock_off(drift, region),
            sleep=sleep,
            ring_id=settings.ring_id,
            signer_backend=signer_backend(settings),
        )
        stages = StageEndpointCache(
            gateway,
            clock,
            ttl_seconds=settings.stage_cache_ttl,
            negative_ttl_seconds=settings.negative_ttl,
            store=SqlEndpointStore(engine, clock),
        )
        closing.push_async_callback(_close, "stages", stages.aclose)
        ring = RingFollower(manager, clock=monotonic, max_age=settings.ring_max_age)
        reports = SqlRegionReports(engine, settings.ring_id)
        callers = CallerDirectory(SqlCallerStore(engine, clock), clock)
        desk = make_desk(
            settings,
            DeskBasis(
                regions=regions,
                engine=engine,
                transactions=transactions,
                ledger=ledger,
                writer=writer,
                gateway=gateway,
                stages=stages,
                view=ring.view,
                clock=clock,
                monotonic=monotonic,
                sleep=sleep,
                clock_is_right=watch.is_right,
                tell_of_bans=tell_of_bans,
            ),
        )
        await ring.refresh()
        await callers.refresh()
        await stages.restore()
        # Before the first mint: a ban that is not known yet would not hold.
        await desk.bans.refresh()
        yield Parts(
            regions=regions,
            ring_id=settings.ring_id,
            clock=clock,
            engine=engine,
            changes=open_changes(
                settings.database_url, database_limits(settings), clock=monotonic, sleep=sleep
            ),
            ledger=ledger,
            writer=writer,
            rings=rings,
            sealers=sealers,
            gateway=gateway,
            drift=drift,
            clock_watch=watch,
            budgets=budgets,
            transactions=transactions,
            manager=manager,
            ring=ring,
            reports=reports,
            keys=KeyOperations(
                regions=regions,
                manager=manager,
                rings=rings,
                ring=ring,
                reports=reports,
                ledger=ledger,
                revocations=desk.revocations,
                clock=clock,
            ),
            stages=stages,
            desk=desk,
            callers=callers,
        )


def rotation_policy(settings: Settings) -> RotationPolicy:
    """Return when keys change; raises ConfigurationError where that cannot work in IVS's slots."""
    return RotationPolicy(
        period=settings.rotation_period,
        longest_participant_ttl=settings.max_duration * 60.0,
        longest_connection_ttl=settings.max_connection_duration * 60.0,
        skew=settings.clock_skew,
        standby_min_age=settings.standby_min_age,
        view_max_age=settings.ring_max_age,
        overdue_after=settings.rotation_overdue,
        # Where rows may be lost, a key stays as long as its longest token could live.
        ledger_complete=settings.ledger == "durable",
    )


def _clock_off(drift: ClockDrift, region: str) -> float:
    reading = drift.latest(region)
    return 0.0 if reading is None else reading.at_least_seconds


def signer_backend(settings: Settings) -> Backend | None:
    """Return whose ECDSA is to sign; None for the best that is installed."""
    return None if settings.signer == "auto" else cast("Backend", settings.signer)


async def _close(part: str, close: Callable[[], Awaitable[None]]) -> None:
    # A part that does not close must not keep the others from being closed.
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await close()
    except TimeoutError:
        _log.warning("part_does_not_close", part=part, seconds=_CLOSE_SECONDS)
    except Exception as fault:  # noqa: BLE001 - logged, and the next part is closed
        _log.error("part_failed_to_close", part=part, exc_info=fault)
