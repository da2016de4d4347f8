"""A token handed out joins: minting over HTTP, from the request to a signature that verifies."""

from __future__ import annotations

from datetime import UTC, datetime

import jwt

from tests.http.support import NOW, Service, stage_arn


def claims_of(service: Service, token: str) -> dict[str, object]:
    kid = jwt.get_unverified_header(token)["kid"]
    return jwt.decode(
        token,
        service.ivs.keys[kid].public_key_pem,
        algorithms=["ES384"],
        options={"verify_exp": False, "verify_iat": False},
    )


async def test_a_minted_token_verifies_under_the_key_that_ivs_holds(service: Service):
    answer = await service.post(
        "/v1/tokens",
        {
            "stageArn": stage_arn(),
            "userId": "ana \N{ARTIST PALETTE}",
            "duration": 60,
            "capabilities": ["SUBSCRIBE"],
            "attributes": {"team": "blue"},
        },
    )
    assert answer.status_code == 201, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    claims = claims_of(service, body["token"])
    assert claims["resource"] == stage_arn()
    assert claims["jti"] == body["participantId"]
    assert claims["user_id"] == body["userId"] == "ana \N{ARTIST PALETTE}"
    assert claims["attributes"] == body["attributes"] == {"team": "blue"}
    assert claims["exp"] == int(NOW) + 3600
    assert datetime.fromisoformat(body["expirationTime"]) == datetime.fromtimestamp(
        int(NOW) + 3600, UTC
    )
    assert body["issuer"] == "local"
    assert body["keyArn"] in service.ivs.keys
    assert body["exchangeable"] is True
    assert body["capabilities"] == ["SUBSCRIBE"]
    assert body["duration"] == 60
    assert service.ivs.calls["CreateParticipantToken"] == 0
