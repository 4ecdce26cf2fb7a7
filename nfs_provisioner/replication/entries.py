"""What an entry is, what both sides can hold, and what is to be done with one pair of names.

Touches no file: everything here is a function of what lstat(2) said on both sides. Keeps: two entries are called equal
only when type, size, mtime, mode, owner, link count class and device number agree, as far as both sides can hold them;
and whatever changed on the source since the last clean pass, by its ctime, is looked at in depth.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from operator import attrgetter

MARGIN_NS = 2_000_000_000
"""A source ctime younger than the last clean pass less this is distrusted: time stamps are as coarse as 2 s (FAT)."""

FAR_NS = 1 << 70
"""Later than any time that Linux knows."""

DirectoryId = tuple[int, int | str]
"""Inode, and birth time (ns) or file handle: what tells a renamed directory from one that got its inode number."""


@dataclass(frozen=True, slots=True)
class Holds:
    """What both sides can hold; the rest is left out of copies and comparisons.

    `nanoseconds` False means whole seconds; `case` False that names differing in case only are one name. Times before
    `earliest` and after `latest` (ns) become these; `times` False: between 1901 and 2110 there are some.
    """

    owners: bool = True
    nanoseconds: bool = True
    xattrs: bool = True
    acls: bool = True
    links: bool = True
    devices: bool = True
    modes: bool = True
    case: bool = True
    times: bool = True
    # Not compared: every file system has some bounds, and what agrees to the bit agrees whatever they are.
    earliest: int = field(default=-FAR_NS, compare=False)
    latest: int = field(default=FAR_NS, compare=False)

    def __and__(self, other: Holds) -> Holds:
        """What this and the other side can both hold."""
        both = {name: getattr(self, name) and getattr(other, name) for name in _HELD_OR_NOT}
        return Holds(**both, earliest=max(self.earliest, other.earliest), latest=min(self.latest, other.latest))

    def lacking(self) -> tuple[str, ...]:
        """Names of what is not held, for the one report about it."""
        return tuple(name for name in _HELD_OR_NOT if not getattr(self, name))

    def time(self, ns: int) -> int:
        """What becomes of a time of the source: in the first and the last second, Linux keeps no fraction."""
        if ns >= self.latest:
            return self.latest
        return self.earliest if ns < self.earliest + 1_000_000_000 else ns


_HELD_OR_NOT = tuple(one.name for one in fields(Holds) if one.compare)
FULL = Holds()

same_state = attrgetter("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode")
"""Two looks at one source entry with equal `same_state` saw no change between them."""

fingerprint = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_uid", "st_gid", "st_rdev")
"""Equality of everything but the link count, where both sides hold everything: one call, for the hot loop."""


class Action(Enum):
    """What is due for one name."""

    SAME = "same"
    INSPECT = "inspect"  # compare in depth; mend or copy what turns out to differ
    COPY = "copy"
    LINKED = "linked"  # one of several links: decided with its set
    DIRECTORY = "directory"
    OBSTACLE = "obstacle"  # a directory of the target lies where the source has something else


def same_times(source: os.stat_result, target: os.stat_result, holds: Holds) -> bool:
    """Whether the mtimes agree, to the second where one side holds no more, and as far as its times reach."""
    ours, theirs = source.st_mtime_ns, target.st_mtime_ns
    if ours == theirs:
        return True
    ours = holds.time(ours)
    return ours == theirs if holds.nanoseconds else ours // 1_000_000_000 == theirs // 1_000_000_000


def same_access(source: os.stat_result, target: os.stat_result, holds: Holds) -> bool:
    """Whether owner and mode agree. A link has no mode of its own (symlink(7))."""
    if holds.owners and (source.st_uid != target.st_uid or source.st_gid != target.st_gid):
        return False
    return source.st_mode == target.st_mode or not holds.modes or stat.S_ISLNK(source.st_mode)


def same_content(source: os.stat_result, target: os.stat_result, holds: Holds) -> bool:
    """Whether type, size, mtime and device number agree: nothing speaks for other content."""
    kind = stat.S_IFMT(source.st_mode)
    if kind != stat.S_IFMT(target.st_mode) or not same_times(source, target, holds):
        return False
    if kind in (stat.S_IFREG, stat.S_IFLNK):
        return source.st_size == target.st_size
    return kind not in (stat.S_IFBLK, stat.S_IFCHR) or source.st_rdev == target.st_rdev


def equal(source: os.stat_result, target: os.stat_result, holds: Holds) -> bool:
    """Whether two entries agree in everything that lstat shows. Directories: in type, mtime, mode and owner."""
    if not same_content(source, target, holds) or not same_access(source, target, holds):
        return False
    if stat.S_ISDIR(source.st_mode) or not holds.links:
        return True
    return (source.st_nlink > 1) == (target.st_nlink > 1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What one pass compares by.

    `base` is the source's time of the last clean pass (ns); None: there was none. `one_clock` says that both sides are
    stamped by this machine's clock; then, without a base, a target entry's ctime tells when it was copied at the
    latest. `checksum` looks at everything in depth. `device` is the st_dev of the source. `cached`: what the source
    shows may be what an NFS client remembers, so a second look has to ask the server.
    """

    holds: Holds = FULL
    base: int | None = None
    one_clock: bool = False
    checksum: bool = False
    device: int = 0
    cached: bool = False

    @property
    def strict(self) -> Rules:
        """For a directory that is not the one it was: what lies in it may be old, and was still never compared."""
        return replace(self, base=None, one_clock=False)

    def suspicious(self, source: os.stat_result, target: os.stat_result) -> bool:
        """Whether the source may have changed since it was copied, although it looks equal."""
        if self.base is not None:
            return source.st_ctime_ns >= self.base - MARGIN_NS
        if not self.one_clock or source.st_nlink > 1 or target.st_nlink > 1:
            return True  # links made or removed move the target's ctime as well
        return source.st_ctime_ns >= target.st_ctime_ns - MARGIN_NS


