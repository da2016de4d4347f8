"""Token exchange and shared connections: the SDK and the IVS stand-in agree on both.

The tokens are signed by the test, with a key of its own that IVS knows.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.e2e.sdk import SdkPage
from tests.e2e.support import REGION, RunningDev
from tests.e2e.tokens import ForeignKey, claims_of

TOKEN_MALFORMED, PARTICIPANT_DISCONNECTED = 1, 10
EXCHANGE_INVALID, EXCHANGE_FAILED = 11, 12
CONNECTION_TOKEN_INVALID, CONNECTION_TOKEN_EXPIRED, CONNECTION_FAILED = 1053, 1054, 1306


@pytest.fixture
def claims(dev: RunningDev) -> dict[str, Any]:
    """The claims of a participant that joins; each test has its own participant."""
    return claims_of(dev.mint(userId="ana", attributes={"team": "red"})["token"])


def connection_claims(dev: RunningDev, token_id: str, **changed: object) -> dict[str, Any]:
    """The claims of a connection token (RealTimeUserGuide, "Distribute Tokens")."""
    now = int(time.time())
    endpoints = dev.ivs().get_stage(arn=dev.stage_arn)["stage"]["endpoints"]
    return {
        "exp": now + 600,
        "iat": now,
        "jti": token_id,
        "account_id": dev.stage_arn.split(":")[4],
        "region": REGION,
        "events_url": endpoints["events"],
        "version": "1.0",
        **changed,
    }


def test_exchange_changes_user_id_attributes_and_capabilities_without_a_rejoin(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any]
) -> None:
    sdk.join("stage", imported_key.sign(claims))
    changed = {
        "user_id": "Zoë 😀",
        "attributes": {"team": "blå"},
        "capabilities": {"allow_subscribe": True},
    }
    answer = sdk.exchange("stage", imported_key.sign(claims | changed))
    assert answer == {
        "participant": {
            "id": claims["jti"],
            "userId": "Zoë 😀",
            "attributes": {"team": "blå"},
            "capabilities": ["subscribe"],
            "isLocal": True,
        }
    }
    events = sdk.events("stage")
    assert sum("joined" in event for event in events) == 1
    assert not any("left" in event or "error" in event for event in events)


def test_exchange_that_only_grants_a_capability_is_seen(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any]
) -> None:
    muted = claims | {"capabilities": {"allow_subscribe": True}}
    sdk.join("stage", imported_key.sign(muted))
    answer = sdk.exchange("stage", imported_key.sign(claims))
    assert answer["participant"]["capabilities"] == ["publish", "subscribe"]


@pytest.mark.parametrize("claim", ["jti", "resource", "topic", "whip_url", "events_url"])
def test_exchange_of_what_must_not_change_is_refused_and_the_participant_stays(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any], claim: str
) -> None:
    sdk.join("stage", imported_key.sign(claims))
    answer = sdk.exchange("stage", imported_key.sign(claims | {claim: claims[claim] + "x"}))
    assert answer["error"]["code"] == EXCHANGE_INVALID
    assert not any("left" in event for event in sdk.events("stage"))


def test_exchange_for_a_token_that_ivs_refuses_puts_the_participant_out(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any]
) -> None:
    sdk.join("stage", imported_key.sign(claims))
    imposter = ForeignKey.generate(imported_key.arn)
    answer = sdk.exchange("stage", imposter.sign(claims | {"user_id": "somebody else"}))
    assert answer["error"]["code"] == EXCHANGE_FAILED
    assert sdk.left("stage") == "failed-exchange"


def test_stages_join_exchange_and_are_left_over_one_connection(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any]
) -> None:
    token = imported_key.sign(connection_claims(dev, "shared-by-two"))
    assert sdk.connect("connection", token) == {"state": "connected"}
    other = claims_of(dev.mint(userId="ben")["token"])
    for name, who in (("first", claims), ("second", other)):
        joined = sdk.join(name, imported_key.sign(who), "connection")
        assert joined["participant"]["id"] == who["jti"]
    changed = sdk.exchange("first", imported_key.sign(claims | {"user_id": "anna"}))
    assert changed["participant"]["userId"] == "anna"
    dev.ivs().disconnect_participant(stageArn=dev.stage_arn, participantId=claims["jti"])
    assert sdk.left("first") == "participant-disconnected"
    again = sdk.join("again", imported_key.sign(claims), "connection")
    assert again["error"]["code"] == PARTICIPANT_DISCONNECTED
    assert not any("left" in event for event in sdk.events("second"))


def test_connection_does_not_carry_a_participant_whose_token_is_bad(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any]
) -> None:
    sdk.connect("connection", imported_key.sign(connection_claims(dev, "carries-none")))
    imposter = ForeignKey.generate(imported_key.arn)
    refused = sdk.join("stage", imposter.sign(claims), "connection")
    assert refused["error"]["code"] == TOKEN_MALFORMED
    assert "participant" in sdk.join("other", imported_key.sign(claims), "connection")


def test_revoked_connection_token_closes_the_connection_and_opens_no_other(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey, claims: dict[str, Any]
) -> None:
    token = imported_key.sign(connection_claims(dev, "to-be-revoked"))
    sdk.connect("connection", token)
    sdk.join("stage", imported_key.sign(claims), "connection")
    dev.ivs().revoke_connection_token(tokenId="to-be-revoked")
    assert sdk.disconnected("connection")["error"]["code"] == CONNECTION_FAILED
    assert sdk.left("stage") == "real-time-connection-token-revocation"
    sdk.connect("reused", token)
    assert sdk.disconnected("reused")["error"]["code"] == CONNECTION_FAILED


def test_sdk_refuses_what_is_no_connection_token(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey
) -> None:
    old = connection_claims(dev, "old", exp=int(time.time()) - 61)
    expired = sdk.connect("expired", imported_key.sign(old))
    assert expired["error"]["code"] == CONNECTION_TOKEN_EXPIRED
    assert sdk.connect("none", "not a token")["error"]["code"] == CONNECTION_TOKEN_INVALID


def test_connection_token_of_another_key_opens_nothing(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey
) -> None:
    imposter = ForeignKey.generate(imported_key.arn)
    sdk.connect("connection", imposter.sign(connection_claims(dev, "forged")))
    assert sdk.disconnected("connection")["error"]["code"] == CONNECTION_FAILED
