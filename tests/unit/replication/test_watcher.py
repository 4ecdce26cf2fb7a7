"""Events are hints: what cannot be told exactly must come out as "anything may have changed"."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfs_provisioner.replication.watcher import Dirty, Watcher

DEADLINE = 60.0


class Tree:
    def __init__(self, root: Path, most: int | None = None) -> None:
        self.root = root
        self.watcher = Watcher(self.opened, most)

    def watch(self) -> bool:
        return self.watcher.watch("pv")

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[int]:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def dirty(self) -> Dirty:
        """Everything since the last look; an event of our own ends the wait."""
        return self.watcher.wait(DEADLINE).get("pv", frozenset())

    def until(self, *paths: str) -> None:
        """Wait until all of these were told."""
        missing, end = set(paths), time.monotonic() + DEADLINE
        while missing:
            assert time.monotonic() < end, missing
            found = self.dirty()
            assert found is not None
            missing -= found

    def close(self) -> None:
        self.watcher.close()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("x")
    made = Tree(tmp_path)
    assert made.watch()
    yield made
    made.close()


def test_every_kind_of_change_makes_its_directory_dirty(tree: Tree) -> None:
    changes: dict[str, Callable[[], object]] = {
        "write": lambda: (tree.root / "a" / "file").write_text("y"),
        "mode": lambda: (tree.root / "a" / "file").chmod(0o600),
        "link": lambda: os.link(tree.root / "a" / "file", tree.root / "a" / "link"),
        "rename": lambda: (tree.root / "a" / "file").rename(tree.root / "a" / "other"),
        "remove": lambda: (tree.root / "a" / "other").unlink(),
    }
    for name, change in changes.items():
        change()
        assert tree.dirty() == frozenset({"a"}), name
    (tree.root / "a" / "link").rename(tree.root / "link")
    assert tree.dirty() == frozenset({"", "a"})


def test_what_appears_in_a_new_directory_is_told_though_no_watch_was_there_yet(tree: Tree) -> None:
    (tree.root / "new" / "deep" / "er").mkdir(parents=True)
    (tree.root / "new" / "deep" / "er" / "file").write_text("x")
    tree.until("", "new", "new/deep", "new/deep/er")
    (tree.root / "new" / "deep" / "er" / "file").write_text("y")
    tree.until("new/deep/er")


def test_h28_after_a_rename_a_directory_is_told_by_its_new_path(tree: Tree) -> None:
    (tree.root / "a").rename(tree.root / "z")
    tree.until("", "z", "z/b")
    (tree.root / "z" / "b" / "file").write_text("x")
    assert tree.dirty() == frozenset({"z/b"})
    shutil.rmtree(tree.root / "z")
    tree.until("")
    assert tree.watcher.watches == 1


def test_h26_a_link_is_not_followed(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (tree.root / "link").symlink_to(outside)
    assert tree.dirty() == frozenset({""})
    (outside / "file").write_text("x")
    (tree.root / "end").write_text("x")
    assert tree.dirty() == frozenset({""})
    assert tree.watcher.watches == 3


def test_h23_when_the_queue_overflows_everything_is_dirty(tree: Tree) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    names = [tree.root / f"f{number}" for number in range(100)]
    for number in range(most + 1000):  # an event each: only equal ones in a row are merged
        names[number % 100].touch()
    assert tree.dirty() is None
    (tree.root / "a" / "file").write_text("y")
    assert tree.dirty() == frozenset({"a"})


def test_h23_when_the_watches_run_out_the_tree_is_not_half_watched(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"d{number}").mkdir()
    tree = Tree(tmp_path, most=5)
    assert not tree.watch()
    assert tree.watcher.watches == 0
    tree.close()
    tree = Tree(tmp_path, most=12)
    assert tree.watch()
    for number in range(5):
        (tmp_path / f"new{number}").mkdir()
    assert tree.dirty() is None
    assert tree.watcher.watches == 0
    tree.close()


def test_h23_a_root_that_went_is_told_as_everything(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    tree = Tree(tmp_path / "volume")
    assert tree.watch()
    (tmp_path / "volume").rename(tmp_path / "archived")
    assert tree.dirty() is None
    tree.close()
