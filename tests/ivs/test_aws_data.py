"""Promise: botocore keeps little of its endpoints, and asks the same ones as it does with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.loaders import JSONFileLoader, Loader
from botocore.regions import EndpointResolver

from tests.ivs.support import CREDENTIALS
from tokensvc.ivs.aws_data import ASKED, FewEndpoints
from tokensvc.ivs.clients import StaticCredentials, make_session

FILE = f"{Loader.BUILTIN_DATA_PATH}/endpoints"
ALL: dict[str, Any] = JSONFileLoader().load_file(FILE)


def regions() -> Iterator[str]:
    for partition in ALL["partitions"]:
        yield from partition["regions"]
    yield "eu-nowhere-9"


@pytest.mark.parametrize("service", ["ivs-realtime", "kms", "sts", "sso", "sso-oidc", "signin"])
def test_what_is_asked_has_the_endpoints_that_it_has_with_all_of_them(service: str) -> None:
    prefix = botocore.session.get_session().get_service_model(service).endpoint_prefix
    assert prefix in ASKED
    few, every = EndpointResolver(FewEndpoints().load_file(FILE)), EndpointResolver(ALL)
    for region in regions():
        assert few.construct_endpoint(prefix, region) == every.construct_endpoint(prefix, region)


def test_all_else_of_the_file_stays() -> None:
    kept = FewEndpoints().load_file(FILE)
    for partition in kept["partitions"]:
        assert set(partition.pop("services")) <= ASKED
    without = {**ALL, "partitions": [dict(partition) for partition in ALL["partitions"]]}
    for partition in without["partitions"]:
        del partition["services"]
    assert kept == without


@pytest.mark.parametrize("credentials", [None, CREDENTIALS])
def test_a_session_keeps_no_more(credentials: StaticCredentials | None) -> None:
    session = make_session(credentials)
    assert set(session.get_available_partitions()) == {p["partition"] for p in ALL["partitions"]}
    assert session.get_available_regions("kms")
    assert session.get_available_regions("ec2") == []


def test_a_file_of_the_operators_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endpoints.json").write_text(
        '{"partitions": [{"partition": "aws", "regions": {"eu-central-1": {}},'
        ' "services": {"kms": {"endpoints": {"eu-central-1": {}}}, "ec2": {"endpoints": {}}}}]}'
    )
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert make_session(None).get_available_regions("kms") == ["eu-central-1"]


def test_other_files_are_read_whole_and_missing_ones_are_none(tmp_path: Path) -> None:
    loader, path = FewEndpoints(), str(Path(FILE).with_name("partitions"))
    assert loader.load_file(path) == JSONFileLoader().load_file(path)
    assert loader.load_file(str(tmp_path / "endpoints")) is None
