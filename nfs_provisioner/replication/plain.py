"""`sync` and `verify` between two plain directories: one pass, with no record of an earlier one.

Touches TARGET only, through the pass, and its own directory TARGET/.nfs-provisioner-sync-<random>. Keeps: two
directories of which one is the other, or lies inside it, are refused; so is a source that is empty while the target is
not, unless that is allowed; of two runs into one target the second is refused. However a run ends, short of SIGKILL,
its own directory goes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from nfs_provisioner.errors import InvalidInput, RefusedForSafety, RetryLater
from nfs_provisioner.export.filesystem import FULL, is_empty, is_local, remove_tree
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
_LOOKED_AT = 1000  # entries of the target that may tell whether it holds parts of a second
_UNHELD = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

OURS = "a name that belongs to nfs-provisioner"
"""Why a name at the root of the source is left out: it is no part of the tree, and never copied."""

_WORDS = {
    "owners": "owners",
    "nanoseconds": "parts of a second in times",
    "xattrs": "extended attributes",
    "acls": "POSIX ACLs",
    "links": "hard links",
    "devices": "devices",
    "modes": "modes",
    "case": "upper and lower case in names",
    "times": "times long ago or far ahead",
}


def sync(
    source: str,
    target: str,
    *,
    dry_run: bool = False,
    allow_empty: bool = False,
    delete_limit: Callable[[int, int], bool] = lambda deletions, entries: True,
    progress: Callable[[Counts], None] = lambda counts: None,
    guard: Callable[[], None] = lambda: None,
    threads: int | None = None,
) -> Result:
    """Make TARGET equal to SOURCE. What is replaced or deleted is not kept.

    `threads` None: by how long calls take. `guard` is asked before each write, and raises to stop. RefusedForSafety for
    directories that must not be synced, RetryLater when the target is full or cannot be written.
    """
    with _both(source, target) as (ours, theirs):
        if not allow_empty and is_empty(ours) and not is_empty(theirs):
            raise RefusedForSafety(
                f"{source} is empty and {target} is not: is it mounted? To empty {target}, say --allow-empty"
            )
        job = _job(ours, theirs, threads, progress)
        job = replace(job, dry_run=dry_run, delete_limit=delete_limit, guard=guard)
        if dry_run:
            return _compared(job)
        with _staging(theirs, target) as staging:
            try:
                holds = probe(staging)
            except OSError as error:
                raise _not_writable(target, error) from error
            result = run_pass(replace(job, staging=staging, holds=holds, skip=job.skip | _own_names(theirs)))
            times = os.fstat(theirs)
        with contextlib.suppress(PermissionError):  # somebody else's directory: the pass has said so
            os.utime(theirs, ns=(times.st_atime_ns, times.st_mtime_ns))
        return _named(result, ours, holds)


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
        return _compared(replace(_job(ours, theirs, threads, progress), dry_run=True, checksum=checksum))


def _compared(job: Job) -> Result:
    holds = _seen(job.target, job.holds)
    return _named(run_pass(replace(job, holds=holds)), job.source, holds)


def _seen(target: int, holds: Holds) -> Holds:
    """What shows without a write that the target cannot hold; the rest counts as held, so that it is compared."""
    return replace(
        holds,
        nanoseconds=_shows_parts_of_a_second(target),
        xattrs=_answers(target, "user.nfs-provisioner"),
        acls=_answers(target, "system.posix_acl_access"),
    )


def _shows_parts_of_a_second(target: int) -> bool:
    """By ctimes, too, which nobody sets: an archive's whole seconds are not the file system's."""
    with os.scandir(target) as scan:
        entries = (tree.look(target, entry.name) for entry in islice(scan, _LOOKED_AT))
        return any(
            found.st_ctime_ns % 1_000_000_000 or found.st_mtime_ns % 1_000_000_000
            for found in (os.fstat(target), *entries)
            if found is not None
        )


def _answers(fd: int, attribute: str) -> bool:
    """Whether the file system knows this kind of attribute, there or not."""
    try:
        os.getxattr(fd, attribute)
    except OSError as error:
        return error.errno not in _UNHELD
    return True


def _job(source: int, target: int, threads: int | None, progress: Callable[[Counts], None]) -> Job:
    local = is_local(source) and is_local(target)
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


def _named(result: Result, source: int, holds: Holds) -> Result:
    """Say which names of the source were left out for being ours, and what of every entry was."""
    names = sorted(name for name in os.listdir(source) if name == _OURS or _STAGING.fullmatch(name))
    words = tuple(_WORDS[name] for name in holds.lacking())
    return replace(result, skipped=(*((name, OURS) for name in names), *result.skipped), not_compared=words)


@contextlib.contextmanager
def _staging(target: int, path: str) -> Iterator[int]:
    """A locked directory of our own in the target; those of killed runs, which nobody holds locked, are removed."""
    name = _PREFIX + os.urandom(8).hex()
    try:
        fd = _make_staging(target, name, path)
        try:
            yield fd
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):  # why it ended is what matters; the next run removes what stays
            remove_tree(target, name)
        raise
    try:
        remove_tree(target, name)
    except OSError as error:
        raise RetryLater(f"{path}/{name} cannot be removed ({error.strerror}): the next sync does it") from error


def _make_staging(target: int, name: str, path: str) -> int:
    try:
        for left in _own_names(target):
            _remove_left_over(target, left, path)
        os.mkdir(name, 0o700, dir_fd=target)
        fd = tree.open_directory(target, name)
    except OSError as error:
        raise _not_writable(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):
            os.removexattr(fd, "system.posix_acl_default")  # inherited: everything staged would inherit it, too
    except BaseException:
        os.close(fd)
        raise
    return fd


def _not_writable(path: str, error: OSError) -> RetryLater:
    if error.errno == errno.EROFS:
        remedy = "it is mounted read-only, mount it read-write"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            f"uid {os.geteuid()} needs the permission to write there; over NFS, root has it where the server exports "
            "with no_root_squash"
        )
    elif error.errno in FULL:
        remedy = "make room, or raise its quota"
    else:
        remedy = "look at its file system, or its server"
    return RetryLater(f"nothing can be written in {path} ({error.strerror}): {remedy}")


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
