"""Kicking out and keeping out.

Bans (`bans.py`, `ban_store.py`) say who may not be issued a token; every mint asks the list in memory.
Disconnects and revocations of connection tokens (`disconnects.py`, `disconnect_store.py`) are stored
before they are answered. `sweeper.py` finds out whom they mean and puts calls into the queue
(`calls.py`, `folding.py`, `call_queue.py`); `worker.py` calls IVS until it has taken each, within its
quota; `progress.py` tells how far that is. `service.py` is what callers' requests reach.

What must never happen: a mint after the answer to a ban; a stored disconnect that is forgotten; a
sixth call in a second.
"""

from tokensvc.revocation.ban_store import BanStore
from tokensvc.revocation.bans import Ban, BanKind, BanList
from tokensvc.revocation.call_queue import CallQueue
from tokensvc.revocation.calls import QueueState
from tokensvc.revocation.disconnect_store import DisconnectStore
from tokensvc.revocation.disconnects import (
    Disconnect,
    DisconnectAsk,
    DisconnectProgress,
    ParticipantProgress,
)
from tokensvc.revocation.service import Accepted, Revocations
from tokensvc.revocation.times import WorkerTimes
from tokensvc.revocation.worker import DisconnectGateway, DisconnectWorker

__all__ = [
    "Accepted",
    "Ban",
    "BanKind",
    "BanList",
    "BanStore",
    "CallQueue",
    "Disconnect",
    "DisconnectAsk",
    "DisconnectGateway",
    "DisconnectProgress",
    "DisconnectStore",
    "DisconnectWorker",
    "ParticipantProgress",
    "QueueState",
    "Revocations",
    "WorkerTimes",
]
