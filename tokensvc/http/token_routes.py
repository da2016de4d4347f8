"""Minting, batches and inspection: the routes under `/v1/tokens`.

A handler checks the caller, reads and parses the body, asks `issuing`, and encodes the answer once,
straight to bytes. Batches do each of these item by item, in slices, so that a thousand tokens never
hold the event loop from everybody else.
"""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import Any, Final

import msgspec
from litestar import Request, post
from litestar.response.base import ASGIResponse

from tokensvc.errors import (
    BannedError,
    BodyTooLargeError,
    FieldError,
    IdempotencyConflictError,
    LedgerBusyError,
    NoSigningKeyError,
    NotExchangeableError,
    NotFoundError,
    NotRepeatableError,
    PolicyDeniedError,
    RateLimitedError,
    StageNotFoundError,
    StoreUnavailableError,
    TokenServiceError,
)
from tokensvc.http import examples
from tokensvc.http.answers import Answer
from tokensvc.http.bodies import BatchBody, decode_json, read_json_body
from tokensvc.http.caller_policy import CallerPolicy
from tokensvc.http.direct_mint import minted
from tokensvc.http.facts import Issued, RequestFacts
from tokensvc.http.idempotency import request_ref
from tokensvc.http.inspection import inspection_of, parse_inspection
from tokensvc.http.openapi import IVS_PROBLEMS, RouteDoc, documented
from tokensvc.http.problems import problem_of
from tokensvc.http.service import Service, authorize, service_of
from tokensvc.http.structs import (
    BatchAnswer,
    BatchRequest,
    ExchangeTokenRequest,
    InspectionAnswer,
    InspectRequest,
    MintRequest,
    RefusedItem,
)
from tokensvc.http.wanted import read_plain_tokens, read_wanted_token
from tokensvc.issuing.batch import BatchItem, BatchOutcome
from tokensvc.issuing.issued import IssuedToken
from tokensvc.issuing.slices import LoopSlices
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.exchange import parse_exchange_request
from tokensvc.tokens.validate import Defaults, parse_defaults

__all__ = ["TOKEN_ROUTES", "mint", "mint_batch"]

_JSON: Final = "application/json"
_DONE: Final = "done"
_PIECE: Final = 32
"""Items of a batch that are read or encoded at once, some ten microseconds in all."""

_PIECE_BYTES: Final = 32_768
"""More are not decoded at once: that would be a slice."""

ISSUING_PROBLEMS: Final = (
    BannedError,
    PolicyDeniedError,
    RateLimitedError,
    IdempotencyConflictError,
    NotRepeatableError,
    LedgerBusyError,
    StoreUnavailableError,
)
"""What a request for a token may meet, whatever it asks for."""

_encode = msgspec.json.Encoder().encode


@post(
    "/v1/tokens",
    status_code=201,
    summary="Mint one participant token",
    opt=documented(
        RouteDoc(
            operation_id="mint",
            scope="tokens:mint",
            request=MintRequest,
            answer=IssuedToken,
            request_examples=examples.MINT,
            answer_examples=examples.ISSUED,
            problems=(StageNotFoundError, NoSigningKeyError, *ISSUING_PROBLEMS, *IVS_PROBLEMS),
        )
    ),
)
async def mint(request: Request[Any, Any, Any]) -> Answer:
    """Issue a token for one participant of a stage."""
    service = service_of(request)
    facts = await authorize(request, service, "tokens:mint")
    body = await read_json_body(request, service.max_body_bytes)
    wanted = read_wanted_token(body, regions=service.regions, max_duration=service.max_duration)
    started = perf_counter()
    ref = request_ref(facts, "tokens", body)
    facts.stage_arn = wanted.stage.text
    caller = facts.caller_name
    # What repeats an answer issues nothing new, and is not counted against the caller's limits.
    is_new = ref is None or not await service.desk.has_answered(ref)
    admitted = await service.gate.admit(caller, wanted, counted=is_new)
    issued = await service.desk.mint(admitted.request, facts.caller_id, ref, is_new=is_new)
    return minted(service, facts, wanted.stage.region, issued, started, admitted.headers)


