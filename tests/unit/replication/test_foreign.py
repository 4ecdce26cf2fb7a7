"""H38: something else writes to the target. It is kept, named, and stops the volume until a person has looked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugins.passes import SECOND, Picture, Sides


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def fill(root: Path, names: tuple[str, ...] = ("a", "b", "d/c", "d/e/f")) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")


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
    kept = {name: facts for name, facts in before.entries.items() if name == path or name.startswith(path + "/")}
    assert kept.items() <= Picture.of(sides.target).entries.items()
    assert (sides.target / "new").read_text() == "new"
    # A person looked at it and said so: then the copy is one again, and trash has the rest.
    sides.quiet(wrote=None)
    assert sides.kept(path)


def test_h38_nothing_that_a_pass_did_is_taken_for_somebody_elses(sides: Sides) -> None:
    """Nor what emptying trash does: a file that had another link there has a new ctime."""
    fill(sides.source)
    sides.quiet()
    os.link(sides.source / "d" / "c", sides.source / "linked")
    sides.quiet()
    for change in (
        lambda: (sides.source / "linked").unlink(),
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
