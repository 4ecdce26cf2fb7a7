"""The threads that serve a work queue's lanes.

Responsible for starting and ending threads, and for what becomes of an error that nobody expected; knows nothing of
the work. Invariant: a key that was got is given back to the queue, whatever its work does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.kube.workqueue import WorkQueue

log = logging.getLogger(__name__)


class Workers:
    """`work(key, lane)` is called for each key; `on_lost` once somebody may not act any more.

    Unexpected errors are tried again in lane `fallback`, where all keys of a lane that is left go, too.
    """

    def __init__(
        self,
        queue: WorkQueue[str],
        work: Callable[[str, str], None],
        *,
        on_lost: Callable[[], None],
        fallback: str = "",
    ) -> None:
        self.last_turn = time.monotonic()  # when a key was done with last
        self._queue = queue
        self._work = work
        self._on_lost = on_lost
        self._fallback = fallback
        self._lock = threading.Lock()
        self._lanes: dict[str, threading.Event] = {}  # set: its threads are to end

    def serve(self, lane: str, threads: int) -> None:
        """Have that many threads for a lane; nothing new if it has some."""
        with self._lock:
            if lane in self._lanes:
                return
            left = self._lanes[lane] = threading.Event()
            self._queue.open(lane)
        for number in range(threads):
            name = f"worker-{lane or 'decide'}-{number}"
            threading.Thread(target=self._serve, args=(lane, left), name=name, daemon=True).start()

    def leave(self, lane: str) -> None:
        """Nobody serves the lane any more: threads end with what they are at, keys go to the fallback."""
        with self._lock:
            left = self._lanes.pop(lane, None)
            if left is None:
                return
            left.set()  # first: a lane that is opened again is for new threads
            self._queue.close(lane, self._fallback)

    def _serve(self, lane: str, left: threading.Event) -> None:
        while not left.is_set() and (key := self._queue.get(lane)) is not None:
            try:
                self._work(key, lane)
            except LostLeadership as error:
                log.warning("%s", error.message)
                self._queue.done(key)
                self._on_lost()
                return
            except Exception:  # the last resort: a defect in one volume's case must not stop the others
                log.exception("%s: unexpected error; tried again later", key)
                self._queue.retry(key, self._fallback)
            self.last_turn = time.monotonic()
            self._queue.done(key)
