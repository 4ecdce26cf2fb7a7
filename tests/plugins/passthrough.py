"""The child process of `hang.HangingDirectory`: a FUSE file system that shows a backing directory as it is.

Every call first passes a gate, where the parent may have it wait, fail or take long. Commands are JSON lines on
stdin, each answered with one line on stdout. Must not change what it passes on: inode numbers, nanoseconds, hard
links, owners, extended attributes and rename's flags are those of the backing file system, and nothing is cached,
unless it is told to be.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mfusepy

_libc = ctypes.CDLL(None, use_errno=True)
_AT_SYMLINK_NOFOLLOW = 0x100
# The kernel asks for these when nobody waits for the answer, or at mount time.
_NEVER_GATED = frozenset({"init", "destroy", "release", "releasedir"})
_STAT_FIELDS = ("st_dev", "st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks")
_STATVFS_FIELDS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")


class Gate:
    """Decides what becomes of each call. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._effect = "none"
        self._only: frozenset[str] = frozenset()
        self._value = 0.0
        self._after = 0
        self._held = 0

    @property
    def held(self) -> int:
        """How many calls wait here, and do not come back before the gate changes: SIGKILL does not end them."""
        with self._changed:
            return self._held

    def set(self, effect: str, only: frozenset[str], value: float, after: int) -> None:
        with self._changed:
            self._effect, self._only, self._value, self._after = effect, only, value, after
            self._changed.notify_all()

    def pass_through(self, operation: str) -> None:
        """Return when the call may go on. Raises OSError when it shall fail."""
        with self._changed:
            if not self._meets(operation):
                return
            if self._after > 0:
                self._after -= 1
                return
            if self._effect == "fail":
                raise OSError(int(self._value), os.strerror(int(self._value)))
            if self._effect == "delay":
                self._changed.wait_for(lambda: self._effect != "delay", self._value)
            self._held += 1
            while self._effect == "hang" and self._meets(operation):
                self._changed.wait()
            self._held -= 1

    def _meets(self, operation: str) -> bool:
        return self._effect != "none" and (not self._only or operation in self._only)


