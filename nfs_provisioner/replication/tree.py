"""Opens directories below a root without following a link or leaving the file system, and lists them.

Only reads. Keeps: every path is resolved by the kernel strictly below the root's descriptor (openat2(2) with
RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV), or component by component with O_NOFOLLOW where the kernel
has no openat2; a component swapped for a link ends in an error, never elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nfs_provisioner.export.filesystem import root_handle
from nfs_provisioner.replication.entries import DirectoryId

_LIBC = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437
_RESOLVE = 0x01 | 0x04 | 0x08  # NO_XDEV, NO_SYMLINKS, BENEATH
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 4000  # bytes of path that one call resolves; PATH_MAX is 4096 with the final zero
_STATX_BTIME = 0x800
_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF
_STATX = struct.Struct("=16xIIIHxxQQ16x" + 4 * "qIi" + "16x")  # links, owners, mode, inode, size; a, birth, c, m times
_LISTINGS = 3
_BEAT = 16_384  # entries listed between two signs of life
_COARSE = 5  # CLOCK_REALTIME_COARSE, which the kernel stamps files with


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW = _How(flags=_FLAGS, mode=0, resolve=_RESOLVE)


def _failed(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def _openat2(parent: int, path: bytes) -> int:
    fd = int(_LIBC.syscall(_OPENAT2, parent, path, ctypes.byref(_HOW), ctypes.sizeof(_HOW)))
    if fd < 0:
        raise _failed(os.fsdecode(path))
    return fd


def _step(parent: int, path: bytes) -> int:
    """Component by component, for kernels (and sandboxes) without openat2."""
    device = os.fstat(parent).st_dev
    fd = os.dup(parent)
    for part in path.split(b"/"):
        try:
            if part == b"..":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
            below = os.open(part, _FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
        try:
            if os.fstat(fd).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
        except BaseException:
            os.close(fd)
            raise
    return fd


_resolve: Callable[[int, bytes], int] = _openat2


def open_directory(root: int, path: str) -> int:
    """A new descriptor of the directory at `path` below `root` ("" is the root itself).

    OSError: EXDEV for a mount point, ELOOP or ENOTDIR for a link on the way, ENOENT, EACCES and so on.
    """
    global _resolve
    if not path:
        return os.open(".", _FLAGS, dir_fd=root)
    encoded = os.fsencode(path)
    try:
        if len(encoded) <= _CHUNK:
            return _resolve(root, encoded)
        return _open_deep(root, encoded)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM) or _resolve is _step:
            raise
        fd = _step(root, encoded)  # a seccomp filter answers EPERM; so does nothing that could be opened this way
        _resolve = _step
        return fd


def open_and_look(root: int, path: str) -> tuple[int, os.stat_result]:
    """`open_directory`, and what fstat says of it; nothing stays open when that fails."""
    fd = open_directory(root, path)
    try:
        return fd, os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise


def _open_deep(root: int, encoded: bytes) -> int:
    """Longer than one call takes: resolved in pieces, each relative to the one before."""
    fd = os.dup(root)
    while encoded:
        cut = len(encoded) if len(encoded) <= _CHUNK else encoded.rindex(b"/", 0, _CHUNK)
        try:
            below = _resolve(fd, encoded[:cut])
        finally:
            os.close(fd)
        fd, encoded = below, encoded[cut + 1 :]
    return fd


def look(directory: int, name: str) -> os.stat_result | None:
    """lstat of a name in an open directory; None when there is nothing (any more)."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def look_at(root: int, path: str) -> os.stat_result | None:
    """lstat of a relative path; None when it, or a directory on the way, does not exist."""
    above, _, name = path.rpartition("/")
    try:
        fd = open_directory(root, above)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        return look(fd, name) if name else os.fstat(fd)
    finally:
        os.close(fd)


def look_again(fd: int, *, cached: bool) -> os.stat_result:
    """fstat of an open file. `cached`: its server is asked, where fstat(2) tells what a client remembers (H47)."""
    statx = getattr(_LIBC, "statx", None)
    if not cached or statx is None:
        return os.fstat(fd)
    buffer = ctypes.create_string_buffer(256)
    if statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer) != 0:
        if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):  # a sandbox; the next pass compares once more
            return os.fstat(fd)
        raise _failed("")
    links, uid, gid, mode, inode, size, *times = _STATX.unpack_from(buffer)
    ns = {name: times[at] * 1_000_000_000 + times[at + 1] for name, at in (("st_ctime_ns", 6), ("st_mtime_ns", 9))}
    return os.stat_result((mode, inode, 0, links, uid, gid, size, times[0], times[9], times[6]), ns)


@dataclass(slots=True)
class Listing:
    """Names of one directory. `stats` has what lstat said of them, or is None for a large or distant directory.

    `settled` is False when the directory never held still: names may be missing. `found`: fstat of it afterwards.
    """

    names: set[str] = field(default_factory=set)
    stats: dict[str, os.stat_result] | None = None
    settled: bool = True
    found: os.stat_result | None = None

    def __len__(self) -> int:
        return len(self.names) if self.stats is None else len(self.stats)


