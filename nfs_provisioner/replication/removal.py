"""Deletions: what only the target has, counted, looked at once more, and moved to trash.

Decides by what the walk left and by one more look at the source. Keeps: a name that shows on the source is never
removed; a name missing from a directory that changed during the pass, or whose listing is in doubt, is only removed
when the pass before had missed it, too; and directories with errors lose nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.copier import GONE
from nfs_provisioner.replication.entries import inside, is_silly
from nfs_provisioner.replication.foreign import Foreign
from nfs_provisioner.replication.trash import Trash


@dataclass(frozen=True, slots=True)
class Surplus:
    """Names of one directory that only the target has. `settled`: its listing held still."""

    path: str
    names: tuple[str, ...]
    settled: bool

    def without(self, paths: set[str]) -> Surplus:
        """Leave out what is known not to be surplus any more."""
        return replace(self, names=tuple(name for name in self.names if inside(self.path, name) not in paths))

    def portions(self, size: int) -> Iterator[Surplus]:
        """In slices for one task each."""
        return (replace(self, names=self.names[at : at + size]) for at in range(0, len(self.names), size))


@dataclass(slots=True)
class Removed:
    """What became of some surplus names."""

    entries: int = 0
    names: list[str] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    reappeared: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    errors: list[tuple[str, OSError]] = field(default_factory=list)
    left: Surplus | None = None


class Removal:
    """`count` first, for all; then, if so many may go, `remove`. Each call works on a directory of its own."""

    def __init__(
        self,
        source: int,
        target: int,
        trash: Trash,
        began: int,
        missed: frozenset[str],
        guard: Callable[[], None],
        beat: Callable[[], None],
        foreign: Foreign | None,
        deleted: Callable[[int], None],
        *,
        dry_run: bool,
    ) -> None:
        self._beat, self._foreign, self._deleted = beat, foreign, deleted
        self._sizes: dict[str, int] = {}  # of what stands for more than one entry
        self._source, self._target, self._trash, self._began = source, target, trash, began
        self._missed, self._guard, self._dry_run = missed, guard, dry_run
        self._device = os.fstat(target).st_dev

    def count(self, surplus: Surplus) -> Removed:
        """How many entries of the target the names stand for; `left` has those that are still there."""
        removed, names = Removed(), list[str]()
        try:
            fd = tree.open_directory(self._target, surplus.path)
        except OSError as error:
            if error.errno not in GONE:
                removed.errors.append((surplus.path, error))
            return removed
        try:
            for name in surplus.names:
                path = inside(surplus.path, name)
                try:
                    if (found := tree.look(fd, name)) is None or is_silly(name, found.st_ino):
                        continue
                    if found.st_dev != self._device:
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                    if entries := self._count(fd, path, name, found):
                        if entries > 1:
                            self._sizes[path] = entries
                        removed.entries += entries
                        names.append(name)
                    else:
                        removed.foreign.append(path)
                except OSError as error:
                    mounted = "not deleted: something is mounted here or below"
                    removed.errors.append(
                        (path, OSError(errno.EXDEV, mounted) if error.errno == errno.EXDEV else error)
                    )
        finally:
            os.close(fd)
        removed.left = Surplus(surplus.path, tuple(names), surplus.settled)
        return removed

    def _count(self, directory: int, path: str, name: str, found: os.stat_result) -> int:
        """Entries that the name stands for; 0 when somebody else wrote it, or into it."""
        foreign = self._foreign
        if foreign is not None and foreign.forgives(path):
            foreign = None
        if foreign is not None and foreign.knows(path):
            return 0
        if not tree.is_directory(found):
            return 0 if foreign is not None and foreign.is_foreign(directory, name, found) else 1
        if foreign is None:
            return tree.count_entries(directory, name, self._beat)
        return tree.count_entries(directory, name, self._beat, lambda fd, now: foreign.is_foreign(fd, ".", now))

    def remove(self, surplus: Surplus, *, forbidden: bool) -> Removed:
        """Move to trash what the source still lacks; `forbidden`: put everything off."""
        removed = Removed()
        source = target = -1
        try:
            source = tree.open_directory(self._source, surplus.path)
            target = tree.open_directory(self._target, surplus.path)
            # Not its mtime: anybody can set that, to a time in the future even.
            doubt = not surplus.settled or os.fstat(source).st_ctime_ns >= self._began
            for name in surplus.names:
                self._remove(source, target, surplus.path, name, removed, forbidden=forbidden, doubt=doubt)
        except OSError as error:
            if error.errno not in GONE:
                removed.errors.append((surplus.path, error))
            removed.deferred.extend(inside(surplus.path, name) for name in surplus.names)
        finally:
            for fd in (source, target):
                if fd >= 0:
                    os.close(fd)
        return removed

    def gone(self, path: str) -> None:
        """It was moved to trash, with all that it stands for."""
        self._deleted(self._sizes.get(path, 1))

    def _remove(
        self, source: int, target: int, above: str, name: str, removed: Removed, *, forbidden: bool, doubt: bool
    ) -> None:
        path = inside(above, name)
        try:
            if tree.look(source, name) is not None:
                removed.reappeared.append(path)
            elif forbidden or (doubt and path not in self._missed):
                removed.deferred.append(path)
            else:
                if not self._dry_run:
                    self._guard()
                    self._trash.take(target, above, name)
                    self.gone(path)
                removed.names.append(path)
        except OSError as error:
            removed.errors.append((path, error))
