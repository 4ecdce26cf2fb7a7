"""The usage of many trees, as far as there is memory for them: what child processes keep between two looks.

Pure but for a lock: several threads look, each at another tree. Keeps: an index says nothing after a look at its tree
was lost; the trees looked at last are kept, `most` directories in all; a tree of one directory needs none, because a
look at that directory is a look at everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from nfs_provisioner.export.usage import Usage
from nfs_provisioner.replication.usage import DirectoryUsage, UsageIndex

MOST = 200_000
"""Directories; some 400 bytes each."""


class Indexes:
    """`dropped(key)` is called when the index of a tree is not kept any more."""

    def __init__(self, most: int = MOST, dropped: Callable[[str], None] = lambda key: None) -> None:
        self._most = most
        self._dropped = dropped
        self._lock = threading.Lock()
        self._indexes: dict[str, UsageIndex] = {}  # the one used last at the end
        self._total = 0  # directories in them; summed up at each look, it would make many volumes dear

    def get(self, key: str) -> UsageIndex | None:
        """What a partial look can be added to; None: look at everything."""
        with self._lock:
            index = self._indexes.get(key)
        return None if index is None or index.wants_whole else index

    def look(
        self, key: str, found: Mapping[str, DirectoryUsage | None], at: float, *, whole: bool, complete: bool = True
    ) -> Usage | None:
        """Add a look at everything, or at a part, that began at the Unix time `at`; the usage, if it is known now."""
        with self._lock:
            index = self._pop(key)
            root = found.get("")
            flat = root is not None and not root.below
            if not complete or (index is None and not (whole or flat)):
                return None
            if whole or flat:
                index = UsageIndex()
                index.replace(found if root is None or not flat else {"": root})
            else:
                assert index is not None
                index.change(found)
            usage = None if index.wants_whole else Usage(index.bytes, index.inodes, at, index.unreadable)
            if len(index) > 1:
                self._indexes[key] = index
                self._total += len(index)
            left = self._trim()
        for one in left:
            self._dropped(one)
        return usage

    def forget(self, key: str) -> None:
        """A look was lost, or the tree is gone."""
        with self._lock:
            self._pop(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._indexes.clear()
            self._total = 0

    def _pop(self, key: str) -> UsageIndex | None:
        index = self._indexes.pop(key, None)
        if index is not None:
            self._total -= len(index)
        return index

    def _trim(self) -> list[str]:
        left = []
        while self._total > self._most:
            key = next(iter(self._indexes))
            self._pop(key)
            left.append(key)
        return left
