"""The child process of one replica, as `cloning.py` has it, that can also tell what volumes take.

A volume is walked in a thread of its own, and the controller asks again until that is done. On a local disk the
volume is watched from then on, so that the next look is only at the directories that changed, and now and then at
everything: a store through mmap makes no event. Only reads. Keeps: what is measured is the directory that the record
names; and an index to which something may be missing is made anew.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from nfs_provisioner.errors import NfsProvisionerError, RetryLater
from nfs_provisioner.export import clones
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.records import State
from nfs_provisioner.export.root import Facts
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.worker import LeaseEnd, main
from nfs_provisioner.replication.cloning import NICE, STOPPING, CloningWorker, in_turn
from nfs_provisioner.replication.indexes import Indexes
from nfs_provisioner.replication.usage import measure
from nfs_provisioner.replication.volumes import PASSED
from nfs_provisioner.replication.watcher import Dirty, Watcher

REPLICA_COMMAND = (sys.executable, "-m", "nfs_provisioner.replication.measuring")
AT_ONCE = 1  # volumes that are walked at the same time
SHORT = 0.05  # seconds that a request waits for its answer: most volumes are small
STALE = 60.0  # seconds after which nobody wants the answer any more
MOST_WATCHES = 50_000  # each costs the kernel about a kilobyte
WHOLE_EVERY = 3600.0  # seconds between two looks at all of a watched volume
WHOLE_COST = 100  # and at the least so many times what the last one took
GATHER = 0.1  # seconds in which events are gathered
_NONE: frozenset[str] = frozenset()  # one for all volumes


class MeasuringWorker(CloningWorker):
    """The operations of a replica's child with clones, and `usage`."""

    def __init__(
        self, path: str, lease: LeaseEnd, *, watches: int = MOST_WATCHES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(path, lease)
        self._looks: dict[str, Look] = {}
        self._looks_lock = threading.Lock()
        self._walks = threading.Semaphore(AT_ONCE)
        self._root_lock = threading.Lock()  # a root is not closed while somebody makes a descriptor from it
        self._clock = clock
        self._events = Events(self._volume, self._lost, watches)
        self._indexes = Indexes(dropped=self._events.unwatch)
        self.operations |= {"usage": self.usage}

    def usage(self, pv: str, only: Iterable[str] | None = None) -> Usage | None:
        """What a volume takes; None: it is being looked at, ask again. Raises what the look ended with.

        `only`: the caller knows that nothing changed since the last look but these directories. It says so when it asks
        first; what it says while a look is under way makes the next one a whole one.
        """
        with self._looks_lock:
            look = self._looks.get(pv)
            if look is not None and look.is_stale:
                look = None
            if look is None:
                self.store.require(pv, states=PASSED)
                changed = None if only is None else frozenset(only)
                look = self._looks[pv] = Look(lambda guard: self._measure(pv, changed, guard), self._walks)
            elif only is not None:
                look.overtaken = True  # it may have been at these before they changed
        if not look.wait(SHORT):
            return None
        with self._looks_lock:
            self._looks.pop(pv, None)
        if look.overtaken:
            self._indexes.forget(pv)
        return look.result()

    def inspect(self) -> Facts:
        """As ever; what is measured through the old descriptors ends first."""
        with self._looks_lock:
            looks, self._looks = self._looks, {}
        for look in looks.values():
            if not look.stop(STOPPING):
                raise RetryLater(f"{self.path}: a volume is still being measured; that ends when the server answers")
        self._events.clear()
        self._indexes.clear()
        with self._root_lock:
            return super().inspect()

    def _measure(self, pv: str, only: Dirty, guard: Callable[[], None]) -> Usage:
        at, began = time.time(), self._clock()
        dirty = self._events.take(pv, began) if only is None else only
        try:
            with self._volume(pv) as root:
                index = self._indexes.get(pv)
                if dirty is not None and index is not None:
                    found = measure(root, dirty, guard, _nothing, known=index)
                    usage = self._indexes.look(pv, found, at, whole=False)
                    if usage is not None:
                        return usage
                if self.store.require(pv, states=PASSED).state is State.LIVE:
                    self._events.watch(pv)
                usage = self._indexes.look(pv, measure(root, None, guard, _nothing), at, whole=True)
                assert usage is not None
                ended = self._clock()
                self._events.looked(pv, until=ended + max(WHOLE_EVERY, WHOLE_COST * (ended - began)))
                return usage
        except BaseException:
            self._lost(pv)
            raise

    def _lost(self, pv: str) -> None:
        """What changed is not known any more."""
        self._indexes.forget(pv)

    @contextlib.contextmanager
    def _volume(self, pv: str) -> Iterator[int]:
        """Descriptor of a volume's directory, reached without following a link."""
        with self._root_lock:
            record = self.store.require(pv, states=PASSED)
            root = os.dup(self.store.root)
        try:
            with clones.opened(self.store, record, root) as fd:
                yield fd
        finally:
            os.close(root)


class Look:
    """One walk of a volume, in its own thread."""

    def __init__(self, measure: Callable[[Callable[[], None]], Usage], turns: threading.Semaphore) -> None:
        self.overtaken = False
        self._measure = measure
        self._turns = turns
        self._stopping = threading.Event()
        self._usage: Usage | None = None
        self._error: Exception | None = None
        self._ended = 0.0
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it is done."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self, seconds: float) -> bool:
        """End at the next directory; False when it has not ended after that time."""
        self._stopping.set()
        return self.wait(seconds)

    @property
    def is_stale(self) -> bool:
        """Whether it was done so long ago that another one is wanted."""
        return not self._thread.is_alive() and time.monotonic() - self._ended > STALE

    def result(self) -> Usage | None:
        """Once it is done. Raises what it ended with."""
        if self._error is not None:
            raise self._error
        return self._usage

    def _run(self) -> None:
        try:
            with in_turn(self._turns, self._guard):
                self._usage = self._measure(self._guard)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, who asks next must hear of it
            self._error = error
        finally:
            self._ended = time.monotonic()

    def _guard(self) -> None:
        if self._stopping.is_set():
            raise RetryLater("this replica is looked at anew; its volumes are measured after that")


class Events:
    """Which directories of the watched volumes changed. What cannot be watched is looked at as a whole each time."""

    def __init__(
        self, volume: Callable[[str], contextlib.AbstractContextManager[int]], lost: Callable[[str], None], most: int
    ) -> None:
        self._volume, self._lost, self._most = volume, lost, most
        self._lock = threading.Lock()
        self._watcher: Watcher | None = None
        self._failed = most == 0
        self._dirty: dict[str, frozenset[str]] = {}  # of each watched volume
        self._until: dict[str, float] = {}  # and how long what they say is enough

    def watch(self, pv: str) -> None:
        """From here on. A whole look has to follow, for what changed before."""
        with self._lock:
            watcher = self._begin()
            if watcher is None or pv in self._dirty:
                return
            with contextlib.suppress(NfsProvisionerError, OSError), self._volume(pv) as root:
                if fs.is_local(root) and watcher.watch(pv):
                    self._dirty[pv] = _NONE

    def unwatch(self, pv: str) -> None:
        """Its changes do not matter any more."""
        with self._lock:
            self._until.pop(pv, None)
            if self._dirty.pop(pv, None) is not None and self._watcher is not None:
                self._watcher.unwatch(pv)

    def looked(self, pv: str, *, until: float) -> None:
        """All of it was looked at: `until` then, its events are enough."""
        with self._lock:
            if pv in self._dirty:
                self._until[pv] = until

    def take(self, pv: str, now: float) -> Dirty:
        """What changed since it was asked last; None: that is not known, or not well enough any more."""
        with self._lock:
            self._gather()
            dirty = self._dirty.get(pv)
            if dirty is None:
                return None
            self._dirty[pv] = _NONE
            return dirty if now < self._until.get(pv, now) else None

    def clear(self) -> None:
        """Watch nothing."""
        for pv in list(self._dirty):
            self.unwatch(pv)

    def _begin(self) -> Watcher | None:
        if self._watcher is None and not self._failed:
            try:
                self._watcher = Watcher(self._volume, self._most)
            except OSError as error:  # fs.inotify.max_user_instances
                self._failed = True
                print(f"usage: file-system events cannot be had: {error}", file=sys.stderr, flush=True)
                return None
            threading.Thread(target=self._run, args=(self._watcher,), name="events", daemon=True).start()
        return self._watcher

    def _run(self, watcher: Watcher) -> None:
        """Read events before the kernel's queue is full, and watch new directories."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        ready, nothing = select.poll(), select.poll()
        ready.register(watcher.fileno(), select.POLLIN)
        while True:
            ready.poll()
            nothing.poll(GATHER * 1000)
            with self._lock:
                self._gather()

    def _gather(self) -> None:
        if self._watcher is None:
            return
        for pv, directories in self._watcher.wait(0).items():
            dirty = self._dirty.get(pv)
            if directories is not None and dirty is not None:
                self._dirty[pv] = dirty | directories
                continue
            self._watcher.unwatch(pv)  # the next look begins anew
            self._dirty.pop(pv, None)
            self._until.pop(pv, None)
            self._lost(pv)


def _nothing() -> None:
    """A walk here has no deadline: nobody waits for it."""


if __name__ == "__main__":
    main(MeasuringWorker)
