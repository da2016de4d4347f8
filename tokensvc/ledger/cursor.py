"""Where a page of the ledger ended, as text that callers hand back and need not understand.

A page is ordered by (exp, row_id), so the next one begins after that pair, however many rows were
written or deleted in between. A cursor belongs to the filter it was made under.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec

from tokensvc.errors import FieldError, InvalidRequestError

__all__ = ["Position", "decode_cursor", "encode_cursor"]


class Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last row of a page; `filter` is a short hash of what the page was filtered by."""

    exp: int
    row_id: int
    filter: str


def encode_cursor(exp: int, row_id: int, selection: tuple[str | None, ...]) -> str:
    """Return the cursor after a row, under a selection."""
    position = Position(exp, row_id, _short_hash(selection))
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode("ascii").rstrip("=")


def decode_cursor(cursor: str, selection: tuple[str | None, ...]) -> Position:
    """Return what a cursor says; raises InvalidRequestError where it is none, or another selection's."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = msgspec.json.decode(raw, type=Position)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise _bad("is not a cursor of this service") from None
    if position.filter != _short_hash(selection):
        raise _bad("belongs to another filter")
    if not (abs(position.exp) < 2**53 and abs(position.row_id) < 2**53):
        raise _bad("is not a cursor of this service")
    return position


def _short_hash(selection: tuple[str | None, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(selection)).hexdigest()[:16]


def _bad(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"cursor: {reason}", errors=(FieldError("cursor", "invalid", reason),)
    )
