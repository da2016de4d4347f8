"""Promise: every request is counted and held against the policy, alone or in a batch, by one rule."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest

from tests.policy.support import POLICY, for_lobby, policy, stage, wanted
from tokensvc.errors import (
    InvalidRequestError,
    IvsUnavailableError,
    PolicyDeniedError,
    RateLimitedError,
    StageNotFoundError,
    TokenServiceError,
)
from tokensvc.policy import Limiter, Policy, PolicyGate
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest


class Tags:
    def __init__(self) -> None:
        self.known: dict[StageArn, Mapping[str, str] | TokenServiceError] = {}
        self.calls: Counter[StageArn] = Counter()
        self.under_way = self.most_at_once = 0

    async def tags(self, stage: StageArn, caller: str) -> Mapping[str, str]:
        self.calls[stage] += 1
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        answer = self.known[stage]
        if isinstance(answer, TokenServiceError):
            raise answer
        return answer


class Scene:
    def __init__(self, text: str = POLICY) -> None:
        self.tags = Tags()
        self.policy: Policy = policy(text)
        self.now = 0.0
        self.breaths = 0
        self.gate = PolicyGate(
            policy=lambda: self.policy, stage_tags=self.tags, limiter=Limiter(lambda: self.now)
        )

    def spent(self) -> bool:
        return True

    async def breathe(self) -> None:
        self.breaths += 1


async def test_a_request_is_completed_and_counted() -> None:
    admitted = await Scene().gate.admit("lobby", for_lobby(role="host"))
    assert admitted.request.duration == 240
    assert admitted.headers == {
        "RateLimit-Policy": '"all";q=200;w=2, "caller";q=3;w=2, "user";q=2;w=60',
        "RateLimit": '"all";r=199;t=1, "caller";r=2;t=1, "user";r=1;t=30',
    }


async def test_what_is_denied_counts_as_well() -> None:
    scene = Scene()
    for user in ("a", "b", "c"):
        with pytest.raises(PolicyDeniedError):
            await scene.gate.admit("lobby", for_lobby(role="boss", user_id=user))
    with pytest.raises(RateLimitedError, match="This caller"):
        await scene.gate.admit("lobby", for_lobby(user_id="d"))


async def test_tags_are_looked_up_only_where_they_decide() -> None:
    scene = Scene()
    scene.tags.known = {stage("hall"): {"tenant": "acme"}, stage("yard"): {}}
    await scene.gate.admit("lobby", for_lobby())
    assert not scene.tags.calls
    assert (await scene.gate.admit("lobby", for_lobby("hall"))).request.stage == stage("hall")
    with pytest.raises(PolicyDeniedError):
        await scene.gate.admit("lobby", for_lobby("yard", user_id="b"))
    assert scene.tags.calls == {stage("hall"): 1, stage("yard"): 1}


async def test_tags_that_cannot_be_had_are_no_permission() -> None:
    scene = Scene()
    scene.tags.known = {stage("hall"): IvsUnavailableError("down")}
    with pytest.raises(IvsUnavailableError):
        await scene.gate.admit("lobby", for_lobby("hall"))


async def test_one_policy_holds_for_the_whole_of_a_request() -> None:
    scene = Scene()
    scene.tags.known = {stage("hall"): {"tenant": "acme"}}
    under_way = asyncio.create_task(scene.gate.admit("lobby", for_lobby("hall")))
    await asyncio.sleep(0)
    scene.policy = policy("version: 1\ncallers: {}\n")
    assert (await under_way).request.stage == stage("hall")
    with pytest.raises(PolicyDeniedError):
        await scene.gate.admit("lobby", for_lobby("hall"))


async def test_a_stage_of_others_may_not_be_acted_on() -> None:
    scene = Scene()
    scene.tags.known = {stage("hall"): {"tenant": "acme"}, stage("yard"): {}}
    await scene.gate.require_stage("lobby", stage())
    await scene.gate.require_stage("lobby", stage("hall"))
    for caller, name in (("lobby", "yard"), ("nobody", "lobby-1")):
        with pytest.raises(PolicyDeniedError):
            await scene.gate.require_stage(caller, stage(name))
    scene.policy = Policy.open()
    await scene.gate.require_stage("nobody", stage("yard"))


async def test_each_item_of_a_batch_has_its_own_answer() -> None:
    scene = Scene(POLICY.replace("burst: 3, perUserPerMinute: 2", "burst: 5"))
    scene.tags.known = {
        stage("hall"): {"tenant": "acme"},
        stage("gone"): StageNotFoundError("no such stage"),
    }
    bad = InvalidRequestError("did not parse")
    items = [
        bad,
        for_lobby(),
        for_lobby("hall"),
        for_lobby("hall"),
        for_lobby("gone"),
        for_lobby(role="boss"),
        for_lobby(),
        for_lobby(),
    ]
    answered = await scene.gate.admit_batch("lobby", items, scene)
    assert [type(answer) for answer in answered.items] == [
        InvalidRequestError,
        TokenRequest,
        TokenRequest,
        TokenRequest,
        StageNotFoundError,
        PolicyDeniedError,
        RateLimitedError,
        RateLimitedError,
    ]
    assert answered.items[0] is bad
    assert scene.tags.calls == {stage("hall"): 1, stage("gone"): 1}, "each stage once"
    assert answered.headers["RateLimit"] == '"all";r=195;t=1, "caller";r=0;t=3'
    assert scene.breaths >= len(items), "since not all of them are plain"


async def test_a_batch_looks_up_several_stages_at_a_time_and_not_all() -> None:
    scene = Scene(POLICY.replace("burst: 3, perUserPerMinute: 2", "burst: 100"))
    names = [f"hall-{number}" for number in range(30)]
    scene.tags.known = {stage(name): {"tenant": "acme"} for name in names}
    answered = await scene.gate.admit_batch("lobby", [for_lobby(name) for name in names], scene)
    assert all(isinstance(answer, TokenRequest) for answer in answered.items)
    assert 1 < scene.tags.most_at_once <= 8


async def test_an_empty_batch_and_one_without_limits_have_no_headers() -> None:
    scene = Scene()
    assert (await scene.gate.admit_batch("lobby", [], scene)).headers == {}
    scene.policy = Policy.open()
    answered = await scene.gate.admit_batch("x", [wanted()], scene)
    assert answered.headers == {}
    assert isinstance(answered.items[0], TokenRequest)
