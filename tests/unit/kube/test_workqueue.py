"""The queue with real threads and the real clock: blocking, draining, and workers of several lanes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from nfs_provisioner.kube.workqueue import WorkQueue, exponential

DEADLINE = 60.0


@contextmanager
def running(*targets: Callable[[], None]) -> Iterator[list[threading.Thread]]:
    """Threads that must have ended, without help, soon after the block."""
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_h14_a_lane_whose_worker_hangs_delays_no_other_lane() -> None:
    queue: WorkQueue[str] = WorkQueue()
    hang, other_done = threading.Event(), threading.Event()

    def stuck() -> None:
        while (key := queue.get("sick")) is not None:
            hang.wait(DEADLINE)
            queue.done(key)

    def well() -> None:
        while (key := queue.get("well")) is not None:
            queue.done(key)
            other_done.set()

    with running(stuck, well):
        for i in range(100):
            queue.add(f"sick-{i}", "sick")
        queue.add("claim", "well")
        assert other_done.wait(DEADLINE)
        assert queue.depth()["sick"] >= 98
        hang.set()
        assert queue.shutdown(timeout=DEADLINE)


def test_every_add_is_followed_by_a_run_and_no_key_runs_twice_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue()
    lanes = ["", "a", "b"]
    running_keys: set[int] = set()
    guard = threading.Lock()
    wanted, seen = Counter[int](), Counter[int]()
    overlaps: list[int] = []

    def work(lane: str) -> None:
        while (key := queue.get(lane)) is not None:
            with guard:
                if key in running_keys:
                    overlaps.append(key)
                running_keys.add(key)
                seen[key] = wanted[key]
            with guard:
                running_keys.discard(key)
            queue.done(key)

    def produce(offset: int) -> None:
        for i in range(3000):
            key = (i * 7 + offset) % 20
            with guard:
                wanted[key] += 1
            if i % 3:
                queue.add(key, lanes[(i + offset) % 3], low=i % 5 == 0)
            else:
                queue.add_after(key, 0.001 * (i % 4), lanes[i % 3])

    with running(*[lambda lane=lane: work(lane) for lane in lanes * 2]):
        with running(*[lambda n=n: produce(n) for n in range(4)]):
            pass
        for key in range(20):
            queue.add(key, "a")
        assert queue.shutdown(drain=True, timeout=DEADLINE)
    assert overlaps == []
    assert seen == wanted, "a key was added, and no run began after it"


def test_a_delayed_key_wakes_a_waiting_worker_when_its_time_comes() -> None:
    queue: WorkQueue[str] = WorkQueue()
    got: list[str | None] = []
    with running(lambda: got.append(queue.get("x"))):
        queue.add_after("later", 0.05, "x")
    assert got == ["later"]


def test_a_delayed_key_is_not_forgotten_when_the_worker_that_timed_it_leaves_with_another() -> None:
    queue: WorkQueue[str] = WorkQueue()
    got: list[str | None] = []
    both = threading.Barrier(3)

    def take() -> None:
        both.wait(DEADLINE)
        got.append(queue.get())

    with running(take, take):
        queue.add_after("later", 0.2)
        both.wait(DEADLINE)
        queue.add("now")
    assert sorted(map(str, got)) == ["later", "now"]


def test_a_key_that_moves_wakes_the_worker_of_its_new_lane() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("k", "hung")
    got: list[str | None] = []
    with running(lambda: got.append(queue.get("well"))):
        queue.add("k", "well")
    assert got == ["k"]
    assert queue.try_get("hung") is None


def test_shutdown_without_drain_hands_out_nothing_more_and_waits_for_what_runs() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("running", "due"):
        queue.add(key)
    queue.add_after("delayed", 0.01)
    assert queue.get() == "running"
    assert queue.shutdown(timeout=0.05) is False, "one key is still being processed"
    assert queue.get() is None
    queue.add("running")
    queue.done("running")
    assert queue.shutdown(timeout=DEADLINE)
    assert queue.get() is None


def test_shutdown_with_drain_finishes_what_is_due() -> None:
    queue: WorkQueue[str] = WorkQueue()
    processed: list[str] = []
    for key in ("first", "second", "third"):
        queue.add(key, key)
    queue.add_after("delayed", 3600)

    def work(lane: str) -> None:
        while (key := queue.get(lane)) is not None:
            processed.append(key)
            queue.done(key)

    with running(*[lambda lane=lane: work(lane) for lane in ("", "first", "second", "third")]):
        assert queue.shutdown(drain=True, timeout=DEADLINE)
    assert sorted(processed) == ["first", "second", "third"]


def test_a_draining_worker_stays_while_another_lanes_key_may_still_come_to_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("k", "sick")
    assert queue.get("sick") == "k"
    queue.add("k", "well")
    assert queue.shutdown(drain=True, timeout=0) is False
    got: list[str | None] = []
    with running(lambda: got.append(queue.get("well"))) as (worker,):
        worker.join(0.1)
        assert worker.is_alive(), "it left, and nobody would be there for the key"
        queue.done("k")
    assert got == ["k"]
    queue.done("k")
    assert queue.get("well") is None
    assert queue.shutdown(drain=True, timeout=DEADLINE)


def test_retries_grow_with_jitter_up_to_the_longest_and_start_again_after_forget() -> None:
    lanes: list[str] = []
    queue: WorkQueue[str] = WorkQueue(on_retry=lanes.append)
    delays = [queue.retry("k", "lane") for _ in range(40)]
    assert all(0.5 * full <= delay <= full for delay, full in zip(delays, (0.2, 0.4, 0.8, 1.6), strict=False))
    assert all(30 <= delay <= 60 for delay in delays[10:])
    assert len(set(delays[10:])) > 20, "no jitter"
    assert queue.failures("k") == 40
    queue.forget("k")
    assert queue.retry("k", "lane") <= 0.2
    assert lanes == ["lane"] * 41
    assert exponential(1, 5)(10_000) <= 5


def test_the_heap_of_delays_does_not_grow_with_keys_delayed_and_added_again() -> None:
    queue: WorkQueue[int] = WorkQueue()
    queue.add_after(-1, 1800)
    for i in range(5000):
        queue.add_after(i % 10, 3600)
        queue.add(i % 10)
        key = queue.get()
        assert key is not None
        queue.done(key)
    assert len(queue._lanes[""].delayed) <= 65


def test_done_of_a_key_nobody_processes_is_an_error() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("k")
    with pytest.raises(ValueError, match="'k'"):
        queue.done("k")


def test_a_closed_lane_gives_up_its_waiters_and_its_keys() -> None:
    now = [100.0]
    queue: WorkQueue[str] = WorkQueue(clock=lambda: now[0])
    got: list[str | None] = []
    with running(lambda: got.append(queue.get("gone"))):
        queue.add_after("delayed", 0.05, "gone")
        queue.add_after("late", 60.0, "gone", low=True)
        queue.close("gone", "")
    assert got == [None]
    assert queue.try_get("") is None
    now[0] += 0.05
    assert queue.try_get("") == "delayed", "the key did not come after its delay"
    assert queue.get("gone") is None and queue.try_get("gone") is None
    queue.add("late", "gone")
    assert queue.try_get("") == "late"
    assert "gone" not in queue.depth()


def test_a_key_at_work_when_its_lane_closes_comes_back_elsewhere() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("key", "gone")
    assert queue.get("gone") == "key"
    queue.add("key", "gone")
    queue.close("gone", "")
    assert queue.try_get("") is None
    queue.done("key")
    assert queue.try_get("") == "key"


def test_a_lane_that_is_opened_again_is_served_again() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.close("web")
    queue.open("web")
    queue.add("key", "web")
    assert queue.try_get("") is None
    assert queue.try_get("web") == "key"
