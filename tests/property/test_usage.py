"""Whatever happens to a tree, looks at the directories that inotify names keep its usage what du says."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfs_provisioner.replication.usage import DirectoryUsage, UsageIndex, measure
from nfs_provisioner.replication.watcher import Watcher
from tests.plugins.du import du
from tests.plugins.passes import Sides, exchange
from tests.property.tenant import Tenant, is_directory

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

NAMES = st.sampled_from(("a", "b", "c", "new\nline", os.fsdecode(b"\xff not utf-8"), "l" * 255))
PICKS = st.integers(0, 1000)
SIZES = st.sampled_from((0, 1, 5000, 70_000))


def nothing() -> None:
    """Nobody stops it."""


class Histories(Tenant, RuleBasedStateMachine):
    """The rules are what tenants do; two indexes follow, one by looks and one by passes."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="usage-"))
        self.sides = Sides(self.home)
        self.source = self.sides.source
        for path in ("d1/d2", "d3"):
            (self.source / path).mkdir(parents=True)
        self.watcher = Watcher(self.opened)
        assert self.watcher.watch("tree")
        self.looks, self.passes = UsageIndex(), UsageIndex()
        self.linked = False
        self.whole()

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[int]:
        fd = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    # What tenants do

    @rule(pick=PICKS, name=NAMES, size=SIZES)
    def write(self, pick: int, name: str, size: int) -> None:
        path = self.directory(pick) / name
        if not is_directory(path):
            grow(path, lambda file: os.write(file, os.urandom(size)), os.O_CREAT | os.O_APPEND)

    @rule(pick=PICKS, size=SIZES)
    def truncate(self, pick: int, size: int) -> None:
        if path := self.file(pick):
            grow(path, lambda file: os.ftruncate(file, size))

    @rule(pick=PICKS, at=st.sampled_from((0, 1 << 20, 1 << 30)))
    def write_far_behind(self, pick: int, at: int) -> None:
        if path := self.file(pick):
            grow(path, lambda file: os.pwrite(file, b"x" * 5000, at))

    @rule(pick=PICKS, there=PICKS, name=NAMES)
    def link(self, pick: int, there: int, name: str) -> None:
        path = self.directory(there) / name
        if (file := self.file(pick)) and not os.path.lexists(path):
            os.link(file, path)
            self.linked = True

    @rule(pick=PICKS, name=NAMES, long=st.booleans())
    def symlink(self, pick: int, name: str, long: bool) -> None:
        path = self.directory(pick) / name
        if not os.path.lexists(path):
            path.symlink_to("x" * 3000 if long else "/etc")

    @rule(pick=PICKS, name=NAMES, depth=st.integers(1, 3))
    def make_directories(self, pick: int, name: str, depth: int) -> None:
        path = self.directory(pick) / name
        for _ in range(depth):
            if os.path.lexists(path):
                return
            path.mkdir()
            (path / "in").write_bytes(b"x")
            path /= "below"

    @rule(pick=PICKS, there=PICKS, name=NAMES)
    def rename(self, pick: int, there: int, name: str) -> None:
        path, new = self.any_of(pick), self.directory(there) / name
        if path is not None and path != new and path not in new.parents and new not in path.parents:
            self.linked = self.linked or any(file.lstat().st_nlink > 1 for file in self.paths(is_file))
            self.remove(new)
            path.rename(new)

    @rule(pick=PICKS, there=PICKS)
    def swap(self, pick: int, there: int) -> None:
        one, other = self.any_of(pick), self.any_of(there)
        if one and other and one != other and one not in other.parents and other not in one.parents:
            exchange(one, other)

    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        if path := self.any_of(pick):
            self.linked = self.linked or any(file.lstat().st_nlink > 1 for file in self.paths(is_file))
            self.remove(path)

    # Looks

    def whole(self) -> None:
        self.watcher.wait(0)
        with self.opened("tree") as root:
            self.looks.replace(measure(root, None, nothing, nothing))
        result = self.sides.run()
        assert result.measured, result
        self.passes.replace(result.usage)
        self.linked = False

    @rule()
    def look_at_everything(self) -> None:
        self.whole()
        self.right()

    @rule()
    def look_at_what_changed(self) -> None:
        dirty = self.watcher.wait(0).get("tree", frozenset())
        assert dirty is not None
        if not dirty:
            self.right()
            return
        with self.opened("tree") as root:
            looked = measure(root, dirty, nothing, nothing, known=self.looks)
        self.looks.change(looked)
        result = self.sides.run(only=dirty)
        assert result.measured
        self.passes.change(result.usage)
        self.right()

    def right(self) -> None:
        """What they say is what du says; only links that come or go may be a reason to say nothing."""
        said = du(self.source)
        for index in (self.looks, self.passes):
            if index.wants_whole:
                assert self.linked
            else:
                assert (index.bytes, index.inodes) == said
        if self.looks.wants_whole or self.passes.wants_whole:
            self.whole()
            assert {(index.bytes, index.inodes) for index in (self.looks, self.passes)} == {said}

    @invariant()
    def indexes_add_up(self) -> None:
        """The sums that are kept are those of what is kept."""
        for index in (self.looks, self.passes):
            directories: dict[str, DirectoryUsage] = index._directories
            several = {inode for found in directories.values() for inode, _, _ in found.linked}
            assert index.inodes == sum(found.inodes for found in directories.values()) + len(several)
            assert several == set(index._several)

    def teardown(self) -> None:
        try:
            self.look_at_what_changed()
            self.look_at_everything()
        finally:
            self.watcher.close()
            shutil.rmtree(self.home)


def is_file(path: Path) -> bool:
    return not is_directory(path)


def grow(path: Path, change: Callable[[int], object], flags: int = 0) -> None:
    """With everything on disk, where du finds as many blocks the next time."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o644)
    try:
        change(file)
        os.fsync(file)
    finally:
        os.close(file)


Histories.TestCase.settings = settings(
    max_examples=int(os.environ.get("HX", "100")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase
