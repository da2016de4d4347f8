"""What a caller may do: a closed set of scopes, each named for the thing and the action.

Managing callers is no scope: that takes the command line, and with it access to the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from tokensvc.errors import FieldError, InvalidRequestError

__all__ = ["SCOPES", "Scope", "parse_scopes"]


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


SCOPES: Final = frozenset(Scope)
_LOOKS_LIKE_A_SCOPE: Final = re.compile(r"[a-z:-]{1,32}", re.ASCII)


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
    if not named:
        raise _invalid("missing", f"a caller needs at least one of {choice}", choice)
    # What does not even look like a scope is not repeated: it may be a secret in the wrong place.
    shown = [text for text in unknown if _LOOKS_LIKE_A_SCOPE.fullmatch(text)]
    detail = f"no such scope: {', '.join(shown) or 'not shown'}; there are {choice}"
    raise _invalid("unknown", detail, choice)


def _invalid(code: str, detail: str, choice: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"scopes: {detail}", errors=(FieldError("scopes", code, detail, choice),)
    )
