"""`IvsGateway` over boto3.

Every call passes the budget of its operation, then runs in a thread under a deadline that covers
attempts, pauses and the making of the client; what comes back is checked before it is believed.

An import of a key or the making of a stage is never attempted twice by itself: when only the answer
was lost, the second attempt would take another of three key slots. Whoever asked looks it up instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, get_args

from tokensvc.errors import IvsError, IvsRejectedError
from tokensvc.ivs import answers
from tokensvc.ivs.budgets import CallBudgets, Operation
from tokensvc.ivs.clients import ClientSettings, RegionalClients, StaticCredentials
from tokensvc.ivs.clock_drift import ClockDrift
from tokensvc.ivs.faults import translate
from tokensvc.ivs.gateway import (
    IvsToken,
    Participant,
    PublicKey,
    PublicKeySummary,
    Stage,
    StageSummary,
)
from tokensvc.ivs.threads import CallThreads
from tokensvc.tokens.claims import TokenRequest
from tokensvc.tokens.limits import REGIONS

if TYPE_CHECKING:
    from mypy_boto3_ivs_realtime import IvsrealtimeClient

Answer: TypeAlias = Mapping[str, object]
_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

__all__ = ["MAX_LIST_PAGES", "BotoIvsGateway"]

PAGE_SIZE: Final = 100
"""`maxResults` of every list: the most that the API model allows."""

MAX_LIST_PAGES: Final = 300
"""Pages of one list: 30,000 stages or participants, where IVS's default quotas are 1,000 stages a
Region and 10,000 subscribers a stage."""

_Purpose: TypeAlias = Literal["tokens", "kicks", "rest"]
_PURPOSES: Final[Mapping[Operation, _Purpose]] = {
    "CreateParticipantToken": "tokens",
    "DisconnectParticipant": "kicks",
    "RevokeConnectionToken": "kicks",
}


class BotoIvsGateway:
    """Implements `IvsGateway`; belongs to one event loop; `aclose` ends its threads."""

    def __init__(
        self,
        settings: ClientSettings | None = None,
        *,
        budgets: CallBudgets | None = None,
        credentials: StaticCredentials | None = None,
        regions: Collection[str] = REGIONS,
        drift: ClockDrift | None = None,
    ) -> None:
        """Make a gateway; no call is made and no client is loaded yet.

        A Region that is not in `regions` is refused with IvsRejectedError before it becomes part
        of a host name. `drift`, where given, learns AWS's time from every answer.
        """
        settings = settings or ClientSettings()
        self._budgets = budgets or CallBudgets()
        self._regions = frozenset(regions)
        self._clients = RegionalClients(settings, credentials, drift)
        # A Region that does not answer holds its threads for seconds, so each has its own. And tokens
        # and kicks have theirs: when IVS is slow and many requests fall back to it, a kick or a key's
        # deletion must not wait behind them, nor a kick, whose turn has come, behind stages.
        self._threads = {
            (region, purpose): CallThreads(
                max_threads=settings.max_threads,
                max_waiting=settings.max_waiting,
                deadline_seconds=settings.deadline(),
            )
            for region in self._regions
            for purpose in get_args(_Purpose)
        }

    async def import_public_key(
        self, region: str, *, public_key_pem: str, name: str, tags: Mapping[str, str]
    ) -> PublicKey:
        """See `IvsGateway`."""
        return await self._ask(
            "ImportPublicKey",
            region,
            lambda client: client.import_public_key(
                publicKeyMaterial=public_key_pem, name=name, tags=tags
            ),
            answers.public_key,
            repeatable=False,
        )

    async def get_public_key(self, region: str, arn: str) -> PublicKey:
        """See `IvsGateway`."""
        key = await self._ask(
            "GetPublicKey",
            region,
            lambda client: client.get_public_key(arn=arn),
            answers.public_key,
        )
        _must_be_about(arn, key.arn, "GetPublicKey", region)
        return key

    async def list_public_keys(self, region: str) -> list[PublicKeySummary]:
        """See `IvsGateway`."""
        return await self._all_pages(
            "ListPublicKeys",
            region,
            lambda client: client.list_public_keys,
            answers.public_key_summaries,
        )

    async def delete_public_key(self, region: str, arn: str) -> None:
        """See `IvsGateway`."""
        await self._ask(
            "DeletePublicKey",
            region,
            lambda client: client.delete_public_key(arn=arn),
            answers.nothing,
        )

    async def get_stage(self, region: str, arn: str) -> Stage:
        """See `IvsGateway`."""
        return await self._get_stage(region, arn)

    async def list_stages(self, region: str) -> list[StageSummary]:
        """See `IvsGateway`."""
        return await self._all_pages(
            "ListStages", region, lambda client: client.list_stages, answers.stage_summaries
        )

    async def create_stage(self, region: str, *, name: str, tags: Mapping[str, str]) -> Stage:
        """See `IvsGateway`."""
        return await self._ask(
            "CreateStage",
            region,
            lambda client: client.create_stage(name=name, tags=tags),
            answers.stage,
            repeatable=False,
        )

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        """See `IvsGateway`."""
        wanted: dict[str, Any] = {
            "stageArn": str(request.stage),
            "duration": request.duration,
            "capabilities": list(request.capabilities),
        }
        if request.user_id is not None:
            wanted["userId"] = request.user_id
        if request.attributes:
            wanted["attributes"] = dict(request.attributes)
        return await self._ask(
            "CreateParticipantToken",
            request.stage.region,
            lambda client: client.create_participant_token(**wanted),
            partial(answers.participant_token, request=request),
        )

    async def list_participants(
        self, region: str, *, stage_arn: str, user_id: str | None = None
    ) -> list[Participant]:
        """See `IvsGateway`."""
        # Somebody is to be kicked: that goes before stages that are only to be known.
        session = (await self._get_stage(region, stage_arn, urgent=True)).active_session_id
        if session is None:
            return []
        # ListParticipants takes one filter, so the other one is ours.
        only = {"filterByState": "CONNECTED"} if user_id is None else {"filterByUserId": user_id}
        found = await self._all_pages(
            "ListParticipants",
            region,
            lambda client: client.list_participants,
            answers.participants,
            stageArn=stage_arn,
            sessionId=session,
            **only,
        )
        return [
            who
            for who in found
            if who.state == "CONNECTED" and (user_id is None or who.user_id == user_id)
        ]

    async def disconnect_participant(
        self, region: str, *, stage_arn: str, participant_id: str, reason: str = ""
    ) -> None:
        """See `IvsGateway`."""
        await self._ask(
            "DisconnectParticipant",
            region,
            lambda client: client.disconnect_participant(
                stageArn=stage_arn, participantId=participant_id, reason=reason
            ),
            answers.nothing,
            # Whoever kicks repeats it, and counts: an attempt that botocore adds goes over the quota.
            repeatable=False,
        )

    async def revoke_connection_token(self, region: str, token_id: str) -> None:
        """See `IvsGateway`."""
        await self._ask(
            "RevokeConnectionToken",
            region,
            lambda client: client.revoke_connection_token(tokenId=token_id),
            answers.nothing,
            repeatable=False,
        )

    async def aclose(self) -> None:
        """Refuse further calls, wait for those in a thread (botocore's timeouts bound them), close.

        Calls that still wait for a thread end with IvsUnavailableError. May be called twice.
        """
        await asyncio.gather(*(threads.aclose() for threads in self._threads.values()))
        self._clients.close()

    async def _get_stage(self, region: str, arn: str, *, urgent: bool = False) -> Stage:
        stage = await self._ask(
            "GetStage",
            region,
            lambda client: client.get_stage(arn=arn),
            answers.stage,
            urgent=urgent,
        )
        _must_be_about(arn, stage.arn, "GetStage", region)
        return stage

    async def _all_pages(
        self,
        operation: Operation,
        region: str,
        method: Callable[[IvsrealtimeClient], Callable[..., Answer]],
        read: Callable[[Answer], list[_Item]],
        **of: str,
    ) -> list[_Item]:
        items: list[_Item] = []
        first_page: dict[str, Any] = {**of, "maxResults": PAGE_SIZE}
        wanted = first_page
        for _ in range(MAX_LIST_PAGES):
            call = partial(_list_page, method, wanted)
            more, next_token = await self._ask(operation, region, call, partial(_read_page, read))
            items += more
            if not next_token:
                return items
            wanted = {**first_page, "nextToken": next_token}
        raise IvsError(
            "Amazon IVS lists more than this service reads.",
            operation=operation,
            region=region,
            max_pages=MAX_LIST_PAGES,
        )

    async def _ask(
        self,
        operation: Operation,
        region: str,
        call: Callable[[IvsrealtimeClient], Answer],
        read: Callable[[Answer], _Value],
        *,
        repeatable: bool = True,
        urgent: bool = False,
    ) -> _Value:
        answer = await self._call(operation, region, call, repeatable=repeatable, urgent=urgent)
        try:
            return read(answer)
        except IvsError as error:
            error.context |= {"operation": operation, "region": region}
            raise

    async def _call(
        self,
        operation: Operation,
        region: str,
        call: Callable[[IvsrealtimeClient], Answer],
        *,
        repeatable: bool,
        urgent: bool,
    ) -> Answer:
        if region not in self._regions:
            raise IvsRejectedError(
                "Amazon IVS Real-Time is not used in this Region.",
                operation=operation,
                region=region,
            )
        threads = self._threads[region, _PURPOSES.get(operation, "rest")]
        work = partial(self._in_thread, operation, region, call, repeatable)
        if not self._clients.has(region, repeatable=repeatable):
            # Making a client takes long. A call that passed the budget before it would leave late,
            # and so close to the next one.
            make = partial(self._in_thread, operation, region, _nothing, repeatable)
            await threads.run(make, operation=operation, region=region)
        await self._budgets.take(operation, region, urgent=urgent)
        return await threads.run(work, operation=operation, region=region)

    def _in_thread(
        self,
        operation: Operation,
        region: str,
        call: Callable[[IvsrealtimeClient], Answer],
        repeatable: bool,
    ) -> Answer:
        try:
            return call(self._clients.client(region, repeatable=repeatable))
        except Exception as error:
            # Whatever botocore raises must not get out of this package, and not all that it raises
            # has a common root: a malformed answer can end in a ValueError of its parser.
            raise translate(error, operation=operation, region=region) from error


def _nothing(_: IvsrealtimeClient) -> Answer:
    return {}


def _list_page(
    method: Callable[[IvsrealtimeClient], Callable[..., Answer]],
    wanted: Mapping[str, Any],
    client: IvsrealtimeClient,
) -> Answer:
    return method(client)(**wanted)


def _read_page(read: Callable[[Answer], list[_Item]], answer: Answer) -> tuple[list[_Item], object]:
    return read(answer), answer.get("nextToken")


def _must_be_about(asked: str, answered: str, operation: Operation, region: str) -> None:
    if asked != answered:
        raise IvsError(
            "Amazon IVS answered about another thing than was asked.",
            operation=operation,
            region=region,
            asked=asked,
            answered=answered,
        )
