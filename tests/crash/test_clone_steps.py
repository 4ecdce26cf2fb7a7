"""Making a clone, cut off at each of its steps, goes on after a restart; so does taking it back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfs_provisioner.errors import NfsProvisionerError
from nfs_provisioner.export import clones
from nfs_provisioner.export.records import State
from nfs_provisioner.replication import cloning
from tests.plugins.packages import require_root
from tests.plugins.passes import Cut, Picture, Steps
from tests.unit.export.world import World, volume

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

DIRECTORY = "team/new"


@pytest.fixture
def steps() -> Iterator[Steps]:
    with Steps().counted() as counted:
        yield counted


class Case:
    """An export with the live volume `old` and a bystander; `new` is to be its clone."""

    def __init__(self, root: Path) -> None:
        require_root("giving directories to other owners")
        root.mkdir()
        self.world = World(root)
        self.store = self.world.start()
        self.source, self.clone = root / "old", root / DIRECTORY
        self.world.make(self.store, "old", "old")
        self.world.make(self.store, "live", "bystander")
        (self.source / "marker").unlink()  # it tells trees apart, and a clone's is another tree
        for number in range(4):
            (self.source / f"file-{number}").write_bytes(os.urandom(1000 * number))
        os.link(self.source / "file-2", self.source / "sub" / "again")
        os.symlink("nowhere", self.source / "link")
        self.before = self.world.snapshot(["old", "live"])

    def make(self) -> None:
        """What the controller does until the clone has its PV."""
        record = clones.prepare(self.store, volume("new", DIRECTORY, clone_of="old"))
        if record.state is State.CREATING and not record.copied:
            cloning.fill(self.store, record, guard=self.store.guard)
        self.store.make_live("new")

    def undo(self) -> None:
        self.store.undo("new")

    def restart(self) -> None:
        self.world.stop()
        self.store = self.world.start()

    def check(self, moment: str, *, made: bool) -> None:
        assert self.world.broken_promises() == [], moment
        assert self.world.snapshot(["old", "live"]) == self.before, moment
        if made:
            assert Picture.of(self.clone) == Picture.of(self.source), moment
            record = self.world.records()["new"]
            assert (record.state, record.copied) == (State.LIVE, True), moment
        else:
            assert "new" not in self.world.records(), moment
            assert not self.clone.parent.exists(), moment
        assert self.store.empty_trash(lambda: False)
        assert os.listdir(self.world.control / "trash") == [], moment
        self.world.stop()


def cut_off(steps: Steps, at: int, act: Callable[[], None]) -> bool:
    """Whether it was cut off, and was not over before."""
    steps.cut(at)
    try:
        act()
    except Cut:
        return True
    finally:
        steps.restart()
    return False


def test_a_clone_cut_off_anywhere_is_finished_after_a_restart(tmp_path: Path, steps: Steps) -> None:
    at, over = 0, False
    while not over:
        case = Case(tmp_path / f"{at}")
        over = not cut_off(steps, at, case.make)
        case.restart()
        case.make()
        case.check(f"cut at {at}", made=True)
        at += 1
    assert at > 40


def test_a_clone_cut_off_anywhere_leaves_nothing_when_its_claim_goes(tmp_path: Path, steps: Steps) -> None:
    at, over = 0, False
    while not over:
        case = Case(tmp_path / f"{at}")
        over = not cut_off(steps, at, case.make)
        case.restart()
        if over:  # it has its PV
            assert case.world.records()["new"].state is State.LIVE
            case.world.stop()
            return
        if case.world.records().get("new", volume("new", "x")).state is State.CREATING:
            case.undo()
            case.check(f"cut at {at}", made=False)
        at += 1


def test_taking_a_clone_back_is_finished_after_a_restart(tmp_path: Path, steps: Steps) -> None:
    at, over = 0, False
    while not over:
        case = Case(tmp_path / f"{at}")
        cut_off(steps, 45, case.make)
        case.restart()
        assert any(case.clone.iterdir()), "something was copied"
        over = not cut_off(steps, at, case.undo)
        case.restart()
        case.undo()
        case.check(f"cut at {at} of taking it back", made=False)
        at += 1
    assert at > 2


def test_an_error_at_any_step_is_made_good_by_trying_again(tmp_path: Path, steps: Steps) -> None:
    """Without a restart: the server said EIO once."""
    at, over = 0, False
    while not over:
        case = Case(tmp_path / f"{at}")
        steps.fail(at)
        with contextlib.suppress(OSError, NfsProvisionerError):
            case.make()
        over = len(steps.names) <= at
        steps.restart()
        case.make()
        case.check(f"step {at} failed", made=True)
        at += 1
    assert at > 40
