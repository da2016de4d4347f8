"""Stage endpoints, remembered so that a mint need not ask IVS.

A participant token carries the endpoints of its stage, which only GetStage gives, at 5 calls a second;
IVS allows them to be kept for 14 days (IVS guide, "Distribute Tokens"). An entry here is, by its age:

    fresh     up to the time to live and up to a tenth more, drawn at random for each entry so that
              entries made together are not refreshed together: answered without a call
    stale     up to 14 days: answered without waiting, while one call in the background renews it
    too old   never answered: asked for anew, as if it had not been there

A stage that IVS does not know is remembered too, for seconds, apart from the others so that made-up
ARNs push nothing out. There is at most one call under way for a stage; it belongs to nobody, so it
goes on when the request that caused it is cancelled.

Calls that somebody waits for come first: a stale entry is renewed only while there is none of them in its
Region, so that thousands which an outage left stale hold up no new stage. Each Region has its own bounds,
so one that does not answer holds up no other.

A caller that makes up ARNs, or asks for many stages that are gone, has few calls of a Region a second for
that, so that it leaves most of them to the others.

Tags come with the same answer and are kept beside the endpoints, for rules that go by them. They say
who may do what, so stale ones are not answered while IVS can be asked.

With an `EndpointStore` the cache outlives the process: a service that starts while IVS is down still
mints for the stages it knew. And replicas share what they fetch: whoever finds a stage due looks there
first, and asks IVS only if no other one has since. So IVS is asked once or twice in a time to live for
each stage, however many replicas there are; at 5 calls a second it could not be asked by each.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from tokensvc.errors import (
    ConfigurationError,
    FieldError,
    IvsError,
    IvsNotFoundError,
    IvsThrottledError,
    IvsUnavailableError,
    StageNotFoundError,
    TokenServiceError,
)
from tokensvc.ivs.endpoint_store import EndpointSaver, EndpointStore, KnownStage
from tokensvc.ivs.gateway import IvsGateway
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints

__all__ = ["HARD_LIMIT_SECONDS", "StageEndpointCache"]

HARD_LIMIT_SECONDS: Final = 14 * 24 * 3600
"""How long IVS allows endpoints to be kept (IVS guide, "Distribute Tokens")."""

_SPREAD: Final = 0.1
_RETRY_SECONDS: Final = 10.0
"""After a refresh that failed, the next one comes this much later, and up to twice as much."""

_RENEWALS_AT_ONCE: Final = 2
"""In a Region: enough for IVS's 5 calls a second, and no more than a look-up that comes can wait behind."""

_NONE_AT_ONCE: Final = 10
_NONE_SECONDS: Final = 1.0
"""So many stages that do not exist may a caller look up in a Region in a row, and one in so many seconds;
beyond that it looks up none. What is under way then counts, too."""

