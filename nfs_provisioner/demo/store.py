"""Objects, their resource versions and their recent history, in memory.

Knows no rule of any kind: what may be written is decided in registry.py. Objects are kept as serialised JSON without
kind and apiVersion, so that memory stays linear and a LIST is a join of byte strings. The invariant: one counter gives
every write its resourceVersion, and a watch that starts after version N gets every later change of its kind, in order,
or an error that says the history no longer reaches back to N. Not thread-safe: it lives in the server's event loop.
"""

from __future__ import annotations

import json
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nfs_provisioner.demo.faults import Json, StatusError
from nfs_provisioner.demo.resources import Resource

_FIRST = 2  # a cluster always has a past that its watch caches do not reach back to: version 1
_MAX_OBJECT = 1_572_864  # etcd's default limit of a request, in bytes

Key = tuple[str, str]  # namespace ("" for cluster-scoped kinds), name


class Entry(NamedTuple):
    """A stored object: `body` is its JSON without kind and apiVersion."""

    revision: int
    body: bytes

    def load(self) -> Json:
        obj: Json = json.loads(self.body)
        return obj


class Change(NamedTuple):
    """One write. `new` is None for a removal, whose last state, with the removal's revision, is `gone`."""

    revision: int
    key: Key
    old: Entry | None
    new: Entry | None
    gone: Entry | None


class _Kind:
    __slots__ = ("entries", "history", "keys", "latest", "oldest", "watchers")

    def __init__(self, revision: int) -> None:
        self.entries: dict[Key, Entry] = {}
        self.keys: list[Key] = []  # sorted, as etcd lists
        self.history: deque[Change] = deque()
        self.oldest = revision  # changes up to and including this revision are forgotten
        self.latest = 0  # the revision of the last change
        self.watchers: list[Callable[[Change], None]] = []


def dump(obj: Json) -> bytes:
    return json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()


class Store:
    """All objects of all kinds."""

    def __init__(self, watch_cache: int) -> None:
        self._watch_cache = watch_cache
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self.revision = _FIRST
        self.observers: list[Callable[[Resource, Change], None]] = []

    def _kind(self, resource: Resource) -> _Kind:
        kind = self._kinds.get(resource.key)
        if kind is None:
            # As a watch cache does: it knows nothing of before its first list.
            kind = self._kinds[resource.key] = _Kind(self.revision)
        return kind

    def open(self, resource: Resource) -> None:
        """Begins the kind's history, if it has none yet: from now on every change is kept for watches."""
        self._kind(resource)

    def get(self, resource: Resource, key: Key) -> Entry | None:
        return self._kind(resource).entries.get(key)

    def put(self, resource: Resource, key: Key, obj: Json) -> Entry:
        """Writes obj (without kind and apiVersion), setting its resourceVersion. The same content writes nothing."""
        kind = self._kind(resource)
        old = kind.entries.get(key)
        if old is not None:
            obj["metadata"]["resourceVersion"] = str(old.revision)
            if obj == old.load():
                return old
        revision = self._next()
        obj["metadata"]["resourceVersion"] = str(revision)
        entry = Entry(revision, dump(obj))
        if len(entry.body) > _MAX_OBJECT:
            raise StatusError(500, "", "etcdserver: request is too large")
        kind.entries[key] = entry
        if old is None:
            insort(kind.keys, key)
        self._record(resource, kind, Change(revision, key, old, entry, None))
        return entry

    def remove(self, resource: Resource, key: Key, last: Json) -> Entry:
        """Removes the object; `last` is what watchers see, with the revision of the removal."""
        kind = self._kind(resource)
        old = kind.entries.pop(key)
        kind.keys.pop(bisect_right(kind.keys, key) - 1)
        revision = self._next()
        last["metadata"]["resourceVersion"] = str(revision)
        gone = Entry(revision, dump(last))
        self._record(resource, kind, Change(revision, key, old, None, gone))
        return gone

    def _next(self) -> int:
        self.revision += 1
        return self.revision

    def _record(self, resource: Resource, kind: _Kind, change: Change) -> None:
        kind.latest = change.revision
        kind.history.append(change)
        if len(kind.history) > self._watch_cache:
            kind.oldest = kind.history.popleft().revision
        for watcher in list(kind.watchers):
            watcher(change)
        for observer in self.observers:
            observer(resource, change)

    def latest(self, resource: Resource) -> int:
        """The revision of the kind's last change."""
        return self._kind(resource).latest

    def scan(self, resource: Resource, namespace: str = "", after: Key | None = None) -> Iterator[tuple[Key, Entry]]:
        """Objects in key order, those of one namespace if one is given, beginning after a key. No write meanwhile."""
        kind = self._kind(resource)
        start = max(after or ("", ""), (namespace, ""))
        for index in range(bisect_right(kind.keys, start), len(kind.keys)):
            key = kind.keys[index]
            if namespace and key[0] != namespace:
                return
            yield key, kind.entries[key]

    def snapshot(self, resource: Resource, revision: int, namespace: str, after: Key) -> list[tuple[Key, Entry]] | None:
        """What `scan` would have given at an earlier revision; None when the history does not reach back that far."""
        kind = self._kind(resource)
        if revision < kind.oldest:
            return None
        then = dict(self.scan(resource, namespace, after))
        for change in reversed(kind.history):
            if change.revision <= revision:
                break
            if change.key <= after or (namespace and change.key[0] != namespace):
                continue
            if change.old is None:
                then.pop(change.key, None)
            else:
                then[change.key] = change.old
        return sorted(then.items())

    def changes_since(self, resource: Resource, revision: int) -> list[Change] | None:
        """Later changes of this kind, oldest first; None when some of them are forgotten."""
        kind = self._kind(resource)
        if revision < kind.oldest:
            return None
        later: list[Change] = []
        for change in reversed(kind.history):
            if change.revision <= revision:
                break
            later.append(change)
        return later[::-1]

    def watch(self, resource: Resource, watcher: Callable[[Change], None]) -> Callable[[], None]:
        """Calls watcher for every later change of the kind, until the returned function is called."""
        watchers = self._kind(resource).watchers
        watchers.append(watcher)
        return lambda: watchers.remove(watcher) if watcher in watchers else None

    def forget_history(self) -> None:
        """Every watch and continued list that starts before now is answered as expired."""
        for kind in self._kinds.values():
            kind.history.clear()
            kind.oldest = self.revision
