"""Items that are looked at together are answered as items that are looked at one by one."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.both_ways import BATCH, Seen, Watcher
from tests.http.support import Service, stage_arn
from tests.http.test_server import listening
from tests.http.test_wanted import VALUES
from tokensvc.http import token_routes
from tokensvc.issuing import batch
from tokensvc.policy import Limiter, gate

POLICY = """\
version: 1
limits: {tokensPerSecond: 30, burst: 70}
roles:
  player:
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: {min: 1, default: 720, max: 1000}
    attributes: {kind: player}
  host:
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: 60
callers:
  all:
    stages: ["arn:aws:ivs:eu-central-1:*"]
    roles: [player, host]
    defaultRole: player
    attributes: {allowed: [team, k]}
    issuer: [auto, local]
    limits: {tokensPerSecond: 20, burst: 60, perUserPerMinute: 3}
"""


@pytest.fixture
async def watcher(stopped: Service, log: io.StringIO, tmp_path: Path) -> AsyncIterator[Watcher]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    policy.chmod(0o600)
    stopped.settings = replace(
        stopped.settings, audit=str(tmp_path / "audit.log"), policy_file=policy, max_body_bytes=4096
    )
    async with listening(stopped) as server:
        watching = Watcher(server, log)
        banned = {"stageArn": stage_arn(), "userId": "user7"}
        await watching.post(b"/v1/bans", banned)
        yield watching


async def see(watcher: Watcher, body: bytes) -> Seen:
    """Send a batch to a service in which nobody has been counted yet."""
    service = watcher.app.app.state.service  # type: ignore[attr-defined]
    now = watcher.server.service
    service.gate._limiter = Limiter(lambda: now.now)
    return await watcher.see(body, {}, short=True, path=BATCH)


def one_by_one(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(token_routes, "read_plain_tokens", lambda *_, **__: None)
    patched.setattr(gate, "_allow_again", lambda *_: None)
    patched.setattr(batch, "_requests_alike", lambda *_: ())
    patched.setattr(token_routes, "_PIECE", 1)


async def see_both(watcher: Watcher, body: bytes) -> Seen:
    """Send a batch whose items are taken together, and one by one; both are answered the same."""
    # What is looked up once is looked up by neither of the two.
    await see(watcher, body)
    together = await see(watcher, body)
    with pytest.MonkeyPatch.context() as patched:
        one_by_one(patched)
        alone = await see(watcher, body)
    assert together == alone
    return together


ITEMS = st.one_of(
    # Nearly all items of a batch are like this one.
    st.builds(
        lambda number, times: [
            {"userId": f"user{number + n // 3}", "attributes": {"team": "red"}}
            for n in range(times)
        ],
        st.integers(0, 9),
        st.integers(1, 70),
    ),
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "userId": st.sampled_from([*VALUES["userId"], "user7"]),
                "attributes": st.sampled_from([*VALUES["attributes"], {"kind": "player"}]),
            },
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(
        st.fixed_dictionaries(
            {"userId": st.sampled_from(["ana", "eva"])},
            optional={
                "stageArn": st.sampled_from([stage_arn(), stage_arn("stage2"), stage_arn("no"), 5]),
                **{
                    name: st.sampled_from(VALUES[name])
                    for name in ("role", "duration", "capabilities", "issuer", "userid")
                },
            },
        ),
        min_size=1,
        max_size=4,
    ),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=25,
    deadline=None,
)
@given(st.lists(ITEMS, min_size=1, max_size=4), st.sampled_from([{}, {"duration": 30}]))
async def test_pieces_are_answered_as_one_by_one(
    watcher: Watcher, groups: list[list[object]], defaults: dict[str, Any]
):
    items = [item for group in groups for item in group]
    body = json.dumps({"defaults": {"stageArn": stage_arn(), **defaults}, "tokens": items}).encode()
    together = await see_both(watcher, body)
    assert together.status == 200
    assert together.audited


async def test_of_many_alike_the_same_are_refused(watcher: Watcher):
    """The user's limit, the caller's and a ban, each in the middle of a piece."""
    users = [*[f"user{n}" for n in range(20)], *["user3"] * 5, *[f"user{n}" for n in range(50)]]
    body = json.dumps(
        {"defaults": {"stageArn": stage_arn()}, "tokens": [{"userId": user} for user in users]}
    ).encode()
    together = await see_both(watcher, body)
    codes = [item.get("problem", {}).get("code", "") for item in together.body["tokens"]]
    assert codes[7] == "banned"
    assert codes[22:25] == ["rate_limited"] * 3
    assert set(codes[64:]) == {"rate_limited"}
    assert len(together.rows) == together.body["issued"] == codes.count("")
