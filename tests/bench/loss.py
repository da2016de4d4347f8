"""`make bench-loss`: what a crash loses where the ledger is `relaxed`.

A process records tokens in `relaxed` mode and says of each, before the next, that it was handed out; it
is killed (SIGKILL) in the middle. What was handed out and is not in the database is what was lost; how
long before the kill the first of them was handed out is the window. `durable` is measured beside it, and
must lose nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tokensvc.ledger import LedgerRow, LedgerWriter
from tokensvc.store import open_engine, upgrade
from tokensvc.store.transactions import open_transactions
from tokensvc.tokens.claims import StageEndpoints

RATE = 2_000
RUN_SECONDS = 1.5
ENDPOINTS = StageEndpoints("wss://events.example.test", "https://whip.example.test")
ARN = "arn:aws:ivs:eu-central-1:123456789012"


async def hand_out(url: str, durability: str) -> None:
    """Record `RATE` tokens a second for ever, and write a line for each that is handed out."""
    writer = LedgerWriter(
        open_transactions(open_engine(url)),
        clock=time.time,
        durability="relaxed" if durability == "relaxed" else "durable",
    )
    writer.start()
    started = time.perf_counter()

    async def one(number: int) -> None:
        now = int(time.time())
        row = LedgerRow(
            f"t{number}", "participant", f"{ARN}:stage/s", "eu-central-1", "u", "k1",
            f"{ARN}:public-key/k1", "bench", "local", now, now + 3600, ENDPOINTS,
        )  # fmt: skip
        await writer.record([row])
        os.write(1, f"{number} {time.monotonic():.6f}\n".encode())

    async with asyncio.TaskGroup() as group:
        number = 0
        while True:
            due = int((time.perf_counter() - started) * RATE)
            while number < due:
                group.create_task(one(number))
                number += 1
            await asyncio.sleep(0.001)


def kill_once(folder: Path, durability: str) -> tuple[int, int, float]:
    """Return how many were handed out, how many of them were lost, and the window in milliseconds."""
    url = f"sqlite+aiosqlite:///{folder / 'loss.db'}"
    upgrade(url)
    output = folder / "handed-out"
    with output.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.loss", "--hand-out", url, durability], stdout=lines
        )
        try:
            time.sleep(RUN_SECONDS)
        finally:
            killed_at = time.monotonic()
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
    handed_out = {}
    for line in output.read_text().splitlines():
        number, at = line.split()
        handed_out[f"t{number}"] = float(at)
    with sqlite3.connect(folder / "loss.db") as database:
        kept = {token_id for (token_id,) in database.execute("SELECT token_id FROM issued_tokens")}
    lost = [at for token_id, at in handed_out.items() if token_id not in kept]
    return len(handed_out), len(lost), (killed_at - min(lost)) * 1e3 if lost else 0.0


def main() -> int:
    """Kill several times in each mode, and print what was lost."""
    parser = argparse.ArgumentParser(prog="make bench-loss", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hand-out", nargs=2, metavar=("URL", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hand_out:
        asyncio.run(hand_out(*options.hand_out))
    sys.stdout.write(f"load average {os.getloadavg()[0]:.1f}; {RATE} tokens a second asked for\n")
    for durability in ("durable", "relaxed"):
        rounds = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(kill_once(Path(folder), durability))
        handed_out, lost, windows = ([entry[column] for entry in rounds] for column in range(3))
        sys.stdout.write(
            f"{durability}: handed out {median(handed_out):.0f}, lost {median(lost):.0f}"
            f" (at most {max(lost)}), window {median(windows):.1f} ms (at most {max(windows):.1f})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
