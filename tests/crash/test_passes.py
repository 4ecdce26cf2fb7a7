"""A pass that is killed, or loses its power, at any of its steps: nothing is lost, and the next pass makes it good."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfs_provisioner.errors import NfsProvisionerError
from nfs_provisioner.replication import plain
from tests.plugins.loopfs import MIB, SMALLEST, FileSystemType, LoopFileSystem
from tests.plugins.packages import find, require_root
from tests.plugins.passes import Cut, Picture, Sides, Steps, digests

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

SIZE: dict[FileSystemType, int] = {"ext4": 24 * MIB, "xfs": SMALLEST["xfs"]}


def content(name: str, size: int = 300) -> bytes:
    """Like no other file's, and never empty."""
    return (f"<{name}>".encode() * (size // len(name) + 1))[:size]


def before(root: Path) -> None:
    """What the last clean pass found."""
    for name in ("kept", "changed", "mended", "gone", "becomes-directory", "deep/changed", "deep/in/changed"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(f"old {name}"))
    (root / "large").write_bytes(content("old large", 300_000))
    for directory in ("renamed", "gone-directory/in", "becomes-file", "becomes-link"):
        (root / directory).mkdir(parents=True)
        (root / directory / "file").write_bytes(content(f"old {directory}"))
    (root / "link").symlink_to("kept")
    for name in ("two", "three"):
        (root / name).hardlink_to(root / "changed")
    (root / "apart").write_bytes(content("old apart"))
    (root / "apart-2").hardlink_to(root / "apart")


def after(root: Path) -> None:
    """One change of each kind."""
    for name in ("deep/changed", "deep/in/changed", "changed", "new"):
        (root / name).write_bytes(content(f"new {name}"))
    (root / "large").write_bytes(content("new large", 310_000))
    (root / "mended").chmod(0o600)
    os.setxattr(root / "mended", "user.one", b"1")
    os.chown(root / "deep", 1000, 1000)
    (root / "gone").unlink()
    shutil.rmtree(root / "gone-directory")
    (root / "renamed").rename(root / "deep" / "has-a-new-name")
    (root / "becomes-directory").unlink()
    (root / "fresh" / "in").mkdir(parents=True)
    (root / "becomes-directory").mkdir(mode=0o700)
    for name in ("becomes-directory/file", "fresh/file", "fresh/in/file"):
        (root / name).write_bytes(content(f"new {name}"))
    for name in ("becomes-file", "becomes-link"):
        shutil.rmtree(root / name)
    (root / "becomes-file").write_bytes(content("new becomes-file"))
    (root / "becomes-link").symlink_to("fresh")
    (root / "link").unlink()
    (root / "link").symlink_to("changed")
    (root / "three").unlink()
    (root / "four").hardlink_to(root / "changed")
    (root / "apart-2").unlink()
    (root / "apart-2").write_bytes(content("new apart-2"))
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    with (root / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(content("new sparse"))


class Case:
    """Sides with a clean pass behind them, and changes before them."""

    def __init__(self, home: Path, steps: Steps, threads: int) -> None:
        require_root("files of other owners")
        self.sides, self.steps, self.threads = Sides(home), steps, threads
        before(self.sides.source)
        steps.restart()
        assert self.sides.run(threads=threads).clean
        self.old = Picture.of(self.sides.target)
        after(self.sides.source)
        self.new = Picture.of(self.sides.source)
        steps.restart()

    def cut_off(self, at: int) -> bool:
        """A pass until step `at`; False when it was over before."""
        self.steps.cut(at)
        with contextlib.suppress(Cut):
            self.sides.run(threads=self.threads)
        cut = self.steps.was_cut
        self.steps.restart()
        return cut

    def check_nothing_is_lost(self, moment: str) -> None:
        sides, old, new = self.sides, self.old.files(), self.new.files()
        assert set(old.values()) <= digests(sides.target, sides.trash), moment
        now = Picture.of(sides.target).files()
        half = [path for path, digest in now.items() if digest not in {*old.values(), *new.values()}]
        assert half == [], moment
        other = [path for path in now if path in old and path in new and now[path] not in (old[path], new[path])]
        assert other == [], moment

    def check_next_pass(self, moment: str) -> None:
        result = self.sides.run(threads=self.threads)
        assert result.clean, (moment, result)
        assert Picture.of(self.sides.target) == self.new, moment
        assert self.sides.differences() == "", moment
        self.check_nothing_is_lost(moment)


@pytest.fixture
def steps() -> Iterator[Steps]:
    with Steps().counted() as steps:
        yield steps


@pytest.fixture(params=[1, 32], ids=lambda threads: f"{threads}-threads")
def make(request: pytest.FixtureRequest, steps: Steps, tmp_path: Path) -> Callable[[object], Case]:
    return lambda name: Case(tmp_path / f"{name}", steps, request.param)


def length(make: Callable[[object], Case]) -> int:
    """Steps of the pass when nothing happens; with several threads, some more or less another time."""
    case = make("undisturbed")
    case.check_next_pass("undisturbed")
    return len(case.steps.names)


def test_h27_killed_at_any_step_nothing_is_lost_and_the_next_pass_is_clean(make: Callable[[object], Case]) -> None:
    steps = length(make)
    assert steps > 80
    for at in range(steps - 3):
        case = make(at)
        cut = case.cut_off(at)
        assert cut or (case.threads > 1 and at >= steps * 9 // 10), f"over before step {at} of {steps}"
        case.check_nothing_is_lost(f"cut at step {at}")
        case.check_next_pass(f"after a cut at step {at}")


def test_h27_killed_again_while_it_makes_good(make: Callable[[object], Case]) -> None:
    steps = length(make)
    for at in range(0, steps, 9):
        case = make(at)
        again = at % 7
        while case.cut_off(again + at % 5):
            case.check_nothing_is_lost(f"cut at step {at}, then at {again}")
            again += 17
        case.check_next_pass(f"after cuts from {at} on")


def test_h22_an_error_at_any_step_is_named_or_made_good(make: Callable[[object], Case]) -> None:
    """The server said EIO, or "no space", once: never clean and different; and then the next pass."""
    steps = length(make)
    for at in range(steps):
        case = make(at)
        case.steps.fail(at, (errno.EIO, errno.ENOSPC)[at % 2])
        with contextlib.suppress(NfsProvisionerError, OSError):
            if case.sides.run(threads=case.threads).clean:
                assert Picture.of(case.sides.target) == case.new, at
        case.steps.restart()
        case.check_nothing_is_lost(f"step {at} failed")
        case.check_next_pass(f"after a failure of step {at}")


def test_h27_a_sync_of_plain_directories_is_killed_at_any_step(steps: Steps, tmp_path: Path) -> None:
    """Its staging lies in the target; the next run removes what is left of it."""
    at, over = 0, False
    while not over:
        case = Case(tmp_path / f"{at}", steps, 1)
        source, target = str(case.sides.source), str(case.sides.target)
        steps.cut(at)
        with contextlib.suppress(Cut):
            plain.sync(source, target, threads=1)
        over = not steps.was_cut
        steps.restart()
        result = plain.sync(source, target, threads=1)
        assert result.clean, (at, result)
        assert Picture.of(case.sides.target) == case.new, at
        at += 1
    assert at > 80


class Recorder:
    """Keeps what is on a disk at the chosen steps of a pass, as a power cut leaves it: without what only memory has."""

    def __init__(self, disk: LoopFileSystem, home: Path) -> None:
        self._disk, self._home = disk, home
        self.kept: list[tuple[str, Path]] = []
        for number in range(200):  # made in advance: while a step is under way nothing here may be one itself
            (home / f"{number}").mkdir(parents=True)

    def keep(self, moment: str) -> None:
        """Copy the image; again, when the kernel wrote to it meanwhile: no disk has its sectors from two moments."""
        place = self._home / f"{len(self.kept)}" / self._disk.image.name
        stood = None
        while stood != self._disk.image.stat().st_mtime_ns:
            stood = self._disk.image.stat().st_mtime_ns
            subprocess.run((find("cp"), "--sparse=always", str(self._disk.image), str(place)), check=True)
        self.kept.append((moment, place))


@pytest.fixture(params=["ext4", "xfs"])
def fstype(request: pytest.FixtureRequest) -> FileSystemType:
    kind: FileSystemType = request.param
    return kind


def test_h27_h42_after_a_power_cut_every_file_is_whole_and_what_was_called_clean_is_complete(
    fstype: FileSystemType, tmp_path: Path
) -> None:
    home = tmp_path / "disk"
    with LoopFileSystem(home, SIZE[fstype], fstype) as disk, Steps(syncing=True).counted() as steps:
        sides = Sides(tmp_path, disk.path)
        before(sides.source)
        assert sides.run(threads=1).clean
        old = Picture.of(sides.target)
        after(sides.source)
        new = Picture.of(sides.source)
        recorder = Recorder(disk, tmp_path / "kept")
        steps.restart()
        recent: list[str] = []

        def at(number: int, name: str) -> None:
            if number % 4 == 0 or "syncfs" in (name, *recent[-1:]):
                recorder.keep(f"before step {number}, {name}")
            recent.append(name)

        steps.at = at
        assert sides.run(threads=1).clean
        recorder.keep("clean")
        (sides.staging / "record").write_text("clean")
        recorder.keep("recorded")
        steps.restart()
    assert len(recorder.kept) > 30
    for moment, image in recorder.kept:
        examine(LoopFileSystem(image.parent, SIZE[fstype], fstype), old, new, moment)
        image.unlink()


def examine(disk: LoopFileSystem, old: Picture, new: Picture, moment: str) -> None:
    """What is there after the power is back. Contents are like no other file's, so an empty or torn one shows."""
    disk.mount()
    try:
        target = Picture.of(disk.path / "target")
        mine, theirs, now = old.files(), new.files(), target.files()
        half = [path for path, digest in now.items() if digest not in {*mine.values(), *theirs.values()}]
        assert half == [], moment
        assert set(mine.values()) <= digests(disk.path / "target", disk.path / "trash"), moment
        if moment in ("clean", "recorded") or (disk.path / "staging" / "record").exists():
            assert target == new, moment
    finally:
        disk.unmount()
