"""The kinds of constraint that an API model puts on a request, and the check against them.

The messages have the form that AWS gives them; all violations of a request are named in one message.
Members that the model does not know are ignored, as AWS does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokensvc.emulator.errors import ValidationError

__all__ = [
    "Choice",
    "Flag",
    "Items",
    "Shape",
    "Structure",
    "Text",
    "Texts",
    "Whole",
    "check_request",
]

_MAX_SHOWN_CHARS = 200


class Shape(Protocol):
    """One constraint of the model."""

    def violations(self, value: Any, path: str) -> list[str]:
        """Return what is wrong with `value`, which is the member at `path`; JSON's null is none."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string; lengths are in characters, and the pattern covers the whole of it."""

    min: int = 0
    max: int | None = None
    pattern: str | None = None

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        if not isinstance(value, str):
            return [_wrong(path, "Member must be a string")]
        if len(value) < self.min:
            return [_wrong(path, f"Member must have length greater than or equal to {self.min}")]
        if self.max is not None and len(value) > self.max:
            return [_wrong(path, f"Member must have length less than or equal to {self.max}")]
        if self.pattern is not None and not re.fullmatch(self.pattern, value, re.ASCII):
            return [_wrong(path, f"Member must satisfy regular expression pattern: {self.pattern}")]
        return []


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer."""

    min: int
    max: int

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        if type(value) is not int:
            return [_wrong(path, "Member must be an integer")]
        if value < self.min:
            return [_wrong(path, f"Member must have value greater than or equal to {self.min}")]
        if value > self.max:
            return [_wrong(path, f"Member must have value less than or equal to {self.max}")]
        return []


@dataclass(frozen=True, slots=True)
class Flag:
    """A boolean."""

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        return [] if isinstance(value, bool) else [_wrong(path, "Member must be a boolean")]


@dataclass(frozen=True, slots=True)
class Choice:
    """A string of an enumeration."""

    values: tuple[str, ...]

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        if isinstance(value, str) and value in self.values:
            return []
        return [_wrong(path, f"Member must satisfy enum value set: [{', '.join(self.values)}]")]


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    member: Shape
    max: int

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        if not isinstance(value, list):
            return [_wrong(path, "Member must be a list")]
        if len(value) > self.max:
            return [_wrong(path, f"Member must have length less than or equal to {self.max}")]
        return [
            violation
            for index, item in enumerate(value, start=1)
            for violation in self.member.violations(item, f"{path}.{index}.member")
        ]


@dataclass(frozen=True, slots=True)
class Texts:
    """A map of strings."""

    key: Text = Text()
    value: Text = Text()
    max: int | None = None
    max_bytes: int | None = None
    """Bytes of UTF-8 of all keys and values together; the guide's rule, not the model's."""

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        if not isinstance(value, dict):
            return [_wrong(path, "Member must be a map")]
        if self.max is not None and len(value) > self.max:
            return [_wrong(path, f"Member must have length less than or equal to {self.max}")]
        found = [
            violation
            for name, text in value.items()
            for violation in (
                *self.key.violations(name, f"{path}.key"),
                *self.value.violations(text, f"{path}.{name[:_MAX_SHOWN_CHARS]}.member"),
            )
        ]
        if found or self.max_bytes is None:
            return found
        size = sum(
            len(text.encode("utf-8", "surrogatepass")) for pair in value.items() for text in pair
        )
        if size > self.max_bytes:
            return [
                f"Value at '{path}' failed to satisfy constraint: at most {self.max_bytes} bytes"
            ]
        return []


@dataclass(frozen=True, slots=True)
class Structure:
    """An object; what is not `required` may be absent or null."""

    members: Mapping[str, Shape] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def violations(self, value: Any, path: str) -> list[str]:
        """See `Shape`."""
        if not isinstance(value, dict):
            return [_wrong(path, "Member must be a structure")]
        prefix = f"{path}." if path else ""
        found = [
            f"Value at '{prefix}{name}' failed to satisfy constraint: Member must not be null"
            for name in self.required
            if value.get(name) is None
        ]
        for name, shape in self.members.items():
            if value.get(name) is not None:
                found += shape.violations(value[name], f"{prefix}{name}")
        return found


def check_request(structure: Structure, request: object) -> dict[str, Any]:
    """Return the request's known members that are not null. Raises ValidationError."""
    found = structure.violations(request, "")
    if found:
        count = f"{len(found)} validation error{'s' if len(found) > 1 else ''} detected: "
        raise ValidationError(count + "; ".join(found[:10]))
    assert isinstance(request, dict)  # noqa: S101 - what violations() has just made sure of
    return {name: request[name] for name in structure.members if request.get(name) is not None}


def _wrong(path: str, constraint: str) -> str:
    # The value itself is not repeated: it may be a key or an attribute that is nobody's business.
    return f"Value at '{path}' failed to satisfy constraint: {constraint}"
