"""What a policy file says, as values: roles, and for each caller what it may ask for.

Every part knows the line that it comes from, so that a refusal names the rule. Durations are minutes.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tokensvc.tokens.claims import Issuer

__all__ = [
    "AttributeRule",
    "CallerRule",
    "DurationRule",
    "Role",
    "Rule",
    "StageRule",
    "TokenLimits",
    "Wildcard",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """A place in the policy file; line 0 is no line: what holds without a file."""

    path: str
    line: int

    def __str__(self) -> str:
        """Return path and line."""
        return f"{self.path} (line {self.line})" if self.line else self.path


class Wildcard:
    """A text in which `*` stands for any characters, none too; it must match from end to end."""

    __slots__ = ("_is_literal", "_match", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._is_literal = "*" not in text
        # `fnmatch` knows more than the star, which is taken literally here. Its expressions do not
        # go back and forth over what a star has taken, however many stars there are.
        literal = "*".join(glob.escape(part) for part in text.split("*"))
        self._match = re.compile(fnmatch.translate(literal)).match

    def matches(self, text: str) -> bool:
        """Tell whether all of `text` fits."""
        if self._is_literal:
            return text == self.text
        return self._match(text) is not None


@dataclass(frozen=True, slots=True)
class DurationRule:
    """Minutes: the least and most that may be asked for, and what stands where none is."""

    least: int
    default: int
    most: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Role:
    """A name for capabilities, duration, and attributes with fixed values."""

    name: str
    capabilities: tuple[str, ...]
    duration: DurationRule
    attributes: Mapping[str, str]
    rule: Rule


@dataclass(frozen=True, slots=True)
class StageRule:
    """Stages whose ARN fits the pattern and that carry all of the tags."""

    arn: Wildcard
    tags: Mapping[str, str]
    rule: Rule


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """Which attributes a caller sets itself. `forbidden` comes before `allowed`."""

    required: tuple[str, ...] = ()
    allowed: tuple[Wildcard, ...] = ()
    forbidden: tuple[Wildcard, ...] = ()


class TokenLimits(msgspec.Struct, frozen=True):
    """Tokens a second, `burst` at once; and tokens a minute for one user. None: no limit."""

    per_second: float | None = None
    burst: int = 1
    per_user_minute: int | None = None


@dataclass(frozen=True, slots=True)
class CallerRule:
    """What one caller may ask for.

    `capabilities` and `duration` bound every token, whatever its role; without `capabilities` every
    token needs a role. `everywhere` lets it act on all stages at once, and `connection_tokens` bounds
    the connection tokens that it may have; None: none. `where` has the rule of each field that the
    file gives.
    """

    name: str
    stages: tuple[StageRule, ...]
    rule: Rule
    capabilities: tuple[str, ...] | None = None
    duration: DurationRule | None = None
    attributes: AttributeRule = field(default_factory=AttributeRule)
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: str | None = None
    issuers: tuple[Issuer, ...] = ("auto",)
    limits: TokenLimits = field(default_factory=TokenLimits)
    everywhere: bool = False
    connection_tokens: DurationRule | None = None
    where: Mapping[str, Rule] = field(default_factory=dict)

    def rule_of(self, name: str) -> Rule:
        """Return the rule that says something of this field, or else the caller's."""
        return self.where.get(name, self.rule)
