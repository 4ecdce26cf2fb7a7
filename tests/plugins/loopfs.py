"""Small real file systems in image files, for disks that are full, read-only or foreign.

A LoopFileSystem is a sparse image with ext4 or xfs on it, mounted by a loop device. Must not touch other loop devices.
Invariant: the loop device is bound to the mount (autoclear), so that it goes when the mount goes, and a guard process
unmounts when the tests are killed. Needs root.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.plugins.packages import find, require, require_root, unavailable

FileSystemType = Literal["ext4", "xfs"]
MIB = 1024 * 1024
# mkfs.xfs refuses less.
SMALLEST: dict[FileSystemType, int] = {"ext4": 2 * MIB, "xfs": 300 * MIB}
DEADLINE = 180.0  # seconds: a mount waits for a disk that stalls

_MKFS: dict[FileSystemType, tuple[str, ...]] = {
    # No blocks reserved for root, so that "full" is the same for everybody; no work left for later.
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
_PACKAGES: dict[FileSystemType, str] = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}
_MNT_DETACH = 2


class LoopFileSystem:
    """`size` bytes (of the image, not of the free space) of `fstype`, mounted at `path`; a context manager.

    `options` are more of mkfs. `home` holds the image and, unless `mountpoint` is given, the mount point. The contents outlive `unmount`, and are
    there again after `mount`; use that for a disk that goes and comes back.
    """

    def __init__(
        self,
        home: Path,
        size: int,
        fstype: FileSystemType = "ext4",
        *,
        mountpoint: Path | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        require(_MKFS[fstype][0], "mount", debian=[_PACKAGES[fstype], "mount"])
        require("/dev/loop-control")
        require_root("mounting a file system")
        if fstype not in Path("/proc/filesystems").read_text().split():
            unavailable(f"has a kernel without {fstype}")
        if size < SMALLEST[fstype]:
            raise ValueError(f"{fstype} needs {SMALLEST[fstype]} bytes, not {size}")
        self.path = home / "mnt" if mountpoint is None else mountpoint
        self.image = home / f"{fstype}.img"
        self._size = size
        self._fstype = fstype
        self._options = options
        self._guard: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.format()
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()

    def format(self) -> None:
        """A new, empty file system; not while it is mounted."""
        self.image.parent.mkdir(parents=True, exist_ok=True)
        with self.image.open("wb") as image:
            image.truncate(self._size)
        _run(find(_MKFS[self._fstype][0]), *_MKFS[self._fstype][1:], *self._options, str(self.image))

    def mount(self, *, read_only: bool = False) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        options = "loop,ro" if read_only else "loop"
        # Reads a word at the regular end, and end of file when the tests were killed.
        self._guard = subprocess.Popen(
            ("sh", "-c", 'read -r word || exec "$@"', "guard", find("umount"), "--lazy", str(self.path)),
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _run(find("mount"), "-t", self._fstype, "-o", options, str(self.image), str(self.path))
        except subprocess.CalledProcessError:
            self._dismiss_guard()
            raise

    def unmount(self) -> None:
        """Detach the mount even if it is in use; does nothing when it is not mounted."""
        if self._guard is None:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(self.path), _MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
            raise OSError(ctypes.get_errno(), "umount2", str(self.path))
        self._dismiss_guard()

    def read_only(self, on: bool = True) -> None:
        """Make the mounted file system read-only, or writable again; waits while a file is open for writing."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                _run(find("mount"), "-o", f"remount,{'ro' if on else 'rw'}", str(self.path))
                return
            except subprocess.CalledProcessError as error:
                if "busy" not in error.stderr or time.monotonic() > end:
                    raise
            time.sleep(0.005)

    def fill(self, leave: int = 0) -> Path:
        """Use up all space but at most `leave` bytes, in one file, which is returned; delete it to free the space."""
        ballast = self.path / "ballast"
        descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # Allocated, not written: xfs reserves space beyond the end of a file that grows by writes.
            size, piece = 0, self.free() - leave
            while piece >= 512:
                try:
                    os.posix_fallocate(descriptor, size, piece)
                    size += piece
                    piece = min(piece, self.free() - leave)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2
        finally:
            os.close(descriptor)
        return ballast

    def free(self) -> int:
        """Bytes that an unprivileged user could still write."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.communicate("done\n")
            self._guard = None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE)
