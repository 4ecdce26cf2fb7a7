"""What is known of one kind: slim objects by key, an optional index, and what the subscriber was last told.

Responsible for the order of versions: a cache is fed by a watch, by lists and by the answers to our own writes, and
these overtake each other. Does no I/O and starts no thread. Invariant: a version never replaces a newer one, and
whatever the subscriber was told last becomes, told again, what the store holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from nfs_provisioner.kube.api import JsonObject

T = TypeVar("T")

Change = tuple[str, T | None, T | None]
"""key, what the subscriber was told last, what is so now; None: there is none."""


def key_of(obj: JsonObject) -> str:
    """ "namespace/name", or "name" for cluster-scoped objects."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


def version_of(obj: JsonObject) -> int:
    """resourceVersions compare as integers (KEP-5504; etcd revisions before that)."""
    return int(obj["metadata"]["resourceVersion"])


class Store(Generic[T]):
    """Reads from any thread; `apply` and `finish_list` from one, which passes their changes on in order."""

    def __init__(
        self, slim: Callable[[JsonObject], T | None], index: Callable[[T], Iterable[Hashable]] | None = None
    ) -> None:
        self._slim = slim
        self._index = index
        self._lock = threading.Lock()
        self._items: dict[str, tuple[int, T]] = {}
        # Nearly every index value has one key; a set for each would cost 216 bytes.
        self._keys_by_value: dict[Hashable, str | set[str]] = {}
        self._told: dict[str, T | None] = {}
        self.version = 0
        self._newest_put = 0

    @property
    def newest(self) -> int:
        """The newest version ever heard of, from the watch or from `put`."""
        with self._lock:
            return max(self.version, self._newest_put)

    def get(self, key: str) -> T | None:
        with self._lock:
            held = self._items.get(key)
        return None if held is None else held[1]

    def items(self) -> list[T]:
        with self._lock:
            return [item for _, item in self._items.values()]

    def by_index(self, value: Hashable) -> list[T]:
        with self._lock:
            keys = self._keys_by_value.get(value)
            if keys is None:
                return []
            return [self._items[key][1] for key in ((keys,) if isinstance(keys, str) else keys)]

    def __len__(self) -> int:
        return len(self._items)

    def put(self, obj: JsonObject) -> None:
        """Takes the answer to our own write unless something newer is known; the subscriber hears of it later, when
        the watch brings this version."""
        key, version = key_of(obj), version_of(obj)
        item = self._slim(obj)
        with self._lock:
            self._newest_put = max(self._newest_put, version)
            held = self._items.get(key)
            # Not held although the watch is past this version: it has been deleted since.
            if version <= (self.version if held is None else held[0]):
                return
            self._told.setdefault(key, None if held is None else held[1])
            self._set(key, version, item)

    def apply(self, obj: JsonObject, *, deleted: bool = False) -> Change[T] | None:
        """Takes a watch event; returns what to tell the subscriber."""
        key, version = key_of(obj), version_of(obj)
        item = None if deleted else self._slim(obj)
        with self._lock:
            # Together with the change: `put` tells by the version whether a missing object is new or deleted.
            self.version = max(self.version, version)
            return self._take(key, version, item)

    def advance(self, version: int) -> None:
        """Takes a bookmark: the watch has brought everything up to `version`."""
        with self._lock:
            self.version = max(self.version, version)

    def apply_listed(self, obj: JsonObject) -> Change[T] | None:
        """Takes one object of a list that `finish_list` will end."""
        key, version = key_of(obj), version_of(obj)
        item = self._slim(obj)
        with self._lock:
            return self._take(key, version, item)

    def finish_list(self, version: int, listed: set[str]) -> list[Change[T]]:
        """Takes the end of a list made at `version`: what it did not name, and is not newer than it, is gone."""
        with self._lock:
            missing = [key for key in self._items if key not in listed]
            changes = [self._take(key, version, None) for key in missing]
            # What `put` found uninteresting is not held any more, and may have vanished untold.
            unheld = [key for key in self._told if key not in self._items]
            changes += [_change(key, self._told.pop(key), None) for key in unheld]
            self.version = version
        return [change for change in changes if change is not None]

    def forget_versions(self) -> None:
        """The server's history was replaced by an older one: every version held is to be overruled by a list."""
        with self._lock:
            self._items = {key: (0, item) for key, (_, item) in self._items.items()}
            self.version = self._newest_put = 0

    def _take(self, key: str, version: int, item: T | None) -> Change[T] | None:
        held = self._items.get(key)
        if held is not None and version < held[0]:
            # `put` was faster. What this version brought is part of what it put, but has not been told.
            if key not in self._told:
                return None
            told = self._told.pop(key)
            if item is not None:
                return _change(key, told, held[1])
            # Deleted, and made again by us: both are told, the second when the watch brings it.
            self._told[key] = None
            return _change(key, told, None)
        told = self._told.pop(key, None if held is None else held[1])
        self._set(key, version, item)
        return _change(key, told, item)

    def _set(self, key: str, version: int, item: T | None) -> None:
        held = self._items.get(key)
        if held is not None and self._index is not None:
            for value in self._index(held[1]):
                self._unindex(value, key)
        if item is None:
            self._items.pop(key, None)
            return
        self._items[key] = version, item
        if self._index is not None:
            for value in self._index(item):
                keys = self._keys_by_value.setdefault(value, key)
                if isinstance(keys, set):
                    keys.add(key)
                elif keys != key:
                    self._keys_by_value[value] = {keys, key}

    def _unindex(self, value: Hashable, key: str) -> None:
        keys = self._keys_by_value.get(value)
        if isinstance(keys, set):
            keys.discard(key)
            if keys:
                return
        self._keys_by_value.pop(value, None)


def _change(key: str, told: T | None, now: T | None) -> Change[T] | None:
    """Nothing, if only fields changed that nobody uses."""
    return None if told == now else (key, told, now)
