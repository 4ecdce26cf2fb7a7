"""What copies are measured on: fresh ext4 file systems in image files, and trees of files in them.

Measures nothing. Invariant: no file system is used for two measured first passes, because ext4 is slow for a while
where many files were deleted; and what a measurement compares lies on file systems that nobody else writes to.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.burst import BenchError
from tests.plugins.loopfs import LoopFileSystem
from tests.plugins.packages import find, require

GIB = 1 << 30
RSYNC = ("-aHAX", "--numeric-ids", "--delete")
_PER_DIRECTORY = 1000


@contextmanager
def disk(home: Path, size: int) -> Iterator[Path]:
    """The root of an empty ext4 of `size` bytes, in an image below `home` that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir=home) as directory:
        try:
            system = LoopFileSystem(Path(directory), size)
        except (pytest.skip.Exception, pytest.fail.Exception) as error:  # how plugins say what the machine lacks
            raise BenchError(str(error)) from error
        with system:
            yield system.path


def command(name: str, package: str) -> str:
    """The path of a command of a Debian package. BenchError when the machine lacks it."""
    try:
        require(name, debian=[package])
        return find(name)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        raise BenchError(str(error)) from error


def fill(root: Path, files: int, size: int, *, per_directory: int = _PER_DIRECTORY) -> None:
    """Make `root` with files of `size` bytes, no two alike, in directories of `per_directory`; durable."""
    block = min(size, 16)
    for number in range(files):
        directory, name = divmod(number, per_directory)
        if name == 0:
            (root / f"d{directory:04}").mkdir(parents=True)
        with open(root / f"d{directory:04}" / f"f{name:04}", "wb") as file:
            file.write(os.urandom(block) * (size // max(block, 1)))
    settle(root)


def settle(path: Path) -> None:
    """Wait until the file system of `path` has nothing left to write."""
    subprocess.run((find("sync"), "-f", str(path)), check=True)


def require_equal(source: Path, target: Path) -> None:
    """BenchError unless rsync, which reads both sides whole, finds nothing to do."""
    words = (command("rsync", "rsync"), "-aHAXnc", "--numeric-ids", "--delete", "--itemize-changes")
    found = subprocess.run((*words, f"{source}/", f"{target}/"), capture_output=True, text=True, check=False)
    if found.returncode != 0 or found.stdout:
        raise BenchError(f"{target} is no copy of {source}: {(found.stdout + found.stderr)[:1000]}")
