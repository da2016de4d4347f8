"""Why would IVS refuse this token? Inspection says so in words.

To a user of the web SDK, a wrong signature, an unknown key and a syntax error all look like "Token is
malformed", and a mobile user sees a number. This is what to ask instead. It knows participant tokens
and connection tokens (IVS guide, "Distribute Tokens") and recognises those that
CreateParticipantToken issued, which are opaque.

The signature is checked with PyJWT over OpenSSL, which shares nothing with the path that signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jwt
from jwt.exceptions import InvalidKeyError

from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn
from tokensvc.tokens.claim_rules import check_connection_claims, check_participant_claims
from tokensvc.tokens.finding import Finding, Findings
from tokensvc.tokens.limits import ALGORITHM, SIGNATURE_BYTES
from tokensvc.tokens.reading import TokenParts, read_token

__all__ = ["Inspection", "SignatureVerdict", "TokenKind", "inspect_token"]

TokenKind: TypeAlias = Literal["participant", "connection", "ivs-issued", "unknown"]
SignatureVerdict: TypeAlias = Literal["valid", "invalid", "not_checked"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a token says and what IVS would say to it. Holds no token and no signature."""

    kind: TokenKind
    header: Mapping[str, object] | None
    claims: Mapping[str, object] | None
    signature: SignatureVerdict
    findings: tuple[Finding, ...]

    @property
    def acceptable(self) -> bool:
        """True where no finding is a reason to refuse the token and its signature was checked."""
        return self.signature == "valid" and not self.refusals

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings for which IVS would refuse the token."""
        return tuple(finding for finding in self.findings if finding.severity == "refused")


def inspect_token(
    text: str,
    *,
    now: float,
    public_key_for: Callable[[str], str | None] | None = None,
    asked: str = "IVS",
) -> Inspection:
    """Take `text` apart and judge it as of `now` (Unix seconds).

    `public_key_for` returns the SPKI PEM that IVS holds under a `kid`, or None where it holds none;
    without it the signature is not checked, and the inspection says so. `asked` is who that was, in
    words, where it was not IVS itself. Raises nothing: whatever
    `text` is, the answer is an Inspection.
    """
    findings = Findings()
    parts = read_token(text.strip(), findings)
    kind = _kind(parts)
    if kind == "ivs-issued":
        return _ivs_issued(parts, now, findings)
    kid = _check_header(parts, findings)
    if parts.claims is not None:
        if kind == "connection":
            check_connection_claims(parts.claims, kid, now, findings)
        else:
            check_participant_claims(parts.claims, kid, now, findings)
    verdict = _check_signature(text.strip(), parts, kid, public_key_for, asked, findings)
    return Inspection(kind, parts.header, parts.claims, verdict, tuple(findings.items))


def _kind(parts: TokenParts) -> TokenKind:
    if parts.header is not None and parts.header.get("alg") == "KMS":
        return "ivs-issued"
    if parts.claims is None:
        return "unknown"
    if "resource" in parts.claims or "topic" in parts.claims:
        return "participant"
    if "account_id" in parts.claims or "region" in parts.claims:
        return "connection"
    return "unknown"


def _ivs_issued(parts: TokenParts, now: float, findings: Findings) -> Inspection:
    findings.items.clear()
    findings.warn(
        "ivs_issued",
        "header.alg",
        "was issued by CreateParticipantToken; only IVS can verify it, and it can never be exchanged",
    )
    expires = parts.claims.get("exp") if parts.claims is not None else None
    if type(expires) is int and expires <= now:
        # A number far beyond all dates has more digits than Python writes.
        ago = f"expired {int(now) - expires} s ago" if expires > 0 else "lies before 1970"
        findings.refuse("expired", "exp", ago)
    return Inspection(
        "ivs-issued", parts.header, parts.claims, "not_checked", tuple(findings.items)
    )


def _check_header(parts: TokenParts, findings: Findings) -> PublicKeyArn | None:
    header = parts.header
    if header is None:
        return None
    if header.get("alg") != ALGORITHM:
        findings.refuse("alg", "header.alg", f"must be {ALGORITHM}")
    if header.get("typ") != "JWT":
        findings.refuse("typ", "header.typ", "must be JWT")
    kid = header.get("kid")
    if not isinstance(kid, str):
        findings.refuse("kid_missing", "header.kid", "must be the ARN of an imported public key")
        return None
    try:
        return PublicKeyArn.parse(kid)
    except InvalidArnError as error:
        code = "kid_swapped" if "swapped" in str(error) else "kid"
        findings.refuse(code, "header.kid", str(error))
        return None


def _check_signature(
    text: str,
    parts: TokenParts,
    kid: PublicKeyArn | None,
    public_key_for: Callable[[str], str | None] | None,
    asked: str,
    findings: Findings,
) -> SignatureVerdict:
    if parts.signature is None or parts.header is None:
        return "invalid"
    if len(parts.signature) != SIGNATURE_BYTES:
        hint = "; this one looks like DER" if parts.signature[:1] == b"\x30" else ""
        findings.refuse(
            "signature_length",
            "signature",
            f"has {len(parts.signature)} bytes; an ES384 signature is R || S, "
            f"{SIGNATURE_BYTES} bytes{hint}",
        )
        return "invalid"
    if kid is None or parts.header.get("alg") != ALGORITHM:
        return "not_checked"
    if public_key_for is None:
        findings.warn("signature_not_checked", "signature", "was not checked: no key to check with")
        return "not_checked"
    public_key = public_key_for(str(kid))
    if public_key is None:
        findings.refuse(
            "unknown_kid",
            "header.kid",
            f"{asked} has no public key under this ARN (never had, or deleted)",
        )
        return "not_checked"
    try:
        jwt.PyJWS(algorithms=[ALGORITHM]).decode(text, public_key, algorithms=[ALGORITHM])
    except (jwt.InvalidTokenError, InvalidKeyError, ValueError, TypeError):
        findings.refuse(
            "bad_signature",
            "signature",
            "does not verify under the public key of its kid: another key signed, or the token "
            "was changed",
        )
        return "invalid"
    return "valid"
