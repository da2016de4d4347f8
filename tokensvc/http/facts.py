"""What is known of one request while it is answered; made by the edge, read by handlers.

It carries the `authorization` header and so is never logged whole and has no telling repr.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from litestar.types import HTTPScope, Scope

from tokensvc.tokens.ids import IdSource

__all__ = ["FACTS_KEY", "Issued", "RequestFacts", "facts_of", "keep_facts", "read_facts"]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_WANTED: Final = frozenset(
    {b"authorization", b"content-type", b"content-length", b"idempotency-key", b"x-request-id"}
)
_new_request_id: Final = IdSource(b"0123456789abcdef", 0, 20).new
FACTS_KEY: Final = "tokensvc.facts"
"""Where a scope has its facts."""

Issued: TypeAlias = tuple[str | None, str | None, str]


class RequestFacts(msgspec.Struct, eq=False):
    """One request's id, the headers that handlers need, and what the access log will say.

    A header that came twice is there joined with commas (RFC 9110 section 5.3), so that none of its
    values passes for the only one.
    """

    request_id: str
    headers: Mapping[bytes, bytes]
    started: float
    body: bytes | None = None
    """The whole body where it is there already."""
    caller_id: str | None = None
    caller_name: str = ""
    code: str = ""
    status: int = 0
    stage_arn: str | None = None
    """For the audit record: the stage that is asked for, once it is known."""
    key_arn: str | None = None
    """For the audit record: the key that signed."""
    issued: dict[Issued, int] | None = None
    """For the audit record of a batch: how many of each stage, key and outcome (`done`, a code)."""
    about: dict[str, Any] | None = None
    """For the audit record: further facts of an action."""

    def __repr__(self) -> str:
        return "<RequestFacts>"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return []


def read_facts(
    sent: Iterable[tuple[bytes, bytes]], started: float, body: bytes | None = None
) -> RequestFacts:
    """Return the facts of a request with the headers that were `sent`, names in lower case."""
    headers: dict[bytes, bytes] = {}
    for name, value in sent:
        if name in _WANTED:
            headers[name] = b"%b,%b" % (headers[name], value) if name in headers else value
    given = headers.get(b"x-request-id")
    is_ours = given is None or _REQUEST_ID.fullmatch(given) is None
    request_id = _new_request_id() if is_ours or given is None else given.decode()
    return RequestFacts(request_id, headers, started, body)


def keep_facts(scope: HTTPScope, facts: RequestFacts) -> None:
    """Put `facts` where `facts_of` finds them."""
    scope[FACTS_KEY] = facts  # type: ignore[typeddict-unknown-key]


def facts_of(scope: Scope) -> RequestFacts:
    """Return the facts of the request that `scope` belongs to."""
    facts: RequestFacts = scope[FACTS_KEY]  # type: ignore[typeddict-item]
    return facts
