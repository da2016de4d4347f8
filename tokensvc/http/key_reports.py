"""How the Regions' key rings stand, for every process of an installation.

A process that looks after keys stores what it found (`tick`) and how many tokens live (`count`); every
one reads what was stored last (`refresh`). A store that does not take or give a report stops nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from tokensvc.errors import StoreUnavailableError
from tokensvc.keyring import KeyPhase, RingView
from tokensvc.keyring.loop import Ticker
from tokensvc.keyring.reports import Living, RegionReport, RegionReports
from tokensvc.keyring.status import RegionStatus

__all__ = ["COUNT_SECONDS", "REPORT_SECONDS", "KeyReports", "newer"]

REPORT_SECONDS: Final = 10.0
"""Between two readings of the reports."""

COUNT_SECONDS: Final = 60.0
"""Between two counts of living tokens, at least."""

_COUNTING_PARTS: Final = 50.0
"""Of which counting may take one: the database counts millions of tokens for seconds."""

_COUNT_ROUNDS: Final = 3.0
"""After which nobody else counts any more."""

_MAY_HAVE_TOKENS: Final = (KeyPhase.ACTIVE, KeyPhase.RETIRING)

_log = structlog.get_logger(__name__)


class LivingTokens(Protocol):
    """What is asked of the ledger: `tokensvc.ledger.Ledger`."""

    async def count_living(self, now: float, *, key_id: str | None = None) -> int:
        """Count the living tokens of a key; raises StoreUnavailableError."""
        ...


class KeyReports:
    """The last report of each Region, own or stored; a `Ticker` of the rotation loop."""

    def __init__(
        self,
        regions: tuple[str, ...],
        *,
        ticker: Ticker,
        own: Callable[[str], RegionStatus | None],
        reports: RegionReports,
        ledger: LivingTokens,
        view: Callable[[], RingView],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """`own` is what this process itself found in a Region; `clock` gives Unix seconds."""
        self._regions = regions
        self._ticker = ticker
        self._own = own
        self._reports = reports
        self._ledger = ledger
        self._view = view
        self._clock = clock
        self._monotonic = monotonic
        self._read: Mapping[str, RegionReport] = {}
        self._counted: Mapping[str, Living] = {}
        self._count_again_at = -math.inf

    def status(self, region: str) -> RegionStatus | None:
        """Return how a Region stood when somebody last looked, as far as this process has heard."""
        return newer(self._own(region), self._read.get(region))

    def living(self, region: str) -> Mapping[str, int]:
        """Return the living tokens of a Region's keys by phase, as last counted; empty: not yet."""
        return self._last_count(region).by_phase

    async def tick(self, region: str) -> RegionStatus:
        """Let the Region's steps be taken, and store how it stands then."""
        status = await self._ticker.tick(region)
        try:
            await self._reports.save(RegionReport(status, self._last_count(region)))
        except StoreUnavailableError as error:
            _log.warning("region_report_not_stored", region=region, detail=error.detail)
        return status

    async def refresh(self) -> None:
        """Read what others have stored; raises StoreUnavailableError."""
        self._read = await self._reports.load()

    async def count(self) -> None:
        """Count the living tokens of each Region's keys, unless another process does.

        And the more rarely the longer that takes. Raises StoreUnavailableError.
        """
        began = self._monotonic()
        if began < self._count_again_at or self._others_count():
            return
        try:
            self._counted = await self._count()
        finally:
            now = self._monotonic()
            self._count_again_at = now + (now - began) * _COUNTING_PARTS

    def _others_count(self) -> bool:
        since = self._clock() - _COUNT_ROUNDS * COUNT_SECONDS
        own = {region: counted.at for region, counted in self._counted.items()}
        return all(
            self._last_count(region).at > max(since, own.get(region, 0.0))
            for region in self._regions
        )

    def _last_count(self, region: str) -> Living:
        counted, read = self._counted.get(region, Living()), self._read.get(region)
        return counted if read is None or read.living.at <= counted.at else read.living

    async def _count(self) -> dict[str, Living]:
        now = self._clock()
        counts = {region: dict.fromkeys(map(str, _MAY_HAVE_TOKENS), 0) for region in self._regions}
        for key in self._view().keys:
            if key.region in counts and key.phase in _MAY_HAVE_TOKENS:
                living = await self._ledger.count_living(now, key_id=key.key_id)
                counts[key.region][key.phase.value] += living
        return {region: Living(by_phase, now) for region, by_phase in counts.items()}


def newer(own: RegionStatus | None, read: RegionReport | None) -> RegionStatus | None:
    """Return the later of what this process found and what it read of others; None for neither."""
    if own is None or (read is not None and read.status.at > own.at):
        return None if read is None else read.status
    return own
