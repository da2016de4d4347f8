"""One walk through a Region's steps: what it looks at, and how it waits for IVS.

IVS is listed anew only where a step may have changed what it holds, for three calls a second are few.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

from tokensvc.errors import IvsThrottledError, TokenServiceError
from tokensvc.ivs.gateway import PublicKeySummary
from tokensvc.keyring.imports import Sleep
from tokensvc.keyring.observer import Observer
from tokensvc.keyring.record import RingState
from tokensvc.keyring.rotator import (
    Adopt,
    Delete,
    Facts,
    Generate,
    Import,
    Rotate,
    Step,
    Sweep,
    Wait,
)
from tokensvc.keyring.status import Problem
from tokensvc.keyring.steps import StepTaker
from tokensvc.keyring.store import RingStore

__all__ = ["Walk", "problem_of", "step_name"]

_THROTTLED_TRIES: Final = 3
_LONGEST_THROTTLE_SECONDS: Final = 5.0

_Value = TypeVar("_Value")


class Walk:
    """Looks at a Region, step after step; lists IVS anew only where a step may have changed it."""

    def __init__(self, observer: Observer, store: RingStore, region: str, sleep: Sleep) -> None:
        self._sleep = sleep
        self._observer = observer
        self._store = store
        self._region = region
        self._listed: tuple[PublicKeySummary, ...] | None = None
        self._deleted: set[str] = set()

    async def look(self) -> tuple[RingState, Facts]:
        """Return the ring as it is stored now, and the facts about it; raises as Observer does."""
        if self._listed is None:
            self._listed = await self._patiently(lambda: self._observer.list(self._region))
        ring = await self._store.load(self._region)
        listed = self._listed
        return ring, await self._patiently(lambda: self._observer.facts(ring, listed))

    def choose(self, steps: tuple[Step, ...], failed: Collection[str]) -> Step:
        """Return the first of `steps` that is not among the names of those that `failed`.

        What this walk has deleted is not deleted again: a list of IVS's may go on showing it.
        """
        return next(
            step
            for step in steps
            if step_name(step) not in failed
            and not (isinstance(step, Sweep) and step.arn in self._deleted)
        )

    async def take(self, taker: StepTaker, ring: RingState, step: Step) -> None:
        """Take a step that was planned on `ring`; raises as StepTaker does."""
        listed = self._listed or ()
        if isinstance(step, Adopt | Delete | Import | Sweep):
            self._listed = None
        await self._patiently(lambda: taker.take(ring, step, listed))
        match step:
            case Sweep(arn):
                self._deleted.add(arn)
            case Delete(key) if key.arn is not None:
                self._deleted.add(key.arn)

    async def _patiently(self, work: Callable[[], Awaitable[_Value]]) -> _Value:
        # Three calls a second are few, and a throttled call has done nothing.
        for _ in range(_THROTTLED_TRIES - 1):
            try:
                return await work()
            except IvsThrottledError as error:
                await self._sleep(min(error.retry_after or 1.0, _LONGEST_THROTTLE_SECONDS))
        return await work()


def step_name(step: Step) -> str:
    """Return the step and what it is about, such as `Import kabc`."""
    match step:
        case Rotate(old, new):
            about = f"{old.key_id} to {new.key_id}"
        case Sweep(arn):
            about = arn
        case Adopt(orphan):
            about = orphan.arn
        case Wait() | Generate():
            about = ""
        case _:
            about = step.key.key_id
    return f"{type(step).__name__} {about}".rstrip()


def problem_of(step: str, error: TokenServiceError) -> Problem:
    """Return what `error` says of a step, for the status."""
    return Problem(step, error.code, error.detail, error.retry_after)
