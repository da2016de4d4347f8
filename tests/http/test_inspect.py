"""Why would IVS refuse this token? Over HTTP, against the ring and against IVS."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode

import pytest

from tests.http.support import REGION, Service, problem_in, stage_arn
from tokensvc.errors import IvsUnavailableError
from tokensvc.signing import SigningKey, generate_private_key, load_signer, public_key_pem


async def minted(service: Service, **fields: object) -> str:
    answer = await service.post("/v1/tokens", {"stageArn": stage_arn(), "duration": 60, **fields})
    return str(answer.json()["token"])


async def inspected(service: Service, token: str) -> dict[str, object]:
    answer = await service.post("/v1/tokens/inspect", {"token": token})
    assert answer.status_code == 200, answer.text
    assert token not in answer.text
    return answer.json()  # type: ignore[no-any-return]


def codes(answer: dict[str, object]) -> set[str]:
    return {finding["code"] for finding in answer["findings"]}  # type: ignore[index,union-attr]


async def test_our_own_token_is_acceptable(service: Service):
    answer = await inspected(service, await minted(service, userId="ana"))
    assert answer["acceptable"] is True
    assert answer["signature"] == "valid"
    assert answer["kind"] == "participant"
    assert answer["claims"]["user_id"] == "ana"  # type: ignore[index]
    assert answer["findings"] == []


async def test_an_expired_token_is_told_apart(service: Service):
    token = await minted(service)
    service.now += 3601
    answer = await inspected(service, token)
    assert answer["acceptable"] is False
    assert answer["signature"] == "valid"
    assert "expired" in codes(answer)


async def test_a_changed_token_does_not_verify(service: Service):
    header, payload, signature = (await minted(service)).split(".")
    other = (await minted(service)).split(".")[1]
    answer = await inspected(service, f"{header}.{other}.{signature}")
    assert answer["signature"] == "invalid"
    assert "bad_signature" in codes(answer)
    assert payload != other


async def test_a_key_of_another_owner_is_asked_of_ivs(service: Service):
    private_key = generate_private_key()
    arn = f"arn:aws:ivs:{REGION}:123456789012:public-key/somebodyelse"
    token = SigningKey("k", arn, load_signer(private_key)).mint({"resource": stage_arn()})
    assert "unknown_kid" in codes(await inspected(service, token))
    await service.ivs.import_public_key(
        REGION, public_key_pem=public_key_pem(private_key), name="-somebodyelse", tags={}
    )
    assert (await inspected(service, token))["signature"] == "valid"


async def test_where_ivs_does_not_answer_the_signature_is_not_checked(service: Service):
    arn = f"arn:aws:ivs:{REGION}:123456789012:public-key/unknown"
    token = SigningKey("k", arn, load_signer(generate_private_key())).mint({})
    service.ivs.fault = IvsUnavailableError("gone")
    answer = await inspected(service, token)
    assert answer["signature"] == "not_checked"
    assert "signature_not_checked" in codes(answer)


async def test_a_region_that_is_not_served_is_not_asked(service: Service):
    before = service.ivs.calls["GetPublicKey"]
    arn = "arn:aws:ivs:us-east-1:123456789012:public-key/elsewhere"
    token = SigningKey("k", arn, load_signer(generate_private_key())).mint({})
    assert (await inspected(service, token))["signature"] == "not_checked"
    assert service.ivs.calls["GetPublicKey"] == before


def forged(claims: str) -> str:
    parts = (b'{"alg":"ES384","typ":"JWT"}', claims.encode(), b"s" * 96)
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    "claims",
    [
        json.dumps({"exp": 10**400, "iat": -(2**63) - 1, "nested": [2**64]}),
        '{"a":' * 400 + "1" + "}" * 400,
        '{"a": 1e999, "b": -0.0}',
        '{"a": "\\ud800"}',
        "[1, 2]",
        '{"exp": true, "resource": {}}',
    ],
)
async def test_a_strange_token_is_answered(service: Service, claims: str):
    answer = await inspected(service, forged(claims))
    assert answer["acceptable"] is False


@pytest.mark.parametrize("token", ["", ".", "...", "a.b.c", "\N{ARTIST PALETTE}", " \t"])
async def test_what_is_no_token_is_answered(service: Service, token: str):
    answer = await service.post("/v1/tokens/inspect", {"token": token})
    assert answer.status_code == 200
    assert answer.json()["acceptable"] is False


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "token", "required"),
        ({"token": None}, "token", "required"),
        ({"token": 5}, "token", "type"),
        ({"token": "x" * 16_385}, "token", "too_long"),
        ({"token": "x", "key": "y"}, "key", "unknown_field"),
    ],
)
async def test_a_bad_request_names_the_field(
    service: Service, body: dict[str, object], field: str, code: str
):
    problem = problem_in(await service.post("/v1/tokens/inspect", body), 400, "invalid_request")
    assert (problem["errors"][0]["field"], problem["errors"][0]["code"]) == (field, code)
