"""What must not go wrong in a pass, one hazard after the other; each test was seen red without its guard."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import mmap
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.errors import LostLeadership, RefusedForSafety, RetryLater
from nfs_provisioner.replication import changes, contents, plain, tree
from nfs_provisioner.replication.entries import Holds
from nfs_provisioner.replication.holds import probe
from nfs_provisioner.replication.passes import Result
from tests.plugins.hang import HangingDirectory
from tests.plugins.loopfs import MIB, LoopFileSystem
from tests.plugins.packages import find, require, require_root
from tests.plugins.passes import SECOND, Picture, Sides, Steps, digests, during_copy, exchange, fill, no_margin


def nothing_done(result: Result) -> bool:
    counts = result.counts
    return not any((counts.copied_files, counts.mended, counts.renamed, counts.linked, counts.deleted))


def rewrite_in_place(path: Path, content: bytes) -> None:
    """As a program does that restores the times afterwards."""
    found = path.stat()
    assert len(content) == found.st_size
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


# H20: an empty source, or another one


def refuse_at(number: int) -> Callable[[], None]:
    """Proof fails at the `number`-th time."""
    asked = 0

    def prove() -> None:
        nonlocal asked
        asked += 1
        if asked == number:
            raise RefusedForSafety("the source is not what it was")

    return prove


def test_h20_what_cannot_be_proven_is_not_written_to(sides: Sides) -> None:
    fill(sides.source)
    with pytest.raises(RefusedForSafety):
        sides.run(prove=refuse_at(1))
    assert list(sides.target.iterdir()) == []


def test_h20_both_sides_are_proven_again_before_the_first_deletion(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    (sides.source / "a").unlink()
    shutil.rmtree(sides.source / "d")
    (sides.source / "new").write_text("new")
    with pytest.raises(RefusedForSafety):
        sides.run(prove=refuse_at(2))
    assert {"a", "b", "d", "new"} <= {path.name for path in sides.target.iterdir()}
    assert (sides.target / "d" / "e" / "f").exists()
    sides.quiet()


def test_h20_both_sides_are_proven_before_a_directory_makes_way_for_a_file(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    shutil.rmtree(sides.source / "d")
    (sides.source / "d").write_text("a file")
    with pytest.raises(RefusedForSafety):
        sides.run(prove=refuse_at(2))
    assert (sides.target / "d" / "e" / "f").exists()


def test_h20_an_empty_source_stops_at_the_limit_and_goes_on_when_it_is_back(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    before = Picture.of(sides.target).files()
    away = sides.source.rename(sides.source.with_name("mounted"))
    sides.source.mkdir()
    asked = []

    def limit(deletions: int, entries: int) -> bool:
        asked.append((deletions, entries))
        return deletions <= entries // 2

    result = sides.run(delete_limit=limit)
    assert (result.clean, result.waiting, asked) == (False, 6, [(6, 6)])  # a, b, d, d/c, d/e and d/e/f
    assert Picture.of(sides.target).files() == before
    assert list(sides.trash.iterdir()) == []
    sides.source.rmdir()
    away.rename(sides.source)
    sides.quiet(delete_limit=limit)


def test_h20_a_directory_in_the_way_counts_for_the_limit(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    shutil.rmtree(sides.source / "d")
    (sides.source / "d").symlink_to("a")
    result = sides.run(delete_limit=lambda deletions, entries: False)
    assert (result.clean, result.waiting) == (False, 4)
    assert (sides.target / "d" / "e" / "f").exists()


def test_h20_sync_refuses_an_empty_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    fill(target)
    with pytest.raises(RefusedForSafety, match="mounted"):
        plain.sync(str(source), str(target))
    assert len(Picture.of(target).files()) == 4


@pytest.mark.parametrize("operation", ["opendir", "readdir", "getattr"])
def test_h20_a_source_that_cannot_be_read_deletes_nothing(operation: str, tmp_path: Path) -> None:
    sides = Sides(tmp_path)
    backing = sides.source.rename(tmp_path / "backing")
    fill(backing)
    with HangingDirectory(backing, sides.source) as source:
        assert sides.run(holds=Holds(xattrs=False, acls=False)).clean
        shutil.rmtree(backing / "d" / "e")
        (backing / "a").unlink()
        for after in range(12):
            source.fail(errno.EIO, only={operation}, after=after)
            with contextlib.suppress(RetryLater, OSError):
                result = sides.run(holds=Holds(xattrs=False, acls=False))
                if not result.clean:
                    assert result.errors
                    assert not sides.kept("b")
            source.release()
            assert {"b", "d"} <= {path.name for path in sides.target.iterdir()}, after
            assert (sides.target / "d" / "c").exists(), after
        assert sides.run(holds=Holds(xattrs=False, acls=False)).clean
        assert not (sides.target / "d" / "e").exists()


@pytest.mark.parametrize("what", ["kept", "kept/file"])
def test_h20_what_moved_into_a_directory_that_cannot_be_read_is_not_deleted(what: str, sides: Sides) -> None:
    """It is under no name that shows, and it is not gone: one pass after the other, while that lasts."""
    fill(sides.source, ("locked/other", "kept/file"))
    sides.quiet()
    (sides.source / what).rename(sides.source / "locked" / "moved")
    real = tree.list_directory

    def listed(fd: int, **options: Any) -> tree.Listing:
        if os.readlink(f"/proc/self/fd/{fd}") == str(sides.source / "locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(fd, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "list_directory", listed)
        for _ in range(3):
            result = sides.run()
            assert not result.clean and result.counts.deleted == 0
            assert result.errors == (("locked", os.strerror(errno.EACCES)),)
            assert result.deferred == {what} and (sides.target / "kept" / "file").exists()
    sides.quiet()


def test_h20_what_was_renamed_keeps_its_old_name_while_it_cannot_be_copied(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    (sides.source / "d" / "c").rename(sides.source / "d" / "renamed")
    real = contents.open_source

    def opened(directory: int, name: str) -> int:
        if name == "renamed":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(directory, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "open_source", opened)
        for _ in range(3):
            result = sides.run()
            assert result.errors == (("d/renamed", os.strerror(errno.EIO)),) and result.deferred == {"d/c"}
            assert (sides.target / "d" / "c").exists()
    sides.quiet()


# H42: what trash has may stand where a directory is to be


def test_h42_a_kept_link_does_not_stand_in_the_way_of_what_is_kept_below_its_name(sides: Sides) -> None:
    (sides.source / "a").symlink_to("a")
    sides.quiet()
    (sides.source / "a").unlink()
    (sides.source / "a" / "below").mkdir(parents=True)
    (sides.source / "a" / "below" / "in").write_text("one")
    os.link(sides.source / "a" / "below" / "in", sides.source / "a" / "linked")
    sides.quiet()
    (sides.source / "a" / "below" / "in").write_text("two")
    sides.quiet()
    assert len(sides.kept("a")) == 2


# H22: the target is full, or read-only


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopFileSystem]:
    with LoopFileSystem(tmp_path / "disk", 16 * MIB) as disk:
        yield disk


def test_h22_a_full_target_is_said_to_be_full_and_the_pass_goes_on_when_there_is_room(
    disk: LoopFileSystem, tmp_path: Path
) -> None:
    sides = Sides(tmp_path, disk.path)
    for number in range(12):
        (sides.source / f"d{number % 3}").mkdir(exist_ok=True)
        (sides.source / f"d{number % 3}" / f"{number}").write_bytes(os.urandom(700_000))
    (sides.source / "small").write_text("old")
    sides.quiet()
    for number in range(12):
        (sides.source / f"d{number % 3}" / f"new-{number}").write_bytes(os.urandom(100_000))
        (sides.source / f"d{number % 3}" / f"{number}").chmod(0o640)
    (sides.source / "small").write_text("new")
    (sides.source / "d1" / "1").unlink()
    ballast = disk.fill(leave=500_000)
    for _ in range(2):
        with pytest.raises(RetryLater, match="full"):
            sides.run()
        assert (sides.target / "small").read_text() in ("old", "new")
        assert (sides.target / "d1" / "1").exists() or sides.kept("d1/1")
    ballast.unlink()
    sides.quiet()


def test_h22_a_read_only_target_ends_the_pass_and_is_written_when_it_can_be(
    disk: LoopFileSystem, tmp_path: Path
) -> None:
    sides = Sides(tmp_path, disk.path)
    fill(sides.source)
    sides.quiet()
    fill(sides.source, ("a", "new", "d/new", "new-directory/file"))
    (sides.source / "b").unlink()
    before = Picture.of(sides.target)
    disk.read_only()
    for _ in range(2):
        with pytest.raises(RetryLater, match="read-only"):
            sides.run()
    disk.read_only(False)
    assert Picture.of(sides.target) == before
    sides.quiet()


def test_h22_a_guard_that_raises_stops_before_the_next_write(sides: Sides, tmp_path: Path) -> None:
    fill(sides.source)
    sides.quiet()
    fill(sides.source, ("new", "d/new"))
    (sides.source / "a").unlink()

    def guard() -> None:
        raise LostLeadership("another one leads")

    before = Picture.of(sides.target)
    with pytest.raises(LostLeadership):
        sides.run(guard=guard)
    assert Picture.of(sides.target) == before
    sides.quiet()


# H24: times


def test_h24_a_rewrite_that_keeps_size_and_mtime_is_copied(sides: Sides) -> None:
    (sides.source / "file").write_bytes(b"before")
    with no_margin():
        sides.quiet()
        rewrite_in_place(sides.source / "file", b"behind")
        sides.quiet()


def test_h24_a_rewrite_two_seconds_before_the_last_pass_is_distrusted(sides: Sides) -> None:
    """Time stamps of some file systems are that coarse: a change after the pass may look older than it."""
    (sides.source / "file").write_bytes(b"before")
    sides.quiet()
    rewrite_in_place(sides.source / "file", b"behind")
    assert sides.base is not None
    sides.base = (sides.source / "file").stat().st_ctime_ns + 2 * SECOND
    sides.quiet()


def test_h24_without_a_clean_pass_nothing_is_trusted(sides: Sides) -> None:
    fill(sides.source)
    for name in ("a", "d/c"):
        (sides.target / name).parent.mkdir(exist_ok=True)
        (sides.target / name).write_bytes(b"X" * (sides.source / name).stat().st_size)
        found = (sides.source / name).stat()
        os.utime(sides.target / name, ns=(found.st_atime_ns, found.st_mtime_ns))
    with no_margin():
        sides.quiet()


def test_h24_times_in_1970_before_it_and_in_the_future(sides: Sides) -> None:
    times = (0, 1, -SECOND, 4_102_444_800 * SECOND + 123_456_789, 10_000_000_000 * SECOND + 1)
    for number, time in enumerate(times):
        (sides.source / f"{number}").write_text("x")
        (sides.source / f"d{number}").mkdir()
        (sides.source / f"l{number}").symlink_to("nowhere")
        for kind in ("", "d", "l"):
            os.utime(sides.source / f"{kind}{number}", ns=(time, time), follow_symlinks=False)
    sides.quiet()
    sides.settle()
    assert nothing_done(sides.quiet())
    (sides.source / "3").write_text("y")
    os.utime(sides.source / "3", ns=(times[3], times[3]))
    (sides.source / "d3" / "gone").write_text("z")
    (sides.source / "d3" / "gone").unlink()
    os.utime(sides.source / "d3", ns=(times[3], times[3]))
    assert sides.base is not None
    sides.base -= 10 * SECOND
    sides.quiet()


def test_h24_a_time_in_the_future_does_not_keep_a_deletion_waiting(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    (sides.source / "d" / "c").unlink()
    os.utime(sides.source / "d", ns=(4_102_444_800 * SECOND,) * 2)
    sides.quiet()


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_h24_the_source_says_what_time_it_is(ahead: int, sides: Sides) -> None:
    """What counts is the clock that stamps the source's files; an hour more or less here must not matter."""
    fill(sides.source)
    moment = tree.moment() + ahead * SECOND
    assert sides.quiet(clock=lambda: moment).began == moment


