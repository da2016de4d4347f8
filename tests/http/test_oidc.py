"""Callers with a token of an OIDC issuer: the same scopes, the same policy, the same refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.issuer import AUDIENCE, Issuer, issuer_running
from tests.http.support import Service, problem_in, running, stage_arn
from tokensvc.errors import ConfigurationError
from tokensvc.http.admission import oidc_config
from tokensvc.settings import Settings

POLICY = f"""\
version: 1
callers:
  "oidc:lobby": {{stages: ["{stage_arn()}"], capabilities: [SUBSCRIBE], duration: 30}}
"""


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuer_running() as issuer:
        yield issuer


@pytest.fixture
async def service(stopped: Service, issuer: Issuer) -> AsyncIterator[Service]:
    stopped.settings = dataclasses.replace(
        stopped.settings, oidc_issuer=issuer.url, oidc_audience=AUDIENCE
    )
    async with running(stopped):
        yield stopped


async def mint(service: Service, headers: dict[str, str]) -> httpx.Response:
    assert service.client is not None
    return await service.client.post("/v1/tokens", json={"stageArn": stage_arn()}, headers=headers)


async def test_a_token_of_the_issuer_does_what_its_scopes_allow(service: Service, issuer: Issuer):
    headers = issuer.token(service.now)
    assert (await mint(service, headers)).status_code == 201
    assert service.client is not None
    problem_in(await service.client.get("/v1/tokens", headers=headers), 403, "forbidden")
    # API keys go on beside it.
    assert (await service.get("/v1/tokens")).status_code == 200
    metrics = (await service.get("/metrics", caller=None)).text
    assert 'tokensvc_view_age_seconds{view="oidc_keys"}' in metrics


@pytest.mark.parametrize(
    "changes", [{"aud": "another"}, {"iss": "https://elsewhere.example"}, {"exp": 1}]
)
async def test_a_token_that_is_not_for_us_is_nobody(
    service: Service, issuer: Issuer, changes: dict[str, object], log: Any
):
    headers = issuer.token(service.now, **changes)
    answer = await mint(service, headers)
    problem_in(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert headers["authorization"].split(".")[2] not in log.getvalue()


async def test_an_issuer_that_is_down_is_503_and_api_keys_go_on(service: Service, issuer: Issuer):
    issuer.down = True
    problem_in(await mint(service, issuer.token(service.now)), 503, "identity_provider_unavailable")
    assert (await service.mint())["issuer"] == "local"


async def test_the_policy_knows_such_a_caller_by_its_claim(
    stopped: Service, issuer: Issuer, tmp_path: Path
):
    (tmp_path / "policy.yaml").write_text(POLICY)
    stopped.settings = dataclasses.replace(
        stopped.settings,
        oidc_issuer=issuer.url,
        oidc_audience=AUDIENCE,
        policy_file=tmp_path / "policy.yaml",
    )
    async with running(stopped) as service:
        answer = await mint(service, issuer.token(service.now))
        assert answer.json()["capabilities"] == ["SUBSCRIBE"]
        assert answer.json()["duration"] == 30
        answer = await mint(service, issuer.token(service.now, sub="another"))
        problem_in(answer, 403, "policy_denied")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"oidc_issuer": "https://login.example.com"}, "TOKENSVC_OIDC_AUDIENCE"),
        ({"oidc_issuer": "http://login.example.com", "oidc_audience": "x"}, "https://"),
    ],
)
def test_an_issuer_that_could_not_be_trusted_stops_the_start(changes: dict[str, str], named: str):
    settings = dataclasses.replace(Settings(regions=("eu-central-1",)), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=named):
        oidc_config(settings)
