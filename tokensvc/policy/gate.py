"""The way from what a caller wants to what is issued: counted, then held against the policy.

Counting comes first, so that a caller who asks again and again for what it may not have is held up as
well. Where a rule goes by a stage's tags, they are looked up; of a batch, each stage once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from tokensvc.errors import PolicyDeniedError, RateLimitedError, TokenServiceError
from tokensvc.policy.limiter import Counted, Limiter
from tokensvc.policy.memory import CallerMemory
from tokensvc.policy.policy import Policy
from tokensvc.policy.rules import TokenLimits
from tokensvc.store.many import Pace
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.connection import ConnectionRequest, WantedConnection

__all__ = ["Admitted", "AdmittedBatch", "AdmittedConnection", "PolicyGate", "StageTags"]

_LOOKUPS_AT_ONCE: Final = 8
_PIECE: Final = 32
"""Items of a batch that are decided at once, some ten microseconds in all, where nothing is unusual."""

_UNLIMITED: Final = TokenLimits()
_NO_HEADERS: Final[Mapping[str, str]] = {}


class StageTags(Protocol):
    """Where a stage's tags come from."""

    async def tags(self, stage: StageArn, caller: str) -> Mapping[str, str]:
        """Return the tags for a caller; raises StageNotFoundError or another IvsError."""
        ...


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A request as it is to be issued, and the headers that tell the caller its limits."""

    request: TokenRequest
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AdmittedConnection:
    """The same for a connection token."""

    request: ConnectionRequest
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AdmittedBatch:
    """For each item its request or its error, and the headers as of the last item."""

    items: list[TokenRequest | TokenServiceError]
    headers: Mapping[str, str]


class PolicyGate:
    """Holds requests against the policy of the moment; belongs to one event loop."""

    def __init__(
        self, *, policy: Callable[[], Policy], stage_tags: StageTags, limiter: Limiter
    ) -> None:
        self._policy = policy
        self._stage_tags = stage_tags
        self._limiter = limiter

    @property
    def is_open(self) -> bool:
        """Whether scopes alone decide, as of now."""
        return self._policy().is_open

    def counts(self, caller: str) -> bool:
        """Tell whether any limit holds for `caller`, as of now."""
        policy = self._policy()
        return policy.limits_of(caller) != _UNLIMITED or policy.limits != _UNLIMITED

    async def admit(self, caller: str, wanted: WantedToken, *, counted: bool = True) -> Admitted:
        """Return what to issue for `caller`, by its name.

        With `counted` false it is held against the rules and not against the limits: it repeats
        an answer, and issues nothing new.

        Raises RateLimitedError and PolicyDeniedError; and where the rules go by tags,
        StageNotFoundError and other IvsError classes.
        """
        # One policy for the whole request, even if the file changes while IVS is asked.
        policy = self._policy()
        admitted = self._admit_at_hand(policy, caller, wanted, counted=counted)
        if admitted is not None:
            return admitted
        known = policy.known(caller)
        count = self._count(policy, caller, wanted.user_id, known) if counted else None
        tags = await self._stage_tags.tags(wanted.stage, caller)
        request = policy.decide(caller, wanted, tags).require()
        return Admitted(request, _NO_HEADERS if count is None else count.headers)

    def admit_at_hand(self, caller: str, wanted: WantedToken) -> Admitted | None:
        """Do what `admit` does, and raise what it raises; None where it would have to look up tags.

        Then nothing was counted.
        """
        return self._admit_at_hand(self._policy(), caller, wanted, counted=True)

    def _admit_at_hand(
        self, policy: Policy, caller: str, wanted: WantedToken, *, counted: bool
    ) -> Admitted | None:
        if policy.is_open:
            return Admitted(policy.decide(caller, wanted).require(), _NO_HEADERS)
        known = policy.known(caller)
        if known is not None and known.needs_tags(wanted.stage):
            return None
        count = self._count(policy, caller, wanted.user_id, known) if counted else None
        decided = policy.decide(caller, wanted).require() if known is None else known.allow(wanted)
        return Admitted(decided, _NO_HEADERS if count is None else count.headers)

    async def admit_batch(
        self,
        caller: str,
        items: Sequence[WantedToken | TokenServiceError],
        pace: Pace,
        *,
        counted: bool = True,
    ) -> AdmittedBatch:
        """Do the same for every item; one that is an error already keeps it.

        It breathes at `pace` between items, so that a batch does not hold the event loop.
        """
        policy = self._policy()
        # Where scopes alone decide there is no limit either.
        counts = counted and not policy.is_open
        known = policy.known(caller)
        last: Counted | None = None
        refusal: RateLimitedError | None = None
        answers: list[TokenRequest | TokenServiceError | None] = []
        unknown: dict[StageArn, None] = {}
        for start in range(0, len(items), _PIECE):
            if pace.spent():
                await pace.breathe()
            piece = items[start : start + _PIECE]
            allowed = None if known is None else _allow_again(known, piece)
            if known is not None and allowed is not None:
                if counts:
                    users = [request.user_id for request in allowed]
                    taken, refused = self._limiter.count_all(
                        caller, users, known.limits, policy.limits
                    )
                    last = taken or last
                    refusal = next(reversed(refused.values()), refusal)
                    answers += [refused.get(at, one) for at, one in enumerate(allowed)]
                else:
                    answers += allowed
                continue
            for item in piece:
                if pace.spent():
                    await pace.breathe()
                if isinstance(item, TokenServiceError):
                    answers.append(item)
                    continue
                if counts:
                    try:
                        last = self._count(policy, caller, item.user_id, known)
                    except RateLimitedError as error:
                        refusal = error
                        answers.append(error)
                        continue
                if known is None:
                    answers.append(_decide(policy, caller, item, None))
                elif known.needs_tags(item.stage):
                    unknown[item.stage] = None
                    answers.append(None)
                else:
                    try:
                        answers.append(known.allow(item))
                    except PolicyDeniedError as denied:
                        answers.append(denied)
        if refusal is not None:
            headers: Mapping[str, str] = refusal.headers
        else:
            headers = _NO_HEADERS if last is None else last.headers
        if unknown:
            tags = await self._look_up(unknown, caller)
            for index, item in enumerate(items):
                if answers[index] is None and not isinstance(item, TokenServiceError):
                    if pace.spent():
                        await pace.breathe()
                    answers[index] = _decide(policy, caller, item, tags[item.stage])
        return AdmittedBatch([answer for answer in answers if answer is not None], headers)

    async def require_stage(self, caller: str, stage: StageArn) -> None:
        """Refuse a caller that may not act on a stage, in whatever way; nothing is counted.

        Raises PolicyDeniedError, and StageNotFoundError and other IvsError classes as `admit`.
        """
        policy = self._policy()
        policy.require_stage(caller, stage, await self._tags(policy, caller, stage))

    async def require_stages(self, caller: str, stages: Iterable[StageArn]) -> None:
        """Refuse as `require_stage` does; where no stage is named, all are meant (`everywhere`)."""
        named = False
        for stage in stages:
            named = True
            await self.require_stage(caller, stage)
        if not named:
            self._policy().require_everywhere(caller)

    async def admit_connection(
        self, caller: str, wanted: WantedConnection, max_duration: int, *, counted: bool = True
    ) -> AdmittedConnection:
        """Return the connection token to issue for `caller`; counted and raising as `admit`."""
        policy = self._policy()
        known = policy.known(caller)
        count = self._count(policy, caller, wanted.user_id, known) if counted else None
        tags = None if wanted.stage is None else await self._tags(policy, caller, wanted.stage)
        request = policy.admit_connection(caller, wanted, tags, max_duration)
        return AdmittedConnection(request, _NO_HEADERS if count is None else count.headers)

    def require_connections(self, caller: str, *, of_others: bool = False) -> None:
        """Refuse a caller that has nothing to do with connection tokens; raises PolicyDeniedError.

        Those `of_others` are for who may act everywhere.
        """
        self._policy().require_connections(caller, of_others=of_others)

    async def _tags(self, policy: Policy, caller: str, stage: StageArn) -> Mapping[str, str] | None:
        if not policy.needs_tags(caller, stage):
            return None
        return await self._stage_tags.tags(stage, caller)

    def _count(
        self, policy: Policy, caller: str, user_id: str | None, known: CallerMemory | None
    ) -> Counted:
        """Count one token of a caller of whom the policy has `known`; raises RateLimitedError."""
        limits = _UNLIMITED if known is None else known.limits
        return self._limiter.count(caller, user_id, limits, policy.limits)

    async def _look_up(
        self, stages: Mapping[StageArn, None], caller: str
    ) -> dict[StageArn, Mapping[str, str] | TokenServiceError]:
        found: dict[StageArn, Mapping[str, str] | TokenServiceError] = {}
        queue = iter(stages)

        async def take() -> None:
            for stage in queue:
                try:
                    found[stage] = await self._stage_tags.tags(stage, caller)
                except TokenServiceError as error:
                    found[stage] = error

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_LOOKUPS_AT_ONCE, len(stages))):
                group.create_task(take())
        return found


def _allow_again(
    known: CallerMemory, items: Sequence[WantedToken | TokenServiceError]
) -> list[TokenRequest] | None:
    """Return what all items get, where each is allowed by what is known; else None."""
    wanted = [item for item in items if isinstance(item, WantedToken)]
    return known.allow_again(wanted) if len(wanted) == len(items) else None


def _decide(
    policy: Policy,
    caller: str,
    wanted: WantedToken,
    tags: Mapping[str, str] | TokenServiceError | None,
) -> TokenRequest | TokenServiceError:
    if isinstance(tags, TokenServiceError):
        return tags
    try:
        return policy.decide(caller, wanted, tags).require()
    except TokenServiceError as refusal:
        return refusal
