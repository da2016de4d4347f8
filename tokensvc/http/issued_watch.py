"""What was issued, and what is taken back, as monitoring sees it: metrics, and lines in `/readyz`.

A scrape does no I/O. How long the queue of disconnects is has to be asked of the database, which is
done in the background (`look`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tokensvc.http.readiness import Check
from tokensvc.ledger import LedgerWriter
from tokensvc.revocation import BanList, QueueState

__all__ = ["LOOK_SECONDS", "IssuedWatch"]

LOOK_SECONDS: Final = 10.0
"""How old what is told of the queue may be."""

STUCK_SECONDS: Final = 5.0
FAILED_SECONDS: Final = 10.0
"""For so long after a failed commit the process asks for no requests; then it is given another try."""

_ROWS: Final = ("committed", "refused", "lost")


class Queues(Protocol):
    """The calls to IVS that are stored."""

    async def state(self, region: str) -> QueueState:
        """Return what is to be done in a Region; raises StoreUnavailableError."""
        ...


class IssuedWatch(Collector):
    """Watches one process's ledger writer, its bans, and its calls; `clock` gives Unix seconds.

    `calls` returns, for each Region, how many calls of this process's worker ended how; `deletion_late`,
    for how many seconds the oldest expired row should have been gone.
    """

    def __init__(
        self,
        regions: tuple[str, ...],
        *,
        writer: LedgerWriter,
        bans: BanList,
        queues: Queues,
        calls: Callable[[], Mapping[str, Mapping[str, int]]],
        deletion_late: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._regions = regions
        self._writer = writer
        self._bans = bans
        self._queues = queues
        self._calls = calls
        self._deletion_late = deletion_late
        self._clock = clock
        self._seen: dict[str, QueueState] = {}

    async def look(self) -> None:
        """Ask how long the queues are; raises StoreUnavailableError."""
        for region in self._regions:
            self._seen[region] = await self._queues.state(region)

    def checks(self) -> list[Check]:
        """Return whether this process knows who is banned, and can record what it issues."""
        age, limit = self._bans.age(), self._bans.max_age
        bans = Check(
            "bans",
            age <= limit,
            True,
            f"The bans were read {age:.1f} s ago; {limit:.0f} s ago is the limit.",
        )
        wait, failed = self._writer.oldest_wait(), self._writer.failed_ago()
        if failed is not None and failed <= FAILED_SECONDS:
            ledger = Check("ledger", False, True, f"A commit failed {failed:.1f} s ago.")
        else:
            detail = f"The oldest row has waited {wait:.1f} s; {STUCK_SECONDS:.0f} s is the limit."
            ledger = Check("ledger", wait <= STUCK_SECONDS, True, detail)
        return [bans, ledger]

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Return the metrics as of now."""
        counts = self._writer.counts()
        rows = CounterMetricFamily(
            "tokensvc_ledger_rows",
            "Rows of the ledger, by what became of them.",
            labels=["outcome"],
        )
        for outcome in _ROWS:
            rows.add_metric([outcome], counts[outcome])
        yield rows
        yield CounterMetricFamily(
            "tokensvc_ledger_commits", "Commits of the ledger's writer.", value=counts["commits"]
        )
        yield GaugeMetricFamily(
            "tokensvc_ledger_waiting_rows",
            "Rows that no commit has taken yet.",
            value=self._writer.waiting_rows,
        )
        yield GaugeMetricFamily(
            "tokensvc_ledger_oldest_wait_seconds",
            "For how long the oldest row that is not committed has waited.",
            value=self._writer.oldest_wait(),
        )
        yield GaugeMetricFamily(
            "tokensvc_ledger_deletion_late_seconds",
            "Since when the oldest expired row should have been deleted; 0 where another worker deletes.",
            value=self._deletion_late(),
        )
        yield GaugeMetricFamily("tokensvc_bans", "Bans that are known.", value=len(self._bans))
        yield from self._of_disconnects()

    def _of_disconnects(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        queue = GaugeMetricFamily(
            "tokensvc_disconnect_queue",
            "Calls to IVS that are to be made, and those that wait for a participant to appear.",
            labels=["region", "state"],
        )
        oldest = GaugeMetricFamily(
            "tokensvc_disconnect_oldest_seconds",
            "Seconds since the oldest request came of which calls are still to be made; 0: none.",
            labels=["region"],
        )
        for region, seen in self._seen.items():
            queue.add_metric([region, "due"], seen.due)
            queue.add_metric([region, "waiting"], seen.waiting)
            since = None if seen.oldest_at is None else self._clock() - seen.oldest_at
            oldest.add_metric([region], 0.0 if since is None else max(0.0, since))
        calls = CounterMetricFamily(
            "tokensvc_disconnect_calls",
            "Disconnects and revocations that this process asked IVS for, by how they ended.",
            labels=["region", "outcome"],
        )
        for region, outcomes in self._calls().items():
            for outcome, count in outcomes.items():
                calls.add_metric([region, outcome], count)
        yield from (queue, oldest, calls)
