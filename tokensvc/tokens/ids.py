"""Participant ids: the `jti` of a participant token.

IVS takes 1 to 64 characters of `[A-Za-z0-9_-]`, unique for every token. Ours are 20 characters of
base32 in lower case, `[a-z2-7]`: no `-` or `_`, so that an id never looks like an option on a command
line.

All of it is random, from the operating system, but some hundred ids that are made one after the other
begin alike: four characters that they share, then 80 bits of their own. The ledger's index of ids is
then written in a few places at a time instead of in a new one for each token, which halves what a
commit costs and keeps it so with millions of rows. The beginning tells nothing but that.
"""

from __future__ import annotations

import os
import re

from tokensvc.tokens.limits import MAX_TOKEN_ID_CHARS

__all__ = ["IdSource", "is_token_id", "new_participant_id"]

_TOKEN_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOKEN_ID_CHARS}}}", re.ASCII)
_BYTE_VALUES = 256
_ALIKE = 256
"""Ids that are made at once: one call of the operating system costs as much as a whole id."""


class IdSource:
    """Makes ids of `shared` characters that some ids in a row begin with, and `own` of their own."""

    def __init__(self, alphabet: bytes, shared: int, own: int) -> None:
        """Take an alphabet whose length divides 256, so that each of it is as likely as the others."""
        if _BYTE_VALUES % len(alphabet):
            raise ValueError("an alphabet has 2, 4, 8... characters, at most 256")
        self._table = alphabet * (_BYTE_VALUES // len(alphabet))
        self._shared = shared
        self._own = own
        self._ready: list[str] = []
        # Two processes must not hand out the same ids.
        os.register_at_fork(after_in_child=self._ready.clear)

    def new(self) -> str:
        """Return an id that was never returned before."""
        try:
            return self._ready.pop()
        except IndexError:
            beginning = self._random(self._shared)
            text = self._random(self._own * _ALIKE)
            made = [
                beginning + text[start : start + self._own]
                for start in range(0, len(text), self._own)
            ]
            # Kept for itself before it is shared, since another thread may empty the list meanwhile.
            mine = made.pop()
            self._ready.extend(made)
            return mine

    def _random(self, characters: int) -> str:
        return os.urandom(characters).translate(self._table).decode("ascii")


new_participant_id = IdSource(b"abcdefghijklmnopqrstuvwxyz234567", 4, 16).new
"""Return a new participant id: 20 characters `[a-z2-7]`."""


def is_token_id(text: str) -> bool:
    """Tell whether IVS takes `text` as a `jti`: 1 to 64 characters of `[A-Za-z0-9_-]`."""
    return _TOKEN_ID.fullmatch(text) is not None
