"""The fields of roles and callers in a policy file, a reader for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

from tokensvc.policy.document import Entries, Node, Scalar, shown
from tokensvc.policy.rules import (
    AttributeRule,
    DurationRule,
    Rule,
    StageRule,
    TokenLimits,
    Wildcard,
)
from tokensvc.policy.values import (
    Faults,
    Reader,
    one_of,
    read_fields,
    read_list,
    read_text,
    read_texts,
    read_texts_by_name,
    read_whole,
    told,
)
from tokensvc.tokens.claims import ISSUERS, Issuer
from tokensvc.tokens.limits import (
    CAPABILITIES,
    DEFAULT_DURATION_MINUTES,
    MAX_ARN_CHARS,
    MAX_ATTRIBUTES_BYTES,
    MAX_CONNECTION_DURATION_MINUTES,
    MAX_DURATION_MINUTES,
    MIN_DURATION_MINUTES,
)

__all__ = [
    "read_attribute_rule",
    "read_caller_limits",
    "read_capabilities",
    "read_connection_duration",
    "read_duration",
    "read_fixed_attributes",
    "read_flag",
    "read_issuers",
    "read_overall_limits",
    "read_stages",
]

MAX_PER_SECOND: Final = 1_000_000

_ARN_PATTERN: Final = re.compile(rf"[A-Za-z0-9:/*-]{{1,{MAX_ARN_CHARS}}}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_MAX_CONNECTION: Final = MAX_CONNECTION_DURATION_MINUTES
_FLAGS: Final = {"true": True, "false": False}
_STAGE_ARN: Final = "arn:aws:ivs:"


def read_stages(faults: Faults, node: Node, path: str) -> tuple[StageRule, ...]:
    """Return the stages a caller may ask for, each by ARN, tags, or both."""
    return read_list(faults, node, path, _stage)


def _stage(faults: Faults, node: Node, path: str) -> StageRule | None:
    if isinstance(node, Entries):
        parts = read_fields(faults, node, path, {"arn": _arn_pattern, "tags": _tags}, ())
        if not node.entries:
            faults.add(node.line, path, "needs an `arn`, `tags`, or both")
        arn = parts.get("arn")
        tags = parts.get("tags")
        if len(parts) < len(node.entries) or not parts:
            return None
        return StageRule(arn or Wildcard("*"), tags or {}, Rule(path, node.line))
    text = read_text(faults, node, path)
    if text is None:
        return None
    key, equals, value = text.partition("=")
    if equals:
        if not key:
            faults.add(node.line, path, "a tag is written key=value")
            return None
        return StageRule(Wildcard("*"), {key: value}, Rule(path, node.line))
    pattern = _arn_pattern(faults, node, path)
    return None if pattern is None else StageRule(pattern, {}, Rule(path, node.line))


def _arn_pattern(faults: Faults, node: Node, path: str) -> Wildcard | None:
    text = read_text(faults, node, path)
    if text is None:
        return None
    head = text.split("*", 1)[0]
    possible = _STAGE_ARN.startswith(head) if "*" in text else False
    if _ARN_PATTERN.fullmatch(text) is None or not (head.startswith(_STAGE_ARN) or possible):
        faults.add(
            node.line,
            path,
            f"{shown(text)} fits no stage: write an ARN such as"
            " arn:aws:ivs:eu-central-1:123456789012:stage/*, where * is any text,"
            " or a tag as key=value",
        )
        return None
    return Wildcard(text)


def _tags(faults: Faults, node: Node, path: str) -> Mapping[str, str] | None:
    tags = read_texts_by_name(faults, node, path)
    if tags is not None and not tags:
        faults.add(node.line, path, "is empty: name a tag")
        return None
    return tags


def read_capabilities(faults: Faults, node: Node, path: str) -> tuple[str, ...] | None:
    """Return capabilities in IVS's order."""
    found = len(faults)
    named = read_list(faults, node, path, one_of(CAPABILITIES))
    return tuple(c for c in CAPABILITIES if c in named) if len(faults) == found else None


def read_issuers(faults: Faults, node: Node, path: str) -> tuple[Issuer, ...] | None:
    """Return who may be asked to issue; the first is asked where the request does not say."""
    found = len(faults)
    named = read_list(faults, node, path, one_of(ISSUERS))
    if len(faults) == found and not named:
        faults.add(node.line, path, "is empty: name auto, local or ivs")
    return cast("tuple[Issuer, ...]", named) if len(faults) == found else None


def read_duration(faults: Faults, node: Node, path: str) -> DurationRule | None:
    """Return bounds in minutes; a single number is both the longest and the default."""
    return _duration(faults, node, path, _minutes)


def read_connection_duration(faults: Faults, node: Node, path: str) -> DurationRule | None:
    """Return bounds in minutes, as `read_duration` does, of connection tokens."""
    return _duration(faults, node, path, _connection_minutes)


