"""What a caller may do: a closed set of scopes, each named for the thing and the action.

Managing callers is no scope: that takes the command line, and with it access to the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from tokensvc.errors import FieldError, InvalidRequestError

__all__ = ["Scope", "parse_scopes"]


class Scope(StrEnum):
    """One permission; equal to its text."""

    TOKENS_MINT = "tokens:mint"
    TOKENS_READ = "tokens:read"
    PARTICIPANTS_DISCONNECT = "participants:disconnect"
    BANS_READ = "bans:read"
    BANS_WRITE = "bans:write"
    CONNECTION_TOKENS_MINT = "connection-tokens:mint"
    CONNECTION_TOKENS_REVOKE = "connection-tokens:revoke"
    KEYS_READ = "keys:read"
    KEYS_ROTATE = "keys:rotate"
    KEYS_INVALIDATE = "keys:invalidate"


def parse_scopes(texts: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes that `texts` name.

    Raises InvalidRequestError (field `scopes`) where there is none, or one that does not exist; it
    lists those that do.
    """
    known = {scope.value: scope for scope in Scope}
    named = list(texts)
    unknown = sorted({text for text in named if text not in known})
    if named and not unknown:
        return frozenset(known[text] for text in named)
    choice = ", ".join(known)
    if unknown:
        detail = f"no such scope: {', '.join(text[:64] for text in unknown)}; there are {choice}"
    else:
        detail = f"a caller needs at least one of {choice}"
    code = "unknown" if unknown else "missing"
    raise InvalidRequestError(
        f"scopes: {detail}", errors=(FieldError("scopes", code, detail, choice),)
    )