# H25: a file changes while it is copied


@pytest.mark.parametrize("size", [6000, 400_000])
def test_h25_a_new_file_that_never_holds_still_is_copied_again(size: int, sides: Sides) -> None:
    fill(sides.source)
    (sides.source / "log").write_bytes(b"0" * size)

    def append(number: int) -> None:
        with (sides.source / "log").open("ab") as file:
            file.write(b"more")

    with during_copy(append):
        result = sides.run(threads=1)
    assert (result.clean, result.unstable) == (False, ("log",))
    assert not (sides.target / "log").exists() or (sides.target / "log").stat().st_mtime_ns == 1
    with no_margin():
        sides.quiet()


@pytest.mark.parametrize("size", [6000, 400_000])
def test_h25_of_a_file_that_never_holds_still_the_last_whole_copy_stays(size: int, sides: Sides) -> None:
    (sides.source / "database").write_bytes(b"0" * size)
    sides.quiet()
    (sides.source / "database").write_bytes(b"1" * size)

    def write(number: int) -> None:
        tree.moment()  # of one size: only the time tells, which some kernels count in steps
        (sides.source / "database").write_bytes(b"%d" % (number + 2) * size)

    with during_copy(write):
        result = sides.run()
    assert (result.clean, result.unstable) == (False, ("database",))
    assert (sides.target / "database").read_bytes() == b"0" * size
    sides.quiet()


