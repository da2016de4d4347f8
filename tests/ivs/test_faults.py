"""Promise: whatever botocore raises becomes the error of ours that says what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import exceptions
from botocore.session import Session
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensvc.errors import (
    IvsAccessDeniedError,
    IvsConflictError,
    IvsError,
    IvsNotFoundError,
    IvsPendingVerificationError,
    IvsQuotaExceededError,
    IvsRejectedError,
    IvsThrottledError,
    IvsUnavailableError,
)
from tokensvc.ivs.budgets import CALLS_PER_SECOND
from tokensvc.ivs.faults import translate


def client_error(code: str, status: int | None, **more: Any) -> exceptions.ClientError:
    metadata: dict[str, Any] = {"HTTPStatusCode": status, "HTTPHeaders": more.pop("headers", {})}
    answer = {"Error": {"Code": code, **more}, "ResponseMetadata": metadata}
    return exceptions.ClientError(answer, "GetStage")


def translated(error: Exception) -> IvsError:
    return translate(error, operation="GetStage", region="eu-central-1")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ValidationException", 400, IvsRejectedError),
        ("AccessDeniedException", 403, IvsAccessDeniedError),
        ("PendingVerification", 403, IvsPendingVerificationError),
        ("ResourceNotFoundException", 404, IvsNotFoundError),
        ("ConflictException", 409, IvsConflictError),
        ("ServiceQuotaExceededException", 402, IvsQuotaExceededError),
        ("ThrottlingException", 429, IvsThrottledError),
        ("ThrottlingException", 400, IvsThrottledError),
        ("TooManyRequestsException", 429, IvsThrottledError),
        ("InternalServerException", 500, IvsUnavailableError),
        ("ExpiredTokenException", 403, IvsAccessDeniedError),
        ("RequestTimeTooSkewed", 403, IvsAccessDeniedError),
        ("InvalidSignatureException", 403, IvsAccessDeniedError),
        ("NeverHeardOf", 400, IvsError),
        ("NeverHeardOf", 401, IvsAccessDeniedError),
        ("NeverHeardOf", 402, IvsQuotaExceededError),
        ("NeverHeardOf", 403, IvsAccessDeniedError),
        ("NeverHeardOf", 408, IvsUnavailableError),
        ("NeverHeardOf", 409, IvsConflictError),
        ("NeverHeardOf", 429, IvsThrottledError),
        ("NeverHeardOf", 500, IvsUnavailableError),
        ("NeverHeardOf", 599, IvsUnavailableError),
        ("404", 404, IvsError),
        ("", 302, IvsError),
        ("", None, IvsError),
    ],
)
def test_by_code_then_by_status(code: str, status: int | None, kind: type[IvsError]) -> None:
    assert type(translated(client_error(code, status))) is kind


@pytest.mark.parametrize("operation", sorted(CALLS_PER_SECOND))
def test_every_error_that_the_model_names_is_known_by_its_code(operation: str) -> None:
    model = Session().get_service_model("ivs-realtime").operation_model(operation)
    assert model.error_shapes
    for shape in model.error_shapes:
        # With a status of nothing: the code alone must be enough.
        assert type(translated(client_error(shape.name, None))) is not IvsError, shape.name


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.NoCredentialsError(), IvsAccessDeniedError),
        (exceptions.PartialCredentialsError(provider="env", cred_var="x"), IvsAccessDeniedError),
        (exceptions.ProfileNotFound(profile="x"), IvsAccessDeniedError),
        (exceptions.UnauthorizedSSOTokenError(), IvsAccessDeniedError),
        (exceptions.ConnectTimeoutError(endpoint_url="x"), IvsUnavailableError),
        (exceptions.ReadTimeoutError(endpoint_url="x"), IvsUnavailableError),
        (exceptions.EndpointConnectionError(endpoint_url="x"), IvsUnavailableError),
        (exceptions.ConnectionClosedError(endpoint_url="x"), IvsUnavailableError),
        (exceptions.SSLError(endpoint_url="x", error="y"), IvsUnavailableError),
        (exceptions.ProxyConnectionError(proxy_url="x"), IvsUnavailableError),
        (
            exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
            IvsUnavailableError,
        ),
        (exceptions.ParamValidationError(report="x"), IvsRejectedError),
        (exceptions.DataNotFoundError(data_path="x"), IvsError),
        (ValueError("not JSON"), IvsError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_faults_without_an_answer(error: Exception, kind: type[IvsError]) -> None:
    ours = translated(error)
    assert type(ours) is kind
    assert ours.context["error_type"] == type(error).__name__


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("3600", 60.0), ("-1", 1.0), ("1.5", 1.0), ("²", 1.0), ("tomorrow", 1.0)],
)
def test_how_long_ivs_wants_us_to_wait_is_passed_on_within_reason(
    header: str, seconds: float
) -> None:
    error = client_error("ThrottlingException", 429, headers={"retry-after": header})
    assert translated(error).retry_after == seconds


def test_an_outage_has_a_longer_wait_and_a_refusal_none() -> None:
    assert translated(client_error("", 503)).retry_after == 2.0
    refused = client_error("ValidationException", 400, headers={"retry-after": "7"})
    assert translated(refused).retry_after is None


def test_what_ivs_says_is_cut_and_kept_for_the_log() -> None:
    error = translated(client_error("ValidationException", 400, Message="x" * 10_000))
    assert error.context["ivs_message"] == "x" * 500
    assert "x" * 5 not in error.detail


@settings(max_examples=100, deadline=None)
@given(
    answer=st.fixed_dictionaries(
        {},
        optional={
            "Error": st.none() | st.dictionaries(st.sampled_from(["Code", "Message"]), st.text()),
            "exceptionMessage": st.none() | st.text() | st.integers(),
            "ResponseMetadata": st.none()
            | st.fixed_dictionaries(
                {},
                optional={
                    "HTTPStatusCode": st.none() | st.integers(0, 700) | st.text(),
                    "RetryAttempts": st.none() | st.integers(0, 9) | st.text(),
                    "HTTPHeaders": st.none()
                    | st.dictionaries(st.just("retry-after"), st.text() | st.integers()),
                    "RequestId": st.none() | st.text(),
                },
            ),
        },
    )
)
def test_no_answer_is_so_odd_that_it_cannot_be_told(answer: dict[str, Any]) -> None:
    error = exceptions.ClientError({}, "GetStage")
    error.response = answer  # type: ignore[assignment]
    assert isinstance(translated(error), IvsError)
