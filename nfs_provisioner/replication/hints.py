"""Where the active side changes, as its file system tells: from the child process of a pair to the controller.

One connection of its own, so that hints wait for no pass. Decides nothing: a hint makes a pass come sooner. What cannot
be watched (too many directories) is left to the periodic comparison, and the log says so once.
"""

from __future__ import annotations

import logging
import select
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection

from nfs_provisioner.errors import NfsProvisionerError
from nfs_provisioner.replication.watcher import Dirty, Watcher

log = logging.getLogger(__name__)

GATHER = 0.1  # seconds in which events are gathered: a program that writes a file makes several

Message = tuple[dict[str, Dirty], tuple[str, ...]]
"""Dirty directories by volume, and the volumes that are not watched (any more)."""


def tell(connection: Connection, watcher: Watcher) -> None:
    """The child's end: watches the volumes it is told, until the connection ends."""
    watched: set[str] = set()
    try:
        while True:
            ready = _ready(connection.fileno(), watcher.fileno())
            if connection.fileno() in ready:
                wanted = set(map(sys.intern, connection.recv()))  # many names, told anew each time
                for pv in watched - wanted:
                    watcher.unwatch(pv)
                refused = tuple(pv for pv in sorted(wanted - watched) if not _watch(watcher, pv))
                watched = wanted
                # What changed before the watch was there is found now, or waits for the next comparison.
                connection.send(({}, refused))
            if watcher.fileno() in ready:
                _ready(connection.fileno(), timeout=GATHER)
                dirty = watcher.wait(0)
                if dirty:
                    connection.send((dirty, ()))
    except (EOFError, OSError):
        watcher.close()


def _watch(watcher: Watcher, pv: str) -> bool:
    try:
        return watcher.watch(pv)
    except (NfsProvisionerError, OSError):
        return False  # on its way somewhere else: its next pass says what is wrong


def _ready(*descriptors: int, timeout: float | None = None) -> set[int]:
    """Those that can be read; not select(2), whose descriptors end at 1,023."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)}


class Hints:
    """The controller's end. `on_dirty(pv, directories)` is called on a thread of its own; None: anywhere."""

    def __init__(self, connection: Connection, on_dirty: Callable[[str, Dirty], None], name: str) -> None:
        self._connection = connection
        self._on_dirty = on_dirty
        self._name = name
        self._wanted: set[str] = set()
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name=f"hints-{name}", daemon=True).start()

    def watch(self, volumes: Iterable[str]) -> None:
        """Watch these volumes, and no others."""
        wanted = set(volumes)
        with self._lock:
            if wanted == self._wanted:
                return
            self._wanted = wanted
            try:
                self._connection.send(sorted(wanted))
            except OSError:
                return  # the child ended; the next one is told anew

    def _run(self) -> None:
        while True:
            try:
                dirty, refused = self._connection.recv()
            except (EOFError, OSError):
                self._connection.close()
                return
            if new := set(refused) - self._refused:
                self._refused |= new
                log.info(
                    "pair %s: %d volumes cannot be watched (fs.inotify.max_user_watches?); they are compared every "
                    "interval, as on a network: %s, ...", self._name, len(self._refused), min(new),
                )  # fmt: skip
            for pv, directories in dirty.items():
                self._on_dirty(pv, directories)
