"""The only module that changes an export: by descriptor, without following links, without replacing, synced.

Every function takes an open directory and a single name (or components that were checked), opens with O_NOFOLLOW and
works on what it opened, so that a link swapped in by a tenant between two calls leads nowhere. Nothing here knows
records or policies.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator

from nfs_provisioner.errors import RefusedForSafety

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLATTEN_BELOW = 64  # levels of a removal that are walked with a descriptor each
_AT_EMPTY_PATH = 0x1000
_HANDLE_BYTES = 128
_LIBC = ctypes.CDLL(None, use_errno=True)


def open_root(path: str) -> int:
    """Open an export's root. The path itself is configuration and may contain links; nothing below it may."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def components(relative: str) -> tuple[str, ...]:
    """Split a stored relative path. RefusedForSafety unless it stays strictly below its root."""
    parts = tuple(relative.split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise RefusedForSafety(
            f"{relative!r} is not a path below the export's root; the record that says so is damaged"
        )
    return parts


@contextlib.contextmanager
def opened(parent: int, name: str) -> Iterator[int]:
    """A directory directly below `parent`. NotADirectoryError (or ELOOP) when it is anything else, a link included."""
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def parent_of(root: int, relative: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """Descriptor of the directory that holds `relative`, and its last component.

    With `create`, missing directories on the way are made (0755, the caller's owner) and synced.
    """
    *above, name = components(relative)
    fd = os.dup(root)
    try:
        for part in above:
            if create and make_directory(fd, part, 0o755):
                os.fsync(fd)
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def make_directory(parent: int, name: str, mode: int) -> bool:
    """mkdir; False when something of that name exists already (mkdir is the one call that claims a name on NFS too)."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def inode_at(root: int, relative: str) -> int | None:
    """Inode of the directory at `relative`; None when there is nothing, or something that is not a directory."""
    try:
        with parent_of(root, relative) as (parent, name):
            return directory_inode(parent, name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def directory_inode(parent: int, name: str) -> int | None:
    """Inode of the directory `name` (never of what a link points to); None when there is none."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_ino if stat.S_ISDIR(found.st_mode) else None


def exists(parent: int, name: str) -> bool:
    """Whether there is anything of that name, dangling links included."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_empty(fd: int) -> bool:
    """Whether an open directory has no entries."""
    with os.scandir(fd) as entries:
        return next(entries, None) is None


def read_file(parent: int, name: str, *, limit: int = 4 << 20) -> bytes | None:
    """Content of a regular file; None when it does not exist."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusedForSafety(f"{name} is not a regular file; somebody put something else in its place")
        return file.read(limit)


class StagedFile:
    """A file written in `staging`, to be renamed to its place once it is durable.

    `staging` is the term's own directory: a rename that lands after its writer was killed finds its source gone.
    """

    def __init__(self, staging: int, temporary: str, data: bytes) -> None:
        self._staging, self._temporary = staging, temporary
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(temporary, flags, 0o600, dir_fd=staging)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            # Sent on its way now: of several files, the first fsync then waits for all, and the others find it done.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            self.drop()
            raise

    def sync(self) -> None:
        """Make the content durable."""
        fd, self._fd = self._fd, -1
        try:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)  # reports late write errors on NFS: it must not be skipped or swallowed
        except OSError:
            self.drop()
            raise

    def publish(self, parent: int, name: str) -> None:
        """Rename it over `name` in `parent`, which the caller syncs."""
        try:
            os.rename(self._temporary, name, src_dir_fd=self._staging, dst_dir_fd=parent)
        except OSError:
            self.drop()
            raise

    def drop(self) -> None:
        """It is not wanted any more."""
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._staging)


def set_owner_and_mode(fd: int, uid: int, gid: int, mode: int) -> None:
    """Owner first: changing it drops setuid and setgid. PermissionError when the server does not let root do it."""
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
    os.fchmod(fd, mode)


