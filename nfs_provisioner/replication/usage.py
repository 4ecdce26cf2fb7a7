"""What a tree takes, kept per directory, so that a change costs what changed; and a walk that only measures.

Reads directories, and nothing else of them than what lstat says. Keeps: the sum is that of the directories that can be
reached from the root as they were seen last, with each inode once; where a partial look leaves that open, the index
says that it wants a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.entries import inside, parent

BLOCK = 512
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
_BEAT = 1024  # entries between two signs of life

Linked = tuple[int, int, int]
"""Of a name whose inode has several: inode, number of its names, blocks."""


@dataclass(frozen=True, slots=True)
class DirectoryUsage:
    """What lies directly in a directory, and the directory itself.

    `linked` has one item per name of an inode with several names, which `blocks` and `inodes` leave out; `below` the
    names of the subdirectories, which count themselves. Of an `unreadable` one, there is more than was seen.
    """

    blocks: int
    inodes: int
    linked: tuple[Linked, ...] = ()
    below: tuple[str, ...] = ()
    unreadable: bool = False


@dataclass(slots=True)
class _Inode:
    """An inode with several names: how many of them were seen, how many it has, how many lie out of sight."""

    names: int
    nlink: int
    blocks: int
    outside: int = 0


class UsageIndex:
    """Of one tree. Empty until `replace`."""

    def __init__(self) -> None:
        self._directories: dict[str, DirectoryUsage] = {}
        self._several: dict[int, _Inode] = {}
        self._touched: set[int] = set()
        self._seen: set[int] = set()
        self.blocks = 0
        self.inodes = 0
        self.unreadable = 0
        """Directories that could not be looked into, or not at all of their entries."""
        self.wants_whole = True
        """What it says may be wrong, and only a look at everything can tell."""

    @property
    def bytes(self) -> int:
        """As du counts."""
        return self.blocks * BLOCK

    def __len__(self) -> int:
        return len(self._directories)

    def __contains__(self, path: object) -> bool:
        return path in self._directories

    def replace(self, directories: Mapping[str, DirectoryUsage | None]) -> None:
        """A whole look. A subdirectory that was named and not looked at was gone when its turn came."""
        self._directories, self._several, self._touched = {}, {}, set()
        self.blocks = self.inodes = self.unreadable = 0
        self.wants_whole = "" not in directories
        pending = [""]
        while pending:
            path = pending.pop()
            found = directories.get(path)
            if found is None:
                continue
            self._put(path, found)
            pending += [inside(path, name) for name in found.below]
        self._touched.clear()
        self._seen.clear()
        for known in self._several.values():
            known.outside = known.nlink - known.names

    def change(self, directories: Mapping[str, DirectoryUsage | None]) -> None:
        """A look at some directories; None: gone, with all that was below it."""
        looked = {path: found for path, found in directories.items() if found is not None}
        for path, found in directories.items():
            if found is None:
                self._forget(path)
        for path, found in looked.items():
            before = self._directories.get(path)
            if before is not None:
                for name in set(before.below).difference(found.below) if before.below else ():
                    self._forget(inside(path, name))
        self._enter(looked, directories)
        for inode in self._touched:
            known = self._several[inode]
            if not known.names:
                del self._several[inode]
            else:
                outside = known.nlink - known.names
                if outside > known.outside or inode not in self._seen:
                    # Another name may be one that was counted when it was the only one; or the name that went was the
                    # one that the file was written to by, and where the others are nobody has looked since.
                    self.wants_whole = True
                known.outside = outside
        self._touched.clear()
        self._seen.clear()

    def _enter(self, looked: Mapping[str, DirectoryUsage], directories: Collection[str]) -> None:
        """From above to below; what its parent does not name any more went, or came, while somebody looked."""
        names: dict[str, frozenset[str]] = {}
        for path in sorted(looked):
            if path and path not in self._directories:
                above = parent(path)
                if above not in names:
                    known = self._directories.get(above)
                    names[above] = frozenset(known.below if known is not None else ())
                if path.rpartition("/")[2] not in names[above]:
                    continue
            self._put(path, looked[path])
        for path, found in looked.items():
            missing = {name for name in found.below if inside(path, name) not in self._directories}
            if missing and path in self._directories:
                unseen = {name for name in missing if inside(path, name) not in directories}
                self.wants_whole = self.wants_whole or bool(unseen)
                below = tuple(name for name in found.below if name not in missing)
                self._directories[path] = replace(found, below=below)

    def _put(self, path: str, found: DirectoryUsage) -> None:
        before = self._directories.get(path)
        if before is not None:
            self._take(before)
        self._directories[path] = found
        self.blocks += found.blocks
        self.inodes += found.inodes
        self.unreadable += found.unreadable
        for inode, nlink, blocks in found.linked:
            known = self._several.get(inode)
            if known is None:
                known = self._several[inode] = _Inode(0, nlink, 0)
            if not known.names:
                self.inodes += 1
            self.blocks += blocks - known.blocks
            known.names, known.nlink, known.blocks = known.names + 1, nlink, blocks
            self._touched.add(inode)
            self._seen.add(inode)

    def _take(self, found: DirectoryUsage) -> None:
        """Its figures leave the sum. Of an inode with names elsewhere, there are as many fewer as leave here."""
        self.blocks -= found.blocks
        self.inodes -= found.inodes
        self.unreadable -= found.unreadable
        for inode, _, _ in found.linked:
            known = self._several[inode]
            known.names -= 1
            known.nlink = max(known.names, known.nlink - 1)
            if not known.names:
                self.inodes -= 1
                self.blocks -= known.blocks
                known.blocks = 0
            self._touched.add(inode)

    def _forget(self, path: str) -> None:
        pending = [path]
        while pending:
            path = pending.pop()
            found = self._directories.pop(path, None)
            if found is not None:
                self._take(found)
                pending += [inside(path, name) for name in found.below]


def measure(
    root: int,
    only: Iterable[str] | None,
    guard: Callable[[], None],
    beat: Callable[[], None],
    known: Container[str] = (),
) -> dict[str, DirectoryUsage | None]:
    """Look at everything below `root`, an open directory; or at the directories `only` and what `known` lacks below.

    No link is followed, and nothing that is mounted in the tree is entered. `guard` is called before each directory
    and raises to stop, `beat` now and then. What permissions hide counts as unreadable; other OSErrors are raised.
    """
    device = os.fstat(root).st_dev
    found: dict[str, DirectoryUsage | None] = {}
    pending = [""] if only is None else sorted(only, reverse=True)
    while pending:
        path = pending.pop()
        if path in found:
            continue
        guard()
        here = found[path] = _look(root, path, device, beat)
        if here is None:
            if path and only is not None:
                pending.append(parent(path))  # which tells since when
            continue
        below = (inside(path, name) for name in here.below)
        pending += [one for one in below if one not in found and (only is None or one not in known)]
    return found


def _look(root: int, path: str, device: int, beat: Callable[[], None]) -> DirectoryUsage | None:
    """One directory; None when it is gone, or another file system is mounted there."""
    try:
        fd, own = tree.open_and_look(root, path)
    except PermissionError:
        if not path:
            raise
        return _closed(root, path, device)
    except OSError as error:
        if path and error.errno in (*_GONE, errno.EXDEV):
            return None
        raise
    try:
        if own.st_dev != device:
            return None
        return _sum(fd, own, beat)
    finally:
        os.close(fd)


def _closed(root: int, path: str, device: int) -> DirectoryUsage | None:
    """A directory that may not be opened: itself, as its parent shows it; None when not even that can be seen."""
    with contextlib.suppress(PermissionError):
        own = tree.look_at(root, path)
        if own is not None and stat.S_ISDIR(own.st_mode) and own.st_dev == device:
            return DirectoryUsage(own.st_blocks, 1, unreadable=True)
    return None


def _sum(fd: int, own: os.stat_result, beat: Callable[[], None]) -> DirectoryUsage:
    blocks, inodes, unreadable = own.st_blocks, 1, False
    linked: list[Linked] = []
    below: list[str] = []
    kind_mask, directory = 0o170000, stat.S_IFDIR
    beat()
    with os.scandir(fd) as scan:
        for number, entry in enumerate(scan, start=1):
            if not number % _BEAT:
                beat()
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except PermissionError:  # names may be read here, and no more
                unreadable = True
                continue
            if status.st_mode & kind_mask == directory:
                if status.st_dev == own.st_dev:
                    below.append(entry.name)
            elif status.st_nlink == 1:
                blocks += status.st_blocks
                inodes += 1
            elif status.st_dev == own.st_dev:
                linked.append((status.st_ino, status.st_nlink, status.st_blocks))
    return DirectoryUsage(blocks, inodes, tuple(linked), tuple(below), unreadable)
