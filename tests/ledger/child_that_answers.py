"""A process that records tokens and stores kicks for ever, and says so only after each was answered."""

from __future__ import annotations

import asyncio
import sys

from tests.ledger.support import NOW, row
from tests.revocation.support import STAGE, IvsModel, Replica, VirtualTime
from tokensvc.revocation import DisconnectAsk
from tokensvc.store import open_engine


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main() -> None:
    time = VirtualTime()
    replica = Replica(open_engine(sys.argv[1]), IvsModel(time), time)

    async def mint() -> None:
        while True:
            issued = row(exp=NOW + 3600)
            await replica.writer.record([issued])
            say(issued.token_id)

    async def kick() -> None:
        while True:
            ask = DisconnectAsk.of_user(STAGE, "alice", ban=60)
            say((await replica.revocations.disconnect(ask, caller_id=None)).disconnect_id)

    await asyncio.gather(*(mint() for _ in range(8)), kick())


asyncio.run(main())
