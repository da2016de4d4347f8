"""Who may not be issued a token: the bans, in memory.

Every mint, batch item, exchange, fallback and idempotent replay asks `BanList.admit`, which does no
I/O: some look-ups in dicts; or `admits_all`, which does the same for many items at once. The list is
read whole before the first mint, and then only what changed since (`BanStore.changes`), twice a second.
The replica that takes a ban puts it into its own list before it answers. Since a mint takes a moment, it
asks before it signs and once more after its ledger row is committed, just before its token leaves; a
token signed in between is found by the disconnect's second sweep.

While the store does not answer, the list stays as it is, up to `max_age`; then nobody is admitted,
since a ban may be missing. (With a durable ledger nothing could be issued then anyway.) A clock that
was ahead and is set back has forgotten bans that stand: then all are read anew.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, NoReturn, Protocol, TypeAlias

import msgspec
import structlog

from tokensvc.errors import BannedError, StoreUnavailableError

__all__ = ["Ban", "BanChanges", "BanKind", "BanList", "BanSource"]

BanKind: TypeAlias = Literal["user_on_stage", "user", "participant", "stage"]

REFRESH_SECONDS: Final = 0.5
MAX_AGE_SECONDS: Final = 10.0
LONG_UNREAD_SECONDS: Final = 3600.0
"""After which all are read anew; what was lifted is kept for longer than that, for others to read."""
_EXPIRED_AT_ONCE: Final = 500

_log = structlog.get_logger(__name__)


class Ban(msgspec.Struct, frozen=True, gc=False):
    """A ban; which of stage, user and participant are given is told by `kind`.

    `until` is in Unix seconds, None for good. `version` is the feed's after the ban's last change.
    """

    ban_id: str
    kind: BanKind
    stage_arn: str | None
    user_id: str | None
    participant_id: str | None
    until: float | None
    reason: str
    caller_id: str | None
    created_at: float
    version: int = 0
    lifted_at: float | None = None

    def holds(self, now: float) -> bool:
        """Tell whether the ban stands at `now`."""
        return self.lifted_at is None and now < self.end

    @property
    def end(self) -> float:
        """The moment it ends, infinity where it is for good."""
        return math.inf if self.until is None else self.until


@dataclass(frozen=True, slots=True)
class BanChanges:
    """Bans that changed after a version, oldest first.

    They reach up to `last_version`; unless `complete`, more follow.
    """

    bans: tuple[Ban, ...]
    last_version: int
    complete: bool


class BanSource(Protocol):
    """Where bans are stored."""

    async def version(self) -> int:
        """Return the feed's version; raises StoreUnavailableError."""
        ...

    async def changes(self, after: int) -> BanChanges:
        """Return some of the bans made or lifted after version `after`; raises StoreUnavailableError."""
        ...


_Bans: TypeAlias = dict[str, tuple[Ban, ...]]
"""Bans by what they are of."""


