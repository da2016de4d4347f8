"""What is known of one request while it is answered; made by the edge, read by handlers.

It carries the `authorization` header and so is never logged whole and has no telling repr.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from litestar.types import HTTPScope, Scope

from tokensvc.tokens.ids import IdSource

__all__ = ["FACTS_KEY", "Issued", "RequestFacts", "facts_of", "keep_facts"]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_WANTED: Final = frozenset(
    {b"authorization", b"content-type", b"content-length", b"idempotency-key", b"x-request-id"}
)
_new_request_id: Final = IdSource(b"0123456789abcdef", 0, 20).new
FACTS_KEY: Final = "tokensvc.facts"
"""Where a scope has its facts."""

Issued: TypeAlias = tuple[str | None, str | None, str]


class RequestFacts:
    """One request's id, the headers that handlers need, and what the access log will say.

    A header that came twice is there joined with commas (RFC 9110 section 5.3), so that none of its
    values passes for the only one.
    """

    __slots__ = (
        "about",
        "body",
        "caller_id",
        "caller_name",
        "code",
        "headers",
        "issued",
        "key_arn",
        "request_id",
        "stage_arn",
        "started",
        "status",
    )

    def __init__(
        self, sent: Iterable[tuple[bytes, bytes]], started: float, body: bytes | None = None
    ) -> None:
        """Read the headers that were `sent`; `body` is the whole body where it is there already."""
        headers: dict[bytes, bytes] = {}
        for name, value in sent:
            if name in _WANTED:
                headers[name] = b"%b,%b" % (headers[name], value) if name in headers else value
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.request_id = given.decode()
        else:
            self.request_id = _new_request_id()
        self.headers = headers
        self.body = body
        self.started = started
        self.caller_id: str | None = None
        self.caller_name = ""
        self.code = ""
        self.status = 0
        self.stage_arn: str | None = None
        """For the audit record: the stage that is asked for, once it is known."""
        self.key_arn: str | None = None
        """For the audit record: the key that signed."""
        self.issued: dict[Issued, int] | None = None
        """For the audit record of a batch: how many of each stage, key and outcome (`done`, a code)."""
        self.about: dict[str, Any] | None = None
        """For the audit record: further facts of an action."""


def keep_facts(scope: HTTPScope, facts: RequestFacts) -> None:
    """Put `facts` where `facts_of` finds them."""
    scope[FACTS_KEY] = facts  # type: ignore[typeddict-unknown-key]


def facts_of(scope: Scope) -> RequestFacts:
    """Return the facts of the request that `scope` belongs to."""
    facts: RequestFacts = scope[FACTS_KEY]  # type: ignore[typeddict-item]
    return facts
