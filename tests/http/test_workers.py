"""Workers stay there: a dead one is replaced, ever more slowly if it keeps dying; all drain together."""

from __future__ import annotations

import signal

import pytest

from tokensvc.http.workers import LAST_DELAY_SECONDS, STABLE_SECONDS, Supervisor


class FakeWorker:
    def __init__(self, index: int, pid: int) -> None:
        self.index = index
        self.pid = pid
        self.exitcode: int | None = None
        self.terminated = 0
        self.killed = 0

    def terminate(self) -> None:
        self.terminated += 1

    def kill(self) -> None:
        self.killed += 1
        self.exitcode = -9


class Processes:
    """Counts what was started, on a clock of its own."""

    def __init__(self, count: int, grace: float = 20.0) -> None:
        self.now = 1000.0
        self.started: list[FakeWorker] = []
        self.signals: list[tuple[int, int]] = []
        self.supervisor = Supervisor(
            count, self.start, lambda: self.now, grace, lambda *sent: self.signals.append(sent)
        )

    def start(self, index: int) -> FakeWorker:
        self.started.append(FakeWorker(index, 100 + len(self.started)))
        return self.started[-1]

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.supervisor.look()


def test_all_are_started_once():
    processes = Processes(3)
    assert processes.after(0)
    assert processes.after(60)
    assert [worker.index for worker in processes.started] == [0, 1, 2]


def test_a_worker_that_ran_for_a_while_is_replaced_at_once():
    processes = Processes(2)
    processes.after(0)
    processes.started[1].exitcode = -11
    processes.after(STABLE_SECONDS)
    assert [worker.index for worker in processes.started] == [0, 1, 1]
    assert processes.started[2] in processes.supervisor.workers
    assert processes.started[1] not in processes.supervisor.workers


def test_a_worker_that_keeps_dying_is_started_ever_more_rarely():
    processes = Processes(1)
    processes.after(0)
    waits = []
    for _ in range(7):
        processes.started[-1].exitcode = 3
        processes.after(0)
        count, waited = len(processes.started), 0.0
        while len(processes.started) == count:
            processes.after(0.5)
            waited += 0.5
        waits.append(waited)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, LAST_DELAY_SECONDS, LAST_DELAY_SECONDS]
    processes.started[-1].exitcode = 1
    processes.after(STABLE_SECONDS)
    assert processes.started[-1].exitcode is None


def test_one_that_dies_does_not_touch_the_others():
    processes = Processes(2)
    processes.after(0)
    processes.started[0].exitcode = 1
    processes.after(1)
    processes.after(5)
    assert [worker.index for worker in processes.started] == [0, 1, 0]
    assert processes.started[1].terminated == 0


def test_a_reload_is_told_to_every_worker_that_runs():
    processes = Processes(3)
    processes.after(0)
    processes.started[1].exitcode = 1
    processes.supervisor.reload()
    assert processes.signals == [(100, signal.SIGHUP), (102, signal.SIGHUP)]


def test_stop_asks_all_to_drain_once_and_waits_for_them():
    processes = Processes(2)
    processes.after(0)
    processes.supervisor.stop()
    processes.supervisor.stop()
    assert [worker.terminated for worker in processes.started] == [1, 1]
    assert processes.after(1)
    processes.started[0].exitcode = 0
    assert processes.after(1)
    processes.started[1].exitcode = 0
    assert not processes.after(1)
    assert len(processes.started) == 2
    assert [worker.killed for worker in processes.started] == [0, 0]


def test_a_worker_that_does_not_drain_is_killed_after_the_grace():
    processes = Processes(2, grace=20.0)
    processes.after(0)
    processes.supervisor.stop()
    processes.started[0].exitcode = 0
    assert processes.after(19)
    assert processes.started[1].killed == 0
    processes.after(1)
    assert processes.started[1].killed == 1
    assert not processes.after(0.1)


@pytest.mark.parametrize("died", [True, False])
def test_nothing_is_started_after_stop(died: bool):
    processes = Processes(1)
    processes.after(0)
    if died:
        processes.started[0].exitcode = 1
        processes.after(0)
    processes.supervisor.stop()
    if not died:
        processes.started[0].exitcode = 0
    assert not processes.after(100)
    assert len(processes.started) == 1


def test_one_that_cannot_be_started_is_tried_again_and_stops_nobody():
    """No more processes or descriptors, as when the first one was killed for want of memory."""
    processes = Processes(2)
    processes.after(0)
    started = processes.supervisor._start

    def fails(index: int) -> FakeWorker:
        raise OSError(24, "Too many open files")

    processes.supervisor._start = fails
    processes.started[0].exitcode = -9
    assert processes.after(STABLE_SECONDS)
    assert processes.after(1)
    assert processes.supervisor.workers == [processes.started[1]]
    processes.supervisor._start = started
    processes.after(60)
    assert [worker.index for worker in processes.started] == [0, 1, 0]
