"""What accounting costs: usage of many volumes after a few files changed, beside `du` of everything, by turns.

Prints nothing but progress. A figure is only taken when it was right: after each round the sum of our indexes is, to
the block and to the inode, what `du` found. Caches are warm for both, and `du` is one process for all volumes.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nfs_provisioner.export.usage import Usage
from nfs_provisioner.replication.indexes import Indexes
from nfs_provisioner.replication.usage import measure
from tests.bench.burst import BenchError
from tests.bench.stand import progress
from tests.bench.trees import GIB, disk, settle
from tests.plugins.packages import find

VOLUMES, FILES_EACH, PER_DIRECTORY = 10_000, 100, 25
CHANGED = 100
_MOST_ADDED = 40_000  # bytes that a file grows by


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of one round."""

    du: float
    ours: float


@dataclass(frozen=True, slots=True)
class Accounts:
    """`whole`: seconds of the one look at everything that the indexes came from."""

    whole: float
    rounds: tuple[Account, ...]


def usage(home: Path, rounds: int) -> Accounts:
    """Files are changed at random: nearly each in a volume of its own."""
    with disk(home, 48 * GIB) as root:
        _fill(root / "volumes")
        progress(f"{VOLUMES * FILES_EACH:,} files in {VOLUMES:,} volumes are there")
        return accounted(root / "volumes", rounds)


def accounted(volumes: Path, rounds: int, *, seed: int = 1) -> Accounts:
    """Each directory in `volumes` is one, with directories of files in it."""
    chance = random.Random(seed)
    books = _Books(volumes)
    began = time.perf_counter()
    books.open()
    whole = time.perf_counter() - began
    books.require(du(volumes), du(volumes, "--inodes"))
    done = []
    for number in range(1, rounds + 1):
        changed = _change(volumes, books.names, chance)
        began = time.perf_counter()
        blocks = du(volumes)
        theirs = time.perf_counter() - began
        began = time.perf_counter()
        books.follow(changed)
        ours = time.perf_counter() - began
        books.require(blocks, du(volumes, "--inodes"))
        progress(f"usage {number}/{rounds}: du {theirs:.2f} s, ours {ours * 1000:.1f} ms")
        done.append(Account(theirs, ours))
    return Accounts(whole, tuple(done))


class _Books:
    """What a replica's child keeps of each volume, and the figures by volume that the controller has."""

    def __init__(self, volumes: Path) -> None:
        self._volumes = volumes
        self.names = sorted(os.listdir(volumes))
        self._indexes = Indexes()
        self._usage: dict[str, Usage] = {}
        self._bytes = self._inodes = 0

    def open(self) -> None:
        """A whole look at each."""
        for name in self.names:
            self._look(name, None)
        self._sum()

    def follow(self, changed: Mapping[str, set[str]]) -> None:
        """From the directories that events named to the new totals."""
        for name, directories in changed.items():
            self._look(name, directories)
        self._sum()

    def _look(self, name: str, directories: set[str] | None) -> None:
        known = self._indexes.get(name)
        if (known is None) != (directories is None):
            raise BenchError(f"volume {name} wants a whole look, although no name was added")
        at = time.time()
        root = os.open(self._volumes / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = measure(root, directories, _go_on, _go_on, known=known or ())
        finally:
            os.close(root)
        usage = self._indexes.look(name, found, at, whole=directories is None)
        if usage is None:
            raise BenchError(f"the usage of volume {name} is not known after a look")
        self._usage[name] = usage

    def _sum(self) -> None:
        self._bytes = sum(usage.bytes for usage in self._usage.values())
        self._inodes = sum(usage.inodes for usage in self._usage.values())

    def require(self, blocks: int, inodes: int) -> None:
        """BenchError unless the totals are what du found, which counts the directory of the volumes, too."""
        ours = self._bytes // 512 + os.stat(self._volumes).st_blocks, self._inodes + 1
        if ours != (blocks, inodes):
            raise BenchError(f"ours says {ours[0]} blocks and {ours[1]} inodes, du {blocks} and {inodes}")


def _go_on() -> None:
    """Guard and beat of a walk that nobody stops or watches."""


def du(path: Path, what: str = "--block-size=512") -> int:
    """Of everything below, each inode once."""
    found = subprocess.run((find("du"), "-s", what, str(path)), capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def _fill(volumes: Path) -> None:
    for number in range(VOLUMES):
        for directory in range(FILES_EACH // PER_DIRECTORY):
            place = volumes / f"v{number:05}" / f"d{directory}"
            place.mkdir(parents=True)
            for file in range(PER_DIRECTORY):
                with open(place / f"f{file:02}", "wb") as opened:
                    opened.write(b"something\n")
    settle(volumes)


def _change(volumes: Path, names: list[str], chance: random.Random) -> dict[str, set[str]]:
    """Let CHANGED files grow; the directories that an event would name, by volume."""
    changed: dict[str, set[str]] = {}
    for _ in range(CHANGED):
        name = chance.choice(names)
        directory = chance.choice(sorted(os.listdir(volumes / name)))
        file = chance.choice(sorted(os.listdir(volumes / name / directory)))
        with open(volumes / name / directory / file, "ab") as opened:
            opened.write(os.urandom(chance.randint(1, _MOST_ADDED)))
        changed.setdefault(name, set()).add(directory)
    settle(volumes)  # blocks are counted when they are allocated
    return changed
