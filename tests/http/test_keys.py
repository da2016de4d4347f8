"""The ring over HTTP: what is stored, which key signs, and no private half."""

from __future__ import annotations

import dataclasses
import hashlib
from base64 import b64decode

import pytest

from tests.http.support import NOW, OTHER_REGION, REGION, Service, problem_in, running


async def test_the_ring_is_listed(service: Service):
    service.now += 20
    answer = await service.get("/v1/keys", caller="reader")
    assert answer.status_code == 200
    body = answer.json()
    assert body["notSigning"] == {}
    (key,) = [key for key in body["keys"] if key["phase"] == "ACTIVE"]
    ((arn, imported),) = ((key["arn"], service.ivs.keys[key["arn"]]),)
    der = b64decode("".join(imported.public_key_pem.splitlines()[1:-1]))
    assert key["fingerprint"] == hashlib.sha256(der).hexdigest()
    assert key["signing"] is True
    assert key["region"] == REGION
    assert key["name"] == imported.name
    assert key["ageSeconds"] == pytest.approx(20)
    assert key["createdAt"] == NOW
    assert key["deletedAt"] is None
    assert "rivate" not in answer.text
    assert "sealed" not in answer.text
    assert arn in answer.text


async def test_one_key_is_shown(service: Service):
    listed = (await service.get("/v1/keys")).json()["keys"][0]
    answer = await service.get(f"/v1/keys/{listed['keyId']}")
    assert answer.json() == listed
    problem_in(await service.get("/v1/keys/k000"), 404, "not_found")
    problem_in(await service.get("/v1/keys/%2e%2e"), 404, "not_found")


async def test_a_region_that_cannot_sign_says_why(stopped: Service):
    stopped.settings = dataclasses.replace(stopped.settings, regions=(REGION, OTHER_REGION))
    stopped.ivs.faulty_regions.add(OTHER_REGION)
    async with running(stopped) as service:
        body = (await service.get("/v1/keys")).json()
        assert set(body["notSigning"]) == {OTHER_REGION}
        assert OTHER_REGION in body["notSigning"][OTHER_REGION]
