"""`make bench-ledger`: what the ledger costs a mint, and how fast it answers when it is full.

Fills a database of its own with `--rows` living tokens (10 million take some 5 GB and 10 minutes),
then records beside signatures, as a mint does, and asks each question at random many times.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from tokensvc.ledger import Ledger, LedgerJanitor, LedgerRow, LedgerWriter
from tokensvc.ledger.row import endpoints_id
from tokensvc.ledger.writer import COLUMNS
from tokensvc.signing import generate_private_key, load_signer
from tokensvc.store import open_engine, upgrade
from tokensvc.store.inserts import insert_rows
from tokensvc.store.tables import issued_tokens
from tokensvc.store.transactions import Transactions, open_transactions
from tokensvc.tokens.claims import StageEndpoints
from tokensvc.tokens.ids import new_participant_id

USERS, STAGES, KEYS = 200_000, 1_000, 3
ENDPOINTS = StageEndpoints("wss://global.events.live-video.net", "https://a.whip.live-video.net")
ARN = "arn:aws:ivs:eu-central-1:123456789012"
QUESTIONS = 200
MINT_SECONDS = 5.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def a_row(now: int) -> LedgerRow:
    key = random.randrange(KEYS)
    return LedgerRow(
        new_participant_id(), "participant", stage(), "eu-central-1", user(), f"k{key}",
        f"{ARN}:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1{key}", "backend", "local",
        now, now + random.randrange(60, 43_200), ENDPOINTS,
    )  # fmt: skip


def stage() -> str:
    return f"{ARN}:stage/AbCdEf{random.randrange(STAGES):06d}"


def user() -> str:
    return f"user-{random.randrange(USERS)}"


async def fill(transactions: Transactions, rows: int) -> float:
    now, name = int(time.time()), endpoints_id(ENDPOINTS)
    started = time.perf_counter()
    for start in range(0, rows, 50_000):
        made = [(*a_row(now)[:-1], name) for _ in range(min(50_000, rows - start))]
        await transactions.run(
            "fill", partial(insert_rows, table=issued_tokens, columns=COLUMNS, rows=made)
        )
    return rows / (time.perf_counter() - started)


async def mint(writer: LedgerWriter, clients: int) -> tuple[float, list[float]]:
    signer = load_signer(generate_private_key())
    waits: list[float] = []
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < started + MINT_SECONDS:
            begun = time.perf_counter()
            signer.sign(b"x" * 800)
            await writer.record([a_row(int(time.time()))])
            waits.append((time.perf_counter() - begun) * 1e3)

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(waits) / (time.perf_counter() - started), waits


async def ask(question: Callable[[], Awaitable[object]], times: int = QUESTIONS) -> list[float]:
    waits = []
    for _ in range(times):
        begun = time.perf_counter()
        await question()
        waits.append((time.perf_counter() - begun) * 1e3)
    return waits


async def no_rest(_: float) -> None:
    """Go on at once."""


def show(name: str, waits: list[float]) -> None:
    p99 = quantiles(waits, n=100)[98] if len(waits) > 1 else waits[0]
    say(f"{name:48}{median(waits):10.2f}{p99:10.2f}")


async def measure(folder: Path, rows: int) -> None:
    url = f"sqlite+aiosqlite:///{folder / 'bench.db'}"
    upgrade(url)
    engine = open_engine(url)
    transactions = open_transactions(engine)
    say(f"filled with {rows:,} rows, {await fill(transactions, rows):,.0f} a second")
    writer = LedgerWriter(transactions, clock=time.time)
    writer.start()
    ledger = Ledger(engine)
    say(f"{'milliseconds':48}{'p50':>10}{'p99':>10}")
    for clients in (1, 64, 512):
        rate, waits = await mint(writer, clients)
        show(f"sign and record, {clients} clients: {rate:,.0f}/s", waits)
    now = time.time()
    show(
        "a user's living tokens on a stage",
        await ask(lambda: ledger.living(now, stage_arn=stage(), user_id=user())),
    )
    show("a page of a stage's", await ask(lambda: ledger.living(now, stage_arn=stage())))
    show("a page of a key's", await ask(lambda: ledger.living(now, key_id="k1")))
    show("latest expiry of a key", await ask(lambda: ledger.latest_expiry("k1")))
    show("one participant", await ask(lambda: ledger.latest(new_participant_id())))
    show("count a stage's", await ask(lambda: ledger.count_living(now, stage_arn=stage()), 20))
    show("sum up a key", await ask(lambda: ledger.key_use("k1", now), 2))
    at = now + 60 + 43_200 * 5_000 / rows
    janitor = LedgerJanitor(engine, transactions, retention=0, clock=lambda: at, sleep=no_rest)
    begun = time.perf_counter()
    deleted = await janitor.sweep()
    say(f"deleted {deleted:,} rows in slices, {deleted / (time.perf_counter() - begun):,.0f}/s")
    await writer.aclose()
    await transactions.aclose()
    await engine.dispose()


def main() -> int:
    """Measure in a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(prog="make bench-ledger", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where there is room; default: the temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asyncio.run(measure(Path(folder), options.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
