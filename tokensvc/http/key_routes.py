"""The key ring as an operator sees and changes it: the routes under `/v1/keys`.

Private halves are in none of the answers.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Request, get, post
from litestar.response.base import ASGIResponse

from tokensvc.errors import (
    FieldError,
    InvalidRequestError,
    NotFoundError,
    RingConflictError,
    StoreUnavailableError,
)
from tokensvc.http.bodies import read_optional_json
from tokensvc.http.key_structs import (
    InvalidateRequest,
    InvalidationAnswer,
    KeyAnswer,
    KeysAnswer,
    RotateRequest,
    RotationsAnswer,
)
from tokensvc.http.openapi import RouteDoc, documented
from tokensvc.http.service import authorize, service_of

__all__ = ["KEY_ROUTES"]

_JSON: Final = "application/json"
_DRY_RUN: Final = "dryRun"
_READ: Final = "keys:read"
_ROTATE: Final = "keys:rotate"
_INVALIDATE: Final = "keys:invalidate"
_MAX_SHOWN: Final = 64
_encode = msgspec.json.Encoder().encode


@get(
    "/v1/keys",
    summary="List the key ring",
    opt=documented(
        RouteDoc(
            operation_id="listKeys",
            scope=_READ,
            answer=KeysAnswer,
            problems=(StoreUnavailableError,),
        )
    ),
)
async def list_keys(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Show every key as it is stored, which of them sign here, and what happens next and when."""
    service = service_of(request)
    await authorize(request, service, _READ)
    return _answered(await service.keys.keys())


@get(
    "/v1/keys/{key_id:str}",
    summary="Show one key",
    opt=documented(
        RouteDoc(
            operation_id="getKey",
            scope=_READ,
            answer=KeyAnswer,
            problems=(NotFoundError, StoreUnavailableError),
        )
    ),
)
async def get_key(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Show one key as it is stored."""
    service = service_of(request)
    await authorize(request, service, _READ)
    return _answered(await service.keys.key(request.path_params["key_id"]))


@post(
    "/v1/keys/rotate",
    status_code=200,
    summary="Replace the signing key now",
    opt=documented(
        RouteDoc(
            operation_id="rotateKeys",
            scope=_ROTATE,
            request=RotateRequest,
            request_required=False,
            request_examples={"oneRegion": {"region": "eu-central-1"}},
            answer=RotationsAnswer,
            problems=(StoreUnavailableError,),
        )
    ),
)
async def rotate(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Let the STANDBY key of a Region, or of every one, sign from now on; no token breaks by it.

    A Region whose standby is not there or not old enough is not rotated, and its answer says so.
    """
    service = service_of(request)
    facts = await authorize(request, service, _ROTATE)
    body = await read_optional_json(request, service.max_body_bytes)
    region = _fields(body, {"region": str}).get("region")
    facts.about = {"region": region}
    return _answered(await service.keys.rotate(region))


@post(
    "/v1/keys/{key_id:str}/invalidate",
    status_code=200,
    summary="Take a compromised key out",
    opt=documented(
        RouteDoc(
            operation_id="invalidateKey",
            scope=_INVALIDATE,
            request=InvalidateRequest,
            request_required=False,
            request_examples={"withDisconnects": {"disconnect": True, "reason": "sign in again"}},
            query=(
                {
                    "name": _DRY_RUN,
                    "required": False,
                    "description": "`true`: only say what would break.",
                    "schema": {"type": "boolean", "default": False},
                },
            ),
            answer=InvalidationAnswer,
            problems=(
                InvalidRequestError,
                NotFoundError,
                RingConflictError,
                StoreUnavailableError,
            ),
        )
    ),
)
async def invalidate(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Stop signing with a key, delete it at IVS, destroy its private half, and say what broke.

    Every living token of the key fails at join from then on. Who has joined already stays, unless
    `disconnect` is asked for. Asking again is safe.
    """
    service = service_of(request)
    facts = await authorize(request, service, _INVALIDATE)
    dry_run = _dry_run(request.query_params.getall(_DRY_RUN, []), set(request.query_params.keys()))
    body = await read_optional_json(request, service.max_body_bytes)
    fields = _fields(body, {"disconnect": bool, "reason": str})
    facts.about = {"keyId": request.path_params["key_id"], "dryRun": dry_run, **fields}
    return _answered(
        await service.keys.invalidate(
            request.path_params["key_id"],
            dry_run=dry_run,
            disconnect=fields.get("disconnect", False),
            reason=fields.get("reason", ""),
            caller_id=facts.caller_id,
        )
    )


KEY_ROUTES: Final = (list_keys, get_key, rotate, invalidate)


def _answered(answer: msgspec.Struct) -> ASGIResponse:
    return ASGIResponse(body=_encode(answer), media_type=_JSON)


def _fields(body: object, known: dict[str, type]) -> dict[str, Any]:
    """Return the fields that were given, null ones apart; InvalidRequestError names every bad one."""
    if type(body) is not dict:
        error = FieldError("", "type", "must be a JSON object")
        raise InvalidRequestError("The request must be a JSON object.", errors=(error,))
    errors = [
        FieldError(name[:_MAX_SHOWN], "unknown_field", "is not a field here", ", ".join(known))
        for name in list(body)[:8]
        if name not in known
    ]
    given = {name: body[name] for name in known if body.get(name) is not None}
    errors += [
        FieldError(name, "type", f"must be a {_WORDS[known[name]]}")
        for name, value in given.items()
        if type(value) is not known[name]
    ]
    _refuse(errors)
    return given


def _dry_run(values: list[str], names: set[str]) -> bool:
    # A misspelt dryRun must not delete a key.
    errors = [
        FieldError(name[:_MAX_SHOWN], "unknown_field", "is not a query parameter here", _DRY_RUN)
        for name in sorted(names - {_DRY_RUN})[:8]
    ]
    if values and values not in (["true"], ["false"]):
        errors.append(FieldError(_DRY_RUN, "type", "must be true or false, once"))
    _refuse(errors)
    return values == ["true"]


def _refuse(errors: list[FieldError]) -> None:
    if errors:
        detail = "; ".join(f"{error.field}: {error.detail}" for error in errors)
        raise InvalidRequestError(detail, errors=tuple(errors))


_WORDS: Final = {str: "string", bool: "boolean"}
