"""Degradation is explicit: a token that IVS made says so, and what asks for a local one is refused."""

from __future__ import annotations

from tests.http.support import Service, problem_in, running, stage_arn
from tokensvc.errors import IvsQuotaExceededError

MINT = {"stageArn": stage_arn(), "duration": 60}


async def test_ivs_is_asked_when_the_caller_says_so(service: Service):
    answer = await service.post("/v1/tokens", {**MINT, "issuer": "ivs"})
    assert answer.status_code == 201
    body = answer.json()
    assert (body["issuer"], body["keyArn"], body["exchangeable"]) == ("ivs", None, False)
    assert service.ivs.calls["CreateParticipantToken"] == 1


async def test_without_a_key_ivs_issues_and_the_answer_says_so(stopped: Service):
    stopped.ivs.faulty_regions.add(stopped.settings.regions[0])
    async with running(stopped) as service:
        problem_in(
            await service.post("/v1/tokens", {**MINT, "issuer": "local"}), 503, "no_signing_key"
        )
        service.ivs.faulty_regions.clear()
        answer = await service.post("/v1/tokens", MINT)
        assert answer.status_code == 201
        assert answer.json()["issuer"] == "ivs"


async def test_where_neither_issues_the_caller_is_told(stopped: Service):
    stopped.ivs.fault = IvsQuotaExceededError("IVS refuses more keys.")
    async with running(stopped) as service:
        problem_in(await service.post("/v1/tokens", MINT), 502, "ivs_quota_exceeded")


async def test_a_service_that_starts_without_ivs_signs_with_the_key_it_has(service: Service):
    assert (await service.post("/v1/tokens", MINT)).status_code == 201
    again = Service(service.settings, service.ivs, api_keys=service.api_keys)
    again.ivs.fault = IvsQuotaExceededError("out of order")
    async with running(again):
        again.ivs.fault = None
        answer = await again.post("/v1/tokens", MINT)
        assert answer.json()["issuer"] == "local"
        # The key it had and the standby beside it; none was made anew.
        assert len(again.ivs.keys) == 2
