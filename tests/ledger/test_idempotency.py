"""Answers that are looked up together: a damaged one is no fault of the others."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.ledger.support import NOW, make, row
from tokensvc.ledger import Claim, IdempotencyStore, idempotency_ref
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions


async def test_an_answer_whose_expiry_is_damaged_stands_and_hides_no_other(tmp_path: Path):
    file = tmp_path / "ledger.db"
    url = f"sqlite+aiosqlite:///{file}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(url)
    transactions = open_transactions(engine)
    writer = make(transactions, lambda: 0.0)
    writer.start()
    refs = [idempotency_ref("backend", "tokens", f"key {n}", b"{}") for n in range(3)]
    for number, ref in enumerate(refs):
        await writer.record([row()], Claim(ref, f'"{number}"', NOW + 60))
    with closing(sqlite3.connect(file)) as other, other:
        other.execute(
            "UPDATE idempotency_records SET expires_at = 'later' WHERE key_sha256 = ?",
            [refs[1].key_sha256],
        )
    store = IdempotencyStore(engine)
    for now, found in ((NOW, ['"0"', '"1"', '"2"']), (NOW + 60, [None, '"1"', None])):
        assert await asyncio.gather(*(store.find(ref, now) for ref in refs)) == found
    # It is not given away to another request either.
    assert await writer.record([row()], Claim(refs[1], '"new"', NOW + 60)) == '"1"'
    await writer.aclose()
    await transactions.aclose()
    await engine.dispose()