def test_h25_a_file_that_holds_still_in_time_is_copied_whole(sides: Sides) -> None:
    (sides.source / "file").write_bytes(b"0" * 6000)

    def once(number: int) -> None:
        if number == 0:
            (sides.source / "file").write_bytes(b"1" * 6000)

    with during_copy(once):
        assert sides.run().clean
    assert (sides.target / "file").read_bytes() == b"1" * 6000


def test_h25_one_of_several_links_that_never_holds_still(sides: Sides) -> None:
    (sides.source / "one").write_bytes(b"0" * 6000)
    (sides.source / "two").hardlink_to(sides.source / "one")

    def write(number: int) -> None:
        tree.moment()
        (sides.source / "one").write_bytes(b"%d" % (number + 1) * 6000)

    with during_copy(write):
        assert not sides.run().clean
    sides.quiet()


def test_h25_no_mix_of_two_states_is_taken_for_clean(sides: Sides) -> None:
    """A writer that works through a file from its beginning: every moment of it is newer in front than behind."""
    blocks, size = 48, 64 << 10
    (sides.source / "file").write_bytes(b"\0" * blocks * size)
    end = threading.Event()
    file = (sides.source / "file").open("r+b", buffering=0)

    def write() -> None:
        generation = 0
        while not end.is_set():
            generation = (generation + 1) % 250
            for block in range(blocks):
                os.pwrite(file.fileno(), bytes([generation]) * size, block * size)
                if end.wait(0.0005):
                    return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(8):
            if sides.run(threads=1).clean:
                data = (sides.target / "file").read_bytes()
                newest, *others = (data[block * size] for block in range(blocks))
                ages = [(newest - generation) % 250 for generation in others]
                assert ages == sorted(ages) and ages[-1] <= 1, ages
    finally:
        end.set()
        writer.join()
        file.close()
    sides.quiet()


# H26: a directory becomes something else between look and action