@post(
    "/v1/tokens/batch",
    status_code=200,
    summary="Mint many participant tokens",
    opt=documented(
        RouteDoc(
            operation_id="mintBatch",
            scope="tokens:mint",
            request=BatchRequest,
            answer=BatchAnswer,
            also=(IssuedToken, RefusedItem),
            request_examples=examples.BATCH,
            answer_examples=examples.BATCH_ANSWER,
            problems=ISSUING_PROBLEMS,
        )
    ),
)
async def mint_batch(request: Request[Any, Any, Any]) -> Answer:
    """Issue up to 1,000 tokens; each item is answered by a token or by a problem, in their order."""
    service = service_of(request)
    facts = await authorize(request, service, "tokens:mint")
    raw = await read_json_body(request, service.max_batch_body_bytes)
    slices = service.new_slices()
    ref = request_ref(facts, "tokens/batch", raw)
    if slices.spent():
        await slices.breathe()
    wanted = await _parse_items(service.cut_batch(raw), service, slices)
    caller = facts.caller_name
    is_new = ref is None or not await service.desk.has_answered(ref)
    admitted = await service.gate.admit_batch(caller, wanted, slices, counted=is_new)
    # Of what many batches hold at once, the less the better.
    del wanted
    items = admitted.items
    outcomes = await service.desk.mint_batch(items, slices, facts.caller_id, ref, is_new=is_new)
    body = await _encode_outcomes(outcomes, facts.request_id, slices)
    # Which took a while. Each time there is a token less, so this ends.
    while service.desk.withdraw_banned(items, outcomes):
        body = await _encode_outcomes(outcomes, facts.request_id, slices)
    _count_outcomes(items, outcomes, service, facts)
    return Answer(body, 200, fields=admitted.headers.items())


@post(
    "/v1/tokens/exchange",
    status_code=201,
    summary="Mint a token to exchange a participant's for",
    opt=documented(
        RouteDoc(
            operation_id="exchange",
            scope="tokens:mint",
            request=ExchangeTokenRequest,
            answer=IssuedToken,
            request_examples=examples.EXCHANGE,
            answer_examples=examples.ISSUED,
            problems=(
                NotFoundError,
                NotExchangeableError,
                NoSigningKeyError,
                *ISSUING_PROBLEMS,
            ),
        )
    ),
)
async def exchange(request: Request[Any, Any, Any]) -> Answer:
    """Issue a token for the SDK's `exchangeToken()`: same participant and stage, new rights.

    Capabilities and attributes are as asked for; left out, they are those of the role or the defaults,
    not the old ones.
    """
    service = service_of(request)
    facts = await authorize(request, service, "tokens:mint")
    body = await read_json_body(request, service.max_body_bytes)
    wanted = parse_exchange_request(
        decode_json(body), regions=service.regions, max_duration=service.max_duration
    )
    ref = request_ref(facts, "tokens/exchange", body)
    facts.stage_arn = None if wanted.stage is None else str(wanted.stage)
    policy = CallerPolicy(service.gate, facts.caller_name)
    issued = await service.desk.exchange(wanted, facts.caller_id, policy, ref)
    facts.key_arn = issued.key_arn
    service.metrics.token_exchanged()
    return Answer(_encode(issued), 201, fields=policy.headers.items())


