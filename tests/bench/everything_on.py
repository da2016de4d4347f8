"""Sees that a service that is to be measured does all that it is said to do.

A figure of a service without its ledger or its log would be a better one, and nobody would see why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

__all__ = ["what_is_off"]

_ID = "is-everything-on"


def what_is_off(port: int, pid: int, api_key: str, stage: str, audit: Path) -> list[str]:
    """Return what a service does not do of what is claimed for the figures; nothing is as it should be.

    It has one worker, whose standard output is a file; `banned-1` is banned from `stage`.
    """
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10.0) as client:
        found = _found(client, pid, {"Authorization": f"Bearer {api_key}"}, stage, audit)
        return [name for name, is_on in found if not is_on]


def _found(
    client: httpx.Client, pid: int, known: dict[str, str], stage: str, audit: Path
) -> Iterator[tuple[str, bool]]:
    body: dict[str, Any] = {
        "stageArn": stage,
        "userId": "everything",
        "attributes": {"team": "red"},
    }

    def code_of(changes: dict[str, Any], headers: dict[str, str]) -> str:
        answer = client.post("/v1/tokens", json={**body, **changes}, headers=headers)
        return str(answer.json().get("code"))

    yield "the API key", code_of({}, {}) == "unauthenticated"
    yield "the policy", code_of({"attributes": {"colour": "red"}}, known) == "policy_denied"
    yield "bans", code_of({"userId": "banned-1"}, known) == "banned"
    minted = client.post("/v1/tokens", json=body, headers={**known, "X-Request-Id": _ID})
    token = minted.json()
    yield "the local key", token.get("issuer") == "local"
    limits = minted.headers.get("ratelimit-policy", "")
    yield "limits of all callers, of the caller, of the user", limits.count("q=") == 3
    issued = client.get("/v1/tokens", params={"userId": "everything"}, headers=known).json()
    rows = [one["tokenId"] for one in issued["tokens"]]
    yield "the ledger", token.get("participantId") in rows
    yield "metrics", "tokensvc_tokens_issued_total{" in client.get("/metrics").text
    lines = [
        json.loads(line)
        for line in Path(f"/proc/{pid}/fd/1").read_text("utf-8").splitlines()
        if _ID in line
    ]
    yield "the access log", [line.get("status") for line in lines[-1:]] == [minted.status_code]
    yield "the audit record", audit.exists() and audit.stat().st_size > 0
