"""Content and extended attributes of one entry: read, compared, and written to an open file.

Chooses nothing and knows no names but those it is given. Keeps: holes stay holes, owner comes before mode (chown drops
setuid and setgid) and both before capabilities and ACLs (which chown and chmod change), times come last; the source is
opened without following links, without waiting for a FIFO and, where allowed, without moving its atime.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from nfs_provisioner.replication.entries import Holds, carried, same_access

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BLOCK = 1 << 20
_RANGE = 64 << 20
SMALL = 128 << 10
"""Files of up to this many bytes are read in one call, with no thought of holes unless they occupy less."""

_NO_COPY_RANGE = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF})
_NO_ATTRIBUTES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES})

PRIVILEGED = os.geteuid() == 0
_NOT_HELD = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSYS})
_NOATIME = os.O_NOATIME if PRIVILEGED else 0

Attributes = dict[str, bytes]


def open_source(directory: int, name: str) -> int:
    """Open a regular file for reading. OSError ELOOP when it became a link."""
    try:
        return os.open(name, _READ | _NOATIME, dir_fd=directory)
    except PermissionError:
        if not _NOATIME:
            raise
        return os.open(name, _READ, dir_fd=directory)  # root of a user namespace does not own this one


def _data(fd: int, position: int, size: int) -> tuple[int, int] | None:
    """Where the next extent of data at or after `position` begins and ends; None: only a hole is left."""
    try:
        start = os.lseek(fd, position, os.SEEK_DATA)
        return start, min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return position, size  # a file system that cannot tell
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until everything is written. A short write announces an error, which the next one names."""
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def copy_content(source: int, target: int, found: os.stat_result, tick: Callable[[], None]) -> int:
    """Copy a regular file of the size that `found` says; returns the bytes it has at the end of the copy.

    The caller compares the source's state before and after: this does not notice that it was torn.
    """
    size = found.st_size
    full = found.st_blocks * 512 >= size
    if size <= SMALL and full:
        data = os.read(source, size + 1)
        if data:
            write_all(target, data)
        return len(data)
    position = 0
    copy = _copy_range
    while position < size:
        extent = (position, size) if full else _data(source, position, size)
        if extent is None or extent[0] >= size:
            break
        try:
            position = copy(source, target, extent[0], extent[1], tick)
        except OSError as error:
            if copy is _read_write or error.errno not in _NO_COPY_RANGE:
                raise
            copy, position = _read_write, extent[0]
            position = copy(source, target, extent[0], extent[1], tick)
        if position < extent[1]:
            break  # shorter than it was: torn
    os.ftruncate(target, size)
    return size


def _copy_range(source: int, target: int, start: int, end: int, tick: Callable[[], None]) -> int:
    position = start
    while position < end:
        done = os.copy_file_range(source, target, min(_RANGE, end - position), position, position)
        if done == 0:
            if position == start:
                return _read_write(source, target, start, end, tick)  # some file systems answer 0 for "cannot"
            break
        position += done
        tick()
    return position


def _read_write(source: int, target: int, start: int, end: int, tick: Callable[[], None]) -> int:
    position = start
    while position < end:
        data = os.pread(source, min(_BLOCK, end - position), position)
        if not data:
            break
        view = memoryview(data)
        while view:
            done = os.pwrite(target, view, position)
            view, position = view[done:], position + done
        tick()
    return position


def equal_content(source: int, target: int, size: int, tick: Callable[[], None]) -> bool:
    """Whether two open files of this size hold the same bytes; common holes are passed over."""
    position = 0
    while position < size:
        extents = [extent for fd in (source, target) if (extent := _data(fd, position, size)) is not None]
        if not extents:
            return True
        position = max(position, min(start for start, _ in extents))
        end = min(position + _BLOCK, size)
        while position < end:
            ours, theirs = os.pread(source, end - position, position), os.pread(target, end - position, position)
            if ours != theirs or not ours:
                return False
            position += len(ours)
        tick()
    return True


def attributes(file: int | str, holds: Holds) -> Attributes:
    """Extended attributes (POSIX ACLs among them) that belong to the copy. A path is not followed if it is a link."""
    if not holds.xattrs and not holds.acls:
        return {}
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return {}
        raise
    found = {}
    for name in names:
        if carried(name, holds, PRIVILEGED):
            try:
                found[name] = os.getxattr(file, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    return found


def write_attributes(file: int | str, wanted: Attributes, present: Attributes, holds: Holds) -> str | None:
    """Make `present` what is `wanted`. Returns what this side cannot hold, in words, or None; OSError for the rest.

    Who may not give files away may not write attributes either once a file is read-only; for others that is a fault.
    """
    not_held = _NOT_HELD if holds.owners else _NOT_HELD | {errno.EACCES}
    follow = isinstance(file, int)
    for name in present.keys() - wanted.keys():
        os.removexattr(file, name, follow_symlinks=follow)
    failed = []
    for name, value in wanted.items():
        if present.get(name) != value:
            try:
                os.setxattr(file, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in not_held and not (error.errno == errno.ENOSPC and _has_room(file)):
                    raise
                failed.append(f"{name}: {error.strerror}")
    return f"extended attributes not carried: {', '.join(failed)}" if failed else None


def _has_room(file: int | str) -> bool:
    """Whether ENOSPC means: larger than this file system's attributes may be."""
    found = os.statvfs(file if isinstance(file, int) else os.path.dirname(file))
    return found.f_bavail > 0


def by_path(directory: int, name: str) -> str:
    """A path to an entry of an open directory, for calls that take no descriptor of it."""
    return f"/proc/self/fd/{directory}/{name}"


def set_access(fd: int, wanted: os.stat_result, present: os.stat_result, holds: Holds) -> None:
    """Owner, then mode, of an open file or directory."""
    if same_access(wanted, present, holds):
        return
    owner = holds.owners and (wanted.st_uid, wanted.st_gid) != (present.st_uid, present.st_gid)
    if owner:
        os.fchown(fd, wanted.st_uid, wanted.st_gid)
    if holds.modes and (owner or wanted.st_mode != present.st_mode):
        os.fchmod(fd, stat.S_IMODE(wanted.st_mode))
