"""Promise: in whatever order time passes, IVS fails and stages change, no answer breaks the rules."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.ivs.test_stages import CALLER, A, B, C, Ivs, settled
from tokensvc.errors import IvsUnavailableError, StageNotFoundError
from tokensvc.ivs.stages import HARD_LIMIT_SECONDS, StageEndpointCache
from tokensvc.tokens.arn import StageArn

STAGES = st.sampled_from([A, B, C])
ROOM = 2


class Stages(RuleBasedStateMachine):
    """The model: which generation of endpoints was in force at which time."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.ivs = Ivs()
        self.replaced_at: dict[str, float] = {}

    @initialize(jitter=st.floats(0, 0.99))
    def make(self, jitter: float) -> None:
        self.ivs.jitter = jitter
        self.cache: StageEndpointCache = self.ivs.cache(max_entries=ROOM, max_flights=2)

    @rule(seconds=st.sampled_from([0.1, 6.0, 30.0, 3700.0, 86_400.0, 8 * 86_400.0]))
    def time_passes(self, seconds: float) -> None:
        self.ivs.now += seconds

    @rule()
    def endpoints_change(self) -> None:
        self.replaced_at[f"wss://events/{self.ivs.generation}"] = self.ivs.now
        self.ivs.generation += 1

    @rule(down=st.booleans())
    def aws(self, down: bool) -> None:
        self.ivs.fault = IvsUnavailableError("down") if down else None

    @rule(stage=STAGES, gone=st.booleans())
    def stage_deleted_or_not(self, stage: StageArn, gone: bool) -> None:
        (self.ivs.gone.add if gone else self.ivs.gone.discard)(str(stage))

    @rule(stage=STAGES, askers=st.integers(1, 3))
    def ask(self, stage: StageArn, askers: int) -> None:
        before = self.ivs.calls[str(stage)]
        answers = self.runner.run(self._ask(stage, askers))
        assert self.ivs.calls[str(stage)] - before <= 1
        for answer in answers:
            if isinstance(answer, StageNotFoundError | IvsUnavailableError):
                continue
            assert not isinstance(answer, BaseException), answer
            assert answer.whip == f"https://whip/{stage}"
            replaced = self.replaced_at.get(answer.events)
            assert replaced is None or self.ivs.now - replaced < HARD_LIMIT_SECONDS

    async def _ask(self, stage: StageArn, askers: int) -> list[object]:
        answers = await asyncio.gather(
            *(self.cache.get(stage, CALLER) for _ in range(askers)), return_exceptions=True
        )
        await settled(self.cache)
        return list(answers)

    @rule(stage=STAGES)
    def peeking_never_tells_more_than_asking(self, stage: StageArn) -> None:
        found = self.cache.peek(stage, self.ivs.now)
        if found is not None:
            calls = self.ivs.calls.copy()
            assert self.runner.run(self._ask(stage, 1)) == [found]
            assert calls == self.ivs.calls

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "cache"):
            assert len(self.cache) <= ROOM
            assert len(self.cache._unknown_since) <= ROOM
            assert self.cache._flights == {}

    def teardown(self) -> None:
        self.runner.run(self.cache.aclose())
        self.runner.close()


TestStages = Stages.TestCase
TestStages.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
