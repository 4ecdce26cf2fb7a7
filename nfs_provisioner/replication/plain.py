"""`sync` and `verify` between two plain directories: one pass, with no record of an earlier one.

Touches TARGET only, through the pass, and its own directory TARGET/.nfs-provisioner-sync-<random>. Keeps: two
directories of which one is the other, or lies inside it, are refused; so is a source that is empty while the target is
not, unless that is allowed; of two runs into one target the second is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from nfs_provisioner.errors import InvalidInput, RefusedForSafety
from nfs_provisioner.export.filesystem import is_empty, remove_tree
from nfs_provisioner.replication import tree
from nfs_provisioner.replication.entries import Holds
from nfs_provisioner.replication.holds import probe
from nfs_provisioner.replication.job import LOCAL_THREADS, Job
from nfs_provisioner.replication.passes import Counts, Result, run_pass

_PREFIX = ".nfs-provisioner-sync-"
_STAGING = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{16}")
_OURS = ".nfs-provisioner"
_REMOTE_THREADS = 32
_SLOW = 300_000  # ns a call may take on a file system that is at hand


def sync(
    source: str,
    target: str,
    *,
    dry_run: bool = False,
    allow_empty: bool = False,
    delete_limit: Callable[[int, int], bool] = lambda deletions, entries: True,
    progress: Callable[[Counts], None] = lambda counts: None,
    threads: int | None = None,
) -> Result:
    """Make TARGET equal to SOURCE. What is replaced or deleted is not kept.

    `threads` None: by how long calls take. RefusedForSafety for directories that must not be synced, RetryLater when
    the target is full or cannot be written.
    """
    with _both(source, target) as (ours, theirs):
        if not allow_empty and is_empty(ours) and not is_empty(theirs):
            raise RefusedForSafety(
                f"{source} is empty and {target} is not: is it mounted? To empty {target}, say --allow-empty"
            )
        job = _job(ours, theirs, threads, progress)
        job = replace(job, dry_run=dry_run, delete_limit=delete_limit)
        if dry_run:
            return _named(run_pass(job), ours)
        with _staging(theirs, target) as staging:
            holds = probe(staging)
            result = run_pass(replace(job, staging=staging, holds=holds, skip=job.skip | _own_names(theirs)))
            times = os.fstat(theirs)
        os.utime(theirs, ns=(times.st_atime_ns, times.st_mtime_ns))
        return _named(result, ours)


def verify(
    source: str,
    target: str,
    *,
    checksum: bool = False,
    progress: Callable[[Counts], None] = lambda counts: None,
    threads: int | None = None,
) -> Result:
    """Compare, and write nothing. `log` says what a sync would do, `different` what it would not see."""
    with _both(source, target) as (ours, theirs):
        job = replace(_job(ours, theirs, threads, progress), dry_run=True, checksum=checksum)
        return _named(run_pass(job), ours)


def _job(source: int, target: int, threads: int | None, progress: Callable[[Counts], None]) -> Job:
    local = tree.is_local(source) and tree.is_local(target)
    at_hand = local and all(_call_ns(fd) < _SLOW for fd in (source, target))
    return Job(
        source=source,
        target=target,
        staging=-1,
        trash=None,
        base=None,
        holds=Holds(owners=os.geteuid() == 0),
        skip=frozenset({_OURS}) | _own_names(source) | _own_names(target),
        threads=threads or (LOCAL_THREADS if at_hand else _REMOTE_THREADS),
        progress=progress,
        one_clock=local,
    )


def _call_ns(fd: int) -> int:
    """How long a look at a directory takes: a file system may be local by name only."""
    taken = []
    for _ in range(5):
        begun = time.perf_counter_ns()
        os.stat(".", dir_fd=fd)
        taken.append(time.perf_counter_ns() - begun)
    return sorted(taken)[2]


@contextlib.contextmanager
def _both(source: str, target: str) -> Iterator[tuple[int, int]]:
    with contextlib.ExitStack() as stack:
        fds = []
        for path in (source, target):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise InvalidInput(f"{path} cannot be opened as a directory: {error.strerror}") from error
            stack.callback(os.close, fd)
            fds.append(fd)
        for inner, outer in ((0, 1), (1, 0)):
            if _lies_in(fds[inner], fds[outer]):
                raise RefusedForSafety(
                    f"{source} and {target} are one directory, or one lies inside the other: name two separate trees"
                )
        yield fds[0], fds[1]


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _lies_in(inner: int, outer: int) -> bool:
    """Whether `inner` is `outer` or lies below it: climbs to the file system's root by descriptor."""
    wanted = _identity(outer)
    fd = os.dup(inner)
    try:
        while _identity(fd) != wanted:
            above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            top = _identity(above) == _identity(fd)
            os.close(fd)
            fd = above
            if top:
                return False
        return True
    finally:
        os.close(fd)


def _own_names(fd: int) -> frozenset[str]:
    """Names at a root that are staging directories of some run, of ours or of another."""
    return frozenset(name for name in os.listdir(fd) if _STAGING.fullmatch(name))


def _named(result: Result, source: int) -> Result:
    """Say which names of the source were left out for being ours."""
    names = sorted(name for name in os.listdir(source) if name == _OURS or _STAGING.fullmatch(name))
    why = "a name that belongs to nfs-provisioner"
    return replace(result, skipped=(*((name, why) for name in names), *result.skipped))


@contextlib.contextmanager
def _staging(target: int, path: str) -> Iterator[int]:
    """A locked directory of our own in the target; those of killed runs, which nobody holds locked, are removed."""
    for name in _own_names(target):
        _remove_left_over(target, name, path)
    name = _PREFIX + os.urandom(8).hex()
    os.mkdir(name, 0o700, dir_fd=target)
    fd = tree.open_directory(target, name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):
            os.removexattr(fd, "system.posix_acl_default")  # inherited: everything staged would inherit it, too
        yield fd
    finally:
        os.close(fd)
        remove_tree(target, name)


def _remove_left_over(target: int, name: str, path: str) -> None:
    found = tree.look(target, name)
    if found is None or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    fd = tree.open_directory(target, name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(target, name)
    except BlockingIOError:
        raise RefusedForSafety(f"another sync into {path} is running: wait until it has ended") from None
    finally:
        os.close(fd)
