"""Promise: rules that go by a stage's tags see tags of now, or what was last known while IVS is down."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from tests.ivs.test_stages import CALLER, TTL, A, Ivs, settled
from tokensvc.errors import IvsUnavailableError, StageNotFoundError
from tokensvc.ivs.endpoint_store import KnownStage
from tokensvc.ivs.gateway import Stage
from tokensvc.ivs.stages import HARD_LIMIT_SECONDS
from tokensvc.tokens.arn import StageArn

ACME, OTHER = {"tenant": "acme"}, {"tenant": "other"}


@dataclass
class TaggedIvs(Ivs):
    tagged: Mapping[str, str] = field(default_factory=lambda: ACME)

    async def get_stage(self, region: str, stage: str) -> Stage:
        return replace(await super().get_stage(region, stage), tags=self.tagged)


async def test_tags_and_endpoints_come_with_one_call() -> None:
    ivs = TaggedIvs()
    cache = ivs.cache()
    endpoints, tags = await asyncio.gather(cache.get(A, CALLER), cache.tags(A, CALLER))
    assert tags == ACME
    assert endpoints == await cache.get(A, CALLER)
    assert ivs.calls[str(A)] == 1


async def test_stale_tags_are_not_answered_while_ivs_can_be_asked() -> None:
    ivs = TaggedIvs()
    cache = ivs.cache()
    assert await cache.tags(A, CALLER) == ACME
    ivs.tagged = OTHER
    ivs.now += TTL - 1
    assert await cache.tags(A, CALLER) == ACME
    ivs.now += 1
    assert await cache.tags(A, CALLER) == OTHER
    assert ivs.calls[str(A)] == 2


async def test_the_last_tags_stand_in_while_ivs_is_down_and_at_most_14_days() -> None:
    ivs = TaggedIvs()
    cache = ivs.cache()
    await cache.tags(A, CALLER)
    ivs.fault = IvsUnavailableError("down")
    ivs.now += TTL
    assert await cache.tags(A, CALLER) == ACME
    assert await cache.tags(A, CALLER) == ACME
    assert ivs.calls[str(A)] == 2, "a call that failed is not made again at once"
    ivs.now += HARD_LIMIT_SECONDS - TTL
    with pytest.raises(IvsUnavailableError):
        await cache.tags(A, CALLER)


async def test_a_stage_that_is_gone_has_no_tags() -> None:
    ivs = TaggedIvs()
    cache = ivs.cache()
    await cache.tags(A, CALLER)
    ivs.gone.add(str(A))
    ivs.now += TTL
    for _ in range(2):
        with pytest.raises(StageNotFoundError):
            await cache.tags(A, CALLER)
    assert ivs.calls[str(A)] == 2, "that it is gone is remembered"


class Stored:
    """A store that knows one stage's endpoints, and with them no tags."""

    def __init__(self, known: KnownStage) -> None:
        self.known = known

    async def load(self, *, since: float, limit: int) -> list[KnownStage]:
        return [self.known]

    async def find(self, stage: StageArn, *, since: float) -> KnownStage | None:
        return self.known if self.known.stage == stage else None

    async def save(self, known: object, gone: object) -> None:
        return


async def test_a_stage_that_was_stored_without_tags_is_asked_for_them() -> None:
    ivs = TaggedIvs()
    known = KnownStage(A, ivs.endpoints(str(A)), ivs.now)
    cache = ivs.cache(store=Stored(known))  # type: ignore[arg-type]
    assert await cache.restore() == 1
    await cache.get(A, CALLER)
    assert ivs.calls[str(A)] == 0
    assert await cache.tags(A, CALLER) == ACME
    await settled(cache)
    await cache.aclose()


async def test_tags_of_the_store_stand_in_while_ivs_is_down() -> None:
    ivs = TaggedIvs(fault=IvsUnavailableError("down"))
    known = KnownStage(A, ivs.endpoints(str(A)), ivs.now - TTL, ACME)
    cache = ivs.cache(store=Stored(known))  # type: ignore[arg-type]
    await cache.restore()
    assert await cache.tags(A, CALLER) == ACME
    assert ivs.calls[str(A)] == 1
    await cache.aclose()
