"""The life of a signing key, from its generation to its deletion, Region by Region.

One key of a Region signs at a time. Its private half is stored sealed, in the same row as its phase
and the ARN that IVS gave its public half, so that nothing can pair a key with another key's ARN.

What is what:
- `record.py`: what a key and a ring are, and makes wrong ones impossible; `phases.py`: which phase may
  follow which; `policy.py`: the times, and whether they fit into IVS's three slots.
- `rotator.py` decides, purely, from the ring, the policy and the facts that `observer.py` brings;
  `steps.py` does one step; `manager.py` does them in turn; `loop.py` on a schedule, and `turns.py` says
  which of all replicas.
- `sealing.py`, `kms.py`, `master_key.py`, `reseal.py`: how private halves are kept; `opener.py` opens.
- `imports.py`: how a public half gets to IVS exactly once; `holdings.py`: whose the keys there are.
- `view.py` is what the mint reads, and `follower.py` keeps it young.

Never here: deleting or changing a key that is not tagged as this ring's, and was not given to it.
"""

from tokensvc.keyring.imports import PublicKeyGateway
from tokensvc.keyring.manager import RingManager
from tokensvc.keyring.master_key import create_master_key, load_master_key
from tokensvc.keyring.policy import RotationPolicy
from tokensvc.keyring.record import (
    DeleteReason,
    IllegalKeyStateError,
    KeyPhase,
    KeyRecord,
    RingState,
)
from tokensvc.keyring.sealing import LocalSealer, SealContext, Sealer
from tokensvc.keyring.sql import SqlRingStore
from tokensvc.keyring.store import RingStore
from tokensvc.keyring.view import RingView

__all__ = [
    "DeleteReason",
    "IllegalKeyStateError",
    "KeyPhase",
    "KeyRecord",
    "LocalSealer",
    "PublicKeyGateway",
    "RingManager",
    "RingState",
    "RingStore",
    "RingView",
    "RotationPolicy",
    "SealContext",
    "Sealer",
    "SqlRingStore",
    "create_master_key",
    "load_master_key",
]
