"""The ring over HTTP: what is stored, which key signs, and no private half."""

from __future__ import annotations

import dataclasses
import hashlib
from base64 import b64decode

import pytest
from sqlalchemy import update

from tests.http.support import (
    NOW,
    OTHER_REGION,
    REGION,
    Service,
    problem_in,
    running,
    stage_arn,
)
from tokensvc.errors import StoreUnavailableError
from tokensvc.ledger import Ledger
from tokensvc.store import open_engine
from tokensvc.store.tables import keys, rings


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


async def test_the_ring_is_told_though_its_tokens_cannot_be_counted_in_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    await service.post("/v1/tokens", {"stageArn": stage_arn(), "duration": 60})

    async def fail(self: Ledger, now: float, **which: object) -> int:
        raise StoreUnavailableError("The database took too long for a statement.")

    monkeypatch.setattr(Ledger, "count_living", fail)
    answer = await service.get("/v1/keys")
    assert answer.status_code == 200
    (active,) = [key for key in answer.json()["keys"] if key["phase"] == "ACTIVE"]
    assert active["liveTokens"] is None
    assert active["lastTokenExpiresAt"] == int(NOW) + 3600


async def test_a_damaged_ring_of_one_region_leaves_the_others_signing(stopped: Service):
    stopped.settings = dataclasses.replace(stopped.settings, regions=(REGION, OTHER_REGION))
    async with running(stopped) as service:
        engine = open_engine(service.settings.database_url)
        async with engine.begin() as connection:
            damage = update(keys).where(keys.c.region == OTHER_REGION, keys.c.phase == "ACTIVE")
            await connection.execute(damage.values(phase="SIGNING"))
            await connection.execute(update(rings).values(version=rings.c.version + 1))
        await engine.dispose()
        await service.sleeper.wake()
        assert (await service.mint(issuer="local"))["issuer"] == "local"
        body = (await service.get("/v1/keys")).json()
        assert {key["region"] for key in body["keys"]} == {REGION}
        assert "SIGNING" in body["notSigning"][OTHER_REGION]
        problems = {region["region"]: region["problems"] for region in body["regions"]}
        assert problems[REGION] == []
        assert [problem["code"] for problem in problems[OTHER_REGION]] == ["ring_damaged"]
        # What is asked of all is done where it can be, and told of each.
        answered = (await service.post("/v1/keys/rotate", {})).json()["regions"]
        told = {one["region"]: one["status"]["problems"] for one in answered}
        assert told[REGION] == []
        assert [problem["code"] for problem in told[OTHER_REGION]] == ["ring_damaged"]
        # And a key that is not found may be one of the other Region's.
        answer = await service.post("/v1/keys/kstolen/invalidate", {})
        assert problem_in(answer, 503, "ring_damaged")["detail"].startswith(OTHER_REGION)
