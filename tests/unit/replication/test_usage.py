"""The usage of a tree: an index that looks keep right, the looks, and who measures."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.replication import measuring
from nfs_provisioner.replication.indexes import Indexes
from nfs_provisioner.replication.measuring import WHOLE_EVERY, MeasuringWorker
from nfs_provisioner.replication.usage import DirectoryUsage, UsageIndex, measure
from tests.plugins.du import du
from tests.plugins.packages import require_root
from tests.unit.export.world import identity, volume
from tests.unit.replication.twins import Twins

DEADLINE = 120.0
Looked = dict[str, DirectoryUsage | None]


def look(root: Path, *only: str, known: UsageIndex | None = None) -> Looked:
    """At these directories, or at everything."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return measure(fd, only or None, lambda: None, lambda: None, known=known or ())
    finally:
        os.close(fd)


def indexed(root: Path) -> UsageIndex:
    index = UsageIndex()
    index.replace(look(root))
    return index


def figures(found: UsageIndex | Usage | None) -> tuple[int, int] | None:
    return None if found is None else (found.bytes, found.inodes)


def fill(path: Path, size: int = 5000) -> None:
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two directories with a file each, one of them with a directory in it."""
    for path in ("a/deep", "b"):
        (tmp_path / "root" / path).mkdir(parents=True)
    for path in ("a/file", "a/deep/file", "b/file"):
        fill(tmp_path / "root" / path)
    return tmp_path / "root"


def test_a_whole_look_says_what_du_says(root: Path) -> None:
    (root / "link").symlink_to("/etc")
    (root / "away").symlink_to("a")
    os.truncate(root / "b/file", 1 << 30)
    assert figures(indexed(root)) == du(root)


def test_only_the_directories_that_changed_are_looked_at(root: Path) -> None:
    index = indexed(root)
    fill(root / "a/deep/more", 50_000)
    found = look(root, "a/deep", known=index)
    assert set(found) == {"a/deep"}
    index.change(found)
    assert figures(index) == du(root)


def test_a_new_directory_is_looked_at_with_all_that_is_in_it(root: Path) -> None:
    index = indexed(root)
    (root / "b/new/below").mkdir(parents=True)
    fill(root / "b/new/below/file")
    found = look(root, "b", known=index)
    assert set(found) == {"b", "b/new", "b/new/below"}
    index.change(found)
    assert figures(index) == du(root) and not index.wants_whole


def test_what_is_gone_leaves_with_all_that_was_in_it(root: Path) -> None:
    index = indexed(root)
    shutil.rmtree(root / "a")
    index.change(look(root, "", known=index))
    assert figures(index) == du(root)
    assert "a/deep" not in index and len(index) == 2


def test_a_directory_that_is_gone_sends_to_its_parent(root: Path) -> None:
    index = indexed(root)
    shutil.rmtree(root / "a")
    found = look(root, "a/deep", known=index)
    assert found["a/deep"] is None and found["a"] is None and found[""] is not None
    index.change(found)
    assert figures(index) == du(root)


def test_a_renamed_directory_is_counted_where_it_is(root: Path) -> None:
    index = indexed(root)
    (root / "a").rename(root / "b/moved")
    index.change(look(root, "", "b", known=index))
    assert figures(index) == du(root) and not index.wants_whole


def test_a_subdirectory_that_nobody_has_looked_at_wants_a_whole_look(root: Path) -> None:
    index = indexed(root)
    (root / "b/new").mkdir()
    found = look(root, "b", known=index)
    del found["b/new"]
    index.change(found)
    assert index.wants_whole


def test_h35_hard_links_are_counted_once(root: Path) -> None:
    for number, place in enumerate(("a", "a", "b", "a/deep")):
        os.link(root / "a/file", root / place / f"again-{number}")
    index = indexed(root)
    assert figures(index) == du(root)
    fill(root / "b/again-2", 90_000)  # the same inode, wherever it is written to
    index.change(look(root, "b", known=index))
    assert figures(index) == du(root) and not index.wants_whole
    for path in ("a/file", "a/again-0", "a/again-1", "a/deep/again-3"):
        (root / path).unlink()
        index.change(look(root, os.path.dirname(path), "b", known=index))
        assert figures(index) == du(root) and not index.wants_whole
    (root / "b/again-2").unlink()
    index.change(look(root, "b", known=index))
    assert figures(index) == du(root) and not index.wants_whole


def test_h35_a_link_to_what_was_counted_alone_is_not_counted_twice(root: Path) -> None:
    index = indexed(root)
    os.link(root / "a/file", root / "b/link")
    index.change(look(root, "b", known=index))
    assert index.wants_whole, "the index cannot know where the other name is"
    index.replace(look(root))
    assert figures(index) == du(root) and not index.wants_whole


def test_h35_a_link_that_was_written_to_before_it_went_wants_a_look_at_the_others(root: Path) -> None:
    os.link(root / "a/file", root / "b/link")
    index = indexed(root)
    fill(root / "a/file", 90_000)
    (root / "a/file").unlink()
    index.change(look(root, "a", known=index))
    assert index.wants_whole, "what is left of it is as large as nobody has seen yet"


def test_h35_names_outside_of_the_tree_are_no_reason_to_look_again_and_again(root: Path) -> None:
    os.link(root / "a/file", root.parent / "outside")
    index = indexed(root)
    fill(root / "a/file", 90_000)
    index.change(look(root, "a", known=index))
    assert figures(index) == du(root) and not index.wants_whole
    os.link(root / "a/file", root.parent / "outside, too")
    index.change(look(root, "a", known=index))
    assert index.wants_whole, "that name may as well lie in the tree"


def test_a_link_in_a_directorys_place_is_not_followed(root: Path) -> None:
    index = indexed(root)
    (root.parent / "elsewhere").mkdir()
    fill(root.parent / "elsewhere/file", 1 << 20)
    shutil.rmtree(root / "b")
    (root / "b").symlink_to(root.parent / "elsewhere")
    index.change(look(root, "b", known=index))
    assert figures(index) == du(root)


def test_a_walk_stops_where_its_guard_says(root: Path) -> None:
    def guard() -> None:
        raise RetryLater("stop")

    fd = os.open(root, os.O_RDONLY)
    with pytest.raises(RetryLater, match="stop"):
        measure(fd, None, guard, lambda: None)
    os.close(fd)


# Many trees


def tree(directories: int) -> Looked:
    """The root, and so many directories less one in it."""
    names = tuple(str(number) for number in range(1, directories))
    return {"": DirectoryUsage(8, 1, (), names), **{name: DirectoryUsage(8, 1) for name in names}}


def test_a_tree_of_one_directory_needs_no_index() -> None:
    indexes = Indexes()
    assert figures(indexes.look("flat", {"": DirectoryUsage(8, 1)}, 7.0, whole=True)) == (4096, 1)
    assert indexes.get("flat") is None
    assert figures(indexes.look("flat", {"": DirectoryUsage(16, 2)}, 8.0, whole=False)) == (8192, 2)
    assert indexes.look("flat", {"": DirectoryUsage(16, 2)}, 8.0, whole=True, complete=False) is None


def test_the_indexes_used_last_are_kept() -> None:
    dropped: list[str] = []
    indexes = Indexes(10, dropped.append)
    for key in ("one", "two", "three"):
        assert figures(indexes.look(key, tree(4), 7.0, whole=True)) == (4 * 4096, 4)
    assert dropped == ["one"] and indexes.get("one") is None
    assert indexes.look("one", {"": DirectoryUsage(8, 1, below=("d",))}, 8.0, whole=False) is None
    assert indexes.look("two", {"1": DirectoryUsage(16, 2)}, 8.0, whole=False) == Usage(5 * 4096, 5, 8.0)
    indexes.look("four", tree(4), 9.0, whole=True)
    assert dropped == ["one", "three"] and indexes.get("two") is not None


def test_a_look_that_missed_something_leaves_no_index() -> None:
    indexes = Indexes()
    indexes.look("one", tree(4), 7.0, whole=True)
    assert indexes.look("one", {}, 8.0, whole=False, complete=False) is None
    assert indexes.get("one") is None


# Passes of a pair


def test_a_pass_tells_what_the_active_side_takes(tmp_path: Path) -> None:
    twins = Twins(tmp_path)
    twins.make("pv")
    place = twins.root("a") / "pv"
    (place / "in").mkdir()
    fill(place / "in/file", 50_000)
    os.link(place / "in/file", place / "link")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv", only=frozenset({"in"})).usage is None, "there is no index yet"
    before = time.time()
    usage = twins.run(worker, "pv").usage
    assert figures(usage) == du(place) and usage is not None and before <= usage.at <= time.time()
    fill(place / "in/more")
    assert figures(twins.run(worker, "pv", only=frozenset({"in"})).usage) == du(place)
    shutil.rmtree(place / "in")
    assert figures(twins.run(worker, "pv", only=frozenset({""})).usage) == du(place)
    twins.stop()


# A replica's child


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """This thread acts on files as somebody else, as root does on a server that squashes it."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(0)


