"""The wire below boto3: signatures, bodies, paths, error shapes, the clock in `Date`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.emulator.support import RunningEmulator
from tokensvc.emulator.control_plane import MAX_BODY_BYTES

SIGNATURE = "0" * 64
SCOPE = "AKIDEMULATOR0000/20260102/eu-central-1/ivs/aws4_request"
SIGNED = "content-type;host;x-amz-date"
AUTHORIZATION = (
    f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders={SIGNED}, Signature={SIGNATURE}"
)
HEADERS = {"authorization": AUTHORIZATION, "x-amz-date": "20260102T030405Z"}


@pytest.fixture(scope="module")
def ivs() -> Iterator[RunningEmulator]:
    with RunningEmulator(enforce_quotas=False) as ivs:
        yield ivs


def post(ivs: RunningEmulator, operation: str, body: Any = None, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return ivs.http.post(f"/{operation}", content=content, headers=HEADERS | headers)


def test_signed_request_is_answered(ivs: RunningEmulator) -> None:
    answer = post(ivs, "ListStages")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-amzn-requestid"]) == 36
    assert post(ivs, "ListStages", b"").json() == answer.json()


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("", "MissingAuthenticationTokenException"),
        ("Bearer abc", "IncompleteSignatureException"),
        ("AWS4-HMAC-SHA256", "IncompleteSignatureException"),
        (
            AUTHORIZATION.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
            "IncompleteSignatureException",
        ),
        (AUTHORIZATION.replace("Credential=", "Credentials="), "IncompleteSignatureException"),
        (
            AUTHORIZATION.replace("AKIDEMULATOR0000/", ""),
            "IncompleteSignatureException",
        ),
        (AUTHORIZATION.replace("aws4_request", "aws5"), "IncompleteSignatureException"),
        (AUTHORIZATION.replace(SIGNATURE, "abc"), "IncompleteSignatureException"),
        (AUTHORIZATION.replace(f", Signature={SIGNATURE}", ""), "IncompleteSignatureException"),
        (AUTHORIZATION.replace(";host;", ";"), "IncompleteSignatureException"),
        (AUTHORIZATION.replace("/ivs/", "/s3/"), "InvalidSignatureException"),
        (AUTHORIZATION.replace("eu-central-1", "mars-1"), "InvalidSignatureException"),
        (AUTHORIZATION.replace("20260102/", "20260103/"), "InvalidSignatureException"),
    ],
)
def test_bad_signature_header_is_refused(
    ivs: RunningEmulator, authorization: str, code: str
) -> None:
    answer = post(ivs, "CreateStage", authorization=authorization)
    assert answer.status_code == 403
    assert answer.headers["x-amzn-errortype"] == code
    assert set(answer.json()) == {"message"}
    assert SIGNATURE not in answer.text
    assert ivs.world.stages("eu-central-1") == []


def test_modelled_error_has_exception_message_and_type(ivs: RunningEmulator) -> None:
    answer = post(ivs, "GetStage", {"arn": "nonsense"})
    assert answer.status_code == 400
    assert answer.headers["x-amzn-errortype"] == "ValidationException"
    assert set(answer.json()) == {"exceptionMessage"}
    assert "date" in answer.headers


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b"\xff\xfe", b"null"])
def test_body_that_is_no_object_is_refused(ivs: RunningEmulator, body: bytes) -> None:
    answer = post(ivs, "ListStages", body)
    assert answer.status_code == 400
    assert answer.headers["x-amzn-errortype"] == "SerializationException"


def test_body_is_bounded(ivs: RunningEmulator) -> None:
    answer = post(ivs, "ListStages", b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/CreateChannel"), ("GET", "/ListStages"), ("PUT", "/tags/arn"), ("POST", "/")],
)
def test_unknown_operation(ivs: RunningEmulator, method: str, path: str) -> None:
    answer = ivs.http.request(method, path, headers=HEADERS)
    assert answer.status_code == 404
    assert answer.headers["x-amzn-errortype"] == "UnknownOperationException"
    assert "date" in answer.headers


def test_date_is_of_the_emulators_clock() -> None:
    with RunningEmulator(clock=lambda: 1_800_000_000.0) as ivs:
        for offset in (0.0, 90.0, -3600.0):
            ivs.set_clock(offset)
            for answer in (post(ivs, "ListStages"), ivs.http.get("/_emulator/calls")):
                date = parsedate_to_datetime(answer.headers["date"])
                assert date.timestamp() == 1_800_000_000 + offset
                assert len(answer.headers.get_list("date")) == 1


def test_an_operation_is_no_socket(ivs: RunningEmulator) -> None:
    with (
        pytest.raises(InvalidStatus),
        connect(f"{ivs.events_url}/CreateStage", proxy=None),
    ):
        pass
