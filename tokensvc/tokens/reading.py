"""Reading a compact JWS without believing it: the parts of a token, and what is odd about its form.

Nothing here verifies. Bounds: at most `MAX_TOKEN_CHARS` characters are read.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass

from tokensvc.tokens.finding import Findings
from tokensvc.tokens.limits import MAX_TOKEN_CHARS

__all__ = ["TokenParts", "read_token", "unverified_kid"]

_SEGMENT = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class TokenParts:
    """A token taken apart; a part that could not be read is None."""

    header: Mapping[str, object] | None
    claims: Mapping[str, object] | None
    signature: bytes | None


def unverified_kid(text: str) -> str | None:
    """Return the `kid` a token names, unverified, so that its key can be looked up; or None."""
    header = read_token(text, Findings()).header
    kid = header.get("kid") if header is not None else None
    return kid if isinstance(kid, str) else None


def read_token(text: str, findings: Findings) -> TokenParts:
    """Take a token apart, adding to `findings` what is wrong with its form (RFC 7515 section 7.1)."""
    if len(text) > MAX_TOKEN_CHARS:
        findings.refuse(
            "too_large", "", f"has {len(text)} characters; more than {MAX_TOKEN_CHARS} is not read"
        )
        return TokenParts(None, None, None)
    if any(character.isspace() for character in text):
        findings.refuse("whitespace", "", "holds white space, which no token may")
        text = "".join(text.split())
    segments = text.split(".")
    if len(segments) != 3:
        findings.refuse(
            "not_compact", "", f"has {len(segments)} parts between dots; a token has three"
        )
        return TokenParts(None, None, None)
    header, claims = (
        _read_object(segment, where, findings)
        for segment, where in zip(segments, ("header", "payload"), strict=False)
    )
    return TokenParts(header, claims, _decode(segments[2], "signature", findings))


def _decode(segment: str, where: str, findings: Findings) -> bytes | None:
    if segment.endswith("="):
        findings.refuse("padding", where, f"the {where} ends in =; base64url here has no padding")
        segment = segment.rstrip("=")
    if _SEGMENT.fullmatch(segment) is None or len(segment) % 4 == 1:
        findings.refuse("base64", where, f"the {where} is not base64url")
        return None
    return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _read_object(segment: str, where: str, findings: Findings) -> Mapping[str, object] | None:
    raw = _decode(segment, where, findings)
    if raw is None:
        return None
    if not raw.isascii():
        findings.warn(
            "raw_utf8",
            where,
            f"the {where} holds raw UTF-8; the web SDK does not decode it and shows mojibake: "
            "write everything above U+007F as \\uXXXX",
        )
    duplicates: list[str] = []
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=lambda pairs: _object(pairs, duplicates),
            parse_constant=_refuse_constant,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        findings.refuse("lone_surrogate", where, f"the {where} holds a lone surrogate")
        return None
    except (ValueError, RecursionError):
        findings.refuse("json", where, f"the {where} is not JSON")
        return None
    if duplicates:
        findings.warn("duplicate_name", where, f"the {where} names {duplicates[0][:64]!r} twice")
    if not isinstance(value, dict):
        findings.refuse("json", where, f"the {where} is not a JSON object")
        return None
    return value


def _object(pairs: list[tuple[str, object]], duplicates: list[str]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        duplicates.extend(name for name in value if names.count(name) > 1)
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
