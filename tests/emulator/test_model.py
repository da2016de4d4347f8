"""The constraints that the emulator carries as data are those of the API model."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.api_model import service_model
from tokensvc.emulator.errors import ApiError, ValidationError
from tokensvc.emulator.faults import ERRORS
from tokensvc.emulator.model import REQUESTS
from tokensvc.emulator.shapes import (
    Choice,
    Flag,
    Items,
    Structure,
    Text,
    Texts,
    Whole,
    check_request,
)

RESOURCE_ARN_IN_MODEL = "arn:aws:ivs:[a-z0-9-]+:[0-9]+:[a-z-]/[a-zA-Z0-9-]+"
RESOURCE_ARN_HERE = "arn:aws:ivs:[a-z0-9-]+:[0-9]+:[a-z-]+/[a-zA-Z0-9-]+"


def described(shape: Any) -> Any:
    """Describe a shape of the emulator."""
    match shape:
        case Text(low, high, pattern):
            return ("string", low, high, pattern)
        case Whole(low, high):
            return ("integer", low, high)
        case Flag():
            return ("boolean",)
        case Choice(values):
            return ("enum", sorted(values))
        case Items(member, high):
            return ("list", described(member), high)
        case Texts(key, value, high):
            return ("map", described(key), described(value), high)
        case Structure(members, required):
            return (
                "structure",
                {name: described(member) for name, member in members.items()},
                sorted(required),
            )
    raise AssertionError(shape)


def modelled(shape: Any) -> Any:
    """Describe a shape of botocore's model in the same words."""
    limits = shape.metadata
    match shape.type_name:
        case "string" if shape.enum:
            return ("enum", sorted(shape.enum))
        case "string":
            pattern = limits.get("pattern")
            if pattern == RESOURCE_ARN_IN_MODEL:
                pattern = RESOURCE_ARN_HERE
            return ("string", limits.get("min", 0), limits.get("max"), pattern)
        case "integer":
            return ("integer", limits["min"], limits["max"])
        case "boolean":
            return ("boolean",)
        case "list":
            return ("list", modelled(shape.member), limits["max"])
        case "map":
            return ("map", modelled(shape.key), modelled(shape.value), limits.get("max"))
        case "structure":
            return (
                "structure",
                {name: modelled(member) for name, member in shape.members.items()},
                sorted(shape.required_members),
            )
    raise AssertionError(shape)


@pytest.mark.parametrize("operation", sorted(REQUESTS))
def test_request_is_bounded_as_in_the_model(operation: str) -> None:
    shape = service_model().operation_model(operation).input_shape
    assert described(REQUESTS[operation]) == modelled(shape)


COMMON = {"ExpiredTokenException": 403, "ThrottlingException": 429}
"""Errors of all AWS services, which IVS's model leaves out."""


@pytest.mark.parametrize("error", ERRORS.values(), ids=lambda error: error.code)
def test_errors_have_the_model_status(error: type[ApiError]) -> None:
    if error.code in COMMON:
        assert error.code not in service_model().shape_names
        assert (error.status, error.member) == (COMMON[error.code], "message")
        return
    shape = service_model().shape_for(error.code)
    assert error.status == shape.metadata["error"]["httpStatusCode"]
    assert error.member in shape.members


@pytest.mark.parametrize(
    ("operation", "request_", "complaint"),
    [
        ("GetStage", {}, "'arn' failed to satisfy constraint: Member must not be null"),
        ("GetStage", {"arn": None}, "Member must not be null"),
        ("GetStage", {"arn": 5}, "'arn' failed to satisfy constraint: Member must be a string"),
        ("GetStage", {"arn": "stage"}, "regular expression pattern: arn:aws:ivs"),
        ("GetStage", {"arn": "arn:aws:ivs:x:1:stage/a\n"}, "regular expression"),
        ("GetStage", {"arn": "arn:aws:ivs:x:1:stage/" + "a" * 107}, "less than or equal to 128"),
        ("GetStage", [], "'' failed to satisfy constraint: Member must be a structure"),
        ("ListStages", {"maxResults": 0}, "greater than or equal to 1"),
        ("ListStages", {"maxResults": 101}, "less than or equal to 100"),
        ("ListStages", {"maxResults": True}, "must be an integer"),
        ("ListStages", {"maxResults": 1.5}, "must be an integer"),
        ("ListStages", {"nextToken": "?"}, "regular expression"),
        ("CreateStage", {"name": "no spaces"}, "regular expression"),
        ("CreateStage", {"tags": {"": "x"}}, "'tags.key' failed"),
        ("CreateStage", {"tags": {"a": None}}, "'tags.a.member' failed"),
        ("CreateStage", {"tags": {"a": "x" * 257}}, "'tags.a.member' failed"),
        ("CreateStage", {"tags": ["a"]}, "must be a map"),
        ("CreateStage", {"participantTokenConfigurations": [{}] * 13}, "less than or equal to 12"),
        (
            "CreateStage",
            {"participantTokenConfigurations": [{}, {"duration": 20_161}]},
            "'participantTokenConfigurations.2.member.duration' failed",
        ),
        ("CreateStage", {"autoParticipantRecordingConfiguration": {}}, "must not be null"),
        ("RevokeConnectionToken", {"tokenId": ""}, "greater than or equal to 1"),
        (
            "CreateParticipantToken",
            {"stageArn": "arn:aws:ivs:x:1:stage/a", "capabilities": ["PUBLISH", "SING"]},
            "'capabilities.2.member' failed to satisfy constraint: Member must satisfy enum",
        ),
        (
            "CreateParticipantToken",
            {"stageArn": "arn:aws:ivs:x:1:stage/a", "capabilities": "PUBLISH"},
            "must be a list",
        ),
        (
            "ListParticipants",
            {
                "stageArn": "arn:aws:ivs:x:1:stage/a",
                "sessionId": "st-1234567890123",
                "filterByPublished": "true",
            },
            "must be a boolean",
        ),
    ],
)
def test_violation_is_named(operation: str, request_: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=r"^1 validation error detected") as raised:
        check_request(REQUESTS[operation], request_)
    assert complaint in raised.value.message


def test_all_violations_are_named_and_values_are_not() -> None:
    secret = "-----BEGIN PRIVATE KEY-----"
    with pytest.raises(ValidationError) as raised:
        check_request(REQUESTS["ImportPublicKey"], {"publicKeyMaterial": secret, "name": "a b"})
    assert raised.value.message.startswith("2 validation errors detected")
    assert "PRIVATE" not in raised.value.message.replace("BEGIN PUBLIC KEY", "")


def test_unknown_and_null_members_are_passed_over() -> None:
    request = {"maxResults": 5, "nextToken": None, "colour": "red"}
    assert check_request(REQUESTS["ListStages"], request) == {"maxResults": 5}
