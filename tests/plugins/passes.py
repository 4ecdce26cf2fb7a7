"""Two directories and the passes between them, as the caller of the engine makes them, and what tells them apart.

`Sides` keeps between passes what a caller keeps, and nothing more. `Steps` stops a pass at one of its steps. Must not
judge by the engine's own comparison: `differences` asks rsync, `Picture` reads everything. Invariant: whatever a test
swaps in a module of the engine is back when its context ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.replication import contents, tree
from nfs_provisioner.replication.entries import DirectoryId
from nfs_provisioner.replication.passes import Job, Result, run_pass
from tests.plugins.packages import find, require

SECOND = 1_000_000_000
DEADLINE = 180.0
RSYNC = ("-aHAXnc", "--delete", "--itemize-changes")
#: A copy's blocks depend on how the file system cuts extents; a hole of this size is never filled by that.
HOLE = 1 << 20

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Sides:
    """`source` and `target`, and the target's own directories; `run` makes a pass."""

    def __init__(self, home: Path, target_home: Path | None = None) -> None:
        """`target_home` is where the target's file system is, when that is another one."""
        below = home if target_home is None else target_home
        self.source, self.target = home / "source", below / "target"
        self.staging, self.trash = below / "staging", below / "trash"
        for path in (self.source, self.target, self.staging, self.trash):
            path.mkdir(parents=True, exist_ok=True)
        self.base: int | None = None
        self.missed: frozenset[str] = frozenset()
        self.directories: Mapping[str, DirectoryId] = {}

    def run(self, **options: Any) -> Result:
        """One pass with what the last ones left; `options` are fields of the Job."""
        self._sweep()
        with contextlib.ExitStack() as stack:
            fds: dict[str, Any] = {}
            for name in ("source", "target", "staging", "trash"):
                fds[name] = os.open(getattr(self, name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fds[name])
            job = Job(
                **fds,
                base=self.base,
                missed=self.missed,
                directories=self.directories,
                threads=options.pop("threads", 2),
            )
            job = replace(job, **options)
            homes = str(self.source.parent), str(self.target.parent)
            before = descriptors(homes)
            try:
                result = run_pass(job)
            finally:
                assert descriptors(homes) == before, "a pass gives back every descriptor, however it ends"
        if not job.dry_run:
            self._remember(result, whole=job.only is None)
        return result

    def _remember(self, result: Result, *, whole: bool) -> None:
        self.missed = result.deferred
        if result.clean and whole:
            self.base, self.directories = result.began, result.directories

    def _sweep(self) -> None:
        """Staging is what a killed pass left: the caller's to remove."""
        for left in self.staging.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(os.fsencode(left))
            else:
                left.unlink()

    def settle(self) -> None:
        """As if the last clean pass were long enough past the last change: looks in depth are not due any more."""
        assert self.base is not None
        self.base = max(self.base, tree.moment()) + 10 * SECOND  # the pass itself may have waited long for its disk

    def quiet(self, **options: Any) -> Result:
        """A pass while nobody writes: clean, and nothing is left to do."""
        result = self.run(**options)
        assert result.clean, result
        assert self.differences() == ""
        assert Picture.of(self.source) == Picture.of(self.target)
        return result

    def differences(self) -> str:
        """What rsync would do to make the target equal, and what a second pass of it would never see."""
        require("rsync", debian=["rsync"])
        command = (find("rsync"), *RSYNC, "-@-1", f"{self.source}/", f"{self.target}/")
        done = subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
        return done.stdout.decode(errors="backslashreplace")

    def kept(self, path: str) -> list[Path]:
        """What trash has of the relative `path`, under the name itself or a variation of it."""
        above, _, name = path.rpartition("/")
        return sorted((self.trash / above).glob(f"{name}*"))


def fill(root: Path, names: tuple[str, ...] = ("a", "b", "d/c", "d/e/f")) -> None:
    """A few files, each with its name in it."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")


@dataclass(frozen=True)
class Picture:
    """All there is to know of a tree: for each path what must be equal, and which paths are one file."""

    entries: dict[str, tuple[object, ...]]
    links: frozenset[frozenset[str]]
    holes: frozenset[str]
    """Files that are larger than what they occupy by a hole or more."""

    @classmethod
    def of(cls, root: Path) -> Picture:
        """Nothing is followed, and nothing waits for a FIFO."""
        entries, inodes, holes = {}, dict[int, set[str]](), set()
        for path, place in _walk(root):
            found = os.lstat(place)
            entries[path] = (*_facts(found), _attributes(place), _content(place, found))
            if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                inodes.setdefault(found.st_ino, set()).add(path)
            if stat.S_ISREG(found.st_mode) and found.st_size - found.st_blocks * 512 >= HOLE:
                holes.add(path)
        return cls(entries, frozenset(frozenset(names) for names in inodes.values()), frozenset(holes))

    def files(self) -> dict[str, object]:
        """Path -> digest of each regular file."""
        return {path: facts[-1] for path, facts in self.entries.items() if isinstance(facts[-1], bytes)}


def digests(*roots: Path) -> set[bytes]:
    """Of all regular files below, wherever they lie."""
    return {
        digest
        for root in roots
        for _, place in _walk(root)
        if isinstance(digest := _content(place, os.lstat(place)), bytes)
    }


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    yield "", str(root)
    for place, directories, files in os.walk(root):
        for name in (*directories, *files):
            full = os.path.join(place, name)
            yield os.path.relpath(full, root), full


def _facts(found: os.stat_result) -> tuple[object, ...]:
    kind = stat.S_IFMT(found.st_mode)
    size = found.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, size, found.st_rdev


def _attributes(place: str) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(place, follow_symlinks=False))
    return tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in names)


def _content(place: str, found: os.stat_result) -> object:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(place)
    if not stat.S_ISREG(found.st_mode):
        return None
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def descriptors(homes: tuple[str, ...]) -> dict[str, str]:
    """What this process has open below the homes. Nothing is asked of the file systems, which may be told to fail."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            path = homes[0]  # nothing else goes that deep
        if path.startswith(homes):
            found[fd] = path
    return found


def exchange(one: Path, other: Path) -> None:
    """Swap two names at one moment. OSError where the file system cannot."""
    paths = os.fsencode(one), os.fsencode(other)
    if _LIBC.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))