class BanList:
    """The bans as of the last `refresh`; belongs to one event loop. `clock` gives Unix seconds."""

    def __init__(
        self,
        source: BanSource,
        clock: Callable[[], float],
        *,
        max_age: float = MAX_AGE_SECONDS,
    ) -> None:
        """Know nothing yet; `max_age` is in seconds."""
        self._source = source
        self._clock = clock
        self._max_age = max_age
        self._bans: dict[str, Ban] = {}
        self._of_stage: _Bans = {}
        self._of_user: _Bans = {}
        self._of_participant: _Bans = {}
        self._on_stage: dict[str, _Bans] = {}
        """By stage, those of its users."""
        self._count = 0
        self._ends: list[tuple[float, str]] = []
        self._version: int | None = None
        self._read_at = -math.inf
        self._refreshing = asyncio.Lock()
        self._reloading: BanList | None = None
        self._forgotten_until = -math.inf

    def check(
        self, stage_arn: str | None, user_id: str | None, participant_id: str | None, now: float
    ) -> Ban | None:
        """Return the ban that stands longest against this stage, user and participant, or None."""
        # Most installations have bans of one kind or two.
        bans: tuple[Ban, ...] = ()
        if self._of_stage and stage_arn is not None:
            bans += self._of_stage.get(stage_arn, ())
        if user_id is not None:
            if self._of_user:
                bans += self._of_user.get(user_id, ())
            if self._on_stage and stage_arn is not None:
                of_users = self._on_stage.get(stage_arn)
                if of_users is not None:
                    bans += of_users.get(user_id, ())
        if self._of_participant and participant_id is not None:
            bans += self._of_participant.get(participant_id, ())
        if not bans:
            return None
        return max((ban for ban in bans if ban.holds(now)), key=_end, default=None)

    def admit(
        self, stage_arn: str | None, user_id: str | None, participant_id: str | None = None
    ) -> None:
        """Raise BannedError if a ban stands; StoreUnavailableError if the list is missing or too old."""
        now = self._now_if_known()
        ban = self.check(stage_arn, user_id, participant_id, now)
        if ban is not None:
            _refuse(ban)

    def admits_all(
        self,
        stage_arn: str | None,
        user_ids: Sequence[str | None],
        participant_ids: Sequence[str] = (),
    ) -> bool:
        """Tell that `admit` lets all of these users of a stage pass, and all of these participants.

        Where it is false, `admit` says of each. Raises StoreUnavailableError as `admit` does.
        """
        self._now_if_known()
        return (
            stage_arn not in self._of_stage
            and self._of_user.keys().isdisjoint(user_ids)
            and self._on_stage.get(stage_arn or "", {}).keys().isdisjoint(user_ids)
            and self._of_participant.keys().isdisjoint(participant_ids)
        )

    def _now_if_known(self) -> float:
        """Return the time; raises StoreUnavailableError if the list is missing or too old."""
        now = self._clock()
        # A clock that was set back does not make an old list a young one.
        if self._version is None or abs(now - self._read_at) > self._max_age:
            raise StoreUnavailableError(
                "The bans are not known to be complete.", retry_after=1.0, age=self.age()
            )
        return now

    def apply(self, bans: Iterable[Ban]) -> None:
        """Take over bans as they are stored now: what the answer to a ban waits for."""
        bans = tuple(bans)
        if self._reloading is not None:
            self._reloading.apply(bans)
        for ban in bans:
            known = self._bans.get(ban.ban_id)
            # An older state must not undo a newer one, whichever comes first.
            if known is not None and known.version >= ban.version:
                continue
            if known is not None:
                self._remove(known)
            if ban.lifted_at is None:
                self._add(ban)
            else:
                # Remembered as lifted, or an older state that is read later would bring it back.
                self._bans[ban.ban_id] = ban
                heapq.heappush(self._ends, (ban.lifted_at + self._max_age, ban.ban_id))

    async def refresh(self) -> None:
        """Read what changed; raises StoreUnavailableError, and then keeps what it knows."""
        async with self._refreshing:
            started = self._clock()
            version = await self._source.version()
            if self._version is not None and version < self._version:
                _log.warning("bans_went_back", known=self._version, stored=version)
                await self._read_all(version)
            elif started < self._forgotten_until:
                _log.warning("clock_set_back", bans_end=self._forgotten_until, now=started)
                await self._read_all(version)
            elif started - self._read_at > LONG_UNREAD_SECONDS:
                # That some were lifted meanwhile may not be there to be read any more.
                await self._read_all(version)
            elif version != self._version:
                await self._read(after=self._version or 0)
                self._version = version
            self._read_at = started
        self._forget_ended()

    async def run(
        self, sleep: Callable[[float], Awaitable[object]], interval: float = REFRESH_SECONDS
    ) -> NoReturn:
        """Refresh every `interval` seconds until cancelled; faults are logged and outlived."""
        failing = False
        while True:
            await sleep(interval)
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - nothing may end the loop that sees bans
                if not failing:
                    expected = isinstance(error, StoreUnavailableError)
                    _log.warning(
                        "bans_not_refreshed",
                        reason=str(error),
                        exc_info=None if expected else error,
                    )
                failing = True
            else:
                if failing:
                    _log.info("bans_refreshed_again")
                failing = False

    @property
    def version(self) -> int:
        """Up to which version of the stored bans the last refresh has read; 0 before the first."""
        return self._version or 0

    @property
    def max_age(self) -> float:
        """How old, in seconds, the list may be before nobody is admitted."""
        return self._max_age

    def age(self) -> float:
        """Return the seconds since the store was last read; infinity if it never was."""
        return max(0.0, self._clock() - self._read_at)

    def __len__(self) -> int:
        """Return how many bans are known that are not lifted, some of which may have ended."""
        return self._count

    async def _read(self, after: int) -> None:
        while True:
            changes = await self._source.changes(after)
            self.apply(changes.bans)
            if changes.complete or changes.last_version <= after:
                return
            after = changes.last_version
            await asyncio.sleep(0)

    async def _read_all(self, version: int) -> None:
        """Read a store that went back (a restored backup) beside the list that still serves."""
        fresh = self._reloading = BanList(self._source, self._clock, max_age=self._max_age)
        try:
            await fresh._read(after=0)
        finally:
            self._reloading = None
        self._bans, self._ends, self._count = fresh._bans, fresh._ends, fresh._count
        self._of_stage, self._of_user = fresh._of_stage, fresh._of_user
        self._of_participant, self._on_stage = fresh._of_participant, fresh._on_stage
        self._version, self._forgotten_until = version, -math.inf

    def _add(self, ban: Ban) -> None:
        self._bans[ban.ban_id] = ban
        among, subject = self._place(ban)
        among[subject] = (*among.get(subject, ()), ban)
        self._count += 1
        if ban.until is not None:
            heapq.heappush(self._ends, (ban.until, ban.ban_id))

    def _remove(self, ban: Ban) -> None:
        del self._bans[ban.ban_id]
        if ban.lifted_at is not None:
            return
        self._count -= 1
        among, subject = self._place(ban)
        others = tuple(one for one in among.get(subject, ()) if one.ban_id != ban.ban_id)
        if others:
            among[subject] = others
        else:
            among.pop(subject, None)
            if not among and among is self._on_stage.get(ban.stage_arn or ""):
                del self._on_stage[ban.stage_arn or ""]

    def _place(self, ban: Ban) -> tuple[_Bans, str]:
        """Return where the ban is kept, by what it names: a damaged `kind` makes no hole."""
        if ban.participant_id is not None:
            return self._of_participant, ban.participant_id
        if ban.user_id is None:
            return self._of_stage, ban.stage_arn or ""
        if ban.stage_arn is None:
            return self._of_user, ban.user_id
        return self._on_stage.setdefault(ban.stage_arn, {}), ban.user_id

    def _forget_ended(self) -> None:
        now = self._clock()
        for _ in range(_EXPIRED_AT_ONCE):
            if not self._ends or self._ends[0][0] > now:
                return
            _, ban_id = heapq.heappop(self._ends)
            ban = self._bans.get(ban_id)
            if ban is not None and not ban.holds(now):
                self._remove(ban)
                if ban.lifted_at is None:
                    self._forgotten_until = max(self._forgotten_until, ban.end)


def _end(ban: Ban) -> float:
    return ban.end


def _refuse(ban: Ban) -> NoReturn:
    subject = {
        "user_on_stage": "This user is banned from this stage",
        "user": "This user is banned from every stage",
        "participant": "This participant is banned",
        "stage": "This stage is banned",
    }[ban.kind]
    end = "for good"
    if ban.until is not None:
        end = f"until {datetime.fromtimestamp(ban.until, UTC).isoformat(timespec='seconds')}"
    raise BannedError(f"{subject} {end} (ban {ban.ban_id}).", ban_id=ban.ban_id, until=ban.until)
