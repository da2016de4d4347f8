"""The audit record: who did what, for which stage and user, with which key, and what came of it.

Every action on keys, bans, disconnects, callers and policy is a record of its own, refused ones too.
Mints are told in summary, counted by caller, stage, key and outcome, so that a mint pays for one
dictionary entry; each single token is in the ledger. A record is one JSON object a line, and is only
ever appended. `process` and `seq` show whether one is missing. No record holds a token, a key or an API
secret; user ids are there as keyed hashes (HMAC-SHA-256, RFC 2104) unless the operator wants them plain.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from structlog.contextvars import get_contextvars

from tokensvc.errors import AuditUnavailableError
from tokensvc.telemetry.redaction import redact_event

__all__ = ["Audit", "AuditMetrics", "MintGroup", "UserIds", "hashed_user_ids", "plain_user_ids"]

MAX_GROUPS: Final = 4096
"""Groups of mints that are counted before they are told, however little time has passed."""

_HASH_CHARS: Final = 32
_RETRY_SECONDS: Final = 5.0

UserIds = Callable[[str], str]

_encode = msgspec.json.Encoder(order="deterministic").encode


class Lines(Protocol):
    """Takes finished lines, without their newline; never waits."""

    @property
    def written(self) -> int:
        """How many were written."""
        ...

    @property
    def dropped(self) -> int:
        """How many were lost."""
        ...

    @property
    def failing(self) -> str | None:
        """Why nothing can be written now; None where it can."""
        ...

    def put(self, line: bytes) -> None:
        """Take one."""
        ...

    def settle(self, seconds: float) -> bool:
        """Wait, blocking, and tell whether all are written."""
        ...


class MintGroup(msgspec.Struct, frozen=True):
    """What one count of tokens is of; `outcome` is `done` or the code of a problem."""

    action: str
    who: str | None
    stage_arn: str | None
    key_arn: str | None
    outcome: str


def plain_user_ids(user_id: str) -> str:
    """Return a user id as it is."""
    return user_id


def hashed_user_ids(key: bytes) -> UserIds:
    """Return a function from a user id to the same 32 hex digits for as long as `key` is the same."""

    def hashed(user_id: str) -> str:
        digest = hmac.new(key, user_id.encode("utf-8", "replace"), hashlib.sha256)
        return f"hmac:{digest.hexdigest()[:_HASH_CHARS]}"

    return hashed


class Audit:
    """Records of one process. `clock` gives Unix seconds; belongs to one thread.

    With `required`, `check` raises while records cannot be written. Without `lines` nothing is
    recorded and nothing is refused.
    """

    def __init__(
        self,
        lines: Lines | None,
        *,
        clock: Callable[[], float],
        user_ids: UserIds = plain_user_ids,
        via: str = "service",
        required: bool = False,
    ) -> None:
        self._lines = lines
        self._clock = clock
        self._user_ids = user_ids
        self._via = via
        self._required = required
        self._process = secrets.token_hex(4)
        self._seq = 0
        self._mints: Counter[MintGroup] = Counter()
        self._since = clock()

    @property
    def lines(self) -> Lines | None:
        """Where records go; None where there are none."""
        return self._lines

    @property
    def required(self) -> bool:
        """Whether nothing may be done that cannot be recorded."""
        return self._required and self._lines is not None

    def check(self) -> None:
        """Raise AuditUnavailableError where records are required and cannot be written."""
        if self._required and self._lines is not None and self._lines.failing is not None:
            raise _unavailable(self._lines.failing)

    def settle(self, seconds: float) -> None:
        """Wait, blocking, until all records are written; raises as `check` where they are not in time."""
        if self._lines is not None and not self._lines.settle(seconds) and self._required:
            raise _unavailable(self._lines.failing)

    def action(
        self,
        action: str,
        *,
        who: str | None,
        outcome: str = "done",
        user_id: str | None = None,
        **about: object,
    ) -> None:
        """Record one action; None among `about` is left out.

        `who` is a caller's id, None where nobody has been recognised.
        """
        if self._lines is None:
            return
        if user_id is not None:
            about["userId"] = self._user_ids(user_id)
        self._put(action, who, outcome, about)

    def minted(self, group: MintGroup, count: int = 1) -> None:
        """Count tokens that were issued, or refused."""
        if self._lines is None:
            return
        self._mints[group] += count
        if len(self._mints) >= MAX_GROUPS:
            self.tell_mints()

    def tell_mints(self) -> None:
        """Record what has been counted since the last time, and begin anew."""
        now = self._clock()
        counted, self._mints = self._mints, Counter()
        since, self._since = self._since, now
        for group, count in counted.items():
            about: dict[str, object] = {
                "stageArn": group.stage_arn,
                "keyArn": group.key_arn,
                "count": count,
                "since": _moment(since),
            }
            self._put(group.action, group.who, group.outcome, about)

    def _put(self, action: str, who: str | None, outcome: str, about: dict[str, object]) -> None:
        if self._lines is not None:
            self._lines.put(self._line(action, who, outcome, about))

    def lost(self, count: int) -> bytes:
        """Return the line that says how many records could not be kept; for the sink's thread."""
        return _encode(
            {
                "time": _moment(self._clock()),
                "action": "audit.lost",
                "count": count,
                "process": self._process,
            }
        )

    def _line(self, action: str, who: str | None, outcome: str, about: dict[str, object]) -> bytes:
        self._seq += 1
        given = {name: value for name, value in about.items() if value is not None}
        record = {
            **given,
            "time": _moment(self._clock()),
            "action": action,
            "who": who,
            "via": self._via,
            "outcome": outcome,
            "requestId": get_contextvars().get("request_id"),
            "process": self._process,
            "seq": self._seq,
        }
        plain = redact_event(None, "", record)
        try:
            return _encode(plain)
        except UnicodeEncodeError:
            # A lone surrogate in what a caller sent must not cost the record.
            return _encode({name: ascii(value) for name, value in plain.items()})


class AuditMetrics(Collector):
    """What became of the records of a process."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield the counts, as of now; Prometheus calls this."""
        family = CounterMetricFamily(
            "tokensvc_audit_records", "Audit records, by what became of them.", labels=["outcome"]
        )
        family.add_metric(["written"], self._lines.written)
        family.add_metric(["dropped"], self._lines.dropped)
        yield family
        yield GaugeMetricFamily(
            "tokensvc_audit_failing",
            "1 while audit records cannot be written, else 0.",
            value=float(self._lines.failing is not None),
        )


def _unavailable(reason: str | None) -> AuditUnavailableError:
    return AuditUnavailableError(
        "What is done cannot be recorded now (TOKENSVC_AUDIT_REQUIRED).",
        retry_after=_RETRY_SECONDS,
        reason=reason,
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
