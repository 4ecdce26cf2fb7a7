"""What looks equal and is not, and what can never look equal; each test was seen red without its guard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfs_provisioner.replication import contents, plain
from nfs_provisioner.replication.holds import probe
from tests.plugins.loopfs import MIB, FileSystemType, LoopFileSystem
from tests.plugins.passes import SECOND, Picture, Sides, exchange, no_margin


def write(path: Path, text: str, *, linked: bool = False) -> None:
    """With the mtime that all of them have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(SECOND, SECOND))
    if linked:
        path.with_name("linked").hardlink_to(path)


# H24: a directory in another's place


def test_h24_a_scrub_of_a_directory_in_anothers_place_copies_it(sides: Sides) -> None:
    for name in ("current", "next"):
        write(sides.source / name / "f", f"{name:10}")
    sides.quiet()
    sides.settle()
    exchange(sides.source / "current", sides.source / "next")
    sides.quiet(checksum=True)


def test_h24_a_swapped_directory_among_those_that_are_dirty(sides: Sides) -> None:
    for name in ("current", "next"):
        write(sides.source / name / "below" / "f", f"{name:10}")
    sides.quiet()
    sides.settle()
    exchange(sides.source / "current", sides.source / "next")
    assert sides.run(only=frozenset({"", "current", "next"})).clean
    assert sides.differences() == ""


def test_h28_below_a_renamed_directory_nothing_is_read(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("first/f", "first/below/f", "first/below/deeper/f"):
        write(sides.source / path, path)
    sides.quiet()
    sides.settle()
    (sides.source / "first").rename(sides.source / "second")
    (sides.source / "second" / "below").rename(sides.source / "second" / "beneath")
    read: list[str] = []
    real = contents.open_source

    def opened(fd: int, name: str) -> int:
        read.append(name)
        return real(fd, name)

    monkeypatch.setattr(contents, "open_source", opened)
    counts = sides.run().counts
    assert (counts.renamed, counts.copied_files, read) == (2, 0, [])
    monkeypatch.undo()
    sides.quiet()


# H30: bit rot


@pytest.mark.parametrize("side", ["source", "target"])
def test_h30_other_content_of_linked_files_is_named_and_kept_on_both_sides(side: str, sides: Sides) -> None:
    write(sides.source / "a", "good", linked=True)
    sides.quiet()
    write(getattr(sides, side) / "a", "ROT!")
    sides.settle()
    before = Picture.of(sides.source), Picture.of(sides.target)
    result = sides.run(checksum=True)
    assert (result.clean, sorted(result.different)) == (False, ["a", "linked"])
    found = plain.verify(str(sides.source), str(sides.target), checksum=True)
    assert (found.clean, sorted(found.different), found.log) == (False, ["a", "linked"], ())
    assert (Picture.of(sides.source), Picture.of(sides.target)) == before


@pytest.mark.parametrize(("one_clock", "linked"), [(False, False), (False, True), (True, True)])
def test_h30_without_a_clean_pass_a_change_is_copied_however_old_it_looks(
    one_clock: bool, linked: bool, sides: Sides
) -> None:
    """A directory took another's place after the first copy: equal sizes and times, ctimes before the target's.

    With one clock and single files nothing tells that they are to be read (docs/replication.md, "Equal").
    """
    for name in ("current", "next"):
        write(sides.source / name / "f", f"{name:10}", linked=linked)
    sides.quiet()
    shutil.rmtree(sides.source / "current")
    (sides.source / "next").rename(sides.source / "current")
    sides.base, sides.directories = None, {}
    with no_margin():
        sides.quiet(one_clock=one_clock)


def test_h30_another_name_of_a_file_whose_copy_just_changed_its_links_is_copied(sides: Sides) -> None:
    """What the pass itself replaced among the links of a set moves the ctime of the rest."""
    for name in ("o1", "o3"):
        write(sides.source / name, f"{name:10}")
    for name in ("c1", "c2"):
        (sides.source / name).hardlink_to(sides.source / "o1")
    sides.quiet(one_clock=True)
    (sides.source / "c1").unlink()
    (sides.source / "c1").hardlink_to(sides.source / "o3")
    (sides.target / "c2").unlink()
    (sides.target / "c2").write_text("something else")
    sides.base, sides.directories = None, {}
    with no_margin():
        sides.quiet(one_clock=True)


# H55: times that the target cannot hold


@pytest.fixture(params=["ext4", "xfs"])
def short(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopFileSystem]:
    """A file system that ends in 2038."""
    kind: FileSystemType = request.param
    options = {"ext4": ("-I", "128"), "xfs": ("-m", "bigtime=0")}[kind]
    with LoopFileSystem(tmp_path / "disk", 300 * MIB, kind, options=options) as disk:
        yield disk


def test_h55_times_that_the_target_cannot_hold_are_copied_once(short: LoopFileSystem, tmp_path: Path) -> None:
    sides = Sides(tmp_path, short.path)
    for number, seconds in enumerate((4_102_444_800, 2_147_483_647.5, -(1 << 31) - 0.5, -(1 << 31) + 0.5, 1, 1e9)):
        (sides.source / f"d{number}").mkdir()
        (sides.source / f"d{number}" / "f").write_text("x")
        for path in (sides.source / f"d{number}" / "f", sides.source / f"d{number}"):
            os.utime(path, ns=(int(seconds * SECOND),) * 2)
    fd = os.open(sides.staging, os.O_RDONLY)
    try:
        holds = probe(fd)
    finally:
        os.close(fd)
    assert "times" in holds.lacking() and (holds.earliest, holds.latest) == (-(1 << 31) * SECOND, (2**31 - 1) * SECOND)
    # What Linux makes of a fraction in the first second; few sources can show one.
    assert [holds.time(holds.earliest + ns) for ns in (-1, 1, SECOND)] == [
        holds.earliest, holds.earliest, holds.earliest + SECOND,
    ]  # fmt: skip
    assert sides.run(holds=holds).clean
    for base in (sides.base, None):
        sides.base = base
        result = sides.run(holds=holds)
        assert result.clean and result.counts.copied_files == result.counts.mended == 0
        assert not list(sides.trash.iterdir())
    os.utime(sides.source / "d4" / "f", ns=(2 * SECOND, 2 * SECOND))
    assert sides.run(holds=holds).counts.copied_files == 1
