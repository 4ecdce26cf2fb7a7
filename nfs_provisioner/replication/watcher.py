"""File-system events of an active side on a local disk, as dirty directories. A hint: comparisons go on anyway.

Speaks inotify itself: watchdog 6 loses events silently when the kernel's queue overflows, 7 tells only its log, and
both hide how many watches they got. Here an overflow, a watch that could not be set, or a change without a name make
everything of the volumes concerned dirty. Reads directories, writes nothing. One thread calls `wait`; `watch` and
`unwatch` may be called from others.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from nfs_provisioner.errors import NfsProvisionerError

_MODIFY, _ATTRIB = 0x2, 0x4
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_OVERFLOW, _IGNORED, _UNMOUNT = 0x4000, 0x8000, 0x2000
_ONLYDIR, _EXCL_UNLINK, _ISDIR = 0x1000000, 0x4000000, 0x40000000
# No close events: NFSv3 servers give none, and a writer may keep its file open for weeks.
_MASK = (
    _MODIFY
    | _ATTRIB
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLYDIR
    | _EXCL_UNLINK
)
_HEADER = struct.Struct("iIII")
_BUFFER = 1 << 18
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Gives a descriptor of the root of the tree that has this key.
Opener = Callable[[str], AbstractContextManager[int]]

#: Directories of a tree whose direct entries may have changed; None: anything may have.
Dirty = frozenset[str] | None


@dataclass(slots=True)
class _Place:
    """A watched directory."""

    key: str
    path: str


class Watcher:
    """Watches trees under keys. `most` bounds the watches (None: only the kernel does). A tree is opened anew whenever
    a directory appears in it: thousands cannot be kept open."""

    def __init__(self, opened: Opener, most: int | None = None) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify: {os.strerror(number)}")
        self._opened = opened
        self._most = most
        self._lock = threading.RLock()
        self._places: dict[int, _Place] = {}
        self._trees: dict[str, dict[str, int]] = {}  # key -> path -> watch
        self._dirty: dict[str, set[str] | None] = {}

    def fileno(self) -> int:
        """Readable when there is something to `wait` for."""
        return int(self._fd)

    @property
    def watches(self) -> int:
        """Directories watched now."""
        return len(self._places)

    def close(self) -> None:
        """Give every descriptor back."""
        with self._lock:
            for key in list(self._trees):
                self.unwatch(key)
            os.close(self._fd)

    def watch(self, key: str) -> bool:
        """Watch a tree. False, and nothing is watched, when it has more directories than may be. Raises what opening
        it raises."""
        with self._lock:
            self.unwatch(key)
            self._trees[key] = {}
            try:
                complete = self._add(key, "")
            except BaseException:
                self.unwatch(key)
                raise
            if complete:
                self._dirty.pop(key, None)
                return True
            self.unwatch(key)
            return False

    def unwatch(self, key: str) -> None:
        """Forget a tree."""
        with self._lock:
            tree = self._trees.pop(key, None)
            self._dirty.pop(key, None)
            if tree is not None:
                for watch in list(tree.values()):
                    self._drop(watch)

    def wait(self, timeout: float) -> dict[str, Dirty]:
        """What became dirty since the last call; waits up to `timeout` seconds for the first. A key whose watches
        ran out is told as None, and is not watched any more."""
        with self._lock:
            waiting = bool(self._dirty)
        if not waiting:
            ready = select.poll()  # not select(2): a busy process has descriptors above its limit of 1,024
            ready.register(self._fd, select.POLLIN)
            ready.poll(timeout * 1000)
        with self._lock:
            while self._read():
                pass
            found, self._dirty = self._dirty, {}
            return {key: None if paths is None else frozenset(paths) for key, paths in found.items()}

    # -- events ---------------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return False
        offset = 0
        while offset < len(data):
            watch, mask, _cookie, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            name = os.fsdecode(data[offset : offset + length].split(b"\0", 1)[0])
            offset += length
            self._happened(watch, mask, name)
        return bool(data)

    def _happened(self, watch: int, mask: int, name: str) -> None:
        if mask & _OVERFLOW:
            self._dirty.update(dict.fromkeys(self._trees))
            return
        place = self._places.get(watch)
        if place is None:
            return
        if mask & (_IGNORED | _UNMOUNT | _DELETE_SELF | _MOVE_SELF):  # below the root, the parent has an event as well
            if mask & _IGNORED:  # the kernel forgot it: the directory is gone
                self._forget(watch)
            if place.path == "" or mask & _UNMOUNT:
                self._dirty[place.key] = None
            return
        self._note(place.key, place.path)
        if mask & _ISDIR and name:
            path = f"{place.path}/{name}" if place.path else name
            if mask & (_MOVED_FROM | _DELETE):
                self._drop_below(place.key, path)
            # Two directories that change places: that the second one left is told after the first one came there.
            if mask & (_MOVED_FROM | _MOVED_TO | _CREATE) and not self._added(place.key, path):
                key = place.key
                self.unwatch(key)
                self._dirty[key] = None

    def _note(self, key: str, path: str) -> None:
        paths = self._dirty.setdefault(key, set())
        if paths is not None:
            paths.add(path)

    # -- watches --------------------------------------------------------------------------------------------------

    def _added(self, key: str, path: str) -> bool:
        """A directory appeared; False when the tree cannot be watched any more."""
        try:
            return self._add(key, path, dirty=True)
        except (NfsProvisionerError, OSError):  # the volume itself is on its way somewhere else
            return False

    def _add(self, key: str, path: str, *, dirty: bool = False) -> bool:
        with self._opened(key) as root:
            return self._add_below(key, root, path, dirty)

    def _add_below(self, key: str, root: int, path: str, dirty: bool) -> bool:
        """Watch a directory and what lies below it: the watch first, then the look, so that nothing falls between."""
        waiting = [path]
        while waiting:
            here = waiting.pop()
            with _directory(root, here) as fd:
                if fd is None:
                    continue  # gone again, or something else by now: its parent has an event for that
                if not self._set(key, here, fd):
                    return False
                if dirty:
                    self._note(key, here)
                with os.scandir(fd) as entries:
                    waiting += [
                        f"{here}/{entry.name}" if here else entry.name
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False)
                    ]
        return True

    def _set(self, key: str, path: str, fd: int) -> bool:
        if self._most is not None and len(self._places) >= self._most:
            return False
        watch = self._libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _MASK)
        if watch < 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSPC, errno.ENOMEM):
                return False
            raise OSError(number, f"inotify: {os.strerror(number)}", path)
        old = self._places.get(watch)
        if old is not None and old.key in self._trees:  # the same directory under another path: it was moved
            self._trees[old.key].pop(old.path, None)
        self._places[watch] = _Place(key, path)
        self._trees[key][path] = watch
        return True

    def _drop_below(self, key: str, path: str) -> None:
        tree = self._trees[key]
        for below in [place for place in tree if place == path or place.startswith(f"{path}/")]:
            self._drop(tree[below])

    def _drop(self, watch: int) -> None:
        self._forget(watch)
        self._libc.inotify_rm_watch(self._fd, watch)

    def _forget(self, watch: int) -> None:
        place = self._places.pop(watch, None)
        if place is not None and place.key in self._trees:
            self._trees[place.key].pop(place.path, None)


@contextlib.contextmanager
def _directory(root: int, path: str) -> Iterator[int | None]:
    """A directory of the tree, reached without following a link; None when there is none of that path."""
    fd = os.dup(root)
    try:
        for part in path.split("/") if path else ():
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