def test_what_permissions_hide_does_not_hide_the_rest(tmp_path: Path) -> None:
    require_root("giving directories to other owners")
    place = tmp_path / "tree"
    for name in ("open", "closed/deep", "listed/deep"):
        (place / name).mkdir(parents=True)
        fill(place / name / "file", 50_000)
    (place / "closed").chmod(0o700)
    (place / "listed").chmod(0o744)
    whole = du(place)
    fd, index = os.open(place, os.O_RDONLY | os.O_DIRECTORY), UsageIndex()
    with as_user(12345):
        index.replace(measure(fd, None, lambda: None, lambda: None))
        seen = index.unreadable, index.inodes, index.bytes
        index.change(measure(fd, ["closed/deep", "open"], lambda: None, lambda: None, known=index))
        assert (index.unreadable, index.inodes, index.bytes) == seen
    os.close(fd)
    visible = sum(path.lstat().st_blocks * 512 for path in (place, place / "closed", place / "listed"))
    assert seen == (2, 5, visible + du(place / "open")[0])
    index.change(look(place, "closed", "listed", known=index))
    assert (index.unreadable, index.bytes, index.inodes) == (0, *whole)


class Ground:
    """One replica with the live volume `pv`, and its child."""

    def __init__(self, root: Path, *, watches: int = 1000) -> None:
        root.mkdir()
        self.lease = LeaseEnd()
        self.lease.set(math.inf)
        self.later = 0.0
        clock = lambda: time.monotonic() + self.later  # noqa: E731
        self.worker = MeasuringWorker(str(root), self.lease, watches=watches, clock=clock)
        self.worker.attach(identity(), self.worker.inspect().identity, "term")
        self.worker.load()
        self.worker.operations["provision"]([volume("pv", "pv")])
        self.worker.make_live(["pv"])
        self.place = root / "pv"
        (self.place / "in").mkdir()
        fill(self.place / "in/file", 50_000)

    def usage(self) -> tuple[int, int] | None:
        """Asked again and again, as the controller does."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if (found := self.worker.operations["usage"]("pv")) is not None:
                return figures(found)
        raise AssertionError("the volume is never measured")


@pytest.fixture(params=[1000, 1, 0], ids=["watched", "too large to be watched", "no events"])
def ground(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ground]:
    require_root("giving directories to other owners")
    made = Ground(tmp_path / "export", watches=request.param)
    yield made
    os.close(made.lease.fd)


def test_a_child_says_what_a_volume_takes(ground: Ground) -> None:
    assert ground.usage() == du(ground.place)
    fill(ground.place / "in/more", 90_000)
    (ground.place / "new").mkdir()
    fill(ground.place / "new/file")
    assert ground.usage() == du(ground.place)
    shutil.rmtree(ground.place / "in")
    assert ground.usage() == du(ground.place)
    os.link(ground.place / "new/file", ground.place / "link")
    assert ground.usage() == du(ground.place)
    (ground.place / "new/file").unlink()
    assert ground.usage() == du(ground.place)


def test_a_watched_volume_is_looked_at_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_root("giving directories to other owners")
    made, looks = Ground(tmp_path / "export"), list[object]()

    def measured(root: int, only: object, *arguments: Any, **named: Any) -> Looked:
        looks.append(only)
        return measure(root, only, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "measure", measured)
    made.usage()
    fill(made.place / "in/more")
    assert made.usage() == du(made.place)
    assert made.usage() == du(made.place)
    assert looks == [None, frozenset({"in"}), frozenset()]


def test_h57_a_store_through_mmap_is_counted_by_the_next_whole_look(ground: Ground) -> None:
    """It makes no event, and moves no time stamp before it is written back."""
    with (ground.place / "in/mapped").open("w+b") as file:
        file.truncate(1 << 20)
        before = ground.usage()
        assert before == du(ground.place)
        with mmap.mmap(file.fileno(), 1 << 20) as mapped:
            mapped[:] = os.urandom(1 << 20)
            mapped.flush()
    assert du(ground.place) != before, "the file system has given it no blocks"
    ground.usage()
    ground.later = 1000 * WHOLE_EVERY  # the more the longer the last one took
    assert ground.usage() == du(ground.place)
    fill(ground.place / "in/more")
    assert ground.usage() == du(ground.place), "its changes are lost"


def test_a_tree_that_takes_long_to_look_at_is_looked_at_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root("giving directories to other owners")
    made, looks = Ground(tmp_path / "export"), list[object]()

    def slow(root: int, only: object, *arguments: Any, **named: Any) -> Looked:
        looks.append(only)
        if only is None:
            made.later += WHOLE_EVERY
        return measure(root, only, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "measure", slow)
    made.usage()
    made.later += WHOLE_EVERY * 99
    made.usage()
    made.later += 99 * WHOLE_EVERY
    made.usage()
    assert looks == [None, frozenset(), None]


def test_what_the_caller_says_changed_is_enough(tmp_path: Path) -> None:
    require_root("giving directories to other owners")
    made = Ground(tmp_path / "export", watches=0)
    before = made.usage()
    fill(made.place / "in/more")
    ask = made.worker.operations["usage"]
    end = time.monotonic() + DEADLINE
    found = ask("pv", frozenset())
    while found is None and time.monotonic() < end:
        found = ask("pv")
    assert figures(found) == before, "nothing was said to have changed"
    found = ask("pv", frozenset({"in"}))
    while found is None and time.monotonic() < end:
        found = ask("pv")
    assert figures(found) == du(made.place)


def test_a_directory_that_is_not_the_volumes_is_not_measured(ground: Ground) -> None:
    ground.place.rename(ground.place.with_name("away"))
    ground.place.mkdir()
    with pytest.raises(RefusedForSafety, match="pv"):
        ground.usage()
    with pytest.raises(RefusedForSafety, match="no record"):
        ground.worker.operations["usage"]("other")


def test_a_walk_that_takes_long_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_root("giving directories to other owners")
    made, go_on = Ground(tmp_path / "export", watches=0), threading.Event()

    def slow(root: int, only: object, guard: Callable[[], None], *arguments: Any, **named: Any) -> Looked:
        while not go_on.wait(0.01):
            guard()
        return measure(root, None, guard, *arguments, **named)

    monkeypatch.setattr(measuring, "measure", slow)
    assert made.worker.operations["usage"]("pv") is None
    assert made.worker.operations["usage"]("pv") is None
    made.worker.inspect()  # ends it
    identities = made.worker.inspect().identity
    assert identities is not None
    made.worker.attach(identities, identities, "term-2")
    go_on.set()
    assert made.usage() == du(made.place)


def test_a_child_that_measures_loads_no_engine() -> None:
    look = "import sys, nfs_provisioner.replication.measuring; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "nfs_provisioner.replication.passes" not in loaded
    assert not {name.split(".")[0] for name in loaded} & {"yaml", "kubernetes", "prometheus_client", "rich"}
