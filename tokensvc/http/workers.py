"""Several serving processes on one socket, and a parent that keeps them there.

The parent serves nothing. It starts the workers, replaces one that dies (at once if it had run for a
while, ever more slowly if it had not), and on SIGTERM or SIGINT asks all of them to drain, waiting for
them no longer than they were promised. SIGHUP is passed on to every worker. A worker whose parent is
gone drains and ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Final, Protocol, TypeAlias

import structlog

from tokensvc.errors import TokenServiceError
from tokensvc.http.draining import refuse_connections
from tokensvc.http.siblings import Wires
from tokensvc.settings import Settings

__all__ = ["Supervisor", "Worker", "run_workers"]

STABLE_SECONDS: Final = 30.0
"""A worker that ran this long may be replaced at once."""

FIRST_DELAY_SECONDS: Final = 1.0
LAST_DELAY_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.2
MARGIN_SECONDS: Final = 30.0
"""What a worker gets on top of its grace: closing its parts takes time too, each a bounded one."""

_STARTUP_FAILURE: Final = 3

Serve: TypeAlias = Callable[[Settings, socket.socket, Wires, int], None]

_log = structlog.get_logger(__name__)


class Worker(Protocol):
    """One process, as `multiprocessing` has it."""

    @property
    def pid(self) -> int | None:
        """Its process id."""
        ...

    @property
    def exitcode(self) -> int | None:
        """How it ended; None while it runs."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM."""
        ...

    def kill(self) -> None:
        """Send SIGKILL."""
        ...


@dataclass(slots=True)
class _Place:
    index: int
    worker: Worker | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    delay: float = 0.0

    def wait_longer(self, now: float) -> None:
        """Put the next start off, for twice as long as the last time."""
        self.delay = min(max(self.delay * 2, FIRST_DELAY_SECONDS), LAST_DELAY_SECONDS)
        self.start_at = now + self.delay


class Supervisor:
    """Decides who runs; `look` is called again and again, with nothing in it that waits.

    `start` starts worker number n; `clock` gives seconds of any origin; `grace` is in seconds.
    """

    def __init__(
        self,
        count: int,
        start: Callable[[int], Worker],
        clock: Callable[[], float],
        grace: float,
        send: Callable[[int, int], None] = os.kill,
    ) -> None:
        """`send` sends a signal to a process."""
        self._start = start
        self._clock = clock
        self._grace = grace
        self._send = send
        self._stop_at: float | None = None
        self._places = [_Place(index) for index in range(count)]

    @property
    def workers(self) -> Sequence[Worker]:
        """The processes that run, as far as is known."""
        return [place.worker for place in self._places if place.worker is not None]

    @property
    def stopping(self) -> bool:
        """Whether the workers were asked to end."""
        return self._stop_at is not None

    def stop(self) -> None:
        """Ask every worker to drain, once."""
        if self._stop_at is None:
            self._stop_at = self._clock() + self._grace
            for worker in self.workers:
                worker.terminate()

    def reload(self) -> None:
        """Tell every worker to read anew what may be changed while it runs."""
        for worker in self.workers:
            # One that has ended keeps its number until `look` takes note of it.
            if worker.pid is not None and worker.exitcode is None:
                self._send(worker.pid, signal.SIGHUP)

    def look(self) -> bool:
        """Take note of who has ended, start who is due; False when all have ended after `stop`."""
        now = self._clock()
        for place in self._places:
            if place.worker is not None and place.worker.exitcode is not None:
                self._note_end(place, place.worker.exitcode, now)
            if place.worker is None and not self.stopping and now >= place.start_at:
                self._begin(place, now)
        if self._stop_at is not None and now >= self._stop_at:
            for worker in self.workers:
                _log.error("worker_killed", pid=worker.pid, seconds=self._grace)
                worker.kill()
        return bool(self.workers) or not self.stopping

    def _begin(self, place: _Place, now: float) -> None:
        try:
            place.worker = self._start(place.index)
        except OSError as error:
            # No more processes, descriptors or memory, for now: the others live on, and are looked after.
            place.wait_longer(now)
            _log.error(
                "worker_not_started",
                worker=place.index,
                reason=error.strerror,
                next_start_in_seconds=place.delay,
            )
            return
        place.started_at = now
        _log.info("worker_started", worker=place.index, pid=place.worker.pid)

    def _note_end(self, place: _Place, exitcode: int, now: float) -> None:
        place.worker = None
        if self.stopping:
            return
        ran = now - place.started_at
        if ran >= STABLE_SECONDS:
            place.delay = 0.0
            place.start_at = now
        else:
            place.wait_longer(now)
        _log.error(
            "worker_died",
            worker=place.index,
            exitcode=exitcode,
            ran_seconds=round(ran, 1),
            next_start_in_seconds=place.delay,
        )


def run_workers(settings: Settings, listener: socket.socket, serve: Serve) -> None:
    """Run `settings.workers` processes that `serve` on `listener` until SIGTERM or SIGINT."""
    # Not forked: a fork copies threads' locks, and awscrt and boto3 have threads.
    context = multiprocessing.get_context("spawn")
    wires = Wires(settings.workers)

    def start(index: int) -> Any:
        process = context.Process(
            target=_be_worker,
            args=(serve, settings, listener, wires, index),
            name=f"worker {index}",
        )
        # Blocked while a worker is born: it keeps the signal until it listens, and so does its parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        return process

    grace = settings.shutdown_grace + MARGIN_SECONDS
    supervisor = Supervisor(settings.workers, start, time.monotonic, grace)
    asked, hung_up = threading.Event(), threading.Event()
    before = {
        number: signal.signal(number, lambda *_: asked.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: hung_up.set())
    try:
        while supervisor.look():
            if hung_up.is_set():
                hung_up.clear()
                supervisor.reload()
            if asked.is_set() and not supervisor.stopping:
                _log.info("draining", workers=len(supervisor.workers))
                refuse_connections(listener)
                supervisor.stop()
                # The workers empty its queue, and are the last to close it.
                listener.close()
            sentinels = [worker.sentinel for worker in supervisor.workers]  # type: ignore[attr-defined]
            # A worker that dies wakes the parent; a signal is seen at the latest after the timeout.
            wait(sentinels, timeout=POLL_SECONDS) if sentinels else asked.wait(POLL_SECONDS)
    finally:
        wires.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _be_worker(
    serve: Serve, settings: Settings, listener: socket.socket, wires: Wires, index: int
) -> None:
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    try:
        serve(settings, listener, wires, index)
    except TokenServiceError as error:
        _log.error("worker_cannot_start", code=error.code, detail=error.detail)
        raise SystemExit(_STARTUP_FAILURE) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
