"""Kicking out and keeping out.

Bans (`bans.py`, `ban_store.py`) say who may not be issued a token; every mint asks the list in memory.
Disconnects and revocations of connection tokens (`disconnects.py`, `disconnect_store.py`) are stored
before they are answered, and `worker.py` calls IVS until it has taken each, within its quota.
`service.py` is what callers' requests reach.

What must never happen: a mint after the answer to a ban; a stored disconnect that is forgotten; a
sixth call in a second.
"""

from tokensvc.revocation.ban_store import BanStore
from tokensvc.revocation.bans import Ban, BanKind, BanList
from tokensvc.revocation.disconnect_store import DisconnectStore
from tokensvc.revocation.disconnects import (
    Disconnect,
    DisconnectAsk,
    DisconnectProgress,
    ParticipantProgress,
)
from tokensvc.revocation.service import Accepted, Revocations
from tokensvc.revocation.worker import DisconnectGateway, DisconnectWorker, WorkerTimes

__all__ = [
    "Accepted",
    "Ban",
    "BanKind",
    "BanList",
    "BanStore",
    "Disconnect",
    "DisconnectAsk",
    "DisconnectGateway",
    "DisconnectProgress",
    "DisconnectStore",
    "DisconnectWorker",
    "ParticipantProgress",
    "Revocations",
    "WorkerTimes",
]
