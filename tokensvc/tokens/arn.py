"""ARNs of stages and public keys, parsed once and then carried as values.

Patterns are the API model's: `arn:aws:ivs:<region>:<account>:<kind>/<id>`, at most 128 characters. The
sample header in the IVS guide has account and Region swapped; such an ARN does not parse here, and
the error says so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import ClassVar, Self

import msgspec

from tokensvc.tokens.limits import MAX_ARN_CHARS

__all__ = ["InvalidArnError", "PublicKeyArn", "StageArn", "cached_stage_arn"]


class InvalidArnError(ValueError):
    """The text is not an ARN of the kind that was asked for; its message may be shown to callers."""


_PARTS = re.compile(r"arn:aws:ivs:([a-z0-9-]+):([0-9]+):([a-z-]+)/([a-zA-Z0-9-]+)", re.ASCII)
_SWAPPED = re.compile(r"arn:aws:ivs:[0-9]{12}:[a-z0-9-]+:", re.ASCII)


class _IvsArn(msgspec.Struct, frozen=True, gc=False):
    region: str
    account: str
    id: str
    # Put together once: a mint asks for it again and again.
    text: str = ""
    kind: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `text`.

        Raises InvalidArnError for anything but `arn:aws:ivs:<region>:<account>:<kind>/<id>` of at
        most 128 characters (API model, StageArn and PublicKeyArn).
        """
        if len(text) > MAX_ARN_CHARS:
            raise InvalidArnError(f"an ARN has at most {MAX_ARN_CHARS} characters")
        if _SWAPPED.match(text):
            raise InvalidArnError("account and Region are swapped: the Region comes first")
        match = _PARTS.fullmatch(text)
        if match is None or match[3] != cls.kind:
            raise InvalidArnError(f"must look like arn:aws:ivs:<region>:<account>:{cls.kind}/<id>")
        return cls(match[1], match[2], match[4])

    def __post_init__(self) -> None:
        text = f"arn:aws:ivs:{self.region}:{self.account}:{self.kind}/{self.id}"
        msgspec.structs.force_setattr(self, "text", text)

    def __str__(self) -> str:
        return self.text


class StageArn(_IvsArn, frozen=True, gc=False):
    """The ARN of a stage; its `id` is the `topic` claim, and `text` is all of it."""

    kind: ClassVar[str] = "stage"


class PublicKeyArn(_IvsArn, frozen=True, gc=False):
    """The ARN of an imported public key; as text it is the `kid`."""

    kind: ClassVar[str] = "public-key"


@lru_cache(maxsize=4096)
def cached_stage_arn(text: str) -> StageArn:
    """`StageArn.parse` for the mint, which sees the same stages again and again."""
    return StageArn.parse(text)