def list_directory(fd: int, *, with_stats_below: int, until_settled: bool, beat: Callable[[], None]) -> Listing:
    """List an open directory, again while it changes under our eyes (three times; then it is unsettled).

    readdir(3) may miss names that existed all the time when others are renamed meanwhile, so the listings are united.
    With `with_stats_below` entries or fewer, lstat comes along. `beat` is called now and then.
    """
    listing = Listing(stats={} if with_stats_below else None)
    before = os.fstat(fd)
    for _ in range(_LISTINGS):
        _list_once(fd, listing, with_stats_below, beat)
        after = listing.found = os.fstat(fd)
        if not until_settled or (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns):
            return listing
        before = after
        if listing.stats is not None:
            listing.names.update(listing.stats)
            listing.stats = None  # some of it may be out of date: looked at again, name by name
            with_stats_below = 0
    listing.settled = False
    return listing


def names_of(fd: int, beat: Callable[[], None]) -> Iterator[str]:
    """Names in an open directory, as the kernel gives them."""
    with os.scandir(fd) as scan:
        yield from _names(scan, beat)


def _names(scan: Iterator[os.DirEntry[str]], beat: Callable[[], None]) -> Iterator[str]:
    for number, entry in enumerate(scan):
        if not number % _BEAT:
            beat()
        yield entry.name


def _list_once(fd: int, listing: Listing, with_stats_below: int, beat: Callable[[], None]) -> None:
    stats = listing.stats
    with os.scandir(fd) as scan:
        if stats is None:
            listing.names.update(_names(scan, beat))
            return
        for entry in scan:
            try:
                stats[entry.name] = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile: the directory's mtime says so, too
            if len(stats) > with_stats_below:
                listing.names.update(stats)
                listing.stats = None
                stats.clear()
                listing.names.update(_names(scan, beat))
                return


def _birth(directory: int, name: bytes, flags: int) -> tuple[int, int] | None:
    """Inode, and birth in ns; None where the file system, or the kernel, shows no time of birth."""
    buffer = (ctypes.c_uint64 * 32)()
    words = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint32))
    statx = getattr(_LIBC, "statx", None)
    if statx is None or statx(directory, name, flags, _STATX_BTIME | 0x100, buffer) != 0 or not words[0] & _STATX_BTIME:
        return None
    # struct statx: stx_mask is word 0, stx_ino double word 4, stx_btime (seconds, then nanoseconds) double word 10
    return buffer[4], ctypes.c_int64(buffer[10]).value * 1_000_000_000 + words[22]


def born(directory: int, name: str) -> int | None:
    """When an entry's inode was made (ns, the file server's clock); None where nobody knows."""
    found = _birth(directory, os.fsencode(name), _AT_SYMLINK_NOFOLLOW)
    return None if found is None else found[1]


def directory_id(fd: int) -> DirectoryId | None:
    """What identifies an open directory beyond reuse of its inode number; None where the file system shows nothing."""
    if (found := _birth(fd, b"", _AT_EMPTY_PATH)) is not None:
        return found
    handle = root_handle(fd)
    return None if handle.startswith("inode:") else (os.fstat(fd).st_ino, handle)


def sync_filesystem(fd: int) -> None:
    """syncfs(2). OSError when anything written through this file system since `fd` was opened did not reach it."""
    if _LIBC.syncfs(fd) != 0:
        raise _failed("")


def moment() -> int:
    """Now, by the clock that stamps files on this machine (ns): what changed before has an older ctime.

    That clock moves in steps of some milliseconds and lags behind the exact one (which newer kernels stamp some changes
    with), so this waits until it has come up to when it was asked.
    """
    asked, step = time.time_ns(), time.clock_getres(_COARSE)
    while (now := time.clock_gettime_ns(_COARSE)) <= asked < now + 1_000_000_000:
        time.sleep(step / 4)
    return now


def count_entries(
    root: int,
    path: str,
    beat: Callable[[], None],
    changed: Callable[[int, os.stat_result], bool] = lambda fd, found: False,
) -> int:
    """Entries below (and including) the directory `path`; 0 as soon as `changed` says so of one of the directories.

    OSError EXDEV when something is mounted in it.
    """
    total, pending = 1, [path]
    while pending:
        above = pending.pop()
        fd, found = open_and_look(root, above)
        beat()
        try:
            if changed(fd, found):
                return 0
            with os.scandir(fd) as scan:
                for entry in scan:
                    total += 1
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{above}/{entry.name}")
        finally:
            os.close(fd)
    return total


def is_directory(found: os.stat_result | None) -> bool:
    """Whether there is something, and it is a directory."""
    return found is not None and stat.S_ISDIR(found.st_mode)


def remove(directory: int, name: str) -> None:
    """unlink a name that may not exist."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
