"""Issues many tokens at once; each item gets its own answer, in the order asked.

Stages are looked up first, each once and several at a time; then IVS is asked for what it is to make, several
calls at a time; then everything that a local key signs is signed in slices. Whoever called records all of it
in one commit, and then has it handed out. Items next to each other are nearly always for the same stage
and ask for the same; what does not go by the user is then done once for some of them. A bad item spoils
only itself: whatever goes wrong with it, foreseen or not, becomes that item's error. Where the store is
at fault (nobody knows who is banned, or nothing can be recorded), that is nobody's item: the batch fails
as a whole, with StoreUnavailableError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar, cast

import structlog

from tokensvc.errors import StoreUnavailableError, TokenServiceError
from tokensvc.issuing.issued import Draft, IssuedToken
from tokensvc.issuing.issuer import Signing, TokenIssuer
from tokensvc.issuing.slices import LoopSlices
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

__all__ = ["BatchItem", "BatchOutcome", "draft_batch", "hand_out_batch", "withdraw_banned"]

BatchItem: TypeAlias = TokenRequest | TokenServiceError
BatchOutcome: TypeAlias = IssuedToken | TokenServiceError

_CALLS_AT_ONCE: Final = 8
"""AWS calls of one batch under way at the same time; the call budgets bound all batches together."""

_PIECE: Final = 32
"""Items that are looked up among the bans at once, some microseconds in all."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


async def draft_batch(
    issuer: TokenIssuer, items: Sequence[BatchItem], slices: LoopSlices, caller_id: str | None
) -> list[Draft | TokenServiceError]:
    """Make the token of every item, or its error; an item that is an error already keeps it."""
    batch = _Batch(issuer, items, slices, caller_id)
    await batch.look_up_stages()
    # IVS first: what is signed here has to be recorded soon, while its key is there.
    await batch.ask_ivs()
    await batch.sign_local()
    # And for what no key was left to sign.
    await batch.ask_ivs()
    return batch.drafts()


async def hand_out_batch(
    issuer: TokenIssuer,
    items: Sequence[BatchItem],
    drafts: Sequence[Draft | TokenServiceError],
    slices: LoopSlices,
) -> list[BatchOutcome]:
    """Return the tokens of drafts that are recorded, and an error for who was banned meanwhile."""
    outcomes: list[BatchOutcome] = [
        draft.token if isinstance(draft, Draft) else draft for draft in drafts
    ]
    for _ in _withdrawing(issuer, items, outcomes):
        if slices.spent():
            await slices.breathe()
    return outcomes


def withdraw_banned(
    issuer: TokenIssuer, items: Sequence[BatchItem], outcomes: list[BatchOutcome]
) -> bool:
    """Put an error in the place of each token that must not leave any more; tell whether there is one.

    It waits for nothing, so no ban can be answered between it and what follows at once. A thousand
    tokens take a few tenths of a millisecond. Raises StoreUnavailableError.
    """
    return any([*_withdrawing(issuer, items, outcomes)])


def _withdrawing(
    issuer: TokenIssuer, items: Sequence[BatchItem], outcomes: list[BatchOutcome]
) -> Iterator[bool]:
    """Go through the tokens some at a time; yield each time whether one of them must not leave."""
    for start in range(0, len(items), _PIECE):
        piece = outcomes[start : start + _PIECE]
        ids = [token.participant_id for token in piece if isinstance(token, IssuedToken)]
        requests = _requests_alike(items, start)
        if len(ids) == len(piece) == len(requests) and issuer.admits_all(requests, ids):
            yield False
            continue
        any_banned = False
        for index, token in enumerate(piece, start):
            if not isinstance(token, IssuedToken):
                continue
            try:
                # Only a request that parsed has got a token.
                issuer.admit(cast("TokenRequest", items[index]), token.participant_id)
            except StoreUnavailableError:
                raise
            except TokenServiceError as refusal:
                outcomes[index] = refusal
                any_banned = True
        yield any_banned