_FIND_SECONDS: Final = 1.0
"""How long another replica's answer is looked for before IVS is asked."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    endpoints: StageEndpoints
    fetched_at: float
    fresh_until: float
    refresh_at: float
    tags: Mapping[str, str] | None
    """None where they are not known: the entry was kept by a version that kept none."""


class StageEndpointCache:
    """Endpoints by stage; belongs to one event loop; `aclose` ends its calls.

    `hits` (fresh), `stale`, `misses` (waited for a call) and `negative_hits` count answers since the
    start.
    """

    def __init__(
        self,
        gateway: IvsGateway,
        clock: Callable[[], float],
        *,
        ttl_seconds: float = 3600.0,
        negative_ttl_seconds: float = 5.0,
        max_entries: int = 10_000,
        max_flights: int = 32,
        jitter: Callable[[], float] = random.random,
        store: EndpointStore | None = None,
    ) -> None:
        """Make an empty cache; `restore` fills it from `store`.

        `max_entries` bounds the stages that are known, the least recently used one leaves first, and
        also those known not to exist. `max_flights` bounds the calls of a Region under way that somebody
        waits for. `clock` gives Unix seconds, `jitter` numbers from 0 up to 1.

        Raises ConfigurationError for a time to live above 14 days and for bounds below 1.
        """
        if not 0 < ttl_seconds <= HARD_LIMIT_SECONDS:
            raise ConfigurationError(
                f"Stage endpoints would be kept for {ttl_seconds} s; it must be above 0 and at most"
                f" {HARD_LIMIT_SECONDS} s (14 days), which is what IVS allows."
            )
        if negative_ttl_seconds < 0 or max_entries < 1 or max_flights < 1:
            raise ConfigurationError(
                "The stage cache needs room for at least one stage and one call."
            )
        self.hits = 0
        self.stale = 0
        self.misses = 0
        self.negative_hits = 0
        self._gateway = gateway
        self._clock = clock
        self._ttl = ttl_seconds
        self._negative_ttl = negative_ttl_seconds
        self._max_entries = max_entries
        self._max_flights = max_flights
        self._jitter = jitter
        self._entries: OrderedDict[StageArn, _Entry] = OrderedDict()
        self._unknown_since: OrderedDict[StageArn, float] = OrderedDict()
        self._flights: dict[StageArn, asyncio.Task[KnownStage]] = {}
        # How many of them there are in each Region, by what they are for.
        self._lookups: Counter[str] = Counter()
        self._renewals: Counter[str] = Counter()
        # By Region and caller: when the stages that did not exist are forgotten, and calls under way.
        self._made_up: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lookups_of: Counter[tuple[str, str]] = Counter()
        self._store = store
        self._saver = None if store is None else EndpointSaver(store, max_entries)
        self._closed = False

    def __len__(self) -> int:
        """Return how many stages' endpoints are held."""
        return len(self._entries)

    async def restore(self) -> int:
        """Fill the cache from the store, at start; return how many stages it then holds.

        What is 14 days old stays out, and so does what claims to come from the future. A store that
        fails is a warning in the log.
        """
        if self._store is None:
            return 0
        now = self._clock()
        try:
            found = await self._store.load(
                since=now - HARD_LIMIT_SECONDS, limit=self._max_entries - len(self._entries)
            )
        except TokenServiceError as error:
            _log.warning("stage_endpoints_not_restored", code=error.code, fault=error.context)
            return len(self)
        # The latest come first, and must be the last to leave.
        for known in reversed(found):
            if (
                0 <= now - known.fetched_at < HARD_LIMIT_SECONDS
                and known.stage not in self._entries
            ):
                self._enter(known)
        return len(self)

    def peek(self, stage: StageArn, now: float) -> StageEndpoints | None:
        """Return the endpoints if they are fresh at `now` (Unix seconds), else None: then `get`."""
        entry = self._entries.get(stage)
        if entry is None or not entry.fetched_at <= now < entry.fresh_until:
            return None
        self._entries.move_to_end(stage)
        self.hits += 1
        return entry.endpoints

    async def get(self, stage: StageArn, caller: str) -> StageEndpoints:
        """Return the endpoints, never more than 14 days old; waits for IVS only if there are none.

        `caller` is who wants them. Raises StageNotFoundError; IvsThrottledError when too many calls are
        under way, or too many stages did not exist that the caller wanted; and what
        `IvsGateway.get_stage` raises, to all that wait for the same call.
        """
        now = self._clock()
        fresh = self.peek(stage, now)
        if fresh is not None:
            return fresh
        entry = self._entries.get(stage)
        if entry is not None and now - entry.fetched_at < HARD_LIMIT_SECONDS:
            self._entries.move_to_end(stage)
            self.stale += 1
            self._refresh(stage, entry, now)
            return entry.endpoints
        self._refuse_unknown(stage, now)
        self.misses += 1
        return (await self._join_flight(stage, caller)).endpoints

    async def tags(self, stage: StageArn, caller: str) -> Mapping[str, str]:
        """Return the stage's tags, as old as the time to live at most while IVS can be asked.

        Where IVS does not answer, those known last stand in, up to 14 days old. Raises as `get` does.
        """
        now = self._clock()
        entry = self._entries.get(stage)
        last = None
        if entry is not None and 0 <= now - entry.fetched_at < HARD_LIMIT_SECONDS:
            last = entry.tags
            if last is not None and now < max(entry.fresh_until, entry.refresh_at):
                self._entries.move_to_end(stage)
                return last
        self._refuse_unknown(stage, now)
        try:
            return (await self._join_flight(stage, caller)).tags or {}
        except IvsError:
            if last is None:
                raise
            return last

    def oldest_age(self, now: float) -> float:
        """Return the age in seconds of the oldest entry that may still be answered; 0 if none."""
        ages = (now - entry.fetched_at for entry in self._entries.values())
        return max((age for age in ages if age < HARD_LIMIT_SECONDS), default=0.0)

    async def aclose(self) -> None:
        """Cancel the calls under way; whoever waits for one gets IvsUnavailableError.

        Then save what is not saved yet.
        """
        self._closed = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._saver is not None:
            await self._saver.aclose()

    def _refuse_unknown(self, stage: StageArn, now: float) -> None:
        unknown_since = self._unknown_since.get(stage)
        if unknown_since is not None and 0 <= now - unknown_since < self._negative_ttl:
            self.negative_hits += 1
            raise _not_found(stage)

    async def _join_flight(self, stage: StageArn, caller: str) -> KnownStage:
        flight = self._flights.get(stage)
        if flight is None:
            if self._closed:
                raise _closing()
            if self._lookups[stage.region] >= self._max_flights:
                raise IvsThrottledError(
                    "Too many stages are being looked up in Amazon IVS.",
                    retry_after=1.0,
                    operation="GetStage",
                    region=stage.region,
                    flights=self._lookups[stage.region],
                )
            self._refuse_making_up(stage.region, caller)
            flight = self._start_flight(stage, self._lookups, caller)
        try:
            return await asyncio.shield(flight)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the flight, by `aclose`.
            raise _closing() from None

    def _refresh(self, stage: StageArn, entry: _Entry, now: float) -> None:
        # A clock that was set back must not keep an entry beyond its time: then it is due as well.
        due = not entry.fetched_at <= now < entry.refresh_at
        room = not self._lookups[stage.region] and self._renewals[stage.region] < _RENEWALS_AT_ONCE
        if due and room and stage not in self._flights and not self._closed:
            self._start_flight(stage, self._renewals, None)

    def _start_flight(
        self, stage: StageArn, kind: Counter[str], caller: str | None
    ) -> asyncio.Task[KnownStage]:
        flight = asyncio.create_task(self._fly(stage, caller), name=f"get_stage {stage.id}")
        self._flights[stage] = flight
        kind[stage.region] += 1
        if caller is not None:
            self._lookups_of[stage.region, caller] += 1
        flight.add_done_callback(lambda done: self._land(stage, kind, caller, done))
        return flight

    def _land(
        self,
        stage: StageArn,
        kind: Counter[str],
        caller: str | None,
        flight: asyncio.Task[KnownStage],
    ) -> None:
        del self._flights[stage]
        kind[stage.region] -= 1
        if caller is not None:
            place = (stage.region, caller)
            self._lookups_of[place] -= 1
            if not self._lookups_of[place]:
                del self._lookups_of[place]
        # Asking for the error marks it as seen: a background refresh has nobody who waits for it.
        error = None if flight.cancelled() else flight.exception()
        if error is not None and not isinstance(error, TokenServiceError):
            _log.error("stage_lookup_crashed", stage_arn=str(stage), exc_info=error)

    async def _fly(self, stage: StageArn, caller: str | None) -> KnownStage:
        shared = await self._find_shared(stage)
        if shared is not None:
            self._enter(shared)
            return shared
        # The age counts from the question: the answer may be as old as that.
        asked_at = self._clock()
        try:
            found = await self._gateway.get_stage(stage.region, str(stage))
        except IvsNotFoundError as error:
            self._forget(stage)
            if caller is not None:
                self._note_made_up(stage.region, caller)
            raise _not_found(stage) from error
        except TokenServiceError as error:
            self._postpone(stage, error)
            raise
        fetched = KnownStage(stage, found.endpoints, asked_at, found.tags)
        self._enter(fetched)
        if self._saver is not None:
            self._saver.note(stage, fetched)
        return fetched

    def _refuse_making_up(self, region: str, caller: str) -> None:
        place, now = (region, caller), self._clock()
        ahead = self._made_up.get(place, 0.0) - now
        if ahead <= 0:
            return
        if ahead > _NONE_AT_ONCE * _NONE_SECONDS:
            # The clock was set back, which keeps nobody out for longer.
            ahead = _NONE_AT_ONCE * _NONE_SECONDS
            self._made_up[place] = now + ahead
        wait = ahead + (self._lookups_of[place] + 1 - _NONE_AT_ONCE) * _NONE_SECONDS
        if wait > 0:
            raise IvsThrottledError(
                "This caller has looked up too many stages that do not exist.",
                retry_after=wait,
                operation="GetStage",
                region=region,
            )

    def _note_made_up(self, region: str, caller: str) -> None:
        now = self._clock()
        place = (region, caller)
        more = max(0.0, self._made_up.pop(place, now) - now) + _NONE_SECONDS
        self._made_up[place] = now + min(more, _NONE_AT_ONCE * _NONE_SECONDS)
        if len(self._made_up) > self._max_entries:
            self._made_up.popitem(last=False)

    async def _find_shared(self, stage: StageArn) -> KnownStage | None:
        """Return what another replica has fetched within the time to live, tags included."""
        if self._store is None:
            return None
        now = self._clock()
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                known = await self._store.find(stage, since=now - self._ttl)
        except (TokenServiceError, TimeoutError) as error:
            _log.warning("shared_stage_not_read", stage_arn=str(stage), error=str(error))
            return None
        except Exception:  # noqa: BLE001 - IVS can be asked nevertheless; the log is where it goes
            _log.exception("shared_stage_read_crashed", stage_arn=str(stage))
            return None
        if known is None or known.tags is None or not 0 <= now - known.fetched_at < self._ttl:
            return None
        return known

    def _enter(self, fetched: KnownStage) -> None:
        known = self._entries.get(fetched.stage)
        if known is not None and known.endpoints != fetched.endpoints:
            _log.warning("stage_endpoints_changed", stage_arn=str(fetched.stage))
        self._unknown_since.pop(fetched.stage, None)
        lifetime = min(self._ttl * (1 + _SPREAD * self._jitter()), HARD_LIMIT_SECONDS)
        fresh_until = fetched.fetched_at + lifetime
        self._entries[fetched.stage] = _Entry(
            fetched.endpoints, fetched.fetched_at, fresh_until, fresh_until, fetched.tags
        )
        self._entries.move_to_end(fetched.stage)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def _forget(self, stage: StageArn) -> None:
        if self._entries.pop(stage, None) is not None:
            _log.warning("stage_gone", stage_arn=str(stage))
            if self._saver is not None:
                self._saver.note(stage, None)
        self._unknown_since[stage] = self._clock()
        self._unknown_since.move_to_end(stage)
        if len(self._unknown_since) > self._max_entries:
            self._unknown_since.popitem(last=False)

    def _postpone(self, stage: StageArn, error: TokenServiceError) -> None:
        entry = self._entries.get(stage)
        if entry is None:
            return
        now = self._clock()
        entry.refresh_at = now + _RETRY_SECONDS * (1 + self._jitter())
        _log.warning(
            "stage_refresh_failed",
            stage_arn=str(stage),
            age_seconds=now - entry.fetched_at,
            code=error.code,
            fault=error.context,
        )


def _not_found(stage: StageArn) -> StageNotFoundError:
    return StageNotFoundError(
        "Amazon IVS knows no such stage.",
        errors=(FieldError("stageArn", "stage_not_found", "names a stage that does not exist"),),
        stage_arn=str(stage),
    )


def _closing() -> IvsUnavailableError:
    return IvsUnavailableError("The stage cache is being closed.", retry_after=1.0)
