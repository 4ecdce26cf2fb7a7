"""What other machines do while a pass is under way: they write behind a cache, promote a side, take a replica over.

Each test was seen red without its guard.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.replication import contents
from nfs_provisioner.replication.entries import Holds
from nfs_provisioner.replication.pairwork import PairWorker
from nfs_provisioner.replication.tree import moment
from tests.plugins.hang import HangingDirectory
from tests.plugins.passes import Sides, during_copy
from tests.unit.replication.twins import Twins

PLAIN = Holds(xattrs=False, acls=False)


# H47: both looks of the torn-copy check come from one client's cache


@pytest.fixture
def remembered(tmp_path: Path) -> Iterator[tuple[Sides, Path]]:
    """Two sides, the source a mount that remembers; and the directory that it shows, where others write."""
    sides = Sides(tmp_path)
    backing = sides.source.rename(tmp_path / "backing")
    (backing / "file").write_bytes(b"0" * 300_000)
    with HangingDirectory(backing, sides.source, remember=True):
        yield sides, backing


def test_h47_a_file_that_another_client_wrote_during_its_copy_is_not_taken_for_whole(
    remembered: tuple[Sides, Path],
) -> None:
    sides, backing = remembered

    def write(number: int) -> None:
        moment()  # of one size: only the time tells, which some kernels count in steps
        with (backing / "file").open("r+b") as file:
            file.write(b"%d" % (number + 1) * 1000)

    with during_copy(write):
        result = sides.run(threads=1, holds=PLAIN)
    assert (result.clean, result.unstable) == (False, ("file",))


def test_h47_the_next_try_reads_what_the_other_client_wrote(remembered: tuple[Sides, Path]) -> None:
    sides, backing = remembered

    def once(number: int) -> None:
        if number == 0:
            (backing / "file").write_bytes(b"1" * 300_000)

    with during_copy(once):
        assert sides.run(threads=1, holds=PLAIN).clean
    assert (sides.target / "file").read_bytes() == b"1" * 300_000


def test_h47_a_file_that_another_client_wrote_while_it_was_compared_is_not_taken_for_equal(
    remembered: tuple[Sides, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides, backing = remembered
    assert sides.run(holds=PLAIN).clean
    sides.base = None  # so that everything is compared in depth
    real = contents.equal_content

    def compare(source: int, target: int, size: int, tick: Callable[[], None]) -> bool:
        same = real(source, target, size, tick)
        with (backing / "file").open("ab") as file:
            file.write(b"more")
        return same

    with monkeypatch.context() as patch:
        patch.setattr(contents, "equal_content", compare)
        result = sides.run(threads=1, holds=PLAIN)
    assert result.counts.copied_files == 1
    assert (sides.target / "file").read_bytes() == (backing / "file").read_bytes()


# H29: a standby is promoted in the middle of a pass; H41: a newer worker takes it over


OLD = {"d/changed": "old", "d/same": "same", "f": "of then", "gone/file": "older"}
NEW = {"d/changed": "new", "d/same": "same", "e/added": "new", "f": "new"}


def halfway(home: Path) -> tuple[Twins, PairWorker]:
    """A volume that was copied, and has changed since in every way."""
    twins = Twins(home)
    twins.make("pv")
    place = twins.root("a") / "pv"
    write(place, OLD)
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    shutil.rmtree(place / "gone")
    write(place, NEW)
    (place / "d" / "same").chmod(0o640)
    return twins, worker


def write(place: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)


def held(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def at_each_step(home: Path, act: Callable[[Twins], object]) -> Iterator[Twins]:
    """A new pair each time, in whose pass `act` is done before the first step, the second, and so on to the last.

    The pass must end there: with the error that says so, and with nothing changed on the standby.
    """
    for number in itertools.count():
        twins, worker = halfway(home / str(number))
        copy, steps, before = twins.root("b") / "pv", itertools.count(), dict[str, str]()
        real = worker.guard

        def guard() -> None:
            if next(steps) == number:  # noqa: B023
                act(twins)  # noqa: B023
                before.update(held(copy))  # noqa: B023
            real()  # noqa: B023

        worker.guard = guard  # type: ignore[method-assign]
        ended = ""
        try:
            twins.run(worker, "pv")
        except (RetryLater, RefusedForSafety) as error:
            ended = error.message
        if next(steps) <= number:  # it has no such step
            assert not ended and number > 10 and held(copy) == NEW
            twins.stop()
            return
        # Another of its threads may have been about to prove the sides just then, which tells as much.
        assert "newer worker" in ended or "until it is looked at anew" in ended, (number, ended)
        assert held(copy) == before, number
        yield twins
        twins.stop()


def test_h41_a_pass_whose_replica_was_taken_over_stops_before_its_next_step(tmp_path: Path) -> None:
    for twins in at_each_step(tmp_path, Twins.opened):
        noted = twins.noted("pv")
        assert noted.base is not None and (noted.under_way is not None or held(twins.root("b") / "pv") == OLD)
        assert twins.run(twins.workers[-1], "pv").clean
        assert held(twins.root("b") / "pv") == NEW


def test_h29_a_standby_that_is_promoted_in_the_middle_of_a_pass_is_left_alone_and_known_to_be_between_two_states(
    tmp_path: Path,
) -> None:
    def promote(twins: Twins) -> None:
        twins.rewrite("b", active="b", epoch=twins.side("b").epoch + 1, promotion="another")
        twins.restart("b")
        (twins.root("b") / "pv" / "f").write_text("a tenant's, after the promotion")

    seen = set()
    for twins in at_each_step(tmp_path, promote):
        noted, copy = twins.noted("pv"), held(twins.root("b") / "pv")
        assert copy.pop("f") == "a tenant's, after the promotion"
        assert all(content in (OLD.get(name), NEW.get(name)) for name, content in copy.items())
        between = copy != {name: content for name, content in OLD.items() if name != "f"}
        assert noted.base is not None and (noted.under_way is not None or not between)
        kept = {path.read_text() for place in twins.kept() for path in place.rglob("*") if path.is_file()}
        assert {"old", "older"} <= kept | set(copy.values())
        seen.add(between)
        with pytest.raises(RetryLater, match="newer worker"):
            twins.run(twins.workers[0], "pv")
        with pytest.raises(RefusedForSafety):
            twins.worker().open(replace(twins.expected, active=twins.side("a")), "00000002", 0)
    assert seen == {False, True}
