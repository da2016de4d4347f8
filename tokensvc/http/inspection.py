"""`POST /v1/tokens/inspect` without its HTTP: which public key to check with, and a bounded answer.

The key ring knows its own keys. Another key is asked of IVS (GetPublicKey, within the call budget);
where IVS does not answer, the signature is not checked, and the inspection says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from tokensvc.errors import FieldError, InvalidRequestError, IvsError, IvsNotFoundError
from tokensvc.http.service import Service
from tokensvc.http.structs import FindingAnswer, InspectionAnswer
from tokensvc.keyring.record import KeyPhase
from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn
from tokensvc.tokens.inspect import inspect_token
from tokensvc.tokens.limits import MAX_TOKEN_CHARS
from tokensvc.tokens.reading import unverified_kid

__all__ = ["inspection_of", "parse_inspection"]

_MAX_DEPTH: Final = 16
_MAX_INTEGER: Final = 2**63 - 1

PublicKeyFor = Callable[[str], str | None]

_log = structlog.get_logger(__name__)


def parse_inspection(body: object) -> str:
    """Return the token of `{"token": "..."}`; InvalidRequestError names every bad field."""
    if type(body) is not dict:
        error = FieldError("", "type", "must be a JSON object")
        raise InvalidRequestError("The request must be a JSON object.", errors=(error,))
    errors = [
        FieldError(name[:64], "unknown_field", "is not a field of an inspection", "token")
        for name in list(body)[:8]
        if name != "token"
    ]
    token = body.get("token")
    if token is None:
        errors.append(FieldError("token", "required", "is required: the token to look into"))
    elif type(token) is not str:
        errors.append(FieldError("token", "type", "must be a string"))
    elif len(token) > MAX_TOKEN_CHARS:
        detail = f"has {len(token)} characters; {MAX_TOKEN_CHARS} are read"
        errors.append(FieldError("token", "too_long", detail, MAX_TOKEN_CHARS))
    elif not errors:
        return token
    detail = "; ".join(f"{error.field}: {error.detail}" for error in errors)
    raise InvalidRequestError(detail, errors=tuple(errors))


async def inspection_of(token: str, service: Service) -> InspectionAnswer:
    """Inspect `token` as of now."""
    found = inspect_token(
        token, now=service.clock(), public_key_for=await _public_key_for(token, service)
    )
    return InspectionAnswer(
        acceptable=found.acceptable,
        kind=found.kind,
        signature=found.signature,
        header=_shown(found.header),
        claims=_shown(found.claims),
        findings=[
            FindingAnswer(finding.code, finding.where, finding.detail, finding.severity)
            for finding in found.findings
        ],
    )


async def _public_key_for(token: str, service: Service) -> PublicKeyFor | None:
    """Return what knows the key that `token` names; None where nobody could be asked."""
    try:
        arn = PublicKeyArn.parse(unverified_kid(token) or "")
    except InvalidArnError:
        return lambda _: None
    known = service.view().key_of(str(arn))
    if known is not None:
        pem = None if known.phase is KeyPhase.DELETED else known.public_key_pem
        return lambda _: pem
    if arn.region not in service.regions:
        return None
    try:
        asked = (await service.public_keys.get_public_key(arn.region, str(arn))).public_key_pem
    except IvsNotFoundError:
        return lambda _: None
    except IvsError as error:
        _log.warning("public_key_not_looked_up", code=error.code, context=error.context)
        return None
    return lambda _: asked


def _shown(part: Mapping[str, object] | None) -> dict[str, Any] | None:
    return None if part is None else {name: _plain(value, 1) for name, value in part.items()}


def _plain(value: object, depth: int) -> object:
    # A token is somebody else's JSON: numbers beyond 64 bits and deep nests do not go into an answer.
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        return "[number beyond 64 bits]"
    if isinstance(value, dict | list) and depth >= _MAX_DEPTH:
        return "[nested too deep]"
    if isinstance(value, dict):
        return {name: _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return value
