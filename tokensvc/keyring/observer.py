"""Looks at IVS and at the ledger, and brings back facts for the rotator.

Reads only. IVS is listed first and the ring loaded afterwards; `holdings.py` says why that order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from tokensvc.errors import IvsError, IvsNotFoundError
from tokensvc.ivs.gateway import PublicKeySummary
from tokensvc.keyring.drain import DrainMarks
from tokensvc.keyring.holdings import Holdings
from tokensvc.keyring.imports import ImportedKeys
from tokensvc.keyring.record import KeyPhase, KeyRecord, RingState
from tokensvc.keyring.rotator import Facts

__all__ = ["Observer"]

# Far beyond any delay with which IVS may show a new key.
_SETTLED_SECONDS: Final = 60.0
_AT_IVS: Final = frozenset({KeyPhase.STANDBY, KeyPhase.ACTIVE, KeyPhase.RETIRING})

_log = structlog.get_logger(__name__)


class Observer:
    """Observes the rings of one ring id."""

    def __init__(
        self,
        *,
        imported: ImportedKeys,
        drain: DrainMarks | None,
        ring_id: str,
        clock: Callable[[], float],
        clock_off: Callable[[str], float],
    ) -> None:
        """`drain` None: there is no ledger. `clock_off` as `RingManager` has it."""
        self._imported = imported
        self._drain = drain
        self._ring_id = ring_id
        self._clock = clock
        self._clock_off = clock_off

    async def list(self, region: str) -> tuple[PublicKeySummary, ...]:
        """Return what IVS lists; raises IvsError."""
        return await self._imported.list(region)

    async def facts(self, ring: RingState, listed: tuple[PublicKeySummary, ...]) -> Facts:
        """Return the facts about `ring`, which was loaded after `listed` was listed.

        Raises IvsError, KeyMismatchError where IVS answers for another account, and
        StoreUnavailableError.
        """
        holdings = Holdings.sort(ring, self._ring_id, listed)
        gone = [key.key_id for key in ring.keys if await self._is_gone(key, holdings)]
        marks = {
            key.key_id: await self.latest_expiry(key)
            for key in ring.in_phase(KeyPhase.RETIRING)
            if key.delete_reason is None
        }
        return Facts(holdings, frozenset(gone), marks, self._clock_off(ring.region))

    async def latest_expiry(self, key: KeyRecord) -> float | None:
        """Return the latest `exp` of the key's tokens; None where the ledger has none."""
        return None if self._drain is None else await self._drain.latest_expiry(key.key_id)

    async def _is_gone(self, key: KeyRecord, holdings: Holdings) -> bool:
        if key.phase not in _AT_IVS or key.arn is None or key.arn in holdings.arns:
            return False
        # What is condemned is deleted next, and that finds out by itself.
        if key.delete_reason is not None:
            return False
        if 0.0 <= self._clock() - (key.imported_at or 0.0) < _SETTLED_SECONDS:
            return False
        try:
            return await self._imported.get(key.region, key.arn) is None
        except IvsNotFoundError:
            # Listed after all: IVS contradicts itself, and is asked again next time.
            return False
        except IvsError as error:
            _log.warning(
                "key_presence_unknown", region=key.region, key_id=key.key_id, reason=error.detail
            )
            return False
