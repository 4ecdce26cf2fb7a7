"""H38: something else writes to the target. It is kept, named, and stops the volume until a person has looked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from nfs_provisioner.replication.foreign import Foreign
from tests.plugins.passes import SECOND, Picture, Sides, fill


def wrote_now(sides: Sides) -> int:
    """The target's time, after all that was written there."""
    os.utime(sides.staging)
    at = sides.staging.stat().st_ctime_ns
    while sides.staging.stat().st_ctime_ns == at:  # what comes now is later by that clock, which moves in steps
        os.utime(sides.staging)
    return at


def foreign_file(sides: Sides) -> str:
    (sides.target / "strange").write_text("of somebody else")
    return "strange"


def foreign_old_file(sides: Sides) -> str:
    """As rsync writes it: a new file with the time of an old one."""
    (sides.target / "d" / "strange").write_text("of somebody else")
    os.utime(sides.target / "d" / "strange", ns=(SECOND, SECOND))
    return "d/strange"


def foreign_tree(sides: Sides) -> str:
    (sides.target / "strange" / "deep").mkdir(parents=True)
    (sides.target / "strange" / "deep" / "file").write_text("of somebody else")
    return "strange"


def foreign_entry_below_what_is_to_go(sides: Sides) -> str:
    (sides.target / "d" / "e" / "strange").write_text("of somebody else")
    shutil.rmtree(sides.source / "d" / "e")
    return "d/e"


def foreign_content(sides: Sides) -> str:
    (sides.target / "d" / "c").write_text("of somebody else")
    (sides.source / "d" / "c").write_text("new")
    return "d/c"


def foreign_file_where_a_directory_is_to_be(sides: Sides) -> str:
    (sides.target / "strange").write_text("of somebody else")
    (sides.source / "strange").mkdir()
    return "strange"


def foreign_directory_where_a_file_is_to_be(sides: Sides) -> str:
    (sides.target / "strange").mkdir()
    (sides.target / "strange" / "file").write_text("of somebody else")
    (sides.source / "strange").write_text("new")
    return "strange"


FOREIGN = [
    foreign_file,
    foreign_old_file,
    foreign_tree,
    foreign_entry_below_what_is_to_go,
    foreign_content,
    foreign_file_where_a_directory_is_to_be,
    foreign_directory_where_a_file_is_to_be,
]


def at(picture: Picture, path: str) -> dict[str, tuple[object, ...]]:
    """What lies there, with all below."""
    return {name: facts for name, facts in picture.entries.items() if name == path or name.startswith(path + "/")}


@pytest.mark.parametrize("intrude", FOREIGN)
def test_h38_what_somebody_else_wrote_on_the_target_is_kept_and_named(
    sides: Sides, intrude: Callable[[Sides], str]
) -> None:
    fill(sides.source)
    sides.quiet()
    wrote = wrote_now(sides)
    path = intrude(sides)
    before = Picture.of(sides.target)
    (sides.source / "new").write_text("new")
    result = sides.run(wrote=wrote)
    assert not result.clean and result.foreign == (path,)
    assert at(before, path) == at(Picture.of(sides.target), path)
    assert (sides.target / "new").read_text() == "new"
    # A person looked at it and said so: then the copy is one again, and trash has the rest.
    sides.quiet(wrote=None)
    assert sides.kept(path)


def test_h38_nothing_that_a_pass_did_is_taken_for_somebody_elses(sides: Sides) -> None:
    """Nor what emptying trash does: a file that had another link there has a new ctime."""
    fill(sides.source)
    for name in ("linked", "again"):
        os.link(sides.source / "d" / "c", sides.source / name)
    sides.quiet()
    os.utime(sides.source / "a", (1 << 32, 1 << 32))
    for change in (
        lambda: (sides.source / "linked").unlink(),
        lambda: (sides.source / "d" / "c").write_text("it had a link in trash"),
        lambda: (sides.source / "a").write_text("it had a time in the future"),
        lambda: (sides.source / "d").rename(sides.source / "renamed"),
        lambda: (sides.source / "renamed" / "c").write_text("other"),
        lambda: shutil.rmtree(sides.source / "renamed"),
        lambda: (sides.source / "b").unlink(),
    ):
        wrote = wrote_now(sides)
        for kept in sides.trash.iterdir():
            shutil.rmtree(kept) if kept.is_dir() and not kept.is_symlink() else kept.unlink()
        change()
        sides.quiet(wrote=wrote)


@pytest.mark.parametrize("intrude", FOREIGN)
def test_h38_what_was_seen_to_be_foreign_stays_so_after_later_writes_of_ours(
    sides: Sides, intrude: Callable[[Sides], str]
) -> None:
    fill(sides.source)
    sides.quiet()
    path = intrude(sides)
    wrote = wrote_now(sides)
    before = Picture.of(sides.target)
    result = sides.run(wrote=wrote, foreign=frozenset({path}))
    assert result.foreign == (path,)
    assert at(before, path) == at(Picture.of(sides.target), path)


def test_h38_a_directory_with_something_foreign_far_below_stays(sides: Sides) -> None:
    fill(sides.source)
    sides.quiet()
    foreign_tree(sides)
    result = sides.run(wrote=wrote_now(sides), foreign=frozenset({"strange/deep/file"}))
    assert result.foreign == ("strange",) and (sides.target / "strange" / "deep" / "file").exists()


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("intrude", FOREIGN)
def test_h38_what_a_person_let_go_is_replaced_and_nothing_else(
    sides: Sides, intrude: Callable[[Sides], str], below: bool
) -> None:
    """`below`: they said so of the directory that it lies in."""
    fill(sides.source)
    sides.quiet()
    wrote = wrote_now(sides)
    path = intrude(sides)
    (sides.target / "another").touch()
    named = os.path.dirname(path) if below and "/" in path else path
    result = sides.run(wrote=wrote, foreign=frozenset({path, "another"}), forgiven=frozenset({named}))
    assert result.foreign == ("another",)
    assert sides.kept(path)
    (sides.target / "another").unlink()
    sides.quiet()


def test_h38_what_came_before_the_pass_is_told_from_what_it_wrote_itself(sides: Sides) -> None:
    """Looked at once more after its own writes, as by a directory that changes meanwhile."""
    wrote = wrote_now(sides)
    target, staging = (os.open(path, os.O_RDONLY) for path in (sides.target, sides.staging))
    try:
        judge = Foreign(wrote, frozenset(), staging)
        (sides.target / "theirs").touch()
        wrote_now(sides)
        judge.begin()
        (sides.target / "ours").touch()
        judge.begin()
        found = {name: judge.is_foreign(target, name, (sides.target / name).stat()) for name in ("theirs", "ours")}
    finally:
        os.close(target)
        os.close(staging)
    assert found == {"theirs": True, "ours": False}
