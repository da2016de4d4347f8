"""Whatever is sent, the control plane answers as AWS would and never breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.emulator.api_model import service_model, violations
from tests.emulator.support import public_pem
from tests.emulator.test_wire import HEADERS
from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.control_plane import ControlPlane
from tokensvc.emulator.model import REQUESTS, TAG_OPERATIONS
from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.world import World

NOW = 1_800_000_000.0
REGION = "eu-central-1"
PEM = public_pem()
POSTED = sorted(set(REQUESTS) - set(TAG_OPERATIONS.values()))

SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 30_000) | st.floats(allow_nan=False) | st.text()
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def planned() -> tuple[ControlPlane, str]:
    """Return a control plane and the ARN of its one stage."""
    world = World(EmulatorConfig(enforce_quotas=False), lambda: NOW)

    async def nothing(*_: object) -> None:
        pass

    plane = ControlPlane(world, Sessions(world.now), clock=lambda: NOW, save=nothing, sleep=nothing)
    return plane, world.create_stage(REGION).arn


def ask(plane: ControlPlane, operation: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    scope: Any = {
        "type": "http",
        "method": "POST",
        "raw_path": f"/{operation}".encode(),
        "query_string": b"",
        "headers": headers,
        "extensions": {},
    }
    asyncio.run(plane(scope, receive, send))
    start, content = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], answered, content["body"]


@settings(max_examples=150, deadline=None)
@given(operation=st.sampled_from(POSTED), data=st.data())
def test_answer_is_one_of_the_model(operation: str, data: st.DataObject) -> None:
    plane, stage = planned()
    known = st.sampled_from([stage, PEM, "name", "st-1234567890123", {}, [], 1, 720])
    members = list(REQUESTS[operation].members)
    body = data.draw(
        st.fixed_dictionaries({}, optional=dict.fromkeys(members, known | JSON)) | JSON
    )
    status, headers, raw = ask(plane, operation, msgspec.json.encode(body))
    model = service_model().operation_model(operation)
    answer = msgspec.json.decode(raw)
    if status == 200:
        assert violations(answer, model.output_shape, operation) == []
        return
    errors = {shape.name: shape for shape in model.error_shapes}
    code = headers["x-amzn-errortype"]
    if code == "SerializationException":
        assert not isinstance(body, dict)
        return
    assert errors[code].metadata["error"]["httpStatusCode"] == status
    assert set(answer) == {"exceptionMessage"}


@settings(max_examples=100, deadline=None)
@given(operation=st.sampled_from(POSTED), body=st.binary(max_size=60))
@example(operation="CreateStage", body=b'{"tags":{"a":"\\ud800"}}')
@example(operation="CreateStage", body=b"[" * 5000)
@example(
    operation="CreateStage",
    body=b'{"participantTokenConfigurations":[{"attributes":{"\\ud800":""}}]}',
)
def test_bytes_that_are_no_request_are_refused_or_answered(operation: str, body: bytes) -> None:
    plane, _ = planned()
    status, _, raw = ask(plane, operation, body)
    assert status in {200, 400}
    assert isinstance(msgspec.json.decode(raw), dict)