@post(
    "/v1/tokens/inspect",
    status_code=200,
    summary="Say why IVS would refuse a token",
    opt=documented(
        RouteDoc(
            operation_id="inspect",
            scope="tokens:read",
            request=InspectRequest,
            answer=InspectionAnswer,
            request_examples=examples.INSPECT,
            answer_examples=examples.INSPECTION,
        )
    ),
)
async def inspect(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Decode and verify a token, and say in words what IVS would refuse. Nothing of it is kept."""
    service = service_of(request)
    await authorize(request, service, "tokens:read")
    body = await read_json_body(request, service.max_body_bytes)
    answer = await inspection_of(parse_inspection(decode_json(body)), service)
    return ASGIResponse(body=_encode(answer), status_code=200, media_type=_JSON)


TOKEN_ROUTES: Final = (mint, mint_batch, exchange, inspect)


async def _parse_items(
    batch: BatchBody, service: Service, slices: LoopSlices
) -> list[WantedToken | TokenServiceError]:
    # One item has the bound of one request, whatever room the others leave.
    limit = service.max_body_bytes
    if len(memoryview(batch.defaults)) > limit:
        raise _too_large("defaults", limit)
    defaults = parse_defaults(
        decode_json(batch.defaults), regions=service.regions, max_duration=service.max_duration
    )
    items: list[WantedToken | TokenServiceError] = []
    for start in range(0, len(batch.tokens), _PIECE):
        if slices.spent():
            await slices.breathe()
        piece = batch.tokens[start : start + _PIECE]
        # Where all together are within the bound of one, so is each.
        if sum([len(memoryview(raw)) for raw in piece]) <= min(limit, _PIECE_BYTES):
            plain = read_plain_tokens(
                piece,
                regions=service.regions,
                max_duration=service.max_duration,
                defaults=defaults,
            )
            if plain is not None:
                items += plain
                continue
        for raw in piece:
            if slices.spent():
                await slices.breathe()
            items.append(_parse_item(raw, service, defaults))
    return items


def _parse_item(
    raw: msgspec.Raw, service: Service, defaults: Defaults
) -> WantedToken | TokenServiceError:
    limit = service.max_body_bytes
    try:
        if len(memoryview(raw)) > limit:
            raise _too_large("", limit)
        return read_wanted_token(
            raw,
            regions=service.regions,
            max_duration=service.max_duration,
            defaults=defaults,
        )
    except TokenServiceError as error:
        return error


async def _encode_outcomes(
    outcomes: list[BatchOutcome], request_id: str, slices: LoopSlices
) -> bytes:
    encoded: list[msgspec.Raw] = []
    failed = 0
    for start in range(0, len(outcomes), _PIECE):
        if slices.spent():
            await slices.breathe()
        piece = outcomes[start : start + _PIECE]
        tokens = [outcome for outcome in piece if isinstance(outcome, IssuedToken)]
        if len(tokens) == len(piece):
            # As they stand in an array, which is what they become elements of.
            encoded.append(msgspec.Raw(_encode(tokens)[1:-1]))
            continue
        for index, outcome in enumerate(piece, start):
            if slices.spent():
                await slices.breathe()
            if isinstance(outcome, TokenServiceError):
                failed += 1
                problem = problem_of(outcome, request_id, within=f"tokens[{index}]")
                encoded.append(msgspec.Raw(_encode(RefusedItem(problem))))
            else:
                encoded.append(msgspec.Raw(_encode(outcome)))
    # What is encoded already is only copied here; of 8 MB, that alone is more than a slice.
    await slices.breathe()
    answer = _encode(BatchAnswer(encoded, issued=len(outcomes) - failed, failed=failed))
    if slices.spent():
        await slices.breathe()
    return answer


def _count_outcomes(
    items: list[BatchItem], outcomes: list[BatchOutcome], service: Service, facts: RequestFacts
) -> None:
    told: Counter[Issued] = Counter()
    for item, outcome in zip(items, outcomes, strict=True):
        if isinstance(outcome, TokenServiceError):
            service.metrics.item_refused(outcome.code)
            told[_stage_of(item), None, outcome.code] += 1
    tokens = Counter(
        [
            (item.stage.text, item.stage.region, outcome.key_arn, outcome.issuer)
            for item, outcome in zip(items, outcomes, strict=True)
            # Only what is a request has got a token.
            if isinstance(item, TokenRequest) and isinstance(outcome, IssuedToken)
        ]
    )
    issued: Counter[tuple[str, str]] = Counter()
    for (stage_arn, region, key_arn, issuer), count in tokens.items():
        told[stage_arn, key_arn, _DONE] += count
        issued[issuer, region] += count
    for (made_by, region), count in issued.items():
        service.metrics.token_issued(made_by, region, count)
    facts.issued = told


def _stage_of(item: BatchItem) -> str | None:
    return None if isinstance(item, TokenServiceError) else item.stage.text


def _too_large(field: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"{field or 'This item'} is larger than {limit} bytes.",
        errors=(FieldError(field, "too_large", f"may have {limit} bytes", limit),),
    )
