"""The key ring as an operator sees it: the routes under `/v1/keys`. Private halves are not in it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from litestar import Request, get
from litestar.response.base import ASGIResponse

from tokensvc.errors import NoSigningKeyError, NotFoundError, StoreUnavailableError
from tokensvc.http.openapi import RouteDoc, documented
from tokensvc.http.service import Service, authorize, service_of
from tokensvc.http.structs import KeyAnswer, KeysAnswer
from tokensvc.keyring.record import KeyRecord
from tokensvc.signing import fingerprint, load_public_key, spki

__all__ = ["KEY_ROUTES"]

_JSON: Final = "application/json"
_SCOPE: Final = "keys:read"
_encode = msgspec.json.Encoder().encode


@get(
    "/v1/keys",
    summary="List the key ring",
    opt=documented(
        RouteDoc(
            operation_id="listKeys",
            scope=_SCOPE,
            answer=KeysAnswer,
            problems=(StoreUnavailableError,),
        )
    ),
)
async def list_keys(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Show every key as it is stored, and which of them sign here."""
    service = service_of(request)
    authorize(request, service, _SCOPE)
    rings = await service.rings.load_all()
    keys = [_answer(key, service) for ring in rings for key in ring.keys]
    answer = KeysAnswer(keys=keys, not_signing=_not_signing(service))
    return ASGIResponse(body=_encode(answer), media_type=_JSON)


@get(
    "/v1/keys/{key_id:str}",
    summary="Show one key",
    opt=documented(
        RouteDoc(
            operation_id="getKey",
            scope=_SCOPE,
            answer=KeyAnswer,
            problems=(NotFoundError, StoreUnavailableError),
        )
    ),
)
async def get_key(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Show one key as it is stored."""
    service = service_of(request)
    authorize(request, service, _SCOPE)
    key_id = request.path_params["key_id"]
    for ring in await service.rings.load_all():
        for key in ring.keys:
            if key.key_id == key_id:
                return ASGIResponse(body=_encode(_answer(key, service)), media_type=_JSON)
    raise NotFoundError("The ring has no key with this id.")


KEY_ROUTES: Final = (list_keys, get_key)


def _answer(key: KeyRecord, service: Service) -> KeyAnswer:
    return KeyAnswer(
        key_id=key.key_id,
        region=key.region,
        phase=key.phase.value,
        arn=key.arn,
        name=key.name,
        fingerprint=_fingerprint(key.public_key_pem),
        signing=_signs(key, service),
        age_seconds=max(0.0, service.clock() - key.created_at),
        created_at=key.created_at,
        imported_at=key.imported_at,
        checked_at=key.checked_at,
        activated_at=key.activated_at,
        deleted_at=key.deleted_at,
    )


def _signs(key: KeyRecord, service: Service) -> bool:
    try:
        return service.view().signing_key(key.region).key_id == key.key_id
    except NoSigningKeyError:
        return False


def _not_signing(service: Service) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for region in sorted(service.regions):
        try:
            service.view().signing_key(region)
        except NoSigningKeyError as error:
            reasons[region] = error.detail
    return reasons


@lru_cache(maxsize=64)
def _fingerprint(public_key_pem: str) -> str:
    return fingerprint(spki(load_public_key(public_key_pem)))
