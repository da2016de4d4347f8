"""Killed with -9 in the middle of its work, a process has lost nothing that it had answered."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from tests.ledger.support import NOW
from tokensvc.ledger import Ledger
from tokensvc.revocation import DisconnectStore
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions

ROOT = Path(__file__).parents[2]
CHILD = "tests.ledger.child_that_answers"


async def test_what_a_killed_process_had_answered_is_there(tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", CHILD, url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    answered: list[str] = []
    while len(answered) < 200:
        line = await child.stdout.readline()
        assert line, "the child ended by itself"
        answered.append(line.decode().strip())
    child.send_signal(signal.SIGKILL)
    answered += (await child.stdout.read()).decode().split("\n")[:-1]
    assert await child.wait() == -signal.SIGKILL

    engine = open_engine(url)
    transactions = open_transactions(engine)
    ledger, disconnects = Ledger(engine), DisconnectStore(engine, transactions)
    recorded: set[str] = set()
    cursor = None
    while True:
        page = await ledger.living(NOW, cursor=cursor, limit=1000)
        recorded |= {token.token_id for token in page.tokens}
        cursor = page.next_cursor
        if cursor is None:
            break
    kicks = {name for name in answered if name.startswith("dis-")}
    assert len(kicks) > 5
    assert set(answered) - kicks <= recorded
    for disconnect_id in kicks:
        await disconnects.get(disconnect_id)  # NotFoundError where it was lost
    await transactions.aclose()
    await engine.dispose()
