"""What is known of stages beyond one process: what keeps it, and how it gets there.

Saving happens behind the answers and never in front of one: a store that is slow, full or down costs a
restart its memory, and no mint anything.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from tokensvc.errors import TokenServiceError
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints

__all__ = ["EndpointSaver", "EndpointStore", "KnownStage"]

_AT_ONCE: Final = 100

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KnownStage:
    """What IVS said of a stage when it was asked at `fetched_at` (Unix seconds).

    `tags` is None where they are not known: what was kept by a version that kept none.
    """

    stage: StageArn
    endpoints: StageEndpoints
    fetched_at: float
    tags: Mapping[str, str] | None = None


class EndpointStore(Protocol):
    """What all replicas know of stages; its methods raise TokenServiceError and nothing else."""

    async def load(self, *, since: float, limit: int) -> list[KnownStage]:
        """Return what was fetched at `since` (Unix seconds) or later, the latest first."""
        ...

    async def find(self, stage: StageArn, *, since: float) -> KnownStage | None:
        """Return the stage if any replica fetched it at `since` (Unix seconds) or later."""
        ...

    async def save(self, known: Sequence[KnownStage], gone: Sequence[StageArn]) -> None:
        """Keep `known`, unless something later is kept; forget stages that are `gone`."""
        ...


class EndpointSaver:
    """Saves behind its caller's back, one batch at a time; belongs to one event loop."""

    def __init__(self, store: EndpointStore, max_unsaved: int) -> None:
        """Save to `store`; of more than `max_unsaved` stages, the one noted first is not saved."""
        self._store = store
        self._max_unsaved = max_unsaved
        self._unsaved: OrderedDict[StageArn, KnownStage | None] = OrderedDict()
        self._saving: asyncio.Task[None] | None = None

    def note(self, stage: StageArn, known: KnownStage | None) -> None:
        """Save `known`, or forget the stage where that is None, soon.

        What the store does not take is tried again with the next stage that is noted.
        """
        self._unsaved[stage] = known
        self._unsaved.move_to_end(stage)
        self._drop_oldest()
        if self._saving is None:
            self._saving = asyncio.create_task(self._run(), name="save stage endpoints")

    async def aclose(self) -> None:
        """Save what is not saved yet, if the store takes it at the first attempt."""
        if self._saving is not None:
            await self._saving
        await self._save()

    async def _run(self) -> None:
        try:
            await self._save()
        except Exception:  # noqa: BLE001 - nobody waits for this task, so the log is where it goes
            _log.exception("stage_endpoints_save_crashed")
        finally:
            self._saving = None

    async def _save(self) -> None:
        while self._unsaved:
            count = min(len(self._unsaved), _AT_ONCE)
            some = [self._unsaved.popitem(last=False) for _ in range(count)]
            known = [fetched for _, fetched in some if fetched is not None]
            gone = [stage for stage, fetched in some if fetched is None]
            try:
                await self._store.save(known, gone)
            except TokenServiceError as error:
                self._put_back(some)
                _log.warning(
                    "stage_endpoints_not_saved",
                    stages=len(some),
                    code=error.code,
                    fault=error.context,
                )
                return

    def _put_back(self, some: Sequence[tuple[StageArn, KnownStage | None]]) -> None:
        for stage, fetched in reversed(some):
            # What was noted meanwhile is later, and stays.
            if stage not in self._unsaved:
                self._unsaved[stage] = fetched
                self._unsaved.move_to_end(stage, last=False)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._unsaved) > self._max_unsaved:
            self._unsaved.popitem(last=False)
