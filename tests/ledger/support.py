"""Rows and a writer for the ledger's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from sqlalchemy import Connection

from tokensvc.ledger import Claim, LedgerRow, LedgerWriter
from tokensvc.ledger.idempotency import StoredAnswer
from tokensvc.tokens.claims import StageEndpoints

NOW = 1_800_000_000
STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/AbCdEf012345"
OTHER_STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/zzzzzzzzzzzz"
KEY_ARN = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
ENDPOINTS = StageEndpoints("wss://global.events.live-video.net", "https://a.whip.live-video.net")

_numbers = count()


def row(token_id: str | None = None, **changes: object) -> LedgerRow:
    """A participant token of alice's, signed with k1, that lives for an hour from NOW."""
    made = LedgerRow(
        token_id=token_id or f"p{next(_numbers):06d}",
        kind="participant",
        stage_arn=STAGE,
        region="eu-central-1",
        user_id="alice",
        key_id="k1",
        key_arn=KEY_ARN,
        caller_id="backend",
        issuer="local",
        iat=NOW,
        exp=NOW + 3600,
        endpoints=ENDPOINTS,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


class Transactions:
    """Commits when the test says so; `rows` are what each commit took."""

    def __init__(self) -> None:
        self.operations = 0
        self.fault: Exception | None = None
        self.faulty: set[int] | None = None
        """Which operations meet the fault, from 1 on; None: all."""
        self.open = asyncio.Event()
        self.open.set()
        self.begun = asyncio.Event()
        self.late: dict[Claim, StoredAnswer] = {}
        """The claims that come too late, and what stands."""

    async def run(self, operation: str, work: Callable[[Connection], Any]) -> Any:
        self.operations += 1
        number = self.operations
        self.begun.set()
        await self.open.wait()
        if self.fault is not None and (self.faulty is None or number in self.faulty):
            raise self.fault
        return self.late

    async def aclose(self) -> None: ...


class Age:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def make(transactions: Any, age: Age, **options: Any) -> LedgerWriter:
    return LedgerWriter(transactions, clock=lambda: NOW, monotonic=age, **options)
