"""What passes leave in work/ and trash/ of a standby: their staging, and what they replaced or deleted.

Runs in child processes that write to the standby. A pass stages in work/sync-<term>-<random>/ and keeps in a directory
`kept~<pv>~<UTC time>` there, which becomes an entry of trash when the pass ends. Invariant: what was kept goes when
both this machine's clock and the file server's say that it is old enough, or when the standby is nearly full.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import time
from collections.abc import Callable

from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.paths import record_file_name

STAGING = "sync-"
KEPT = "kept~"
NEARLY_FULL = 0.05  # share of the file system that is free
_STAMP = "%Y%m%dT%H%M%SZ"


def kept_name(pv: str, now: float) -> str:
    """In trash; unlike entries of deleted volumes it has two tildes, which no PV's name has."""
    stem = record_file_name(pv).removesuffix(".json")[:200]
    return f"{KEPT}{stem}~{time.strftime(_STAMP, time.gmtime(now))}"


def is_kept(name: str) -> bool:
    """Whether an entry of trash is what a pass kept."""
    return name.startswith(KEPT) and name.count("~") >= 2


def is_staging(name: str) -> bool:
    """Whether an entry of work/ belongs to passes."""
    return name.startswith(STAGING)


def sweep(works: int, trash: int, name: str) -> None:
    """Take work/<name>, which a pass left, out of the way: what it kept stays kept, the rest is garbage."""
    with fs.opened(works, name) as staging:
        for kept in filter(is_kept, os.listdir(staging)):
            keep(staging, kept, trash)
    os.rename(name, f"{name}~{os.urandom(4).hex()}", src_dir_fd=works, dst_dir_fd=trash)


def keep(staging: int, name: str, trash: int) -> None:
    """Move a directory of what a pass kept to trash. An empty one is removed; one that was swept is there already."""
    with contextlib.suppress(FileNotFoundError):
        with fs.opened(staging, name) as fd:
            empty = fs.is_empty(fd)
        if empty:
            os.rmdir(name, dir_fd=staging)
            return
        free = name if not fs.exists(trash, name) else f"{name}~{os.urandom(4).hex()}"
        os.rename(name, free, src_dir_fd=staging, dst_dir_fd=trash)


def expire(
    trash: int,
    retention: float,
    local_now: float,
    server_now: float,
    stop: Callable[[], bool],
    full: Callable[[], bool],
) -> bool:
    """Remove what is older than `retention` seconds, and, oldest first, more as long as `full` says so. False when
    `stop` ended it early. Moments are Unix times."""
    for stamp, name in sorted((_stamp(name), name) for name in os.listdir(trash) if is_kept(name)):
        changed = os.stat(name, dir_fd=trash, follow_symlinks=False).st_ctime
        old = local_now - stamp >= retention and server_now - changed >= retention
        if (old or full()) and (stop() or not _remove(trash, name, stop)):
            return False
    return True


def _remove(trash: int, name: str, stop: Callable[[], bool]) -> bool:
    """What was removed in part must not look like a whole: it gets another name first."""
    gone = f"expired~{os.urandom(6).hex()}"
    os.rename(name, gone, src_dir_fd=trash, dst_dir_fd=trash)
    return fs.remove_tree(trash, gone, stop=stop)


def nearly_full(fd: int) -> bool:
    """Whether less than a twentieth of the file system is free."""
    found = os.fstatvfs(fd)
    return found.f_bavail < NEARLY_FULL * found.f_blocks


def _stamp(name: str) -> float:
    """When it was kept, by this machine's clock; 0 when the name does not say: then the server's clock decides."""
    try:
        return float(calendar.timegm(time.strptime(name.split("~")[2], _STAMP)))
    except ValueError:
        return 0.0
