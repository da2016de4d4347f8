"""The life of a signing key, from its generation to its deletion, Region by Region.

One key of a Region signs at a time. Its private half is stored sealed, in the same row as its phase
and the ARN that IVS gave its public half, so that nothing can pair a key with another key's ARN.

`record.py` says what a key and a ring are, and makes wrong ones impossible; `phases.py` which phase
may follow which; `sealing.py` and `master_key.py` how private halves are kept; `imports.py` how a public
half gets to IVS exactly once; `manager.py` does the work; `view.py` is what the mint reads.

Never here: deleting or changing a key that is not tagged as this ring's.
"""

from tokensvc.keyring.imports import PublicKeyGateway
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.master_key import create_master_key, load_master_key
from tokensvc.keyring.record import IllegalKeyStateError, KeyPhase, KeyRecord, RingState
from tokensvc.keyring.sealing import LocalSealer, SealContext, Sealer
from tokensvc.keyring.sql import SqlRingStore
from tokensvc.keyring.store import RingStore
from tokensvc.keyring.view import RingView

__all__ = [
    "IllegalKeyStateError",
    "KeyPhase",
    "KeyRecord",
    "LocalSealer",
    "PublicKeyGateway",
    "RingManager",
    "RingState",
    "RingStore",
    "RingView",
    "SealContext",
    "Sealer",
    "SqlRingStore",
    "create_master_key",
    "load_master_key",
]
