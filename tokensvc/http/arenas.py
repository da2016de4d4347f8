"""glibc's pools of memory ("arenas"), of which each thread would get one of its own.

A worker has some ten threads, each of which does little and one at a time. In an arena of its own each keeps
what it once needed and has given back: with a large ledger 1 to 1.5 MB of 2.5. Two arenas for all of
them are 5 MB less in a worker. Source: mallopt(3), M_ARENA_MAX.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["share_arenas"]

_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def share_arenas() -> None:
    """Let the threads that this process will start share an arena; nothing where libc is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
