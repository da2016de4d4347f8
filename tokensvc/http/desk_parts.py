"""What hands tokens out, and what takes them back: put together from parts that are open already."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from tokensvc.http.background import Sleep
from tokensvc.issuing.connection import ConnectionSigner
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.fallback import Fallback
from tokensvc.issuing.issuer import StageLookup, TokenIssuer
from tokensvc.ivs.gateway import IvsGateway
from tokensvc.keyring import KeyPhase, RingView
from tokensvc.ledger import IdempotencyStore, Ledger, LedgerWriter
from tokensvc.revocation import (
    BanList,
    BanStore,
    CallQueue,
    DisconnectStore,
    DisconnectWorker,
    Revocations,
    WorkerTimes,
)
from tokensvc.settings import Settings
from tokensvc.store.leases import LeaseStore
from tokensvc.store.transactions import Transactions

__all__ = ["Desk", "DeskBasis", "make_desk"]


@dataclass(frozen=True, slots=True)
class DeskBasis:
    """What a desk is made from; clocks are in seconds, `clock` in Unix seconds.

    `tell_of_bans` returns when the other processes of this replica know the bans up to a version; None
    where there are none.
    """

    regions: tuple[str, ...]
    engine: AsyncEngine
    transactions: Transactions
    ledger: Ledger
    writer: LedgerWriter
    gateway: IvsGateway
    stages: StageLookup
    view: Callable[[], RingView]
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Sleep
    clock_is_right: Callable[[], bool]
    tell_of_bans: Callable[[int], Awaitable[None]] | None


@dataclass(frozen=True, slots=True)
class Desk:
    """Tokens out, and tokens back; the bans are not read yet (`bans.refresh`)."""

    tokens: TokenDesk
    fallback: Fallback
    bans: BanList
    ban_store: BanStore
    revocations: Revocations
    calls: CallQueue
    workers: tuple[DisconnectWorker, ...]


def make_desk(settings: Settings, basis: DeskBasis) -> Desk:
    """Put the parts together; nothing is started and nothing is read."""
    ban_store = BanStore(basis.engine, basis.transactions, basis.clock)
    bans = BanList(ban_store, basis.clock)
    disconnects = DisconnectStore(basis.engine, basis.transactions)
    calls = CallQueue(basis.engine, basis.transactions)
    fallback = Fallback(basis.gateway, basis.monotonic)
    workers = _workers(basis, disconnects, calls, bans)
    tokens = TokenDesk(
        issuer=TokenIssuer(
            view=basis.view,
            endpoints=basis.stages,
            gateway=fallback,
            ledger=basis.writer,
            admit=bans.admit,
            admits_all=bans.admits_all,
            clock=basis.clock,
            iat_backdate=settings.iat_backdate,
        ),
        connections=ConnectionSigner(
            view=basis.view,
            admit=bans.admit,
            clock=basis.clock,
            iat_backdate=settings.iat_backdate,
            events_url=settings.connection_events_url,
        ),
        recorder=basis.writer,
        ledger=basis.ledger,
        pending=calls,
        answers=IdempotencyStore(basis.engine),
        key_is_gone=lambda arn: _is_gone(basis.view(), arn),
        clock=basis.clock,
        idempotency_window=settings.idempotency_window,
    )
    by_region = dict(zip(basis.regions, workers, strict=True))

    def wake(region: str) -> None:
        if region in by_region:
            by_region[region].wake()

    revocations = Revocations(
        store=disconnects,
        calls=calls,
        ban_store=ban_store,
        bans=bans,
        ledger=basis.ledger,
        clock=basis.clock,
        wake=wake,
        tell=basis.tell_of_bans,
        idempotency_window=settings.idempotency_window,
        retention=settings.ledger_retention,
    )
    return Desk(tokens, fallback, bans, ban_store, revocations, calls, workers)


def _workers(
    basis: DeskBasis, disconnects: DisconnectStore, calls: CallQueue, bans: BanList
) -> tuple[DisconnectWorker, ...]:
    leases = LeaseStore(basis.engine, basis.transactions)
    holder = secrets.token_hex(8)
    times = WorkerTimes(
        clock=basis.clock,
        monotonic=basis.monotonic,
        sleep=basis.sleep,
        luck=random.random,
        clock_is_right=basis.clock_is_right,
    )
    return tuple(
        DisconnectWorker(
            region,
            holder,
            store=disconnects,
            calls=calls,
            leases=leases,
            ledger=basis.ledger,
            bans=bans,
            gateway=basis.gateway,
            times=times,
        )
        for region in basis.regions
    )


def _is_gone(view: RingView, arn: str) -> bool:
    key = view.key_of(arn)
    return key is not None and key.phase is KeyPhase.DELETED
