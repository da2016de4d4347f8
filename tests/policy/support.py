"""What the tests of `tokensvc.policy` share: one policy that uses every feature, and requests."""

from __future__ import annotations

from typing import Any

from tokensvc.policy import Policy
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import WantedToken

POLICY = """\
version: 1
limits: {tokensPerSecond: 100, burst: 200}
roles:
  host:
    capabilities: [PUBLISH, SUBSCRIBE]
    duration: {min: 5, default: 240, max: 720}
    attributes: {kind: host}
  viewer:
    capabilities: [SUBSCRIBE]
    duration: 60
callers:
  lobby:
    stages:
      - arn:aws:ivs:eu-central-1:*:stage/lobby-*
      - tenant=acme
      - {arn: "arn:aws:ivs:us-east-1:*", tags: {env: prod, tier: "1"}}
    roles: [host, viewer]
    defaultRole: viewer
    attributes: {required: [team], allowed: ["x.*"], forbidden: [x.secret]}
    issuer: [local, ivs]
    limits: {tokensPerSecond: 2, burst: 3, perUserPerMinute: 2}
  plain:
    stages: ["arn:aws:ivs:*"]
    capabilities: [SUBSCRIBE]
    duration: {min: 2, default: 10, max: 30}
  strict:
    stages: ["arn:aws:ivs:*"]
    roles: [viewer]
    capabilities: [SUBSCRIBE]
    duration: {max: 90}
"""


def policy(text: str = POLICY, **options: Any) -> Policy:
    return Policy.parse(text.encode(), **options)


def stage(name: str = "lobby-1", region: str = "eu-central-1") -> StageArn:
    return StageArn(region, "123456789012", name)


def wanted(name: str = "lobby-1", region: str = "eu-central-1", **fields: Any) -> WantedToken:
    return WantedToken(stage(name, region), **fields)


def for_lobby(name: str = "lobby-1", **fields: Any) -> WantedToken:
    """A request that `lobby` may make, changed by `fields`."""
    return wanted(name, **{"user_id": "ana", "attributes": {"team": "red"}} | fields)
