"""The rules of IVS for the claims of a token, as inspection applies them.

Sources: IVS guide, "Distribute Tokens" (both payload tables), and what the web SDK does with a token.
Where nothing is documented, as for clock skew, the finding is a warning and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn, StageArn
from tokensvc.tokens.finding import Findings
from tokensvc.tokens.ids import is_token_id
from tokensvc.tokens.limits import (
    MAX_ATTRIBUTES_BYTES,
    MAX_CONNECTION_TTL_SECONDS,
    MAX_ENDPOINT_CHARS,
    MAX_PARTICIPANT_TTL_SECONDS,
    MAX_TOKEN_ID_CHARS,
    MAX_USER_ID_CHARS,
    TOKEN_VERSION,
)

__all__ = ["check_connection_claims", "check_participant_claims"]

_SECONDS_A_DAY = 86_400
_SHORT_TTL_SECONDS = 60
_CONNECTION_GRACE_SECONDS = 60
"""How long after `exp` the web SDK still takes a connection token."""
_CONNECTION_EVENTS_URL = "wss://global.events.live-video.net"
_LATEST_DATE = 253_402_300_799
"""9999-12-31T23:59:59Z; a time beyond it is a mistake in units."""

_PARTICIPANT_CLAIMS = (
    "exp",
    "iat",
    "jti",
    "resource",
    "topic",
    "events_url",
    "whip_url",
    "capabilities",
    "version",
)
_PARTICIPANT_OPTIONAL = ("attributes", "user_id")
_CONNECTION_CLAIMS = ("exp", "iat", "jti", "account_id", "region", "events_url", "version")
_PARTICIPANT_ONLY = ("resource", "topic", "whip_url", "capabilities", "attributes", "user_id")
_CAPABILITIES = ("allow_publish", "allow_subscribe")
_ANALYTICS_ATTRIBUTES = ("gs_role", "gs_session_id")


def check_participant_claims(
    claims: Mapping[str, object], kid: PublicKeyArn | None, now: float, findings: Findings
) -> None:
    """Judge the payload of a participant token."""
    _check_names(claims, _PARTICIPANT_CLAIMS, _PARTICIPANT_OPTIONAL, findings)
    _check_times(claims, MAX_PARTICIPANT_TTL_SECONDS, 0, now, findings)
    _check_common(claims, findings)
    _check_stage(claims, kid, findings)
    _check_url(claims, "events_url", ("wss", "ws"), findings)
    _check_url(claims, "whip_url", ("https", "http"), findings)
    _check_capabilities(claims, findings)
    _check_attributes(claims, findings)
    user_id = claims.get("user_id", "")
    if not isinstance(user_id, str):
        findings.refuse("type", "user_id", "must be a string")
    elif len(user_id) > MAX_USER_ID_CHARS:
        findings.refuse(
            "too_long", "user_id", f"has {len(user_id)} characters; IVS allows {MAX_USER_ID_CHARS}"
        )


def check_connection_claims(
    claims: Mapping[str, object], kid: PublicKeyArn | None, now: float, findings: Findings
) -> None:
    """Judge the payload of a connection token (RealTimeConnection)."""
    _check_names(claims, _CONNECTION_CLAIMS, (), findings)
    for name in _PARTICIPANT_ONLY:
        if name in claims:
            findings.refuse("forbidden_claim", name, "must not be in a connection token")
    _check_times(claims, MAX_CONNECTION_TTL_SECONDS, _CONNECTION_GRACE_SECONDS, now, findings)
    _check_common(claims, findings)
    account, region = claims.get("account_id"), claims.get("region")
    if "account_id" in claims and not (isinstance(account, str) and account.isdecimal()):
        findings.refuse("type", "account_id", "must be a string of digits")
    elif kid is not None and "account_id" in claims and account != kid.account:
        findings.refuse(
            "account_mismatch", "account_id", f"is not {kid.account}, which has the signing key"
        )
    if "region" in claims and not isinstance(region, str):
        findings.refuse("type", "region", "must be a string")
    elif kid is not None and isinstance(region, str) and region != kid.region:
        findings.refuse(
            "region_mismatch", "region", f"is not {kid.region}, where the signing key lives"
        )
    if "events_url" in claims and claims["events_url"] != _CONNECTION_EVENTS_URL:
        findings.warn("events_url", "events_url", f"IVS wants {_CONNECTION_EVENTS_URL}")


def _check_names(
    claims: Mapping[str, object],
    required: tuple[str, ...],
    optional: tuple[str, ...],
    findings: Findings,
) -> None:
    for name in required:
        if name not in claims:
            findings.refuse("missing_claim", name, "is missing; IVS requires it")
    for name in claims:
        if name not in required and name not in optional and name not in _PARTICIPANT_ONLY:
            findings.warn("unknown_claim", name[:64], "is not a claim that IVS documents")


def _check_times(
    claims: Mapping[str, object], max_ttl: int, grace: int, now: float, findings: Findings
) -> None:
    exp, iat = (_time(claims, name, findings) for name in ("exp", "iat"))
    if exp is not None and now >= exp + grace:
        findings.refuse("expired", "exp", f"expired {int(now - exp)} s ago")
    if iat is not None and iat > now:
        findings.warn(
            "future_iat",
            "iat",
            f"lies {int(iat - now) or 1} s in the future; IVS documents no tolerance and may "
            "refuse it until then",
        )
    if exp is None or iat is None:
        return
    if exp <= iat:
        findings.refuse("exp_before_iat", "exp", "is not after iat")
    elif exp - iat > max_ttl:
        findings.refuse(
            "ttl_too_long",
            "exp",
            f"is {exp - iat} s after iat; IVS allows {max_ttl} s ({max_ttl // _SECONDS_A_DAY} days)",
        )
    elif exp - iat < _SHORT_TTL_SECONDS:
        findings.warn(
            "short_ttl",
            "exp",
            f"is {exp - iat} s after iat; the SDK also checks it at every subscribe and reconnect",
        )


def _time(claims: Mapping[str, object], name: str, findings: Findings) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is not int:
        findings.refuse("type", name, "must be a whole number of Unix seconds")
        return None
    if not 0 < value <= _LATEST_DATE:
        unit = "; it looks like milliseconds" if value > _LATEST_DATE else ""
        findings.refuse("time_range", name, f"is no date in Unix seconds{unit}")
        return None
    return value


def _check_common(claims: Mapping[str, object], findings: Findings) -> None:
    token_id = claims.get("jti")
    if "jti" in claims and not (isinstance(token_id, str) and is_token_id(token_id)):
        findings.refuse("jti", "jti", f"must be 1 to {MAX_TOKEN_ID_CHARS} of A-Z a-z 0-9 _ -")
    if "version" in claims and claims["version"] != TOKEN_VERSION:
        findings.refuse("version", "version", f'must be the string "{TOKEN_VERSION}"')


def _check_stage(
    claims: Mapping[str, object], kid: PublicKeyArn | None, findings: Findings
) -> None:
    if "resource" not in claims:
        return
    resource = claims["resource"]
    if not isinstance(resource, str):
        findings.refuse("type", "resource", "must be the stage's ARN, a string")
        return
    try:
        stage = StageArn.parse(resource)
    except InvalidArnError as error:
        code = "resource_swapped" if "swapped" in str(error) else "resource"
        findings.refuse(code, "resource", str(error))
        return
    if "topic" in claims and claims["topic"] != stage.id:
        findings.refuse("topic", "topic", f"must be the stage's id, {stage.id}")
    if kid is not None and kid.region != stage.region:
        findings.refuse(
            "region_mismatch",
            "resource",
            f"the stage lives in {stage.region}, the signing key in {kid.region}",
        )
    if kid is not None and kid.account != stage.account:
        findings.refuse(
            "account_mismatch",
            "resource",
            "the stage and the signing key are of different accounts",
        )


def _check_url(
    claims: Mapping[str, object], name: str, schemes: tuple[str, ...], findings: Findings
) -> None:
    if name not in claims:
        return
    value = claims[name]
    if not isinstance(value, str) or not _is_url(value, schemes):
        findings.refuse("url", name, f"must be a URL that begins with {schemes[0]}://")
    elif len(value) > MAX_ENDPOINT_CHARS:
        findings.refuse("too_long", name, f"has more than {MAX_ENDPOINT_CHARS} characters")


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in schemes and bool(parts.hostname)


def _check_capabilities(claims: Mapping[str, object], findings: Findings) -> None:
    if "capabilities" not in claims:
        return
    capabilities = claims["capabilities"]
    if not isinstance(capabilities, dict):
        findings.refuse("type", "capabilities", "must be an object of booleans")
        return
    for name, value in capabilities.items():
        where = f"capabilities.{name[:64]}"
        if name not in _CAPABILITIES:
            findings.warn("unknown_capability", where, "is not a capability that IVS documents")
        if not isinstance(value, bool):
            findings.refuse("type", where, "must be true or false")
    if not any(capabilities.get(name) is True for name in _CAPABILITIES):
        findings.warn("no_capability", "capabilities", "allows neither publish nor subscribe")


def _check_attributes(claims: Mapping[str, object], findings: Findings) -> None:
    attributes = claims.get("attributes", {})
    if not isinstance(attributes, dict):
        findings.refuse("type", "attributes", "must be an object of strings")
        return
    size = 0
    for name, value in attributes.items():
        where = f"attributes.{name[:64]}"
        size += _utf8_bytes(name)
        if isinstance(value, str):
            size += _utf8_bytes(value)
        else:
            findings.refuse("type", where, "must be a string")
        if name in _ANALYTICS_ATTRIBUTES:
            findings.warn("reserved_attribute", where, "is read by the SDK for its analytics")
    if size > MAX_ATTRIBUTES_BYTES:
        findings.refuse(
            "too_large",
            "attributes",
            f"keys and values have {size} bytes of UTF-8; IVS allows {MAX_ATTRIBUTES_BYTES}",
        )


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