class Outside:
    """A tree that no pass was asked to touch, with the names that the pass is busy with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        fill(root, ("c", "e/f", "new", "gone", "secret"))
        self._picture = Picture.of(root)
        self._secrets = digests(root)

    def is_untouched(self) -> bool:
        return Picture.of(self.root) == self._picture

    def leaked_to(self, *roots: Path) -> bool:
        return bool(self._secrets & digests(*roots))


def prepared(home: Path) -> tuple[Sides, Outside]:
    """Copies, changes in place, renames, links and deletions are due in `d`; outside lies what has the same names."""
    home.mkdir()
    sides = Sides(home)
    fill(sides.source, ("a", "d/c", "d/gone", "d/mended", "d/e/f", "d/e/gone", "d/renamed/file"))
    (sides.source / "d" / "linked").hardlink_to(sides.source / "a")
    with Steps().counted():  # no sync: a hundred of them take minutes on a busy disk, and nothing here needs one
        assert sides.run().clean
    for path in ("d/c", "d/e/f", "d/new", "d/e/new"):
        (sides.source / path).write_text(f"new content of {path}")
    (sides.source / "d" / "mended").chmod(0o600)
    shutil.rmtree(sides.source / "d" / "e" / "gone", ignore_errors=True)
    for path in ("d/gone", "d/e/gone"):
        (sides.source / path).unlink()
    (sides.source / "d" / "renamed").rename(sides.source / "d" / "e" / "renamed")
    (sides.source / "d" / "linked-2").hardlink_to(sides.source / "a")
    return sides, Outside(home / "outside")


@contextlib.contextmanager
def moments(act: Callable[[int], None]) -> Iterator[None]:
    """Do `act(number)` before every opening of a directory, and before every change: between look and action."""
    numbers, real = itertools.count(), tree.open_directory

    def opened(root: int, path: str) -> int:
        act(next(numbers))
        return real(root, path)

    steps = Steps()
    steps.at = lambda number, name: act(next(numbers))
    with steps.counted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "open_directory", opened)
        yield


def swapped_at(moment: int, home: Path, side: str, becomes: str) -> int:
    """How many moments there were in a pass in which `d` became something else at this one."""
    sides, outside = prepared(home)
    place: Path = getattr(sides, side) / "d"
    other, rename, last = home / side / "other", os.rename, 0
    if becomes == "file":
        other.write_text("not a directory")
    elif becomes != "gone":
        other.symlink_to({"link": outside.root, "relative link": Path("../outside")}[becomes])

    def swap(number: int) -> None:
        nonlocal last
        last = number
        if number == moment:
            rename(place, home / "away") if becomes == "gone" else exchange(place, other)

    with moments(swap), contextlib.suppress(RetryLater):
        sides.run(threads=1)
    assert outside.is_untouched(), moment
    assert not outside.leaked_to(sides.target, sides.trash, sides.staging), moment
    return last + 1


@pytest.mark.parametrize("becomes", ["link", "relative link", "file", "gone"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_h26_a_directory_that_is_swapped_at_any_moment_leads_nowhere(side: str, becomes: str, tmp_path: Path) -> None:
    number = swapped_at(-1, tmp_path / "undisturbed", side, becomes)
    assert number > 60
    for moment in range(0, number, 2 if side == "source" else 1):
        swapped_at(moment, tmp_path / f"{moment}", side, becomes)


@pytest.mark.parametrize("side", ["source", "target"])
def test_h26_a_tenant_that_swaps_all_the_time(side: str, tmp_path: Path) -> None:
    sides, outside = prepared(tmp_path / "home")
    place, other = getattr(sides, side) / "d", tmp_path / "other"
    other.symlink_to(outside.root)
    end = threading.Event()

    def swap() -> None:
        while not end.is_set():
            with contextlib.suppress(FileNotFoundError):  # a pass is between taking one away and putting one there
                exchange(place, other)

    tenant = threading.Thread(target=swap)
    tenant.start()
    try:
        for number in range(30):
            (sides.source / "d" / "c").write_text(f"{number}") if side == "target" else None
            with contextlib.suppress(RetryLater):
                sides.run()
    finally:
        end.set()
        tenant.join()
    assert outside.is_untouched()
    assert not outside.leaked_to(sides.target, sides.trash)
    if place.is_symlink():
        exchange(place, other)
    sides.quiet()


@contextlib.contextmanager
def bound(what: Path, where: Path) -> Iterator[None]:
    """Mounted there as well."""
    require("mount", "umount", debian=["mount"])
    require_root("mounting a directory")
    subprocess.run((find("mount"), "--bind", str(what), str(where)), check=True)
    try:
        yield
    finally:
        subprocess.run((find("umount"), "--lazy", str(where)), check=True)


def test_h26_what_is_mounted_on_the_source_is_not_part_of_it(sides: Sides, tmp_path: Path) -> None:
    outside = Outside(tmp_path / "outside")
    fill(sides.source, ("a", "mount/hidden"))
    sides.quiet()
    with bound(outside.root, sides.source / "mount"):
        result = sides.run()
        assert [path for path, _ in result.skipped] == ["mount"]
        assert not outside.leaked_to(sides.target)
        assert (sides.target / "mount" / "hidden").exists()
    assert outside.is_untouched()
    sides.quiet()


@pytest.mark.parametrize("change", ["delete", "write", "becomes a file"])
def test_h26_what_is_mounted_on_the_target_is_not_touched_and_the_copy_not_called_clean(
    change: str, sides: Sides, tmp_path: Path
) -> None:
    outside = Outside(tmp_path / "outside")
    fill(sides.source)
    sides.quiet()
    if change == "write":
        fill(sides.source, ("d/new",))
    else:
        shutil.rmtree(sides.source / "d")
        (sides.source / "d").write_text("file") if change == "becomes a file" else None
    with bound(outside.root, sides.target / "d"):
        result = sides.run()
        assert not result.clean
        assert "d" in str(result.skipped + result.errors)
    assert outside.is_untouched()
    sides.quiet()


def test_h26_a_name_that_turned_into_a_link_is_not_read_through(sides: Sides, tmp_path: Path) -> None:
    outside = Outside(tmp_path / "outside")
    fill(sides.source)
    real = tree.list_directory

    def listed(fd: int, **options: bool) -> tree.Listing:
        listing = real(fd, **options)  # type: ignore[arg-type]
        (sides.source / "a").unlink(missing_ok=True)
        (sides.source / "a").symlink_to(outside.root / "secret")
        return listing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "list_directory", listed)
        sides.run()
    assert not outside.leaked_to(sides.target, sides.staging)
    sides.quiet()
    assert not outside.leaked_to(sides.target)


# H28: what must not be copied again, or change its nature


def test_h28_a_renamed_directory_is_renamed(sides: Sides) -> None:
    fill(sides.source, tuple(f"before/in/{number}" for number in range(200)))
    (sides.source / "elsewhere").mkdir()
    sides.quiet()
    inode = (sides.target / "before" / "in" / "7").stat().st_ino
    (sides.source / "before").rename(sides.source / "elsewhere" / "after")
    counts = sides.quiet().counts
    assert (counts.copied_files, counts.renamed, counts.deleted) == (0, 1, 0)
    assert (sides.target / "elsewhere" / "after" / "in" / "7").stat().st_ino == inode


def test_h28_renames_within_renames_and_into_what_is_new(sides: Sides) -> None:
    fill(sides.source, ("one/two/three/file", "one/other", "four/file"))
    sides.quiet()
    (sides.source / "one" / "two").rename(sides.source / "two")
    (sides.source / "one").rename(sides.source / "two" / "one")
    (sides.source / "new").mkdir()
    (sides.source / "four").rename(sides.source / "new" / "four")
    counts = sides.quiet().counts
    assert (counts.copied_files, counts.renamed, counts.deleted) == (0, 3, 0)


def test_h28_two_directories_that_swapped_names(sides: Sides) -> None:
    fill(sides.source, ("one/1", "two/2"))
    sides.quiet()
    exchange(sides.source / "one", sides.source / "two")
    sides.quiet()


def test_h28_hard_links_stay_links(sides: Sides) -> None:
    fill(sides.source, ("one", "single", "in/other"))
    for name in ("two", "in/three"):
        (sides.source / name).hardlink_to(sides.source / "one")
    assert sides.quiet().counts.copied_files == 3
    (sides.source / "in" / "single").hardlink_to(sides.source / "single")
    (sides.source / "two").unlink()
    (sides.source / "two").hardlink_to(sides.source / "in" / "other")
    counts = sides.quiet().counts
    assert (counts.copied_files, counts.linked) == (0, 2)
    assert nothing_done(sides.quiet())


def test_h28_a_linked_file_where_a_directory_was(sides: Sides) -> None:
    fill(sides.source, ("d/in", "e/in", "one"))
    sides.quiet()
    for name in ("d", "e"):
        shutil.rmtree(sides.source / name)
    (sides.source / "d").hardlink_to(sides.source / "one")
    (sides.source / "e").write_text("e")
    (sides.source / "f").hardlink_to(sides.source / "e")
    sides.quiet()
    assert nothing_done(sides.quiet())


def test_h28_a_directory_renamed_away_from_a_name_that_is_something_else_now(sides: Sides) -> None:
    fill(sides.source, ("d/in/file",))
    sides.quiet()
    (sides.source / "d").rename(sides.source / "away")
    (sides.source / "d").symlink_to("away")
    sides.quiet()


def test_h28_holes_stay_holes(sides: Sides) -> None:
    for name, size in (("end", 0), ("large", 70 * MIB)):
        with (sides.source / name).open("wb") as file:
            file.write(b"begin")
            file.seek(size)
            file.write(b"middle" * (size > 0))
            file.truncate(100 * MIB)
    (sides.source / "nothing").write_bytes(b"")
    os.truncate(sides.source / "nothing", 10 * MIB)
    sides.quiet()
    assert Picture.of(sides.target).holes == {"end", "large", "nothing"}
    assert sum(path.stat().st_blocks * 512 for path in sides.target.iterdir()) < MIB


def test_h28_owners_modes_and_attributes(sides: Sides) -> None:
    require_root("files of other owners")
    fill(sides.source)
    for name, mode in (("a", 0o4755), ("b", 0o000), ("d", 0o2770), ("d/c", 0o1666)):
        os.chown(sides.source / name, 12345, 54321)
        (sides.source / name).chmod(mode)
        os.setxattr(sides.source / name, "user.mine", b"value")
    os.setxattr(sides.source / "a", "security.capability", b"\1\0\0\2\0\4\0\0" + b"\0" * 12)
    sides.quiet()
    sides.settle()
    assert nothing_done(sides.quiet())
    assert sides.base is not None
    sides.base -= 20 * SECOND
    os.removexattr(sides.source / "d", "user.mine")
    os.removexattr(sides.source / "a", "security.capability")
    os.chown(sides.source / "d" / "c", 1, 2)
    counts = sides.quiet().counts
    assert (counts.copied_files, counts.mended) == (0, 3)


# H30: bit rot


@pytest.mark.parametrize("side", ["source", "target"])
def test_h30_other_content_under_the_same_times_is_named_and_kept_on_both_sides(side: str, sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    rewrite_in_place(getattr(sides, side) / "a", b"CONTENT of a")
    sides.settle()
    before = Picture.of(sides.source), Picture.of(sides.target)
    result = sides.run()
    assert result.clean and nothing_done(result)
    sides.settle()
    result = sides.run(checksum=True)
    assert (result.clean, result.different) == (False, ("a",))
    assert (Picture.of(sides.source), Picture.of(sides.target)) == before
    found = plain.verify(str(sides.source), str(sides.target), checksum=True)
    assert (found.clean, found.different) == (False, ("a",))
    assert (Picture.of(sides.source), Picture.of(sides.target)) == before


# H31: names and numbers


def test_h31_names_that_nobody_expects(sides: Sides) -> None:
    names = (b"\xff\xfe", b"new\nline", b"\x01", b" ", b"*", b"-rf", b"'\"$(id)", b"l" * 255, b"\xe2\x80\xae", b"a.~1~")
    for raw in names:
        name = os.fsdecode(raw)
        (sides.source / name).write_text("old")
        (sides.source / f"d{name[:250]}").mkdir()
        (sides.source / f"d{name[:250]}" / name).write_text("in it")
        (sides.source / f"s{name[:250]}").symlink_to(name)
    sides.quiet()
    for raw in names:
        name = os.fsdecode(raw)
        (sides.source / name).write_text("something new")
        (sides.source / f"s{name[:250]}").unlink()
    sides.quiet()
    for raw in names:
        (sides.source / os.fsdecode(raw)).unlink()
    assert sides.quiet().counts.deleted == len(names)


def test_h31_what_is_no_file(sides: Sides) -> None:
    require_root("devices")
    kinds = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    for number, kind in enumerate(kinds):
        os.mknod(sides.source / f"{number}", kind | 0o640, os.makedev(7, 200 + number))
        os.chown(sides.source / f"{number}", 1000, 1000)
    sides.quiet()
    assert nothing_done(sides.quiet())
    (sides.source / "3").unlink()
    os.mknod(sides.source / "3", stat.S_IFBLK | 0o640, os.makedev(7, 210))
    os.chown(sides.source / "0", 1, 1)
    sides.quiet()


def test_h31_a_device_that_the_target_cannot_hold_is_named(sides: Sides) -> None:
    require_root("devices")
    os.mknod(sides.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    fill(sides.source)
    result = sides.run(holds=Holds(devices=False))
    assert [path for path, _ in result.skipped] == ["null"]
    assert (sides.target / "a").exists() and not (sides.target / "null").exists()


def test_h31_a_path_longer_than_a_call_takes(sides: Sides) -> None:
    def end(root: Path, *, create: bool = False) -> int:
        fd = os.open(root, os.O_RDONLY)
        for number in range(40):
            name = f"{number:03}" + "d" * 200
            if create:
                os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd

    def write(fd: int, name: str, content: bytes) -> None:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=fd)
        os.write(file, content)
        os.close(file)

    def read(fd: int) -> dict[str, bytes]:
        found = {}
        for name in os.listdir(fd):
            file = os.open(name, os.O_RDONLY, dir_fd=fd)
            found[name] = os.read(file, 100)
            os.close(file)
        return found

    ours = end(sides.source, create=True)
    try:
        write(ours, "file", b"old")
        write(ours, "gone", b"gone")
        os.link("file", "linked", src_dir_fd=ours, dst_dir_fd=ours)
        assert sides.run().clean
        theirs = end(sides.target)
        assert read(theirs) == {"file": b"old", "gone": b"gone", "linked": b"old"}
        write(ours, "file", b"newer")
        os.unlink("gone", dir_fd=ours)
        assert sides.run().clean
        assert read(theirs) == {"file": b"newer", "linked": b"newer"}
        os.close(theirs)
    finally:
        os.close(ours)


def test_h31_a_hundred_thousand_entries_in_one_directory(sides: Sides) -> None:
    number = 100_000
    many = sides.source / "many"
    many.mkdir()
    fd = os.open(many, os.O_RDONLY)
    try:
        for entry in range(number):
            os.close(os.open(f"file-{entry}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
    finally:
        os.close(fd)
    result = sides.run(threads=4)
    assert result.clean and result.counts.copied_files == number
    (many / "file-17").write_text("changed")
    (many / "file-18").unlink()
    (many / "new").write_text("new")
    sides.settle()
    assert sides.base is not None
    sides.base = tree.moment() - 1  # the file that was changed has another size
    counts = sides.run(threads=4).counts
    assert (counts.copied_files, counts.deleted) == (2, 1)
    assert set(os.listdir(sides.target / "many")) == set(os.listdir(many))
    assert (sides.target / "many" / "file-17").read_text() == "changed"


# H42: the last clean copy


def test_h42_what_is_replaced_or_deleted_is_kept(sides: Sides) -> None:
    fill(sides.source)
    for round_number in range(3):
        sides.quiet()
        for name in ("a", "d/c"):
            (sides.source / name).write_text(f"{round_number} of {name}" * (round_number + 1))
    shutil.rmtree(sides.source / "d")
    (sides.source / "a").unlink()
    (sides.source / "a").mkdir()
    sides.quiet()
    kept = digests(sides.target, sides.trash)
    for name in ("a", "d/c", "d/e/f"):
        assert digests_of(f"content of {name}") <= kept
    assert digests_of("0 of a", "1 of a" * 2, "0 of d/c", "1 of d/c" * 2) <= kept


def digests_of(*texts: str) -> set[bytes]:
    return {hashlib.sha256(text.encode()).digest() for text in texts}


def test_h42_every_copy_is_durable_before_it_replaces_anything(sides: Sides) -> None:
    """The order of steps: whatever was written since the last sync is not renamed over what is there."""
    fill(sides.source)
    (sides.source / "two").hardlink_to(sides.source / "b")
    sides.quiet()
    for name in ("a", "b", "d/c", "d/new", "new/in/it"):
        (sides.source / name).parent.mkdir(parents=True, exist_ok=True)
        (sides.source / name).write_text("something new")
    shutil.rmtree(sides.source / "d" / "e")
    (sides.source / "d" / "e").write_text("a file")
    steps = Steps()
    with steps.counted():
        assert sides.run(threads=1).clean
    written = False
    for name in steps.names:
        if name in ("open", "write", "copy_file_range", "pwrite"):
            written = True
        elif name == "syncfs":
            written = False
        assert not (name == "rename" and written), steps.names
    assert steps.names.count("rename") >= 5
    assert steps.names[-1] in ("syncfs", "rmdir", "unlink")


# H44: renames during the walk


def test_h44_a_directory_that_moves_while_it_is_looked_for_is_not_deleted(sides: Sides) -> None:
    """It is under neither name, when each is looked at; and afterwards it is under the first."""
    fill(sides.source, ("first/x", "last/kept/file"))
    sides.quiet()
    real = tree.list_directory

    def listed(fd: int, **options: bool) -> tree.Listing:
        place = os.readlink(f"/proc/self/fd/{fd}")
        if place == str(sides.source / "last") and (sides.source / "last" / "kept").exists():
            (sides.source / "last" / "kept").rename(sides.source / "first" / "kept")
        return real(fd, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "list_directory", listed)
        (sides.source / "first").rename(sides.source / "again")
        (sides.source / "again").rename(sides.source / "first")
        result = sides.run(threads=1, directories={})
    if not (sides.target / "first" / "kept").exists():
        assert (sides.target / "last" / "kept" / "file").exists()
        assert not result.clean and result.deferred == {"last/kept"}
    sides.quiet()


@pytest.mark.parametrize("kind", ["file", "linked", "directory"])
def test_h44_what_moves_during_the_walk_into_a_directory_that_was_listed_is_found(sides: Sides, kind: str) -> None:
    for name in ("a", "z"):
        (sides.source / name).mkdir()
    sides.quiet()
    new = sides.source / "z" / "new"
    if kind == "directory":
        new.mkdir()
    (new / "file" if kind == "directory" else new).write_text("was there all the time")
    if kind == "linked":
        os.link(new, sides.source / "z" / "stays")
    real, listed = changes.survey, list[str]()

    def survey(source: int, target: int, path: str, *rest: Any, **options: Any) -> changes.Survey:
        found = real(source, target, path, *rest, **options)
        listed.append(path)
        if path == "a" and listed.count("a") == 1:
            new.rename(sides.source / "a" / "new")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "survey", survey)
        result = sides.run(threads=1)
    assert listed.index("a") < listed.index("z")
    moved = sides.target / "a" / "new"
    assert (moved / "file" if kind == "directory" else moved).exists() or not result.clean
    sides.quiet()


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "swapped"])
@pytest.mark.parametrize("linked", [True, False], ids=["linked", "single"])
@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
def test_h53_a_directory_that_took_anothers_place_is_not_the_one_that_was_copied(
    sides: Sides, replaced: bool, linked: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have the sizes and times of the other's, and their ctimes are old."""
    if large:
        monkeypatch.setattr(changes, "SMALL", 0)
    for name in ("current", "next"):
        (sides.source / name / "deep").mkdir(parents=True)
        for file in ("file", "deep/file"):
            (sides.source / name / file).write_text(name[:4])
            os.utime(sides.source / name / file, (1, 1))
            if linked:
                os.link(sides.source / name / file, sides.source / name / f"{file}-linked")
    sides.quiet()
    sides.settle()
    if replaced:
        shutil.rmtree(sides.source / "current")
        (sides.source / "next").rename(sides.source / "current")
    else:
        exchange(sides.source / "current", sides.source / "next")
    sides.quiet()
    assert (sides.target / "current" / "deep" / "file").read_text() == "next"