class Cut(BaseException):
    """The process was killed at this step: nothing after it happened. Not an Exception, so that nobody handles it."""


#: What a pass changes a file system with; `open` counts when it creates.
CHANGING = (
    *("open", "write", "pwrite", "copy_file_range", "ftruncate", "mkdir", "mknod", "symlink", "link", "rename"),
    *("unlink", "rmdir", "chown", "fchown", "chmod", "fchmod", "utime", "setxattr", "removexattr"),
)


class Steps:
    """Counts the steps of a pass, in all of its threads, and does `at(number, name)` before each.

    The steps are the changes that it makes, and its syncs, which are counted but not carried out unless `syncing`.
    """

    def __init__(self, *, syncing: bool = False) -> None:
        self.names: list[str] = []
        self.at: Callable[[int, str], None] = lambda number, name: None
        self._syncing = syncing
        self._lock = threading.Lock()
        self._off = False

    def cut(self, number: int) -> None:
        """From step `number` on, counted from now, nothing happens any more. Half of a write does."""
        self.restart()

        def off(step: int, name: str) -> None:
            if step >= number:
                self._off = True

        self.at = off

    def fail(self, number: int, error: int = errno.EIO) -> None:
        """Step `number`, counted from now, fails; the ones after it work. ENOSPC of setxattr would mean: too large."""
        self.restart()

        def failing(step: int, name: str) -> None:
            if step == number:
                code = errno.EIO if (name, error) == ("setxattr", errno.ENOSPC) else error
                raise OSError(code, f"{name}, step {step}, was made to fail")

        self.at = failing

    def restart(self) -> None:
        """Work again, and count from zero."""
        self.names, self._off, self.at = [], False, lambda number, name: None

    @property
    def was_cut(self) -> bool:
        return self._off

    @contextlib.contextmanager
    def counted(self) -> Iterator[Steps]:
        """Replace the functions of `os`, for this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, self._changing(name, getattr(os, name)))
            patch.setattr(tree, "sync_filesystem", self._sync(tree.sync_filesystem))
            yield self

    def _step(self, name: str, half: Callable[[], object]) -> None:
        with self._lock:
            if self._off:
                raise Cut(name)
            number = len(self.names)
            self.names.append(name)
            self.at(number, name)
            if self._off:
                half()
                raise Cut(f"{name}, step {number}")

    def _changing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:
                half = (lambda: real(arguments[0], arguments[1][: len(arguments[1]) // 2])) if name == "write" else int
                self._step(name, half)
            return real(*arguments, **named)

        return call

    def _sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            self._step("syncfs", int)
            if self._syncing:
                real(fd)

        return call


@contextlib.contextmanager
def no_margin(margin: int = 0) -> Iterator[None]:
    """Trust time stamps to the tick, as is right on one machine: otherwise everything in a quick test is young."""
    from nfs_provisioner.replication import changes, entries

    with pytest.MonkeyPatch.context() as patch:
        for module in (changes, entries):
            patch.setattr(module, "MARGIN_NS", margin)
        yield


@contextlib.contextmanager
def during_copy(act: Callable[[int], None]) -> Iterator[None]:
    """Do `act(number)` after the content of the source was read, and before its state is looked at again."""
    real, counted = contents.copy_content, iter(range(1 << 30))

    def copy(source: int, target: int, found: os.stat_result, tick: Callable[[], None]) -> int:
        copied = real(source, target, found, tick)
        act(next(counted))
        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "copy_content", copy)
        yield
