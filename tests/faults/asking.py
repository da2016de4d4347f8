"""What is asked of the service in each column of docs/faults.md, and what came of it in the words there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import httpx

__all__ = ["COLUMNS", "Subject", "outcome", "request_of"]

COLUMNS: Final = (
    "mint",
    "mint, new stage",
    "mint by IVS",
    "batch",
    "exchange",
    "disconnect",
    "ban",
    "rotate",
    "ready",
    "live",
)

Request = tuple[str, str, dict[str, Any] | None]


class Subject:
    """Whom and what the requests are about."""

    def __init__(self, stage: str, new_stage: str, participant: str) -> None:
        """`new_stage` was never asked for; `participant` is on `stage`, and `bob` is nowhere."""
        self.stage = stage
        self.new_stage = new_stage
        self.participant = participant


def request_of(column: str, subject: Subject) -> Request:
    """Return method, path and body of what a column is about."""
    mint: dict[str, Any] = {"stageArn": subject.stage, "duration": 60}
    bob = {"stageArn": subject.stage, "userId": "bob"}
    requests: Mapping[str, Request] = {
        "mint": ("POST", "/v1/tokens", mint),
        "mint, new stage": ("POST", "/v1/tokens", {**mint, "stageArn": subject.new_stage}),
        "mint by IVS": ("POST", "/v1/tokens", {**mint, "issuer": "ivs"}),
        "batch": ("POST", "/v1/tokens/batch", {"tokens": [mint, mint]}),
        "exchange": ("POST", "/v1/tokens/exchange", {"participantId": subject.participant}),
        "disconnect": ("POST", "/v1/disconnects", bob),
        "ban": ("POST", "/v1/bans", {**bob, "duration": 60}),
        "rotate": ("POST", "/v1/keys/rotate", {}),
        "ready": ("GET", "/readyz", None),
        "live": ("GET", "/healthz", None),
    }
    return requests[column]


def outcome(column: str, answer: httpx.Response) -> str:
    """Say in the words of the table what came of a request."""
    body = answer.json()
    status = str(answer.status_code)
    if answer.headers["content-type"] == "application/problem+json":
        # Who is told to come again is told when.
        assert answer.status_code not in (429, 503) or int(answer.headers["retry-after"]) >= 1
        return f"{status} {body['code']}"
    if column == "batch":
        said = {one.get("issuer") or one["problem"]["code"] for one in body["tokens"]}
        return _joined(status, said - {"local"})
    if column == "rotate":
        (region,) = body["regions"]
        if region["rotated"]:
            return f"{status} rotated"
        problems = {problem["code"] for problem in region["status"]["problems"]}
        return _joined(f"{status} not rotated", problems, ": ")
    if column == "ready":
        failing = {check["name"].split(":")[0] for check in body["checks"] if not check["ok"]}
        return _joined(status, failing, ": ")
    if body.get("issuer", "local") != "local":
        return f"{status} {body['issuer']}"
    return status


def _joined(start: str, names: set[str], by: str = " ") -> str:
    return by.join(filter(None, (start, ", ".join(sorted(names)))))