def test_h44_a_name_that_is_back_when_it_is_to_be_deleted_stays(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    (sides.source / "b").rename(sides.source.with_name("b"))
    asked = list[None]()

    def prove() -> None:  # the second time is before the first deletion
        asked.append(None)
        if len(asked) == 2:
            sides.source.with_name("b").rename(sides.source / "b")

    result = sides.run(prove=prove)
    assert len(asked) == 2 and not result.clean
    assert (sides.target / "b").exists()
    assert not sides.kept("b")
    sides.quiet()


def test_h44_a_deletion_in_a_busy_directory_waits_for_the_pass_after(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    (sides.source / "d" / "c").unlink()

    def busy() -> None:
        (sides.source / "d" / "busy").touch()
        (sides.source / "d" / "busy").unlink()

    result = sides.run(prove=busy)
    assert not result.clean and result.deferred == {"d/c"}
    assert (sides.target / "d" / "c").exists()
    result = sides.run(prove=busy)
    assert result.counts.deleted == 1
    assert not (sides.target / "d" / "c").exists()
    sides.quiet()


@pytest.fixture
def restless(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> Sides:
    """The source's directory d changes after each listing, and shows nothing of it afterwards."""
    real = os.scandir
    fill(sides.source)
    sides.quiet()
    (sides.source / "d" / "c").unlink()

    @contextlib.contextmanager
    def listed(fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        with real(fd) as scan:
            yield scan
        if os.readlink(f"/proc/self/fd/{fd}") == str(sides.source / "d"):
            before = os.fstat(fd)
            while os.fstat(fd).st_ctime_ns == before.st_ctime_ns:  # until the clock that stamps files has moved
                (sides.source / "d" / "busy").touch()
                (sides.source / "d" / "busy").unlink()

    monkeypatch.setattr(os, "scandir", listed)
    return sides


def test_h44_a_directory_that_never_held_still_makes_no_clean_pass(restless: Sides) -> None:
    result = restless.run()
    assert (result.clean, result.unstable) == (False, ("d",))


def test_h44_what_a_restless_listing_lacks_is_deleted_by_the_pass_after_however_old_the_change_seems(
    restless: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass is said to begin an hour later, so that no time of the directory speaks against the deletion."""
    moment = tree.moment() + 3600 * SECOND
    result = restless.run(clock=lambda: moment)
    assert result.deferred == {"d/c"} and (restless.target / "d" / "c").exists()
    assert restless.run(clock=lambda: moment).counts.deleted == 1
    monkeypatch.undo()
    restless.base = None
    restless.quiet()


def test_h44_files_that_always_existed_are_never_deleted(sides: Sides) -> None:
    """While a thread renames within a large directory, and moves directories between two."""
    fill(sides.source, tuple(f"large/{number}-{'x' * 60}" for number in range(3000)))
    fill(sides.source, tuple(f"{place}/{name}/file" for place in ("left", "right") for name in "abcd"))
    sides.quiet()
    everything = set(Picture.of(sides.source).files().values())
    end = threading.Event()

    def rename() -> None:
        number = 0
        while not end.is_set():
            number += 1
            path = sides.source / "large" / f"{number % 3000}-{'x' * 60}"
            other = path.with_name(f"moved-{number}")
            path.rename(other)
            other.rename(path)
            name = "abcd"[number % 4]
            for one, another in (("left", "right"), ("right", "left")):
                with contextlib.suppress(OSError):
                    (sides.source / one / name).rename(sides.source / another / f"{name}-of-{one}")
                with contextlib.suppress(OSError):
                    (sides.source / one / f"{name}-of-{another}").rename(sides.source / another / name)

    tenant = threading.Thread(target=rename)
    tenant.start()
    try:
        for _ in range(10):
            sides.run()
            assert everything <= set(Picture.of(sides.target).files().values())
    finally:
        end.set()
        tenant.join()
    sides.quiet()


# H49: syncfs that lies, and close that fails


def test_h49_a_failed_sync_publishes_nothing(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    before = Picture.of(sides.target)
    fill(sides.source, ("new", "d/new"))
    (sides.source / "a").write_text("rewritten")
    (sides.source / "b").unlink()
    target = os.stat(sides.target)

    def failing(fd: int) -> None:
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) == (target.st_dev, target.st_ino):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "sync_filesystem", failing)
        with pytest.raises(RetryLater, match="syncfs"):
            sides.run()
    assert Picture.of(sides.target).files() == before.files()
    sides.quiet()


def test_h49_the_last_sync_counts_as_well(sides: Sides) -> None:
    fill(sides.source)
    syncs = 0

    def second_fails(fd: int) -> None:
        nonlocal syncs
        if os.fstat(fd).st_ino == sides.target.stat().st_ino:
            syncs += 1
            if syncs == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "sync_filesystem", second_fails)
        with pytest.raises(RetryLater, match="syncfs"):
            sides.run()
    sides.quiet()


def test_h49_one_descriptor_is_asked_and_was_open_before_the_first_write(sides: Sides) -> None:
    """A descriptor opened later is not told of errors before (syncfs(2)); one that was told, not again."""
    fill(sides.source)
    asked: list[tuple[int, int]] = []
    opened_at: dict[int, int] = {}
    steps, real_open = Steps(), os.open

    def noted(*arguments: object, **named: object) -> int:
        fd = real_open(*arguments, **named)  # type: ignore[arg-type]
        opened_at[fd] = len(steps.names)
        return fd

    def sync(fd: int) -> None:
        if os.fstat(fd).st_ino == sides.target.stat().st_ino:
            asked.append((fd, opened_at[fd]))

    with steps.counted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", noted)
        patch.setattr(tree, "sync_filesystem", sync)
        assert sides.run().clean
    assert len(asked) >= 2 and len(set(asked)) == 1
    assert asked[0][1] == 0


@pytest.mark.parametrize("operation", ["flush", "fsync", "write"])
def test_h49_a_file_whose_close_or_fsync_fails_is_not_taken_for_copied(operation: str, tmp_path: Path) -> None:
    sides = Sides(tmp_path)
    home, backing = tmp_path / "mount", tmp_path / "backing"
    backing.mkdir()
    fill(sides.source, ("a", "b", "large"))
    (sides.source / "large").write_bytes(os.urandom(300_000))
    with HangingDirectory(backing, home, flush=True) as disk:
        remote = Sides(tmp_path, home)
        holds = Holds(xattrs=False, acls=False)
        disk.fail(errno.EIO, only={operation}, after=1)
        with contextlib.suppress(RetryLater):
            assert not remote.run(holds=holds).clean
        disk.release()
        assert {path.name for path in remote.target.iterdir()} != {"a", "b", "large"}
        assert remote.run(holds=holds).clean
        assert Picture.of(backing / "target").files() == Picture.of(sides.source).files()


# H53: inodes are used again


def test_h53_another_directory_with_the_same_inode_is_not_taken_for_a_rename(sides: Sides) -> None:
    fill(sides.source, ("old/file",))
    sides.quiet()
    _, birth = sides.directories["old"]
    assert isinstance(birth, int)
    shutil.rmtree(sides.source / "old")
    (sides.source / "new").mkdir()
    (sides.source / "new" / "file").write_text("content OF old/file")
    reborn = {"": sides.directories[""], "old": ((sides.source / "new").stat().st_ino, birth)}
    counts = sides.quiet(directories=reborn).counts
    assert (counts.renamed, counts.copied_files, counts.deleted) == (0, 1, 1)


def test_h53_an_inode_that_the_file_system_really_used_again(sides: Sides) -> None:
    for number in range(50):
        before, after = sides.source / f"old{number}", sides.source / f"new{number}"
        before.mkdir()
        (before / "file").write_text("a")
        sides.run()
        inode = before.stat().st_ino
        found = (before / "file").stat()
        shutil.rmtree(before)
        tree.moment()  # born later by the file system's own clock, however quick the pass was
        after.mkdir()
        (after / "file").write_text("b")
        os.utime(after / "file", ns=(found.st_atime_ns, found.st_mtime_ns))
        reused = after.stat().st_ino == inode
        with no_margin():
            counts = sides.quiet().counts
        assert counts.renamed == 0
        if reused:
            return
    pytest.skip("this file system did not use an inode again")


def test_h53_what_lies_in_a_renamed_directory_is_compared(sides: Sides) -> None:
    fill(sides.source, ("old/same", "old/rewritten", "old/gone"))
    sides.quiet()
    (sides.source / "old").rename(sides.source / "new")
    rewrite_in_place(sides.source / "new" / "rewritten", b"CONTENT of old/rewritten")
    (sides.source / "new" / "gone").unlink()
    with no_margin():
        counts = sides.quiet().counts
    assert (counts.renamed, counts.copied_files, counts.deleted) == (1, 1, 1)


# H54: staging on another file system


def test_h54_staging_on_another_file_system_is_refused(sides: Sides, disk: LoopFileSystem) -> None:
    fill(sides.source)
    sides.staging = disk.path / "staging"
    sides.staging.mkdir()
    with pytest.raises(RefusedForSafety, match="EXDEV"):
        sides.run()
    assert list(sides.target.iterdir()) == []


# H55: what a side cannot hold


def as_a_server_that_forgets(root: Path, *, whole_seconds: bool, owners: bool, attributes: bool) -> None:
    """What such a server would have made of what was written."""
    for place, directories, files in os.walk(root, topdown=False):
        for name in (*directories, *files, "."):
            path = os.path.join(place, name)
            found = os.lstat(path)
            if owners:
                os.chown(path, 65534, 65534, follow_symlinks=False)
                if not stat.S_ISLNK(found.st_mode):
                    os.chmod(path, stat.S_IMODE(found.st_mode))
            if attributes and not stat.S_ISLNK(found.st_mode):
                for attribute in os.listxattr(path):
                    os.removexattr(path, attribute)
            if whole_seconds:
                seconds = found.st_mtime_ns // SECOND * SECOND
                os.utime(path, ns=(seconds, seconds), follow_symlinks=False)


@pytest.mark.parametrize("linked", [False, True])
def test_h55_what_one_side_cannot_hold_is_not_copied_again_and_again(linked: bool, sides: Sides) -> None:
    require_root("files of other owners")
    fill(sides.source)
    (sides.source / "link").symlink_to("a")
    os.mkfifo(sides.source / "fifo")
    if linked:
        (sides.source / "linked").hardlink_to(sides.source / "a")
    for name in ("a", "d", "d/c"):
        os.chown(sides.source / name, 1000, 1000)
        os.setxattr(sides.source / name, "user.one", b"1")
    holds = Holds(nanoseconds=False, owners=False, xattrs=False, acls=False)
    assert sides.run(holds=holds).clean
    as_a_server_that_forgets(sides.target, whole_seconds=True, owners=True, attributes=True)
    for base in (sides.base, None):
        sides.base = base
        before = Picture.of(sides.target)
        result = sides.run(holds=holds)
        assert result.clean and nothing_done(result), result
        assert Picture.of(sides.target) == before
    (sides.source / "d" / "c").write_text("changed now")
    assert sides.run(holds=holds).counts.copied_files == 1


def test_h55_links_and_modes_that_a_side_does_not_hold(sides: Sides) -> None:
    fill(sides.source)
    (sides.source / "linked").hardlink_to(sides.source / "a")
    (sides.source / "b").chmod(0o600)
    holds = Holds(links=False, modes=False)
    assert sides.run(holds=holds).clean
    for name in ("a", "linked", "b"):
        (sides.target / name).chmod(0o777)
    result = sides.run(holds=holds)
    assert result.clean and nothing_done(result)
    assert (sides.target / "linked").stat().st_nlink == 1


def test_h55_a_probe_says_what_a_directory_holds(tmp_path: Path, disk: LoopFileSystem) -> None:
    fd = os.open(disk.path, os.O_RDONLY)
    try:
        assert probe(fd) == Holds()
        assert {path.name for path in disk.path.iterdir()} == {"lost+found"}
    finally:
        os.close(fd)


# H57: a store through mmap


def test_h57_a_store_through_mmap_after_the_copy_is_seen_by_the_next_pass(disk: LoopFileSystem, tmp_path: Path) -> None:
    """The page stays writable, so that a second store moves no time; writing it back first makes the next one move it."""
    sides = Sides(disk.path, tmp_path)
    (sides.source / "mapped").write_bytes(b"0" * 8192)
    with (sides.source / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped, no_margin():
        mapped[0:5] = b"first"
        assert sides.run().clean
        mapped[0:5] = b"after"
        moved = (sides.source / "mapped").stat().st_mtime_ns - (sides.target / "mapped").stat().st_mtime_ns
        assert sides.run().clean
        assert (sides.target / "mapped").read_bytes()[:5] == b"after", moved
