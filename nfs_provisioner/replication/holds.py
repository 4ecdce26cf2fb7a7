"""Tries what one side can hold: makes files of its own in a directory given for it, looks at them, removes them.

Touches nothing else. Keeps: a property is only said to be held when it was written and read back.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable

from nfs_provisioner.export.filesystem import make_directory, remove_tree
from nfs_provisioner.replication import contents, tree
from nfs_provisioner.replication.entries import FAR_NS, Holds

_OTHER = 65_533
_NS = 1_000_000_000_123_456_789
_SECOND = 1_000_000_000
_FAR = 1 << 40
_EARLY = (-(1 << 31), 0, 315_532_800)  # 1901, 1970, 1980
_LATE = (16_725_225_600, 7_258_118_400, 4_417_977_600, 4_291_747_200, 2_145_916_800)  # 2500, 2200, 2110, 2106, 2038
# struct posix_acl_xattr_header and entries (tag, permissions, id): the owner, one user, the group, mask, others
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (1, 6, 0xFFFFFFFF),
        (2, 4, _OTHER),
        (4, 4, 0xFFFFFFFF),
        (16, 6, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)


def probe(directory: int) -> Holds:
    """What the file system of an open, writable directory can hold, for the user who asks."""
    name = f"probe-{os.urandom(6).hex()}"
    make_directory(directory, name, 0o700)
    fd = tree.open_directory(directory, name)
    try:
        file = os.open("a", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            earliest, latest = _bound(file, -_FAR, _EARLY), _bound(file, _FAR, _LATE)
            return Holds(
                times=earliest <= _EARLY[0] * _SECOND and latest >= _LATE[2] * _SECOND,
                earliest=earliest,
                latest=latest,
                owners=_held(lambda: _owner(file)),
                nanoseconds=_held(lambda: _nanoseconds(file)),
                xattrs=_held(lambda: _attribute(file, "user.nfs-provisioner", b"1")),
                acls=_held(lambda: _attribute(file, "system.posix_acl_access", _ACL)),
                links=_held(lambda: _link(fd)),
                devices=_held(lambda: _device(fd)),
                modes=_held(lambda: _mode(file)),
                case=_held(lambda: tree.look(fd, "A") is None),
            )
        finally:
            os.close(file)
    finally:
        os.close(fd)
        remove_tree(directory, name)


def _held(trial: Callable[[], bool]) -> bool:
    try:
        return trial()
    except OSError:
        return False


def _owner(file: int) -> bool:
    before = os.fstat(file)
    os.fchown(file, _OTHER, _OTHER)
    now = os.fstat(file)
    os.fchown(file, before.st_uid, before.st_gid)
    return (now.st_uid, now.st_gid) == (_OTHER, _OTHER)


def _nanoseconds(file: int) -> bool:
    os.utime(file, ns=(_NS, _NS))
    return os.fstat(file).st_mtime_ns == _NS


def _bound(file: int, far: int, candidates: tuple[int, ...]) -> int:
    """The last time in the direction of `far` (s) that is held (ns); beyond `far` nobody looks.

    Linux turns what is beyond into the last one. A server that does something else holds a candidate, at least.
    """
    anything = FAR_NS if far > 0 else -FAR_NS
    last, between = _comes_back(file, far), sorted((candidates[-1] * _SECOND, far * _SECOND))
    if last == far * _SECOND:
        return anything
    if last is not None and between[0] <= last <= between[1] and _comes_back(file, last // _SECOND) == last:
        return last
    return next((at * _SECOND for at in candidates if _comes_back(file, at) == at * _SECOND), anything)


def _comes_back(file: int, at: int) -> int | None:
    try:
        os.utime(file, ns=(at * _SECOND, at * _SECOND))
        return os.fstat(file).st_mtime_ns
    except (OSError, OverflowError):
        return None


def _attribute(file: int, name: str, value: bytes) -> bool:
    os.setxattr(file, name, value)
    held = contents.attributes(file, Holds()).get(name) == value
    os.removexattr(file, name)
    return held


def _link(directory: int) -> bool:
    os.link("a", "linked", src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    return os.stat("linked", dir_fd=directory).st_nlink == 2


def _device(directory: int) -> bool:
    os.mknod("null", stat.S_IFCHR | 0o600, device=os.makedev(1, 3), dir_fd=directory)
    return os.stat("null", dir_fd=directory).st_rdev == os.makedev(1, 3)


def _mode(file: int) -> bool:
    os.fchmod(file, 0o4751)
    return stat.S_IMODE(os.fstat(file).st_mode) == 0o4751
