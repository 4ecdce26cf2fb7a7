"""Recognises entries of the target that somebody else wrote: a pass keeps them, and says so.

Only looks. An entry is foreign when its ctime is later than our last write on that side, and so is its mtime or its
birth: ctime alone also moves when another link to the inode is removed, as it is when trash is emptied. Not noticed: a
change of an old file in place whose mtime was set back. Keeps: what this very pass wrote is never taken for foreign.
"""

from __future__ import annotations

import os
import sys
import threading

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.changes import Found, Place
from nfs_provisioner.replication.entries import inside


class Foreign:
    """`wrote`: when we last wrote on the target, by its own clock (ns). `ours`: a directory to ask that clock.

    `known`: paths that were found before, and that later writes of ours must not hide. `forgiven`: paths that a person
    has seen, and that may go with all that lies below them.
    """

    def __init__(
        self, wrote: int | None, known: frozenset[str], ours: int, forgiven: frozenset[str] = frozenset()
    ) -> None:
        self.forgiven = forgiven
        self._wrote = sys.maxsize if wrote is None else wrote
        self._known, self._ours = known, ours
        self._until: int | None = None  # when this pass began to write
        self._lock = threading.Lock()

    def begin(self) -> None:
        """This pass writes from now on. From any thread, before each write."""
        if self._until is None:
            with self._lock:
                if self._until is None:
                    os.utime(self._ours)
                    self._until = os.fstat(self._ours).st_ctime_ns

    def among(self, place: Place, entries: list[Found]) -> list[str]:
        """Take those out of `entries` whose place on the target holds something foreign that is no directory."""
        found = {
            name
            for name, _, was in entries
            if was is not None
            and not tree.is_directory(was)
            and not self.forgives(inside(place.path, name))
            and (self.knows(inside(place.path, name)) or self.is_foreign(place.target, name, was))
        }
        if found:
            entries[:] = [entry for entry in entries if entry[0] not in found]
        return [inside(place.path, name) for name in found]

    def knows(self, path: str) -> bool:
        """Whether it, or something below it, was found before."""
        return any(known == path or known.startswith(path + "/") for known in self._known)

    def forgives(self, path: str) -> bool:
        """Whether a person let it, or a directory that it lies in, go."""
        return bool(self.forgiven) and any(path == seen or path.startswith(seen + "/") for seen in self.forgiven)

    def is_foreign(self, directory: int | None, name: str, was: os.stat_result) -> bool:
        """Whether somebody else wrote what `name` in the target's open directory is now."""
        changed, until = was.st_ctime_ns, self._until
        if changed <= self._wrote or directory is None or (until is not None and changed >= until):
            return False
        return was.st_mtime_ns > self._wrote or (tree.born(directory, name) or 0) > self._wrote