def _duration(
    faults: Faults, node: Node, path: str, read_minutes: Reader[int]
) -> DurationRule | None:
    rule = Rule(path, node.line)
    if isinstance(node, Scalar):
        minutes = read_minutes(faults, node, path)
        return None if minutes is None else DurationRule(1, minutes, minutes, rule)
    readers: dict[str, Reader[Any]] = {
        "min": read_minutes,
        "default": read_minutes,
        "max": read_minutes,
    }
    found = len(faults)
    parts = read_fields(faults, node, path, readers, ("max",))
    if len(faults) > found:
        return None
    least = parts.get("min", MIN_DURATION_MINUTES)
    most = parts["max"]
    default = parts.get("default", max(least, min(DEFAULT_DURATION_MINUTES, most)))
    if not least <= default <= most:
        faults.add(
            node.line,
            path,
            f"min {least}, default {default} and max {most} are not in this order",
        )
        return None
    return DurationRule(least, default, most, rule)


def _minutes(faults: Faults, node: Node, path: str) -> int | None:
    minutes = read_whole(faults, node, path)
    if minutes is None:
        return None
    if not MIN_DURATION_MINUTES <= minutes <= faults.max_duration:
        whose = (
            "IVS allows"
            if faults.max_duration >= MAX_DURATION_MINUTES
            else "TOKENSVC_MAX_DURATION allows"
        )
        faults.add(
            node.line,
            path,
            f"is {minutes} minutes; {whose} {MIN_DURATION_MINUTES} to {faults.max_duration}",
        )
        return None
    return minutes


def _connection_minutes(faults: Faults, node: Node, path: str) -> int | None:
    minutes = read_whole(faults, node, path)
    if minutes is not None and not MIN_DURATION_MINUTES <= minutes <= _MAX_CONNECTION:
        detail = f"is {minutes} minutes; IVS allows {MIN_DURATION_MINUTES} to {_MAX_CONNECTION}"
        faults.add(node.line, path, detail)
        return None
    return minutes


def read_flag(faults: Faults, node: Node, path: str) -> bool | None:
    """Return `true` or `false`."""
    if isinstance(node, Scalar) and node.kind == "bool" and node.text in _FLAGS:
        return _FLAGS[node.text]
    faults.add(node.line, path, f"must be true or false, not {told(node)}")
    return None


def read_fixed_attributes(faults: Faults, node: Node, path: str) -> Mapping[str, str] | None:
    """Return attributes and their values, at most 1 KB."""
    attributes = read_texts_by_name(faults, node, path)
    if attributes is None:
        return None
    size = sum(len((name + text).encode()) for name, text in attributes.items())
    if size > MAX_ATTRIBUTES_BYTES:
        faults.add(
            node.line,
            path,
            f"have {size} bytes of UTF-8, keys and values; IVS allows {MAX_ATTRIBUTES_BYTES}",
        )
        return None
    return attributes


def read_attribute_rule(faults: Faults, node: Node, path: str) -> AttributeRule | None:
    """Return which attributes a caller sets itself."""
    found = len(faults)
    readers: dict[str, Reader[Any]] = {
        "required": read_texts,
        "allowed": read_texts,
        "forbidden": read_texts,
    }
    parts = read_fields(faults, node, path, readers, ())
    required, allowed = parts.get("required", ()), parts.get("allowed", ())
    forbidden = tuple(Wildcard(text) for text in parts.get("forbidden", ()))
    if forbidden and not allowed:
        detail = "only what is allowed may be sent: give `allowed` as well, such as ['*']"
        faults.add(node.line, f"{path}.forbidden", detail)
    for name in required:
        if any(pattern.matches(name) for pattern in forbidden):
            faults.add(node.line, path, f"{shown(name)} is both required and forbidden")
    if len(faults) > found:
        return None
    return AttributeRule(required, tuple(Wildcard(text) for text in allowed), forbidden)


def read_caller_limits(faults: Faults, node: Node, path: str) -> TokenLimits | None:
    """Return the limits of one caller and its users."""
    return _limits(faults, node, path, per_user=True)


def read_overall_limits(faults: Faults, node: Node, path: str) -> TokenLimits | None:
    """Return the limits of all callers together."""
    return _limits(faults, node, path, per_user=False)


def _limits(faults: Faults, node: Node, path: str, *, per_user: bool) -> TokenLimits | None:
    found = len(faults)
    readers: dict[str, Reader[Any]] = {"tokensPerSecond": _rate, "burst": _count}
    if per_user:
        readers["perUserPerMinute"] = _count
    parts = read_fields(faults, node, path, readers, ())
    per_second = parts.get("tokensPerSecond")
    burst = parts.get("burst")
    if burst is not None and per_second is None and len(faults) == found:
        faults.add(node.line, f"{path}.burst", "needs `tokensPerSecond`")
    if len(faults) > found:
        return None
    return TokenLimits(
        per_second,
        burst or max(1, round(per_second or 1)),
        parts.get("perUserPerMinute"),
    )


def _rate(faults: Faults, node: Node, path: str) -> float | None:
    text = node.text if isinstance(node, Scalar) and node.kind in ("int", "float") else None
    if text is None or _NUMBER.fullmatch(text) is None or not 0 < float(text) <= MAX_PER_SECOND:
        detail = f"must be a number above 0, at most {MAX_PER_SECOND}"
        faults.add(node.line, path, f"{detail}; it is {told(node)}")
        return None
    return float(text)


def _count(faults: Faults, node: Node, path: str) -> int | None:
    number = read_whole(faults, node, path)
    if number is not None and not 1 <= number <= MAX_PER_SECOND:
        faults.add(node.line, path, f"is {number}; it must be 1 to {MAX_PER_SECOND}")
        return None
    return number
