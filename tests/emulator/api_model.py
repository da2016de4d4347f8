"""botocore's model of `ivs-realtime` as a judge of the emulator's answers and of its constraints.

botocore ignores members that its model lacks and does not check answers. So raw bodies are held
against the model here: every member must be known, of the model's type, and within its bounds.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from typing import Any

import botocore.loaders
from botocore.model import ServiceModel, Shape

ERROR_ENVELOPE = {"message"}
"""Of errors that the model does not have, which AWS's front door answers."""


@lru_cache
def service_model() -> ServiceModel:
    loader = botocore.loaders.Loader()
    return ServiceModel(loader.load_service_model("ivs-realtime", "service-2"), "ivs-realtime")


class ModelJudge:
    """Watches a boto3 client: `problems` of its answers, and the `operations` that it called."""

    def __init__(self, client: Any) -> None:
        self.problems: list[str] = []
        self.operations: list[str] = []
        client.meta.events.register("after-call.ivs-realtime", self._judge)

    def _judge(self, http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
        self.operations.append(model.name)
        body = json.loads(http_response.content)
        headers = {name.lower() for name in http_response.headers}
        self.problems += [
            f"{model.name}: no {name} header"
            for name in ("date", "x-amzn-requestid", "content-type")
            if name not in headers
        ]
        if http_response.status_code == 200:
            self.problems += violations(body, model.output_shape, model.name)
            return
        code = http_response.headers["x-amzn-ErrorType"]
        shapes = {shape.name: shape for shape in model.error_shapes}
        if code in shapes:
            self.problems += violations(body, shapes[code], f"{model.name} {code}")
            if shapes[code].metadata["error"]["httpStatusCode"] != http_response.status_code:
                self.problems.append(f"{model.name}: {code} with {http_response.status_code}")
        elif code in service_model().shape_names:
            self.problems.append(f"{model.name}: {code} is not an error of this operation")
        elif set(body) != ERROR_ENVELOPE:
            self.problems.append(f"{model.name}: {code} with members {set(body)}")


def violations(value: Any, shape: Shape, path: str) -> list[str]:
    """Return where a JSON value is not what the model says."""
    check = _CHECKS.get(shape.type_name)
    if check is None:
        return [f"{path}: type {shape.type_name} is not known to this test"]
    return check(value, shape, path)


def _structure(value: Any, shape: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: not an object"]
    found = [f"{path}.{name}: missing" for name in shape.required_members if name not in value]
    for name, member in value.items():
        if name not in shape.members:
            found.append(f"{path}.{name}: not in the model")
        else:
            found += violations(member, shape.members[name], f"{path}.{name}")
    return found


def _list(value: Any, shape: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{path}: not a list"]
    return _length(value, shape, path) + [
        problem for item in value for problem in violations(item, shape.member, f"{path}[]")
    ]


def _map(value: Any, shape: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: not a map"]
    return _length(value, shape, path) + [
        problem
        for name, item in value.items()
        for problem in (
            *violations(name, shape.key, f"{path} key"),
            *violations(item, shape.value, f"{path}.{name}"),
        )
    ]


def _string(value: Any, shape: Any, path: str) -> list[str]:
    if not isinstance(value, str):
        return [f"{path}: not a string"]
    pattern = shape.metadata.get("pattern")
    if pattern is not None and not re.fullmatch(pattern, value):
        return [f"{path}: {value!r} does not match {pattern}"]
    if shape.enum and value not in shape.enum:
        return [f"{path}: {value!r} is none of {shape.enum}"]
    return _length(value, shape, path)


def _length(value: Any, shape: Any, path: str) -> list[str]:
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max", float("inf"))
    return [] if low <= len(value) <= high else [f"{path}: length {len(value)}"]


def _integer(value: Any, shape: Any, path: str) -> list[str]:
    if type(value) is not int:
        return [f"{path}: not an integer"]
    low = shape.metadata.get("min", -float("inf"))
    return [] if low <= value <= shape.metadata.get("max", float("inf")) else [f"{path}: {value}"]


def _boolean(value: Any, _: Any, path: str) -> list[str]:
    return [] if isinstance(value, bool) else [f"{path}: not a boolean"]


def _timestamp(value: Any, _: Any, path: str) -> list[str]:
    try:
        zone = datetime.fromisoformat(value).tzinfo
    except (TypeError, ValueError):
        return [f"{path}: {value!r} is not ISO 8601"]
    return [] if zone is not None else [f"{path}: {value!r} has no zone"]


_CHECKS = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "string": _string,
    "integer": _integer,
    "boolean": _boolean,
    "timestamp": _timestamp,
}
