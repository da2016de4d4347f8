"""What schemathesis' own checks cannot say of this service; it loads this file by its settings."""

from __future__ import annotations

from typing import Any

import schemathesis

# Rules between fields, and of what the operator has set: OpenAPI has no words for them.
RULES = frozenset(
    {"conflict", "invalid", "mismatch", "no_policy", "not_served", "past", "region_not_served"}
)
# Where one of several fields must be there.
ALTERNATIVES = {
    "/v1/bans": {"everybody", "userId"},
    "/v1/connection-tokens": {"region"},
    "/v1/disconnects": {"everybody"},
}
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@schemathesis.check
def what_the_schema_allows_is_refused_for_a_rule(ctx: Any, response: Any, case: Any) -> None:
    if not _generated(case).is_positive or response.status_code != 400:
        return
    errors = response.json().get("errors", [])
    assert any(
        error["code"] in RULES
        or (error["code"] == "required" and error["field"] in ALTERNATIVES.get(case.path, ()))
        for error in errors
    ), f"refused for {errors or 'no field'}, which the schema could say"


@schemathesis.check
def every_answer_has_an_id_and_is_not_kept(ctx: Any, response: Any, case: Any) -> None:
    headers = {name.lower(): values for name, values in response.headers.items()}
    for name, value in HEADERS.items():
        assert headers.get(name) == [value], f"{name}: {headers.get(name)}"
    assert headers.get("x-request-id")
    assert "server" not in headers


@schemathesis.check
def a_problem_is_whole(ctx: Any, response: Any, case: Any) -> None:
    if response.status_code < 400 or case.method == "HEAD":
        return
    if case.path == "/readyz":
        return
    assert response.headers["content-type"] == ["application/problem+json"]
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["type"] == f"urn:tokensvc:problem:{problem['code']}"
    assert problem["code"] != "internal"
    assert problem["requestId"] == response.headers["x-request-id"][0]
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"][0]) >= 1
    for trace in ("Traceback", 'File "', "sqlalchemy", "msgspec", "botocore"):
        assert trace not in response.text


@schemathesis.check
def a_batch_answers_each_item(ctx: Any, response: Any, case: Any) -> None:
    if case.path != "/v1/tokens/batch" or response.status_code != 200:
        return
    answer = response.json()
    assert answer["issued"] + answer["failed"] == len(answer["tokens"])
    refused = [item["problem"] for item in answer["tokens"] if "problem" in item]
    assert len(refused) == answer["failed"]
    if _generated(case).is_negative and case.method == "POST":
        assert refused, "a batch that breaks its schema was answered in full"


def _generated(case: Any) -> Any:
    return case.meta.generation.mode
