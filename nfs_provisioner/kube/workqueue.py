"""Keys waiting for work: one key never twice at once, delays, per-key backoff, lanes, drain.

Responsible for order and exclusion only; knows no Kubernetes, starts no thread, runs no work. Lanes keep a worker
that hangs on one server from being handed the keys of another. Invariant: at every moment a key is waiting in at
most one lane, and a key that is being processed is handed to nobody, whatever lane it is added to meanwhile. No key
waits in a closed lane, which nobody may serve.
"""

from __future__ import annotations

import heapq
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY = 0.2
LONGEST_DELAY = 60.0
_NOW = -math.inf


def exponential(first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> Callable[[int], float]:
    """failures so far (from 0) -> seconds to wait. Jitter takes off up to half, so that what failed together does
    not come back together."""

    def delay(failures: int) -> float:
        return float(min(longest, first * 2.0 ** min(failures, 60)) * random.uniform(0.5, 1.0))

    return delay


class _Waiting:
    """Where and when a key is to be handed out; `ticket` tells a current heap entry from an overtaken one."""

    __slots__ = ("due", "lane", "low", "ticket")

    def __init__(self, lane: str, due: float, low: bool, ticket: int) -> None:
        self.lane, self.due, self.low, self.ticket = lane, due, low, ticket


class _Lane(Generic[K]):
    __slots__ = ("changed", "delayed", "delayed_count", "low", "normal")

    def __init__(self, lock: threading.RLock) -> None:
        # OrderedDict, because taking a plain dict's first key again and again is quadratic.
        self.normal: OrderedDict[K, None] = OrderedDict()
        self.low: OrderedDict[K, None] = OrderedDict()
        self.delayed: list[tuple[float, int, K]] = []
        self.delayed_count = 0
        self.changed = threading.Condition(lock)

    def ready(self) -> int:
        return len(self.normal) + len(self.low)


class WorkQueue(Generic[K]):
    """All methods may be called from any thread. FIFO within a lane and priority."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff: Callable[[int], float] | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        """`clock` in seconds; `backoff(failures so far)` gives seconds; `on_retry(lane)` counts retries."""
        self._clock = clock
        self._backoff = backoff or exponential()
        self._on_retry = on_retry
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._lanes: dict[str, _Lane[K]] = {}
        self._closed: dict[str, str] = {}  # lane -> the one that its keys go to instead
        self._waiting: dict[K, _Waiting] = {}
        self._processing: dict[K, str] = {}
        self._failures: dict[K, int] = {}
        self._tickets = 0
        self._stopping = False
        self._draining = False

    def add(self, key: K, lane: str = "", *, low: bool = False) -> None:
        """Wants `key` handed out now, in `lane`; cancels its delay, and moves it if it waits in another lane.

        A low key is handed out only if no other waits in its lane; wanting it both ways makes it a normal one.
        """
        self._schedule(key, lane, _NOW, low)

    def add_after(self, key: K, seconds: float, lane: str = "", *, low: bool = False) -> None:
        """As `add`, but not before `seconds` have passed; of two delays the earlier wins."""
        self._schedule(key, lane, self._clock() + seconds if seconds > 0 else _NOW, low)

    def retry(self, key: K, lane: str = "", *, low: bool = False) -> float:
        """As `add_after` with a delay that grows with every retry until `forget`; returns the delay (seconds)."""
        with self._lock:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
        seconds = self._backoff(failures)
        self.add_after(key, seconds, lane, low=low)
        if self._on_retry is not None:
            self._on_retry(lane)
        return seconds

    def forget(self, key: K) -> None:
        """The next retry of `key` starts with the shortest delay again. What is queued stays queued."""
        with self._lock:
            self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        """Retries since the last `forget`."""
        with self._lock:
            return self._failures.get(key, 0)

    def get(self, lane: str = "") -> K | None:
        """Blocks until a key is due in `lane`; None means shut down or the lane closed. Every key got must be given
        to `done`."""
        with self._lock:
            if lane in self._closed:
                return None
            here = self._lane(lane)
            waited = False
            while True:
                if here is not self._lanes.get(lane):  # closed, and maybe open again for others
                    return None
                key = self.try_get(lane)
                # While others drain, what they were given may still come back to this lane.
                if key is not None or (self._stopping and not (self._draining and self._waiting)):
                    # The waiter that leaves may be the one that timed this lane's next delay.
                    if waited and (here.ready() or here.delayed):
                        here.changed.notify()
                    return key
                waited = True
                here.changed.wait(max(0.0, here.delayed[0][0] - self._clock()) if here.delayed else None)

    def try_get(self, lane: str = "") -> K | None:
        """As `get`, but None at once if nothing is due."""
        with self._lock:
            if lane in self._closed or (self._stopping and not self._draining):
                return None
            here = self._lane(lane)
            self._promote(here)
            if not here.ready():
                return None
            key, _ = (here.normal or here.low).popitem(last=False)
            del self._waiting[key]
            self._processing[key] = lane
            return key

    def done(self, key: K) -> None:
        """Ends what `get` began; the key is handed out again if it was added meanwhile."""
        with self._lock:
            if self._processing.pop(key, None) is None:
                raise ValueError(f"done() of {key!r}, which nobody is processing")
            waiting = self._waiting.get(key)
            if waiting is not None:
                self._place(key, waiting)
            self._idle.notify_all()
            if self._stopping:
                for lane in self._lanes.values():
                    lane.changed.notify_all()

    def open(self, lane: str) -> None:
        """Ends `close`. Lanes that never were closed are open."""
        with self._lock:
            self._closed.pop(lane, None)

    def close(self, lane: str, into: str = "") -> None:
        """Ends a lane: whoever waits in `get` for it gets None, and its keys, also those to come, go to lane `into`.

        A key got before is processed to its end.
        """
        with self._lock:
            self._closed[lane] = into
            ended = self._lanes.get(lane)
            for key, waiting in list(self._waiting.items()) if ended is not None else ():
                if waiting.lane == lane:
                    self._remove(key, waiting)
                    waiting.lane = into
                    if key not in self._processing:
                        self._place(key, waiting)
            if ended is not None:
                del self._lanes[lane]
                ended.changed.notify_all()

    def depth(self) -> dict[str, int]:
        """Keys due but not yet handed out, by lane; neither delayed keys nor those being processed."""
        with self._lock:
            for lane in self._lanes.values():
                self._promote(lane)
            return {name: lane.ready() for name, lane in self._lanes.items()}

    def shutdown(self, drain: bool = False, timeout: float | None = None) -> bool:
        """Takes no more keys and drops delayed ones; with `drain` what is due is still handed out.

        Waits up to `timeout` seconds (None: for ever) for what is being processed (and, draining, for what is due);
        False if it was not done by then.
        """
        with self._lock:
            for lane in self._lanes.values():
                self._promote(lane)
            self._stopping, self._draining = True, drain
            for key in [key for key, waiting in self._waiting.items() if not drain or waiting.due != _NOW]:
                self._remove(key, self._waiting.pop(key))
            for lane in self._lanes.values():
                lane.delayed.clear()
                lane.changed.notify_all()
            return self._idle.wait_for(lambda: not self._processing and not self._waiting, timeout)

    def _lane(self, name: str) -> _Lane[K]:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(self._lock)
        return lane

    def _schedule(self, key: K, lane: str, due: float, low: bool) -> None:
        with self._lock:
            if self._stopping:
                return
            lane = self._closed.get(lane, lane)
            waiting = self._waiting.get(key)
            if waiting is not None:
                due, low = min(due, waiting.due), low and waiting.low
                if (lane, due, low) == (waiting.lane, waiting.due, waiting.low):
                    return
                self._remove(key, waiting)
            self._tickets += 1
            waiting = self._waiting[key] = _Waiting(lane, due, low, self._tickets)
            if key not in self._processing:
                self._place(key, waiting)

    def _place(self, key: K, waiting: _Waiting) -> None:
        lane = self._lane(waiting.lane)
        self._promote(lane)
        if waiting.due <= self._clock():
            waiting.due = _NOW
            (lane.low if waiting.low else lane.normal)[key] = None
        else:
            heapq.heappush(lane.delayed, (waiting.due, waiting.ticket, key))
            lane.delayed_count += 1
            self._compact(lane)
        lane.changed.notify()

    def _remove(self, key: K, waiting: _Waiting) -> None:
        if key in self._processing:
            return  # It is remembered, but not placed.
        lane = self._lane(waiting.lane)
        if waiting.due == _NOW:
            del (lane.low if waiting.low else lane.normal)[key]
        else:
            # The heap's entry is left behind; its ticket shows that it is void.
            lane.delayed_count -= 1

    def _is_current(self, ticket: int, key: K) -> bool:
        waiting = self._waiting.get(key)
        return waiting is not None and waiting.ticket == ticket

    def _promote(self, lane: _Lane[K]) -> None:
        """Makes every delayed key ready whose time has come, in the order of their times."""
        while lane.delayed and (lane.delayed[0][0] <= self._clock() or not self._is_current(*lane.delayed[0][1:])):
            _, ticket, key = heapq.heappop(lane.delayed)
            if self._is_current(ticket, key):
                lane.delayed_count -= 1
                waiting = self._waiting[key]
                waiting.due = _NOW
                (lane.low if waiting.low else lane.normal)[key] = None
                lane.changed.notify()

    def _compact(self, lane: _Lane[K]) -> None:
        """A key delayed and undelayed for ever must not grow the heap for ever."""
        if len(lane.delayed) > 64 and len(lane.delayed) > 2 * lane.delayed_count:
            lane.delayed = [entry for entry in lane.delayed if self._is_current(*entry[1:])]
            heapq.heapify(lane.delayed)