def decide(source: os.stat_result, target: os.stat_result | None, rules: Rules) -> Action:
    """What is due for a name that the source has. `target` is None when the other side lacks it."""
    holds = rules.holds
    if stat.S_ISDIR(source.st_mode):
        return Action.DIRECTORY
    if target is not None and stat.S_ISDIR(target.st_mode):
        return Action.OBSTACLE
    if source.st_nlink > 1 and holds.links:
        return Action.LINKED
    if target is None or not same_content(source, target, holds) or (target.st_nlink > 1 and holds.links):
        return Action.COPY
    if not same_access(source, target, holds):
        return Action.INSPECT if stat.S_ISREG(source.st_mode) else Action.COPY
    return Action.INSPECT if rules.checksum or rules.suspicious(source, target) else Action.SAME


_SILLY = re.compile(r"\.nfs[0-9a-f]{24}")


def is_silly(name: str, inode: int) -> bool:
    """Whether this is a file that an NFS client keeps because it was deleted while open: .nfs, inode, counter."""
    return _SILLY.fullmatch(name) is not None and int(name[4:20], 16) == inode


_ACLS = frozenset({"system.posix_acl_access", "system.posix_acl_default"})


def carried(attribute: str, holds: Holds, privileged: bool) -> bool:
    """Whether an extended attribute belongs to the copy. Only root sees `trusted.` and sets capabilities."""
    if attribute in _ACLS:
        return holds.acls
    if not holds.xattrs:
        return False
    if attribute.startswith("user."):
        return True
    return privileged and (attribute == "security.capability" or attribute.startswith("trusted."))


def inside(path: str, name: str) -> str:
    """Relative path of `name` in the directory `path`; "" is the root."""
    return f"{path}/{name}" if path else name


def parent(path: str) -> str:
    """Directory of a relative path; the root's own is "", like that of what lies in it."""
    return path.rpartition("/")[0]