class PassThrough(mfusepy.Operations):  # type: ignore[misc]
    """The operations, all relative to a descriptor of the backing directory (so that long paths stay possible)."""

    use_ns = True

    def __init__(self, backing: str, ready: Callable[[], None]) -> None:
        self._root = os.open(backing, os.O_PATH | os.O_DIRECTORY)
        self._ready = ready

    def init(self, path: str) -> None:
        self._ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.fstat(fh) if fh is not None else os.stat(_relative(path), dir_fd=self._root, follow_symlinks=False)
        attributes = {name: getattr(found, name) for name in _STAT_FIELDS}
        times = {"st_atime": found.st_atime_ns, "st_mtime": found.st_mtime_ns, "st_ctime": found.st_ctime_ns}
        return attributes | times

    def statfs(self, path: str) -> dict[str, int]:
        # Not of `path`: opening a FIFO to ask would wait for its other end, and it is one file system.
        found = os.statvfs(f"/proc/self/fd/{self._root}")
        return {name: getattr(found, name) for name in _STATVFS_FIELDS} | {"f_namemax": found.f_namemax}

    def readlink(self, path: str) -> str:
        return os.readlink(_relative(path), dir_fd=self._root)

    def mknod(self, path: str, mode: int, dev: int) -> int:
        os.mknod(_relative(path), mode, dev, dir_fd=self._root)
        return self._give_to_caller(path)

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(_relative(path), mode, dir_fd=self._root)
        return self._give_to_caller(path)

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, _relative(target), dir_fd=self._root)
        return self._give_to_caller(target)

    def link(self, target: str, source: str) -> int:
        names = (_relative(source), _relative(target))
        os.link(*names, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(_relative(path), dir_fd=self._root)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(_relative(path), dir_fd=self._root)
        return 0

    def renameat2(self, old: str, new: str, flags: int) -> int:
        names = (os.fsencode(_relative(old)), os.fsencode(_relative(new)))
        return _checked(_libc.renameat2(self._root, names[0], self._root, names[1], ctypes.c_uint(flags)))

    def rename(self, old: str, new: str) -> int:
        return self.renameat2(old, new, 0)

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(_relative(path), mode, dir_fd=self._root)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        # An owner that stays comes as the largest number, signed or not.
        uid, gid = (-1 if number in (-1, 0xFFFFFFFF) else number for number in (uid, gid))
        os.chown(_relative(path), uid, gid, dir_fd=self._root, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        """`times` is the kernel's own pair of timespec, with UTIME_NOW and UTIME_OMIT in it, or a null pointer."""
        return _checked(_libc.utimensat(self._root, os.fsencode(_relative(path)), times, _AT_SYMLINK_NOFOLLOW))

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        if fh is not None:
            os.ftruncate(fh, length)
            return 0
        descriptor = os.open(_relative(path), os.O_WRONLY | os.O_NOFOLLOW, dir_fd=self._root)
        try:
            os.ftruncate(descriptor, length)
        finally:
            os.close(descriptor)
        return 0

    def create(self, path: str, mode: int, flags: int) -> int:
        descriptor = os.open(_relative(path), _open_flags(flags) | os.O_CREAT, mode, dir_fd=self._root)
        self._give_to_caller(path)
        return descriptor

    def open(self, path: str, flags: int) -> int:
        return os.open(_relative(path), _open_flags(flags), dir_fd=self._root)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only plain fallocate")
        os.posix_fallocate(fh, offset, size)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        (os.fdatasync if datasync else os.fsync)(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def opendir(self, path: str) -> int:
        return os.open(_relative(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._root)

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        yield from ((name, {"st_mode": stat.S_IFDIR}, 0) for name in (".", ".."))
        with os.scandir(fh) as entries:
            for entry in entries:
                # A type of 0 is DT_UNKNOWN, which callers must expect of NFS as well.
                yield entry.name, {"st_mode": _type_of(entry), "st_ino": entry.inode()}, 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def releasedir(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return os.getxattr(self._absolute(path), name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return os.listxattr(self._absolute(path), follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        os.setxattr(self._absolute(path), name, value, options, follow_symlinks=False)
        return 0

    def removexattr(self, path: str, name: str) -> int:
        os.removexattr(self._absolute(path), name, follow_symlinks=False)
        return 0

    def _absolute(self, path: str) -> str:
        return f"/proc/self/fd/{self._root}/{_relative(path)}"

    def _give_to_caller(self, path: str) -> int:
        """What another user creates is that user's; the group stays the directory's where that is setgid."""
        uid, gid, _ = mfusepy.fuse_get_context()
        if (uid, gid) != (os.geteuid(), os.getegid()):
            parent = os.stat(os.path.dirname(_relative(path)) or ".", dir_fd=self._root)
            group = -1 if parent.st_mode & stat.S_ISGID else gid
            os.chown(_relative(path), uid, group, dir_fd=self._root, follow_symlinks=False)
        return 0


class GatedFuse(mfusepy.FUSE):  # type: ignore[misc]
    """Sends every call through the gate, and passes on what mfusepy would drop: rename's flags and exact times."""

    def __init__(self, operations: PassThrough, mountpoint: str, gate: Gate, flush: bool, **options: Any) -> None:
        self._gate = gate
        self._flush = flush
        super().__init__(operations, mountpoint, **options)

    def _wrapper(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        operation = func.__name__.removesuffix("_fuse_3")
        if operation not in _NEVER_GATED:
            try:
                self._gate.pass_through(operation)
            except OSError as error:
                return -(error.errno or errno.EIO)
        return super()._wrapper(func, *args, **kwargs)

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> Any:
        return self.operations.renameat2(os.fsdecode(old), os.fsdecode(new), flags)

    def utimens_fuse_3(self, path: bytes, times: Any, _file: Any) -> Any:
        return self.operations.utimens(os.fsdecode(path), times)

    def open(self, path: bytes, file: Any) -> Any:
        if file.contents.flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._gate.pass_through("open_to_write")
        return self._without_flush(super().open(path, file), file)

    def create(self, path: bytes, mode: int, file: Any) -> Any:
        return self._without_flush(super().create(path, mode, file), file)

    def _without_flush(self, result: Any, file: Any) -> Any:
        # A process cannot be killed while its exit waits for a flush; NFS lets it go.
        file.contents.noflush = not self._flush
        return result


def _relative(path: str) -> str:
    return path[1:] or "."


def _open_flags(flags: int) -> int:
    # The kernel sends offsets for appending writes, and unaligned buffers.
    return flags & ~(os.O_APPEND | os.O_DIRECT)


def _type_of(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _obey(gate: Gate) -> None:
    """Commands until the parent goes; then the process ends at once, which aborts every call that still waits."""
    for line in sys.stdin:
        command = json.loads(line)
        if command["effect"] == "count":
            _say(str(gate.held))
            continue
        gate.set(command["effect"], frozenset(command["only"]), command["value"], command["after"])
        _say("ok")
    os._exit(0)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backing")
    parser.add_argument("mountpoint")
    parser.add_argument("--flush", action="store_true")
    parser.add_argument("--remember", action="store_true")
    arguments = parser.parse_args()
    os.umask(0)
    gate = Gate()
    threading.Thread(target=_obey, args=(gate,), daemon=True).start()
    seconds = 3600 if arguments.remember else 0
    cache = dict.fromkeys(("attr_timeout", "entry_timeout", "negative_timeout", "ac_attr_timeout"), seconds)
    # Each call that hangs at the gate keeps a thread; calls beyond them hang in the kernel's queue.
    threads = {"max_threads": 64, "max_idle_threads": 10}
    options = {"foreground": True, "fsname": "passthrough", "use_ino": True, "hard_remove": True}
    # For all users, by the permissions of the files, as on a mount of a server.
    options |= {"allow_other": True, "default_permissions": True}
    options |= {"ro": True} if arguments.remember else {}  # else the kernel asks again after each read, for the atime
    operations = PassThrough(arguments.backing, ready=lambda: _say("ready"))
    GatedFuse(operations, arguments.mountpoint, gate, arguments.flush, **options, **threads, **cache)


if __name__ == "__main__":
    main()
