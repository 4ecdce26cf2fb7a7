"""Threads of a lane: as many as asked for, and none once the lane is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.kube.workers import Workers
from nfs_provisioner.kube.workqueue import WorkQueue
from tests.unit.kube.conftest import DEADLINE, eventually


class Work:
    """Notes what was done where; `hold` keeps a key back, `fail` is raised once."""

    def __init__(self) -> None:
        self.queue: WorkQueue[str] = WorkQueue(backoff=lambda _failures: 0.0)
        self.done: list[tuple[str, str]] = []
        self.lost = threading.Event()
        self.fail: dict[str, Exception] = {}
        self.held: dict[str, threading.Event] = {}
        self.workers = Workers(self.queue, self._work, on_lost=self.lost.set)
        self._before = set(threading.enumerate())  # of another test's lane some may still be ending

    def _work(self, key: str, lane: str) -> None:
        if key in self.held:
            assert self.held[key].wait(DEADLINE)
        if key in self.fail:
            raise self.fail.pop(key)
        self.done.append((key, lane))

    def threads(self, lane: str) -> int:
        ours = set(threading.enumerate()) - self._before
        return sum(1 for thread in ours if thread.name.startswith(f"worker-{lane}-"))


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    for held in made.held.values():
        held.set()
    assert made.queue.shutdown(timeout=DEADLINE)


def test_no_thread_of_a_lane_that_was_left_stays(work: Work) -> None:
    work.workers.serve("gone", 4)
    work.workers.serve("gone", 4)
    work.workers.serve("stays", 2)
    assert (work.threads("gone"), work.threads("stays")) == (4, 2)
    work.workers.leave("gone")
    eventually(lambda: work.threads("gone") == 0, "threads of the lane are left")
    work.queue.add("key", "stays")
    eventually(lambda: work.done == [("key", "stays")])


def test_a_thread_that_is_at_work_ends_afterwards(work: Work) -> None:
    held = work.held["key"] = threading.Event()
    work.workers.serve("gone", 2)
    work.queue.add("key", "gone")
    eventually(lambda: not work.queue.depth()["gone"])
    work.workers.leave("gone")
    work.workers.serve("gone", 1)  # an export of the same name was made anew: the old thread is none of its own
    held.set()
    eventually(lambda: work.threads("gone") == 1, "the thread that was at work stays")
    work.queue.add("later", "gone")
    eventually(lambda: ("later", "gone") in work.done)


def test_keys_of_a_lane_that_was_left_are_decided_anew(work: Work) -> None:
    held = work.held["busy"] = threading.Event()
    work.workers.serve("", 1)
    work.workers.serve("gone", 1)
    work.queue.add("busy", "gone")
    eventually(lambda: not work.queue.depth()["gone"])
    work.queue.add("waits", "gone")
    work.workers.leave("gone")
    work.queue.add("comes later", "gone")
    eventually(lambda: sorted(work.done) == [("comes later", ""), ("waits", "")], "keys wait where nobody serves")
    held.set()


def test_an_unexpected_error_ends_no_thread(work: Work) -> None:
    work.fail["key"] = KeyError("a defect")
    work.workers.serve("", 1)
    work.queue.add("key")
    eventually(lambda: work.done == [("key", "")], "it was not tried again")


def test_a_lost_lease_is_told_and_the_key_given_back(work: Work) -> None:
    work.fail["key"] = LostLeadership("lost")
    work.workers.serve("", 1)
    work.queue.add("key")
    assert work.lost.wait(DEADLINE)
    assert not work.done
