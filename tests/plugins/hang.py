"""A directory that hangs, fails or crawls on demand, as an NFS mount does when its server is gone.

`HangingDirectory` mounts a FUSE view of a backing directory from a child process (see passthrough.py). Nothing the
tests do may leave a hung mount behind: a guard process unmounts when the tests are killed. Needs /dev/fuse, libfuse3
and root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.plugins.packages import find, require, require_root, unavailable

CHANGES = frozenset(
    {
        *("mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write", "truncate", "fallocate"),
        *("open_to_write", "chmod", "chown", "utimens", "setxattr", "removexattr"),
    }
)
OPERATIONS = CHANGES | {
    *("getattr", "statfs", "readlink", "getxattr", "listxattr", "opendir", "readdir", "fsyncdir"),
    *("open", "read", "flush", "fsync"),
}
DEADLINE = 60.0

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MNT_DETACH = 2
_ROOT_OF_TESTS = Path(__file__).resolve().parents[2]


class MountFailed(RuntimeError):
    """The file system could not be mounted, or its process does not obey."""


class HangingDirectory:
    """`path`, the mount point, shows `backing` and does what it is told; use it as a context manager.

    Each of `hang`, `fail` and `delay` replaces what was set before; `release` ends it and lets waiting calls go on.
    `only` limits the effect to FUSE operations of those names (OPERATIONS, CHANGES); `open_to_write` is the part of
    `open` that may change something. `after` lets that many matching calls pass first. The backing directory stays
    reachable all the time, for the test to look behind the scenes.
    """

    def __init__(self, backing: Path, mountpoint: Path, *, flush: bool = False, remember: bool = False) -> None:
        """`flush`: whether close(2) reaches the file system, so that it can fail there. `remember`: the kernel believes
        for an hour what it was told of a file, as an NFS client does for some seconds; the mount is read-only."""
        require("/dev/fuse", "setpriv", "umount", debian=["mount"])
        require_root("mounting a directory that hangs")
        _require_libfuse()
        self.backing = backing
        self.path = mountpoint
        self._options = ("--flush",) * flush + ("--remember",) * remember
        self._child: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[str] | None = None
        self._device = 0
        self._stopped = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Mount. Raises MountFailed."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Reads a word at the regular end, and end of file when the tests were killed.
        self._guard = subprocess.Popen(
            ("sh", "-c", 'read -r word || exec "$@"', "guard", find("umount"), "--lazy", str(self.path)),
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        program = ("-m", "tests.plugins.passthrough", str(self.backing), str(self.path))
        self._child = subprocess.Popen(
            (find("setpriv"), "--pdeathsig", "KILL", "--", sys.executable, *program, *self._options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT_OF_TESTS,
            start_new_session=True,
        )
        if (word := self._answer()) != "ready":
            self.stop()
            raise MountFailed(f"cannot mount a FUSE file system at {self.path} (its process said {word!r})")
        self._device = _device_of(self.path)

    def stop(self) -> None:
        """Unmount, whatever hangs: calls that still wait fail, no mount and no process stays. May be called twice."""
        if self._child is None or self._guard is None:
            return
        _unmount(self.path)
        self._child.kill()  # the last descriptor of the connection closes, which aborts every waiting call
        try:
            self._child.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            # One of its threads hangs itself, in the backing directory.
            (_connection(self._device) / "abort").write_text("1")
            self._child.wait(DEADLINE)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._guard.communicate("done\n")
        self._child = self._guard = None
        self._stopped = False

    def hang(self, *, killable: bool = True, only: Collection[str] = (), after: int = 0) -> None:
        """Let no call return until `release`.

        `killable`, as on NFS: SIGKILL ends a process whose call hangs (but for one that was being served at this
        moment). Otherwise, and always with `only` or `after`, such a process stays in state D until `release` or
        `stop`, SIGKILL or not, as on a failing disk.
        """
        if killable and not only and not after:
            self._set("none")
            os.kill(self.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)
            self._stopped = True
        else:
            self._set("hang", only=only, after=after)

    def release(self) -> None:
        """Work again, and let what hangs go on from where it was, as when the server comes back."""
        self._set("none")

    def fail(self, error: int, *, only: Collection[str] = (), after: int = 0) -> None:
        """Have calls fail with this errno. Not ENOSYS, which the kernel takes for a lasting lack of the operation."""
        if error == errno.ENOSYS or error not in errno.errorcode:
            raise ValueError(f"{error} is not an errno that a file system may answer")
        self._set("fail", only=only, value=error, after=after)

    def delay(self, seconds: float, *, only: Collection[str] = (), after: int = 0) -> None:
        """Have calls take this much longer, as over a slow network."""
        self._set("delay", only=only, value=seconds, after=after)

    def waiting(self) -> int:
        """How many calls the kernel is waiting for an answer to."""
        return int((_connection(self._device) / "waiting").read_text())

    def wait_for_hung_call(self, seconds: float = DEADLINE) -> None:
        """Wait until some call hangs: one that SIGKILL does not end has come as far as that. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while (self.waiting() if self._stopped else self._held()) == 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no call reached {self.path} within {seconds} s")
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        """Of the process that serves the mount."""
        if self._child is None:
            raise MountFailed(f"{self.path} is not mounted")
        return self._child.pid

    def _set(self, effect: str, *, only: Collection[str] = (), value: float = 0, after: int = 0) -> None:
        if unknown := sorted(set(only) - OPERATIONS):
            raise ValueError(f"no such operation: {', '.join(unknown)}")
        if self._stopped:
            os.kill(self.pid, signal.SIGCONT)
            self._stopped = False
        word = self._ask({"effect": effect, "only": sorted(only), "value": value, "after": after})
        if word != "ok":
            raise MountFailed(f"the process of {self.path} answered {word!r}")

    def _ask(self, command: dict[str, object]) -> str:
        if self._child is None or self._child.stdin is None:
            raise MountFailed(f"{self.path} is not mounted")
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _held(self) -> int:
        """How many calls the process holds back itself; not while it is stopped."""
        return int(self._ask({"effect": "count"}))

    def _answer(self) -> str:
        if self._child is None or self._child.stdout is None:
            raise MountFailed(f"{self.path} is not mounted")
        return self._child.stdout.readline().strip()


def is_mounted(mountpoint: Path) -> bool:
    """Looked up in the mount table: asking the mount point itself could hang."""
    return _mount_entry(mountpoint) is not None


def _mount_entry(mountpoint: Path) -> list[str] | None:
    wanted = os.path.abspath(mountpoint)
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[4].replace("\\040", " ") == wanted:
            return fields
    return None


def _device_of(mountpoint: Path) -> int:
    entry = _mount_entry(mountpoint)
    if entry is None:
        raise MountFailed(f"{mountpoint} is not in the mount table")
    return int(entry[2].partition(":")[2])


def _connection(device: int) -> Path:
    """The kernel's control directory of this FUSE mount, whose name is the minor number of its device."""
    if not (_CONNECTIONS / str(device)).exists():
        subprocess.run((find("mount"), "-t", "fusectl", "fusectl", str(_CONNECTIONS)), check=True, timeout=DEADLINE)
    return _CONNECTIONS / str(device)


def _unmount(mountpoint: Path) -> None:
    """Detach the mount; not mounted is fine. umount2(2) does not ask the file system, so it cannot hang."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "umount2", str(mountpoint))


def _require_libfuse() -> None:
    try:
        import mfusepy  # noqa: F401 - its import loads the library
    except (ImportError, OSError) as error:
        unavailable(f"cannot load FUSE: {error} (pip: mfusepy; Debian: fuse3)")
