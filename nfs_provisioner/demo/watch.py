"""One watch: which changes of a kind a client sees, and in which words. Reads the store, writes to one channel.

The invariant: a client that applies the events in order knows exactly the objects that match its selectors.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from nfs_provisioner.demo import faults
from nfs_provisioner.demo.http import Channel
from nfs_provisioner.demo.resources import Resource
from nfs_provisioner.demo.selectors import Predicate
from nfs_provisioner.demo.store import Change, Entry, Store, dump

_BEFORE_THE_END = 2.0  # seconds: the last bookmark comes so long before timeoutSeconds is over


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """What the client asked for. `revision` None means: the present objects first, then changes."""

    resource: Resource
    namespace: str
    matches: Predicate | None
    revision: int | None
    timeout: float
    bookmarks: bool


class WatchSession:
    """Runs from `start` until the channel closes."""

    def __init__(self, store: Store, request: WatchRequest, bookmark_interval: float) -> None:
        self._store = store
        self._request = request
        self._interval = bookmark_interval
        self._channel: Channel
        self._last = 0
        self._marked = 0
        self._stop_watching: Callable[[], None] = lambda: None
        self._timers: list[asyncio.TimerHandle] = []

    def start(self, channel: Channel) -> None:
        self._channel = channel
        channel.on_close = self._closed
        request = self._request
        if request.revision is None:
            self._last = self._marked = self._store.revision
            for _, entry in self._store.scan(request.resource, request.namespace):
                if self._matches(entry):
                    self._emit(b"ADDED", entry)
        else:
            self._last = self._marked = request.revision
            later = self._store.changes_since(request.resource, request.revision)
            if later is None:
                self._refuse()
                return
            for change in later:
                self._changed(change)
        self._stop_watching = self._store.watch(request.resource, self._changed)
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(request.timeout, channel.end))
        if request.bookmarks:
            self._schedule_bookmark(self._interval)
            if request.timeout > _BEFORE_THE_END:
                self._timers.append(loop.call_later(request.timeout - _BEFORE_THE_END, self._bookmark))

    def _refuse(self) -> None:
        fault = faults.expired(f"too old resource version: {self._request.revision} ({self._store.revision})")
        self._channel.send(b'{"type":"ERROR","object":' + dump(fault.status()) + b"}\n")
        self._channel.end()

    def _closed(self) -> None:
        self._stop_watching()
        for timer in self._timers:
            timer.cancel()

    def _schedule_bookmark(self, delay: float) -> None:
        def due() -> None:
            self._bookmark()
            self._schedule_bookmark(self._interval * random.uniform(0.9, 1.0))

        self._timers = [timer for timer in self._timers if not timer.cancelled()]
        self._timers.append(asyncio.get_running_loop().call_later(delay, due))

    def _bookmark(self) -> None:
        """Tells the client how far it is; as from the real watch cache, nothing comes while the whole kind is quiet."""
        latest = self._store.latest(self._request.resource)
        if latest <= self._marked:
            return
        self._marked = latest
        self._send(b"BOOKMARK", dump({"metadata": {"resourceVersion": str(latest)}}))

    def _matches(self, entry: Entry) -> bool:
        return self._request.matches is None or self._request.matches(entry.load())

    def _changed(self, change: Change) -> None:
        if change.revision <= self._last or (self._request.namespace and change.key[0] != self._request.namespace):
            return
        self._last = change.revision
        before = change.old is not None and self._matches(change.old)
        after = change.new is not None and self._matches(change.new)
        if change.new is not None and after:
            self._emit(b"MODIFIED" if before else b"ADDED", change.new)
        elif change.old is not None and before:
            self._emit(b"DELETED", change.gone or _as_of(change.old, change.revision))

    def _emit(self, event: bytes, entry: Entry) -> None:
        self._send(event, entry.body)

    def _send(self, event: bytes, body: bytes) -> None:
        prefix = self._request.resource.prefix
        self._channel.send(b'{"type":"%b","object":%b%b}\n' % (event, prefix, body[1:]))


def _as_of(entry: Entry, revision: int) -> Entry:
    """The object as it last matched, with the revision at which it stopped matching."""
    obj = entry.load()
    obj["metadata"]["resourceVersion"] = str(revision)
    return Entry(revision, dump(obj))
