"""`/schema` says what the service does: every route, valid, with examples that are true."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from tests.http.support import Service, stage_arn
from tokensvc.errors import InvalidRequestError
from tokensvc.http import examples
from tokensvc.http.structs import BatchRequest, MintRequest
from tokensvc.tokens.validate import TOKEN_REQUEST_FIELDS, parse_token_request, parse_wanted_token

REGIONS = frozenset({"eu-central-1"})


async def document(service: Service) -> dict[str, Any]:
    answer = await service.get("/schema", caller=None)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return answer.json()  # type: ignore[no-any-return]


async def test_every_route_is_documented(service: Service):
    assert service.app is not None
    routes = service.app.app.routes  # type: ignore[attr-defined]
    served = {
        (route.path_format, method.lower())
        for route in routes
        for method in route.route_handler_map
        if method != "OPTIONS"
    }
    paths = (await document(service))["paths"]
    documented = {(path, method) for path, operations in paths.items() for method in operations}
    assert served - documented == {("/schema", "get")}
    assert documented <= served


async def test_the_document_holds_together(service: Service):
    found = await document(service)
    assert found["openapi"] == "3.1.0"
    assert found["info"]["version"]
    schemas = found["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
    assert references == set(schemas)
    operations = [one for path in found["paths"].values() for one in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert any(status.startswith("2") for status in operation["responses"])
        for response in operation["responses"].values():
            assert response["description"]
            for media in response["content"].values():
                assert "schema" in media


async def test_every_route_but_health_wants_the_api_key_and_lists_its_problems(service: Service):
    found = await document(service)
    assert found["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for path, operations in found["paths"].items():
        for operation in operations.values():
            problems = {
                status
                for status, response in operation["responses"].items()
                if "application/problem+json" in response["content"]
            }
            if path.startswith("/v1/"):
                assert operation["security"] == [{"apiKey": []}]
                assert {"401", "403", "500"} <= problems
            else:
                assert operation["security"] == []
            if "requestBody" in operation:
                assert {"400", "408", "413", "415"} <= problems
    assert {"404", "503", "502"} <= set(found["paths"]["/v1/tokens"]["post"]["responses"])


async def test_path_parameters_are_declared(service: Service):
    paths = (await document(service))["paths"]
    (parameter,) = paths["/v1/keys/{key_id}"]["get"]["parameters"]
    assert parameter == {
        "name": "key_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
    }


async def test_the_examples_of_requests_are_answered(service: Service):
    service.ivs.stages.add(examples.STAGE_ARN)
    paths = (await document(service))["paths"]
    key_id = (await service.get("/v1/keys")).json()["keys"][0]["keyId"]
    tried = 0
    for path, operations in paths.items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            for example in content.get("application/json", {}).get("examples", {}).values():
                assert method == "post"
                body = example["value"]
                if path == "/v1/tokens/exchange":
                    # Of this service's own ledger, as the participant of any exchange is.
                    minted = await service.post("/v1/tokens", {"stageArn": examples.STAGE_ARN})
                    body = body | {"participantId": minted.json()["participantId"]}
                answer = await service.post(path.replace("{key_id}", key_id), body)
                assert str(answer.status_code) in operation["responses"]
                assert answer.status_code < 300, answer.text
                tried += 1
    assert tried >= 4


async def test_what_is_answered_has_the_form_that_is_documented(service: Service):
    minted = await service.post("/v1/tokens", {"stageArn": stage_arn()})
    batch = await service.post(
        "/v1/tokens/batch", {"tokens": [{"stageArn": stage_arn()}, {"duration": 0}]}
    )
    stage = {"stageArn": stage_arn()}
    kicked = await service.post("/v1/disconnects", {**stage, "participantId": "p1"})
    banned = await service.post("/v1/bans", {**stage, "userId": "mallory", "duration": 60})
    refused = await service.post("/v1/tokens", {**stage, "userId": "mallory"})
    assert refused.status_code == 403
    answers = {
        ("/v1/tokens", "get", "200"): (await service.get("/v1/tokens")).json(),
        ("/v1/tokens", "post", "403"): refused.json(),
        ("/v1/disconnects", "post", "202"): kicked.json(),
        ("/v1/disconnects/{disconnect_id}", "get", "200"): (
            await service.get(kicked.headers["location"])
        ).json(),
        ("/v1/bans", "post", "201"): banned.json(),
        ("/v1/bans", "get", "200"): (await service.get("/v1/bans")).json(),
        ("/v1/bans/{ban_id}", "get", "200"): (await service.get(banned.headers["location"])).json(),
        ("/v1/bans/{ban_id}", "delete", "200"): (
            await service.delete(banned.headers["location"])
        ).json(),
        ("/v1/bans", "delete", "200"): (
            await service.delete("/v1/bans", stageArn=stage_arn(), everybody="true")
        ).json(),
        ("/v1/tokens", "post", "201"): minted.json(),
        ("/v1/tokens/batch", "post", "200"): batch.json(),
        ("/v1/tokens/inspect", "post", "200"): (
            await service.post("/v1/tokens/inspect", {"token": minted.json()["token"]})
        ).json(),
        ("/v1/keys", "get", "200"): (await service.get("/v1/keys")).json(),
        ("/readyz", "get", "200"): (await service.get("/readyz")).json(),
        ("/healthz", "get", "200"): (await service.get("/healthz")).json(),
        ("/v1/tokens", "post", "400"): (await service.post("/v1/tokens", {})).json(),
    }
    found = await document(service)
    for (path, method, status), body in answers.items():
        (media,) = found["paths"][path][method]["responses"][status]["content"].values()
        assert faults(media["schema"], body, found) == [], (path, body)
        for example in media.get("examples", {}).values():
            assert faults(media["schema"], example["value"], found) == [], (path, example)


STAGE = {"stageArn": stage_arn()}


@pytest.mark.parametrize(
    "request_body",
    [
        STAGE,
        {},
        {"stageArn": None},
        {"stageArn": 5},
        {"stageArn": "arn:aws:ivs:eu-central-1:1:stage/"},
        {"stageArn": "arn:aws:ivs:eu-central-1:x:stage/y"},
        {"stageArn": "arn:aws:ivs:eu-central-1:1:public-key/y"},
        {"stageArn": "arn:aws:ivs:eu-central-1:1:stage/" + "y" * 120},
        STAGE | {"userId": ""},
        STAGE | {"userId": "\N{ARTIST PALETTE}" * 128},
        STAGE | {"userId": "\N{ARTIST PALETTE}" * 129},
        STAGE | {"userId": None},
        STAGE | {"userId": 1},
        STAGE | {"role": "host-2_B"},
        STAGE | {"role": ""},
        STAGE | {"role": "r" * 65},
        STAGE | {"role": "a b"},
        STAGE | {"role": 1},
        STAGE | {"role": None},
        STAGE | {"duration": 1},
        STAGE | {"duration": 20_160},
        STAGE | {"duration": 20_161},
        STAGE | {"duration": 0},
        STAGE | {"duration": 5.5},
        STAGE | {"duration": True},
        STAGE | {"duration": "5"},
        STAGE | {"duration": None},
        STAGE | {"capabilities": []},
        STAGE | {"capabilities": ["SUBSCRIBE", "PUBLISH"]},
        STAGE | {"capabilities": ["PUBLISH", "PUBLISH", "SUBSCRIBE"]},
        STAGE | {"capabilities": ["publish"]},
        STAGE | {"capabilities": "PUBLISH"},
        STAGE | {"capabilities": None},
        STAGE | {"attributes": {}},
        STAGE | {"attributes": {"a": "b", "": ""}},
        STAGE | {"attributes": {"a": 1}},
        STAGE | {"attributes": {"a": None}},
        STAGE | {"attributes": []},
        STAGE | {"attributes": None},
        STAGE | {"issuer": "local"},
        STAGE | {"issuer": "LOCAL"},
        STAGE | {"issuer": None},
        STAGE | {"stage_arn": "x"},
        STAGE | {"": 1},
    ],
    ids=lambda body: json.dumps(body)[-48:],
)
def test_the_schema_and_the_parser_agree(request_body: dict[str, Any]):
    def parses() -> bool:
        try:
            parse_wanted_token(request_body, regions=REGIONS)
        except InvalidRequestError:
            return False
        return True

    def converts() -> bool:
        try:
            msgspec.json.decode(json.dumps(request_body), type=MintRequest)
        except msgspec.ValidationError:
            return False
        return True

    assert parses() == converts()


def test_a_whole_number_with_a_fraction_of_zero_is_an_integer_as_json_schema_has_it():
    assert parse_token_request(STAGE | {"duration": 5.0}, regions=REGIONS).duration == 5


def test_the_schema_has_the_fields_of_the_parser():
    (fields, of_batch) = (
        msgspec.json.schema_components([kind])[1] for kind in (MintRequest, BatchRequest)
    )
    assert set(fields["MintRequest"]["properties"]) == set(TOKEN_REQUEST_FIELDS)
    assert fields["MintRequest"]["required"] == ["stageArn"]
    assert set(of_batch["BatchRequest"]["properties"]) == {"tokens", "defaults"}


def faults(schema: dict[str, Any], value: Any, found: dict[str, Any], at: str = "$") -> list[str]:
    """Hold `value` against the part of JSON Schema that msgspec writes."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return faults(found["components"]["schemas"][name], value, found, at)
    if "anyOf" in schema:
        tries = [faults(one, value, found, at) for one in schema["anyOf"]]
        return [] if [] in tries else [fault for one in tries for fault in one]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{at}: {value!r} not in {schema['enum']}"]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [f"{at}: {value!r} is no {schema['type']}"]
    wrong: list[str] = []
    if isinstance(value, dict):
        wrong += [f"{at}: no {name}" for name in schema.get("required", []) if name not in value]
        properties = schema.get("properties", {})
        extra = schema.get("additionalProperties", not properties)
        for name, item in value.items():
            of_item = properties.get(name, extra)
            if of_item is False:
                wrong.append(f"{at}: {name} is not documented")
            elif isinstance(of_item, dict):
                wrong += faults(of_item, item, found, f"{at}.{name}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            wrong += faults(schema["items"], item, found, f"{at}[{index}]")
    return wrong
