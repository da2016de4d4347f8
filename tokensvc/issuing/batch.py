"""Issues many tokens at once; each item gets its own answer, in the order asked.

Stages are looked up first, each once and several at a time; then everything that a local key signs is
signed in slices; what must go to IVS follows, several calls at a time. Whoever called records all of it
in one commit, and then has it handed out. A bad item spoils only itself: whatever goes wrong with it,
foreseen or not, becomes that item's error. Where the store is at fault (nobody knows who is banned, or
nothing can be recorded), that is nobody's item: the batch fails as a whole, with StoreUnavailableError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias, TypeVar, cast

import structlog

from tokensvc.errors import StoreUnavailableError, TokenServiceError
from tokensvc.issuing.issued import Draft, IssuedToken
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.issuing.slices import LoopSlices
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

__all__ = ["BatchItem", "BatchOutcome", "draft_batch", "hand_out_batch"]

BatchItem: TypeAlias = TokenRequest | TokenServiceError
BatchOutcome: TypeAlias = IssuedToken | TokenServiceError

_CALLS_AT_ONCE: Final = 8
"""AWS calls of one batch under way at the same time; the call budgets bound all batches together."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


async def draft_batch(
    issuer: TokenIssuer, items: Sequence[BatchItem], slices: LoopSlices, caller_id: str | None
) -> list[Draft | TokenServiceError]:
    """Make the token of every item, or its error; an item that is an error already keeps it."""
    batch = _Batch(issuer, items, slices, caller_id)
    await batch.look_up_stages()
    await batch.sign_local()
    await batch.ask_ivs()
    return batch.drafts()


async def hand_out_batch(
    issuer: TokenIssuer,
    items: Sequence[BatchItem],
    drafts: Sequence[Draft | TokenServiceError],
    slices: LoopSlices,
) -> list[BatchOutcome]:
    """Return the tokens of drafts that are recorded, and an error for who was banned meanwhile."""
    outcomes: list[BatchOutcome] = []
    for item, draft in zip(items, drafts, strict=True):
        if slices.spent():
            await slices.breathe()
        if isinstance(draft, TokenServiceError):
            outcomes.append(draft)
            continue
        try:
            # Only a request that parsed has become a draft.
            issuer.admit(cast("TokenRequest", item), draft.token.participant_id)
        except StoreUnavailableError:
            raise
        except TokenServiceError as refusal:
            outcomes.append(refusal)
        else:
            outcomes.append(draft.token)
    return outcomes


class _Batch:
    def __init__(
        self,
        issuer: TokenIssuer,
        items: Sequence[BatchItem],
        slices: LoopSlices,
        caller_id: str | None,
    ) -> None:
        self._issuer = issuer
        self._items = items
        self._slices = slices
        self._caller_id = caller_id
        self._done: dict[int, Draft | TokenServiceError] = {}
        self._stages: dict[StageArn, StageEndpoints | TokenServiceError] = {}
        self._for_ivs: list[tuple[int, TokenRequest]] = []

    async def look_up_stages(self) -> None:
        wanted: dict[StageArn, None] = {}
        slices = self._slices
        for index, item in enumerate(self._items):
            if slices.spent():
                await slices.breathe()
            if isinstance(item, TokenServiceError):
                self._done[index] = item
                continue
            try:
                self._issuer.admit(item)
                local = self._issuer.signs(item)
            except StoreUnavailableError:
                raise
            except Exception as fault:  # noqa: BLE001 - it becomes the item's answer, and is logged
                self._done[index] = _as_answer(fault, index)
                continue
            if local:
                wanted[item.stage] = None
            else:
                self._for_ivs.append((index, item))
        await _several_at_once(wanted, self._look_up)

    async def _look_up(self, stage: StageArn) -> None:
        if self._slices.spent():
            await self._slices.breathe()
        try:
            self._stages[stage] = await self._issuer.stage_endpoints(stage)
        except Exception as fault:  # noqa: BLE001 - it becomes the answer of the stage's items
            self._stages[stage] = _as_answer(fault, None)

    async def sign_local(self) -> None:
        for_ivs = {index for index, _ in self._for_ivs}
        issuer, slices, done, caller_id = self._issuer, self._slices, self._done, self._caller_id
        for index, item in enumerate(self._items):
            if index in done or index in for_ivs or isinstance(item, TokenServiceError):
                continue
            endpoints = self._stages[item.stage]
            if isinstance(endpoints, TokenServiceError):
                self._done[index] = endpoints
                continue
            if slices.spent():
                await slices.breathe()
            try:
                # Asked again, since the key may have gone while stages were looked up.
                key = issuer.signer_of(item)
                if key is not None:
                    done[index] = issuer.sign(item, endpoints, caller_id, None, key)
                else:
                    self._for_ivs.append((index, item))
            except Exception as fault:  # noqa: BLE001 - it becomes the item's answer, and is logged
                self._done[index] = _as_answer(fault, index)

    async def ask_ivs(self) -> None:
        await _several_at_once(self._for_ivs, self._ask)

    async def _ask(self, indexed: tuple[int, TokenRequest]) -> None:
        index, request = indexed
        try:
            self._done[index] = await self._issuer.ask_ivs(request, self._caller_id)
        except Exception as fault:  # noqa: BLE001 - it becomes the item's answer, and is logged
            self._done[index] = _as_answer(fault, index)

    def drafts(self) -> list[Draft | TokenServiceError]:
        return [self._done[index] for index in range(len(self._items))]


def _as_answer(fault: Exception, index: int | None) -> TokenServiceError:
    if isinstance(fault, TokenServiceError):
        return fault
    _log.error("batch_item_failed", index=index, exc_info=fault)
    return TokenServiceError("Something unexpected went wrong; the log has it by the request id.")


async def _several_at_once(work: Iterable[T], do: Callable[[T], Awaitable[None]]) -> None:
    queue = iter(work)

    async def take() -> None:
        for piece in queue:
            await do(piece)

    async with asyncio.TaskGroup() as group:
        for _ in range(_CALLS_AT_ONCE):
            group.create_task(take())