def remove_tree(parent: int, name: str, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Remove `name` below `parent` and everything in it, following nothing. False when `stop` asked to end early.

    Depth costs no descriptors: what lies deeper than 64 levels is first moved up beside `name`.
    """
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=parent)
        return True
    return _remove_directory(parent, name, found.st_dev, parent, 0, stop)


def _remove_directory(parent: int, name: str, device: int, top: int, depth: int, stop: Callable[[], bool]) -> bool:
    with opened_for_removal(parent, name) as fd:
        if os.fstat(fd).st_dev != device:
            raise RefusedForSafety(f"{name} is a mount point: what is mounted there is not removed; unmount it first")
        while True:
            with os.scandir(fd) as scan:
                entries = [
                    (entry.name, entry.is_dir(follow_symlinks=False))
                    for _, entry in zip(range(4096), scan, strict=False)
                ]
            if not entries:
                break
            for entry, is_directory in entries:
                if stop():
                    return False
                if not is_directory:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry, dir_fd=fd)
                elif depth < _FLATTEN_BELOW:
                    if not _remove_directory(fd, entry, device, top, depth + 1, stop):
                        return False
                else:
                    os.rename(entry, f"deep-{os.urandom(8).hex()}", src_dir_fd=fd, dst_dir_fd=top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)
    return True


@contextlib.contextmanager
def opened_for_removal(parent: int, name: str) -> Iterator[int]:
    """Like `opened`; a directory whose owner locked himself out is unlocked first (matters when not run as root)."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        # The mode of a link cannot be changed by chmod without following it, so make sure that it is a directory;
        # everything here lies in trash, below a 0700 directory of ours, where no tenant can swap it any more.
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(fd).st_mode & 0o300 != 0o300:
            os.fchmod(fd, 0o700)
        yield fd
    finally:
        os.close(fd)


class GroupSync:
    """fsync of one directory, shared by everybody who asks while one is under way.

    Each caller returns after an fsync that began after it called, so a burst of N changes costs a few syncs, not N.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._condition = threading.Condition()
        self._asked = 0
        self._done = 0
        self._running = False

    def sync(self) -> None:
        """Block until everything that this thread did in the directory before the call is durable."""
        with self._condition:
            self._asked += 1
            ticket = self._asked
            while self._running and self._done < ticket:
                self._condition.wait()
            if self._done >= ticket:
                return
            self._running = True
            covered = self._asked
        try:
            os.fsync(self._fd)
        except BaseException:
            covered = 0
            raise
        finally:
            with self._condition:
                self._running = False
                self._done = max(self._done, covered)
                self._condition.notify_all()


class _FileHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * _HANDLE_BYTES))


def root_handle(fd: int) -> str:
    """What tells this directory from a copy of it: its file handle where the file system has one that lasts.

    name_to_handle_at(2) gives inode and generation. FUSE and overlay handles change with each mount, so there (and
    where the call is not supported) the inode number alone has to do.
    """
    inode = os.fstat(fd).st_ino
    if filesystem_type(fd) in ("fuse", "overlay"):
        return f"inode:{inode}"
    handle = _FileHandle(bytes=_HANDLE_BYTES)
    mount = ctypes.c_int()
    if _LIBC.name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH) != 0:
        return f"inode:{inode}"
    return f"handle:{handle.type}:{bytes(handle.handle[: handle.bytes]).hex()}"


_MAGIC = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x6969: "nfs",
    0x65735546: "fuse",
    0x794C7630: "overlay",
    0x2FC12FC1: "zfs",
}
LOCAL_TYPES = frozenset({"ext4", "xfs", "btrfs", "tmpfs", "zfs"})
#: Errors of a file system without room, or of a quota.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def filesystem_type(fd: int) -> str:
    """Name of the file system by its magic number (statfs(2)), or the number in hexadecimal."""
    buffer = (ctypes.c_long * 32)()
    if _LIBC.fstatfs(fd, ctypes.byref(buffer)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    magic = buffer[0] & 0xFFFFFFFF
    return _MAGIC.get(magic, hex(magic))


def is_local(fd: int) -> bool:
    """Whether the file system's clock and caches are this machine's own."""
    return filesystem_type(fd) in LOCAL_TYPES
