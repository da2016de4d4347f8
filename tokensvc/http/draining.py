"""The end of accepting, so that nobody who was let in is turned away.

A listening socket that is closed resets the connections in its queue: to the system they are accepted,
and their requests may be there already. So first no more may come into the queue, then it is emptied,
and only then the socket is closed.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
from typing import Final

__all__ = ["has_waiting", "refuse_connections"]

_SO_ATTACH_FILTER: Final = 26
"""asm-generic/socket.h; Python has no name for it."""

_RETURN_NOTHING: Final = struct.pack("@HBBI", 0x06, 0, 0, 0)
"""A `sock_filter` (linux/filter.h): BPF_RET | BPF_K, 0 bytes of every packet."""


def refuse_connections(listener: socket.socket) -> None:
    """Let no more connections into the queue of `listener`, in whatever process it is open, for good.

    Who connects from now on gets no answer, and is refused once the socket is closed. Only Linux can do
    that; elsewhere nothing is done, and who comes while the socket is being closed may be reset.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_RETURN_NOTHING, len(_RETURN_NOTHING))
    # `sock_fprog`; the kernel copies what it points at.
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program))
    )


def has_waiting(listener: socket.socket) -> bool:
    """Tell whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
