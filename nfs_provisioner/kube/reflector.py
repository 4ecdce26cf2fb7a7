"""A cache of one kind, kept current by LIST and WATCH.

Responsible for staying connected, for noticing when it is not, and for what a broken connection hid: deletions. Must
not write to the API server or decide anything. Invariant: once `synced`, the cache converges to the server's state
within the watch's timeout after any fault, and a failing server is asked ever less often.

Why not the client library's own: its informer neither backs off nor uses bookmarks, and its watch hangs on
connections whose other end is gone.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from nfs_provisioner.kube.api import Api, ApiError, Gone, JsonObject, Resource, Unavailable, Watch
from nfs_provisioner.kube.store import Change, Store, key_of, version_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Below the five minutes after which load balancers like to cut, and after which etcd may compact.
WATCH_SECONDS = 290
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
# A watch that lived this long worked; one that ends sooner, however politely, must not be repeated at once.
HEALTHY_SECONDS = 5.0


class Reflector(Generic[T]):
    """Calls `on_change(key, old, new)` on its own thread, in order; `old` is what it told last, None is absence.

    Equal items (`==`) are not told: an object that changed only where `slim` does not look has not changed.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        *,
        slim: Callable[[JsonObject], T | None],
        on_change: Callable[[str, T | None, T | None], None],
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        index: Callable[[T], Iterable[Hashable]] | None = None,
        name: str = "",
        watch_seconds: int = WATCH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`slim` keeps the fields in use, or returns None for an object that is of no interest; `index` gives the
        values under which `by_index` finds an item. An object on which either raises is logged, and of no interest.
        `clock` in seconds, `rand` in [0, 1)."""
        self.name = name or resource.plural
        self.synced = threading.Event()
        self.last_error: str | None = None
        self.healthy_since: float | None = None
        self._api = api
        self._resource = resource
        self._on_change = on_change
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._watch_seconds = watch_seconds
        self._clock = clock
        self._rand = rand
        self._slim = slim
        self._index = index
        self._store: Store[T] = Store(self._read, index)
        self._relist = True
        self._verify = False
        self._failures = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name=f"reflector-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Ends the watch at once; waits up to `timeout` seconds for a request under way. Nothing is told afterwards
        if the thread ended (`is_alive`)."""
        self._stopping.set()
        with self._lock:
            if self._watch is not None:
                self._watch.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def get(self, key: str) -> T | None:
        return self._store.get(key)

    def items(self) -> list[T]:
        """A snapshot."""
        return self._store.items()

    def by_index(self, value: Hashable) -> list[T]:
        return self._store.by_index(value)

    def __len__(self) -> int:
        return len(self._store)

    def put(self, obj: JsonObject) -> None:
        """Reads from now on see this answer to the caller's own write, unless something newer is known. `on_change`
        is called when the watch brings it."""
        self._store.put(obj)

    def _read(self, obj: JsonObject) -> T | None:
        try:
            item = self._slim(obj)
            if item is not None and self._index is not None:
                set(self._index(item))  # fails here, where only this object is lost by it
        except Exception:  # whatever somebody wrote into one object must not hide all the others
            logger.exception("%s: %s is passed over: it cannot be read", self.name, key_of(obj))
            return None
        return item

    def _run(self) -> None:
        while not self._stopping.is_set():
            error = self._turn()
            if error is not None:
                self._note(error)
            # A healthy watch that ended as agreed is followed by the next one at once.
            if error is not None or self._failures:
                self._stopping.wait(self._delay(error))

    def _turn(self) -> ApiError | None:
        """One connection's life; returns what ended it, None for the agreed end."""
        try:
            self._list_if_needed()
            self._follow()
        except Unavailable as error:
            # The cache stays as it is, and the watch goes on where it was: 10,000 objects are not listed again
            # because a server restarted.
            self._verify = True
            return error
        except ApiError as error:
            self._relist = True
            return error
        finally:
            opened, self.healthy_since = self.healthy_since, None
            long_enough = min(HEALTHY_SECONDS, self._watch_seconds / 2)
            healthy = opened is not None and self._clock() - opened >= long_enough
            self._failures = 0 if healthy else self._failures + 1
        return None

    def _delay(self, error: ApiError | None) -> float:
        full = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(max(self._failures - 1, 0), 30))
        asked = error.after or 0.0 if isinstance(error, Unavailable) else 0.0
        return max(asked, full * (0.5 + self._rand() / 2))

    def _note(self, error: ApiError) -> None:
        if self._stopping.is_set():
            return
        level = logging.DEBUG if isinstance(error, Gone) or error.message == self.last_error else logging.WARNING
        logger.log(level, "%s: %s", self.name, error.message)
        self.last_error = error.message

    def _list_if_needed(self) -> None:
        if self._verify and not self._relist:
            # A server that was restored from a backup counts versions from an older one. Watching from a version of
            # its future would be silent, and the cache wrong, until it gets there.
            newest = self._store.newest
            _, version = self._api.list(self._resource, self._namespace, limit=1)
            self._relist = int(version) < newest
        self._verify = False
        if self._relist and self._list():
            self._relist = False
            self.synced.set()

    def _list(self) -> bool:
        """False if it was stopped half-way."""
        newest = self._store.newest
        items, version = self._api.list(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        if int(version) < newest:
            logger.warning("%s: the server's history went back from %d to %s", self.name, newest, version)
            self._store.forget_versions()
        listed: set[str] = set()
        for obj in items:
            if self._stopping.is_set():
                return False
            listed.add(key_of(obj))
            self._tell(self._store.apply_listed(obj))
        for change in self._store.finish_list(int(version), listed):
            self._tell(change)
        return True

    def _follow(self) -> None:
        """One watch, from the version the store is at until it ends."""
        watch = self._api.watch(
            self._resource,
            resource_version=str(self._store.version),
            timeout_seconds=int(self._watch_seconds * (0.9 + self._rand() / 5)) or 1,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        with self._lock:
            self._watch = watch
            if self._stopping.is_set():
                watch.close()
        try:
            self.healthy_since = self._clock()
            self.last_error = None
            for kind, obj in watch:
                if self._stopping.is_set():
                    return
                if kind == "BOOKMARK":
                    self._store.advance(version_of(obj))
                else:
                    self._tell(self._store.apply(obj, deleted=kind == "DELETED"))
        finally:
            with self._lock:
                self._watch = None

    def _tell(self, change: Change[T] | None) -> None:
        if change is not None:
            try:
                self._on_change(*change)
            except Exception:  # the last resort: a reflector that ended would blind the controller to all others
                logger.exception("%s: %s: unexpected error of who is told; going on", self.name, change[0])
