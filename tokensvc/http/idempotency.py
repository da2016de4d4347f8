"""`Idempotency-Key`: how a caller may send a request again and get the answer it missed.

As in draft-ietf-httpapi-idempotency-key-header, though without the quotes it wants around the key.
"""

from __future__ import annotations

import re
from typing import Final

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.http.facts import RequestFacts
from tokensvc.ledger.idempotency import IdempotencyRef, idempotency_ref

__all__ = ["MAX_KEY_CHARS", "request_ref"]

MAX_KEY_CHARS: Final = 255
_KEY: Final = re.compile(rb"[!-~]{1,255}")


def request_ref(facts: RequestFacts, route: str, body: bytes) -> IdempotencyRef | None:
    """Return what names this request where it carries a key; `body` must be the same again.

    Raises InvalidRequestError for a key that is not 1 to 255 visible ASCII characters.
    """
    given = facts.headers.get(b"idempotency-key")
    if given is None:
        return None
    if _KEY.fullmatch(given) is None:
        detail = f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters"
        raise InvalidRequestError(
            f"Idempotency-Key: {detail}",
            errors=(FieldError("Idempotency-Key", "pattern", detail, MAX_KEY_CHARS),),
        )
    return idempotency_ref(facts.caller_id or "", route, given.decode("ascii"), body)
