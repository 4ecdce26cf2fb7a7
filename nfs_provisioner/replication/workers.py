"""A few threads that do what the thread which walks hands them.

Knows nothing of files. Keeps: results and exceptions come back in the thread that waits, so that nothing else needs a
lock; while it waits, `tick` is called ten times a second, and `pulse` with each result.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_R = TypeVar("_R")
_Done = tuple[Callable[[Any], None], Any, BaseException | None]


class Workers:
    """`submit` hands a task over, `wait` calls what is to be done with the results. Use as a context manager."""

    def __init__(self, threads: int, tick: Callable[[], None], pulse: Callable[[], None]) -> None:
        self.threads = max(1, threads)
        self.outstanding = 0
        self._tick, self._pulse = tick, pulse
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        self._crew: list[threading.Thread] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends the threads; tasks that nobody began are dropped, one under way is waited for."""
        while not self._tasks.empty():
            try:
                self._tasks.get_nowait()
            except queue.Empty:
                break
        for _ in self._crew:
            self._tasks.put(None)
        for thread in self._crew:
            thread.join()

    def submit(self, task: Callable[[], _R], then: Callable[[_R], None]) -> None:
        """Do `task` in some thread, and `then` with its result in the one that waits."""
        if len(self._crew) < self.threads and self.outstanding >= len(self._crew):
            thread = threading.Thread(target=self._work, name=f"copy-{len(self._crew)}", daemon=True)
            self._crew.append(thread)
            thread.start()
        self.outstanding += 1
        self._tasks.put((task, then))

    def wait(self, below: int = 1) -> None:
        """Until fewer than `below` tasks are outstanding. Raises what a task raised."""
        while self.outstanding >= below or not self._results.empty():
            try:
                then, result, error = self._results.get(timeout=0.1)
            except queue.Empty:
                self._tick()
                continue
            self.outstanding -= 1
            if error is not None:
                raise error
            self._pulse()
            then(result)
            self._tick()

    def run(self, task: Callable[[], _R]) -> _R:
        """Do one task in some thread, with the watcher called meanwhile: for single calls that may take minutes."""
        results: list[_R] = []
        self.submit(task, results.append)
        while not results:
            self.wait(self.outstanding)
        return results[0]

    def abandoned(self) -> Iterator[object]:
        """Results that nobody waited for, after the end."""
        while not self._results.empty():
            yield self._results.get()[1]

    def _work(self) -> None:
        while (job := self._tasks.get()) is not None:
            task, then = job
            try:
                self._results.put((then, task(), None))
            except BaseException as error:  # noqa: BLE001  raised again, by the thread that waits
                self._results.put((then, None, error))
