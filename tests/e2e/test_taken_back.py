"""What the service takes back, as applications see it: exchange, kick, ban, connection tokens."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.sdk import SdkPage
from tests.e2e.support import REGION, RunningDev

PARTICIPANT_DISCONNECTED, CONNECTION_FAILED = 10, 1306


def ask(dev: RunningDev, method: str, path: str, **body: object) -> httpx.Response:
    with dev.client() as client:
        return client.request(method, path, json=body or None)


def expect(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_exchange_mutes_and_recolours_without_a_rejoin(dev: RunningDev, sdk: SdkPage) -> None:
    minted = dev.mint(userId="ana", attributes={"team": "red"})
    sdk.join("stage", minted["token"])
    exchanged = expect(
        ask(
            dev,
            "POST",
            "/v1/tokens/exchange",
            participantId=minted["participantId"],
            capabilities=["SUBSCRIBE"],
            attributes={"team": "blue"},
        ),
        201,
    )
    assert sdk.exchange("stage", exchanged["token"]) == {
        "participant": {
            "id": minted["participantId"],
            "userId": "ana",
            "attributes": {"team": "blue"},
            "capabilities": ["subscribe"],
            "isLocal": True,
        }
    }
    events = sdk.events("stage")
    assert sum("joined" in event for event in events) == 1
    assert not any("left" in event or "error" in event for event in events)


def test_a_wrong_exchange_is_refused_by_the_service_and_the_participant_stays(
    dev: RunningDev, sdk: SdkPage
) -> None:
    of_ivs = dev.mint(userId="ana", issuer="ivs")
    minted = dev.mint(userId="ben")
    sdk.join("of ivs", of_ivs["token"])
    sdk.join("local", minted["token"])
    participant = {"participantId": of_ivs["participantId"]}
    refused = expect(ask(dev, "POST", "/v1/tokens/exchange", **participant), 409)
    assert refused["code"] == "not_exchangeable"
    another = dev.ivs().create_stage(name="another")["stage"]["arn"]
    wrong = {"participantId": minted["participantId"], "stageArn": another}
    assert expect(ask(dev, "POST", "/v1/tokens/exchange", **wrong), 400)["code"]
    for name in ("of ivs", "local"):
        assert not any("left" in event or "error" in event for event in sdk.events(name))


def test_a_kick_is_told_and_the_ban_keeps_out(dev: RunningDev, sdk: SdkPage) -> None:
    minted = dev.mint(userId="rude")
    kind = dev.mint(userId="kind")
    sdk.join("rude", minted["token"])
    sdk.join("kind", kind["token"])
    kick = {"stageArn": dev.stage_arn, "userId": "rude", "reason": "insults", "ban": 3600}
    accepted = expect(ask(dev, "POST", "/v1/disconnects", **kick), 202)
    again = {"stageArn": dev.stage_arn, "userId": "rude"}
    refused = expect(ask(dev, "POST", "/v1/tokens", **again), 403)
    assert (refused["code"], refused["banId"]) == ("banned", accepted["banId"])
    assert sdk.left("rude") == "participant-disconnected"
    rejoined = sdk.join("again", minted["token"])
    assert rejoined["error"]["code"] == PARTICIPANT_DISCONNECTED
    exchange = {"participantId": minted["participantId"]}
    assert expect(ask(dev, "POST", "/v1/tokens/exchange", **exchange), 403)["code"] == "banned"
    assert not any("left" in event for event in sdk.events("kind"))
    expect(ask(dev, "DELETE", f"/v1/bans/{accepted['banId']}"), 200)
    assert "participant" in sdk.join("forgiven", dev.mint(userId="rude")["token"])


def test_a_stage_joins_over_a_connection_token_until_that_is_revoked(
    dev: RunningDev, sdk: SdkPage
) -> None:
    shared = expect(ask(dev, "POST", "/v1/connection-tokens", region=REGION, duration=60), 201)
    assert sdk.connect("connection", shared["token"]) == {"state": "connected"}
    minted = dev.mint(userId="ana")
    joined = sdk.join("stage", minted["token"], "connection")
    assert joined["participant"]["id"] == minted["participantId"]
    expect(ask(dev, "DELETE", f"/v1/connection-tokens/{shared['tokenId']}"), 202)
    assert sdk.disconnected("connection")["error"]["code"] == CONNECTION_FAILED
    assert sdk.left("stage") == "real-time-connection-token-revocation"
    sdk.connect("reused", shared["token"])
    assert sdk.disconnected("reused")["error"]["code"] == CONNECTION_FAILED