def _requests_alike(items: Sequence[BatchItem], start: int) -> Sequence[TokenRequest]:
    """Return the next items where they differ in user and attributes alone, else nothing."""
    piece = items[start : start + _PIECE]
    like = piece[0]
    if isinstance(like, TokenServiceError):
        return ()
    stage, duration, capabilities, issuer = (
        like.stage,
        like.duration,
        like.capabilities,
        like.issuer,
    )
    for item in piece:
        if (
            isinstance(item, TokenServiceError)
            or item.stage is not stage  # the same is nearly always the same object
            or item.duration != duration
            or item.capabilities != capabilities
            or item.issuer != issuer
        ):
            return ()
    return cast("Sequence[TokenRequest]", piece)


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
        self._local: list[tuple[int, Sequence[TokenRequest]]] = []
        self._for_ivs: list[tuple[int, TokenRequest]] = []

    async def look_up_stages(self) -> None:
        wanted: dict[StageArn, None] = {}
        for start in range(0, len(self._items), _PIECE):
            if self._slices.spent():
                await self._slices.breathe()
            requests = _requests_alike(self._items, start)
            if requests and self._are_local(requests):
                wanted[requests[0].stage] = None
                self._local.append((start, requests))
                continue
            for index, item in enumerate(self._items[start : start + _PIECE], start):
                if self._slices.spent():
                    await self._slices.breathe()
                self._look_at(index, item, wanted)
        await _several_at_once(wanted, self._look_up)

    def _are_local(self, alike: Sequence[TokenRequest]) -> bool:
        """Tell that all of these are admitted, and that a local key signs them."""
        try:
            return self._issuer.admits_all(alike) and self._issuer.signs(alike[0])
        except StoreUnavailableError:
            raise
        except Exception:  # noqa: BLE001 - each is looked at by itself then, which says what is wrong
            return False

    def _look_at(self, index: int, item: BatchItem, wanted: dict[StageArn, None]) -> None:
        if isinstance(item, TokenServiceError):
            self._done[index] = item
            return
        try:
            self._issuer.admit(item)
            local = self._issuer.signs(item)
        except StoreUnavailableError:
            raise
        except Exception as fault:  # noqa: BLE001 - it becomes the item's answer, and is logged
            self._done[index] = _as_answer(fault, index)
            return
        if local:
            wanted[item.stage] = None
            self._local.append((index, (item,)))
        else:
            self._for_ivs.append((index, item))

    async def _look_up(self, stage: StageArn) -> None:
        if self._slices.spent():
            await self._slices.breathe()
        try:
            self._stages[stage] = await self._issuer.stage_endpoints(stage, self._caller_id)
        except Exception as fault:  # noqa: BLE001 - it becomes the answer of the stage's items
            self._stages[stage] = _as_answer(fault, None)

    async def sign_local(self) -> None:
        issuer, slices, done, caller_id = self._issuer, self._slices, self._done, self._caller_id
        signing: Signing | None = None
        for start, requests in self._local:
            endpoints = self._stages[requests[0].stage]
            if isinstance(endpoints, TokenServiceError):
                done.update(dict.fromkeys(range(start, start + len(requests)), endpoints))
                continue
            is_good = False
            for index, item in enumerate(requests, start):
                if slices.spent():
                    await slices.breathe()
                    is_good = False
                try:
                    if not is_good:
                        # Asked again, since the key may have gone while anything was awaited.
                        signing = issuer.signs_like(item, endpoints, caller_id, signing)
                        is_good = True
                    if signing is not None:
                        done[index] = signing.sign(item)
                    else:
                        self._for_ivs.append((index, item))
                except Exception as fault:  # noqa: BLE001 - the item's answer, and is logged
                    done[index] = _as_answer(fault, index)

    async def ask_ivs(self) -> None:
        asked, self._for_ivs = self._for_ivs, []
        await _several_at_once(asked, self._ask)

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


async def _several_at_once(work: Collection[T], do: Callable[[T], Awaitable[None]]) -> None:
    queue = iter(work)
    if len(work) <= 1:
        for piece in queue:
            await do(piece)
        return

    async def take() -> None:
        for piece in queue:
            await do(piece)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_CALLS_AT_ONCE, len(work))):
            group.create_task(take())
