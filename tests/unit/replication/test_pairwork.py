"""The child's passes on two real directories: what comes before the first write, what is noted, and what is refused."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export import kept
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.syncrecord import Base, SyncRecord, UnderWay, decode_sync, encode_sync
from nfs_provisioner.replication import entries
from nfs_provisioner.replication.ending import Ending
from nfs_provisioner.replication.pair import Ended, Kept, Pair
from nfs_provisioner.replication.pairwork import PairWorker
from tests.unit.replication.twins import Twins, boot_offset

HOUR = 3600 * 10**9


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    made = Twins(tmp_path)
    yield made
    made.stop()


def test_a_file_arrives_and_the_copy_is_noted(twins: Twins) -> None:
    record = twins.make("pv", "shop/app")
    (twins.root("a") / "shop/app/file").write_text("data")
    worker, _ = twins.opened()
    before = time.time_ns()
    report = twins.run(worker, "pv")
    assert report.clean and report.copied_files == 1 and report.copied_bytes == 4
    assert (twins.root("b") / "shop/app/file").read_text() == "data"
    noted = twins.noted("pv")
    assert noted.under_way is None
    assert noted.base is not None
    assert (noted.base.promotion, noted.base.seq, noted.base.rev) == ("promotion", 1, record.rev)
    assert before - 10**9 <= noted.base.as_of <= time.time_ns()
    assert twins.side("a").seq == 1


def test_a_pass_that_finds_nothing_writes_nothing(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    twins.run(worker, "pv")
    twins.settled("pv")
    assert twins.run(worker, "pv").clean  # the directories of the next pass are made
    before = twins.everything("b")
    raised = list(twins.raised)
    assert twins.run(worker, "pv").clean
    assert {p: s for p, s in twins.everything("b").items() if "/work/" not in p} == {
        p: s for p, s in before.items() if "/work/" not in p
    }
    assert twins.raised == raised == [1]


def test_the_base_of_a_copy_that_stays_clean_is_written_anew_now_and_then(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    twins.run(worker, "pv")
    twins.settled("pv")
    first = twins.noted("pv").base
    twins.run(worker, "pv", refresh=3600.0)
    assert twins.noted("pv").base == first
    twins.run(worker, "pv", refresh=-3600.0)
    assert twins.noted("pv").base != first
    assert twins.raised == [1]


def test_h27_a_copy_between_two_states_says_so_wherever_the_pass_was_cut_off(twins: Twins) -> None:
    twins.make("pv")
    place = twins.root("a") / "pv"
    (place / "directory").mkdir()
    for number in range(3):
        (place / f"file{number}").write_text("data")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    states = set()
    for steps in itertools.count(1):
        before = {path.name: path.read_text() for path in (twins.root("b") / "pv").glob("file*")}
        for number in range(3):
            (place / f"file{number}").write_text(f"{steps:03}")
        worker, _ = twins.opened()
        twins.lease.set(math.inf)
        left = iter(range(steps))
        guard = worker.guard

        def cut(guard: Callable[[], None] = guard, left: Iterator[int] = left) -> None:
            guard()
            if next(left, None) is None:
                raise LostLeadership("cut off")

        worker.guard = cut  # type: ignore[method-assign]
        try:
            clean = twins.run(worker, "pv").clean
        except LostLeadership:
            clean = False
        changed = before != {path.name: path.read_text() for path in (twins.root("b") / "pv").glob("file*")}
        noted = twins.noted("pv").under_way is not None
        assert clean or noted or not changed, f"after {steps} steps"
        assert not (clean and noted)
        states.add((clean, noted, changed))
        worker.guard = guard  # type: ignore[method-assign]
        while not twins.run(worker, "pv").clean:
            pass
        if clean:
            break
    assert {(False, False, False), (False, True, False), (False, True, True), (True, False, True)} <= states


def test_what_a_pass_replaces_and_deletes_is_kept(twins: Twins) -> None:
    twins.make("pv")
    file = twins.root("a") / "pv/file"
    file.write_text("old")
    (twins.root("a") / "pv/gone").write_text("gone")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    assert twins.kept() == []
    file.write_text("new content")
    (twins.root("a") / "pv/gone").unlink()
    while not twins.run(worker, "pv").clean:  # deletions may be deferred once
        pass
    contents = {entry.name: entry.read_text() for place in twins.kept() for entry in place.iterdir()}
    assert contents == {"file": "old", "gone": "gone"}
    assert twins.kept()[0].name.startswith("kept~pv~")
    assert twins.stores["b"].empty_trash(lambda: False)
    assert twins.kept() != []


def test_h20_an_active_side_that_is_not_mounted_changes_nothing(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    twins.run(worker, "pv")
    before = twins.everything("b")
    twins.root("a").rename(twins.base / "unplugged")
    twins.root("a").mkdir()
    with pytest.raises(RefusedForSafety, match="another file system"):
        twins.run(worker, "pv")
    with pytest.raises((NfsProvisionerError, OSError)):
        twins.opened()
    assert twins.everything("b") == before


def test_h20_a_volume_whose_directory_was_emptied_by_another_disk_is_not(twins: Twins) -> None:
    """The directory of the volume is another one than the record's."""
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    twins.run(worker, "pv")
    (twins.root("a") / "pv").rename(twins.root("a") / "moved")
    (twins.root("a") / "pv").mkdir()
    with pytest.raises(RefusedForSafety, match="another directory"):
        twins.run(worker, "pv")
    assert (twins.root("b") / "pv/file").read_text() == "data"


WRONG: list[tuple[str, dict[str, object]]] = [
    ("a", {"active": "b"}),
    ("b", {"active": "b"}),
    ("a", {"replica": "b", "replica_id": "id-b"}),
    ("b", {"replica": "a", "replica_id": "id-a"}),
    ("a", {"pair": "another"}),
    ("b", {"pair": "another"}),
    ("a", {"epoch": 2}),
    ("b", {"epoch": 2}),
    ("a", {"promotion": "another"}),
    ("b", {"promotion": "another"}),
    ("a", {"cluster": "another"}),
    ("b", {"export": "another"}),
    ("a", {"root": "handle:elsewhere"}),
    ("b", {"root": "handle:elsewhere"}),
    ("b", {"seq": 99}),
]


@pytest.mark.parametrize(("side", "changes"), WRONG, ids=[f"{s}-{'-'.join(c)}" for s, c in WRONG])
def test_h21_a_side_that_is_not_the_one_that_was_proven_is_never_written(
    twins: Twins, side: str, changes: dict[str, object]
) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    expected = twins.expected
    twins.rewrite(side, **changes)
    before = {name: twins.everything(name) for name in "ab"}
    with pytest.raises(RefusedForSafety):
        twins.run(worker, "pv")
    with pytest.raises(RefusedForSafety):
        twins.worker().open(expected, "00000001", 0)
    after = {name: twins.everything(name) for name in "ab"}
    before["b"] = {p: s for p, s in before["b"].items() if "/work" not in p}
    after["b"] = {p: s for p, s in after["b"].items() if "/work" not in p}
    assert after == before


def test_h38_two_mounts_that_changed_places_are_noticed_by_the_open_child(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    twins.root("a").rename(twins.base / "x")
    twins.root("b").rename(twins.root("a"))
    (twins.base / "x").rename(twins.root("b"))
    with pytest.raises(RefusedForSafety, match="another file system"):
        twins.run(worker, "pv")
    assert not (twins.root("a") / "pv/file").exists()  # which is the standby's disk


def test_h38_what_somebody_else_wrote_on_the_standby_is_kept_until_a_person_confirms(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    twins.later()
    (twins.root("b") / "pv/strange").write_text("of somebody else")
    for _ in range(2):
        report = twins.run(worker, "pv")
        assert (report.clean, report.foreign, report.foreign_count) == (False, ("strange",), 1)
        (twins.root("a") / "pv/file").write_text("newer")
    assert (twins.root("b") / "pv/strange").read_text() == "of somebody else"
    report = twins.run(worker, "pv", allowed=1)
    assert report.clean and report.deleted == 1
    assert (twins.root("b") / "pv/file").read_text() == "newer"


def found_strange(twins: Twins) -> PairWorker:
    """A pass has found, and written next to, what somebody else wrote."""
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    twins.later()
    (twins.root("b") / "pv/strange").write_text("of somebody else")
    (twins.root("a") / "pv/file").write_text("newer")
    assert twins.run(worker, "pv").foreign == ("strange",)
    assert (twins.root("b") / "pv/file").read_text() == "newer"
    return worker


@pytest.mark.parametrize("only", [None, frozenset({""}), frozenset({"elsewhere"})])
def test_h38_while_something_is_somebody_elses_nothing_is_written(twins: Twins, only: frozenset[str] | None) -> None:
    worker = found_strange(twins)
    (twins.root("a") / "pv/file").write_text("newest")
    (twins.root("a") / "pv/new").write_text("data")
    raised = list(twins.raised)
    report = twins.run(worker, "pv", only=only)
    assert (report.clean, report.foreign_count, report.copied_files) == (False, 1, 0)
    assert (twins.root("b") / "pv/file").read_text() == "newer"
    assert sorted(os.listdir(twins.root("b") / "pv")) == ["file", "strange"]
    assert twins.raised == raised and twins.noted("pv").foreign == ("strange",)


def test_h38_when_it_is_gone_the_next_pass_copies(twins: Twins) -> None:
    worker = found_strange(twins)
    (twins.root("a") / "pv/file").write_text("newest")
    (twins.root("b") / "pv/strange").unlink()
    assert twins.run(worker, "pv").clean
    assert (twins.root("b") / "pv/file").read_text() == "newest"
    assert twins.noted("pv").foreign == ()


def test_h38_what_a_person_has_not_seen_does_not_go_with_what_they_let_go(twins: Twins) -> None:
    worker = found_strange(twins)
    twins.later()
    (twins.root("b") / "pv/later").write_text("nobody knows of it")
    (twins.root("b") / "pv/file").write_text("written over by somebody else")
    report = twins.run(worker, "pv", allowed=1)
    assert sorted(report.foreign) == ["file", "later"] and report.deleted == 1
    assert sorted(os.listdir(twins.root("b") / "pv")) == ["file", "later"]
    assert (twins.root("b") / "pv/file").read_text() == "written over by somebody else"
    assert twins.run(worker, "pv", allowed=2).clean
    assert (twins.root("b") / "pv/file").read_text() == "newer"


def test_h38_a_restarted_controller_hears_of_what_somebody_else_wrote(twins: Twins) -> None:
    found_strange(twins)
    _, found = twins.opened()
    assert found.records["pv.json"].foreign == ("strange",)


def test_h27_a_clean_look_at_some_directories_leaves_the_note_of_a_pass_that_was_cut_off(twins: Twins) -> None:
    twins.make("pv")
    place = twins.root("a") / "pv"
    for name in ("cut", "other"):
        (place / name).mkdir()
    (place / "cut/file").write_text("old")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    (place / "cut/file").write_text("newer")
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Ending, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            twins.run(worker, "pv")
    note = twins.noted("pv").under_way
    assert note is not None
    (place / "other/new").write_text("data")
    assert twins.run(worker, "pv", only=frozenset({"other"})).clean
    assert twins.noted("pv").under_way == note
    assert twins.run(worker, "pv").clean
    assert twins.noted("pv").under_way is None


def rewritten(file: Path, text: str) -> None:
    """With its old size and mtime."""
    was = file.stat()
    file.write_text(text)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_h24_what_changes_after_the_sources_clock_was_set_back_arrives(twins: Twins) -> None:
    twins.make("pv")
    file = twins.root("a") / "pv/file"
    file.write_text("data")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    noted = twins.noted("pv")
    assert noted.base is not None
    ahead = replace(noted, base=replace(noted.base, as_of=time.time_ns() + HOUR))
    (twins.control("b") / "sync/pv.json").write_bytes(encode_sync(ahead))
    rewritten(file, "DATA")
    twins.later()
    copy = twins.root("b") / "pv/file"
    os.utime(copy, ns=(copy.stat().st_atime_ns, copy.stat().st_mtime_ns))  # stamped by the clock that was ahead
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "MARGIN_NS", 0)
        assert twins.run(worker, "pv").clean
    assert copy.read_text() == "DATA"
    again = twins.noted("pv").base
    assert again is not None and again.as_of < time.time_ns()


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_h24_a_source_whose_clock_is_an_hour_off_is_judged_by_its_own_clock(twins: Twins, ahead: int) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv", clock=boot_offset(ahead)).clean
    base = twins.noted("pv").base
    assert base is not None
    assert abs(base.as_of - time.time_ns() - ahead) < 60 * 10**9


def test_a_volume_that_is_emptied_in_portions_waits_for_a_person(twins: Twins) -> None:
    """Promise 9, through what a pair remembers of earlier passes."""
    twins.make("pv")
    place = twins.root("a") / "pv"
    for name in ("few", "many"):
        (place / name).mkdir()
    for number in range(4000):
        (place / f"many/f{number}").touch()
    worker, _ = twins.opened()
    pair = Pair(3600.0)
    record = twins.stores["a"].read("pv")
    assert record is not None
    pair.keep({"pv": Kept(record.rev)}, 0.0)

    def passed(now: float) -> int:
        turn = pair.next(now)
        assert turn is not None
        report = twins.run(
            worker, "pv", only=turn.only, allowed=turn.allowed, deleted=turn.deleted, entries=turn.entries
        )
        ended = Ended(report.clean, deleted=report.deleted_entries, entries=report.entries, waiting=report.waiting)
        pair.ended(turn, ended, now, now)
        return len(pair.standing(now).waiting)

    assert passed(0.0) == 0
    now, waiting = 10.0, 0
    for start in range(0, 4000, 400):
        for number in range(start, start + 400):
            (place / f"many/f{number}").unlink()
        pair.dirty("pv", ["many"], now)
        for _ in range(4):  # deferred once, perhaps; and then compared whole
            now += max(0.1, min(10.0, pair.wait(now)))
            if pair.wait(now) == 0:
                waiting = passed(now)
    assert waiting
    assert len(os.listdir(twins.root("b") / "pv/many")) >= 4000 - 1000


def test_what_a_pass_deleted_before_it_failed_counts_in_the_next_one(twins: Twins) -> None:
    """Promise 9: a standby that is full makes its deletions, and then says that it is full."""
    twins.make("pv")
    place = twins.root("a") / "pv"
    (place / "many").mkdir()
    for number in range(1200):
        (place / f"many/f{number}").touch()
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    shutil.rmtree(place / "many")
    (place / "many").mkdir()
    for number in range(600):
        (place / f"many/f{number}").touch()
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: object) -> None:
            raise RetryLater("the target is full")

        patch.setattr(Ending, "finish", full)
        for _ in range(2):  # deferred once, perhaps
            with pytest.raises(RetryLater):
                twins.run(worker, "pv")
    assert len(os.listdir(twins.root("b") / "pv/many")) == 600
    shutil.rmtree(place / "many")
    report = twins.run(worker, "pv")
    assert report.waiting == 601 and report.deleted_entries == 600


def test_h38_what_a_pass_wrote_that_did_not_come_to_its_end_is_not_somebody_elses(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    noted = twins.noted("pv")
    assert noted.wrote is not None
    (twins.root("a") / "pv/file").write_text("newer")
    with pytest.MonkeyPatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Ending, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            twins.run(worker, "pv")
    assert twins.noted("pv").wrote is None
    (twins.root("a") / "pv/file").write_text("newest")
    twins.later()
    assert twins.run(worker, "pv").clean
    assert (twins.noted("pv").wrote or 0) > noted.wrote


def test_h37_an_active_side_behind_what_the_copy_has_seen_is_not_copied(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("old")
    worker, _ = twins.opened()
    twins.run(worker, "pv")
    yesterday = (twins.control("a") / "export.json").read_bytes()
    (twins.root("a") / "pv/file").write_text("newer")
    twins.run(worker, "pv")
    (twins.control("a") / "export.json").write_bytes(yesterday)
    (twins.root("a") / "pv/file").write_text("old")
    with pytest.raises(RefusedForSafety, match="rolled back"):
        twins.run(worker, "pv")
    assert (twins.root("b") / "pv/file").read_text() == "newer"


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("looks", [1, 2])
def test_both_sides_are_proven_again_before_the_first_write(twins: Twins, side: str, looks: int) -> None:
    """A side becomes another one between the beginning of the pass, or of the walk, and its first write."""
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, _ = twins.opened()
    proven, calls = worker.prove, itertools.count(1)

    def prove(records: tuple[VolumeRecord, VolumeRecord]) -> int:
        seq = proven(records)
        if next(calls) == looks:
            twins.rewrite(side, promotion="another")
        return seq

    worker.prove = prove  # type: ignore[method-assign]
    with pytest.raises(RefusedForSafety, match="promotion"):
        twins.run(worker, "pv")
    assert not (twins.root("b") / "pv/file").exists()
    assert twins.raised == []


def test_both_sides_are_proven_again_before_the_first_deletion(twins: Twins) -> None:
    twins.make("pv")
    for name in ("file", "gone"):
        (twins.root("a") / "pv" / name).write_text("old")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    (twins.root("a") / "pv/file").write_text("newer")
    (twins.root("a") / "pv/gone").unlink()
    proven, calls = worker.prove, itertools.count(1)

    def prove(records: tuple[VolumeRecord, VolumeRecord]) -> int:
        seq = proven(records)
        if next(calls) == 3:  # the beginning, the walk, the first write
            twins.rewrite("a", promotion="another")
        return seq

    worker.prove = prove  # type: ignore[method-assign]
    with pytest.raises(RefusedForSafety, match="promotion"):
        twins.run(worker, "pv")
    assert (twins.root("b") / "pv/gone").exists()


@pytest.mark.parametrize("side", ["a", "b"])
def test_h38_a_copy_of_the_tree_in_its_place_is_not_the_side(twins: Twins, side: str) -> None:
    """Same identity, same records, other disk: a clone, or a backup that was restored."""
    twins.make("pv")
    expected = twins.expected
    shutil.copytree(twins.root(side), twins.base / "clone", symlinks=True)
    twins.root(side).rename(twins.base / "real")
    (twins.base / "clone").rename(twins.root(side))
    with pytest.raises(RefusedForSafety, match="was written on"):
        twins.worker().open(expected, "00000001", 0)


def test_a_record_that_the_standby_does_not_have_alike_waits(twins: Twins) -> None:
    twins.make("pv")
    worker, _ = twins.opened()
    record = twins.stores["a"].read("pv")
    assert record is not None
    twins.stores["a"].write(record.advanced(state=State.ARCHIVED))
    with pytest.raises(RetryLater, match="not followed"):
        twins.run(worker, "pv")


def test_a_volume_on_its_way_is_left_alone(twins: Twins) -> None:
    twins.make("pv")
    worker, _ = twins.opened()
    twins.change("pv", state=State.DELETING, target=".nfs-provisioner/trash/x")
    with pytest.raises(RetryLater, match="deleting"):
        twins.run(worker, "pv")


def test_a_link_in_place_of_a_volume_is_not_followed(twins: Twins) -> None:
    """H26: on the standby, by somebody who can write there."""
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    elsewhere = twins.base / "elsewhere"
    elsewhere.mkdir()
    (twins.root("b") / "pv").rmdir()
    (twins.root("b") / "pv").symlink_to(elsewhere)
    worker, _ = twins.opened()
    with pytest.raises((OSError, NfsProvisionerError)):
        twins.run(worker, "pv")
    assert list(elsewhere.iterdir()) == []


def test_deletions_above_the_limit_wait_until_they_are_confirmed(twins: Twins) -> None:
    twins.make("pv")
    place = twins.root("a") / "pv"
    for number in range(1100):
        (place / f"f{number}").touch()
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    for number in range(1100):
        (place / f"f{number}").unlink()
    report = twins.run(worker, "pv")
    for _ in range(3):  # a deletion may be deferred once first
        report = twins.run(worker, "pv")
    assert not report.clean and report.waiting == 1100
    assert len(os.listdir(twins.root("b") / "pv")) == 1100
    assert twins.noted("pv").waiting == 1100
    assert twins.run(worker, "pv", allowed=1100).clean
    assert os.listdir(twins.root("b") / "pv") == []


def test_the_annotation_lifts_the_limit(twins: Twins) -> None:
    twins.make("pv")
    place = twins.root("a") / "pv"
    for number in range(1100):
        (place / f"f{number}").touch()
    worker, _ = twins.opened()
    twins.run(worker, "pv")
    for number in range(1100):
        (place / f"f{number}").unlink()
    for _ in range(3):
        report = twins.run(worker, "pv", delete_limit=None)
    assert report.clean
    assert os.listdir(twins.root("b") / "pv") == []


def test_a_new_child_takes_over_and_the_old_one_stops(twins: Twins) -> None:
    """H41: the fence."""
    twins.make("pv")
    old, _ = twins.opened()
    new, _ = twins.opened()
    (twins.root("a") / "pv/file").write_text("data")
    with pytest.raises(RetryLater, match="newer worker"):
        twins.run(old, "pv")
    assert twins.run(new, "pv").clean


def test_a_new_worker_of_the_standby_sweeps_what_passes_staged_into_trash(twins: Twins) -> None:
    twins.make("pv")
    worker, _ = twins.opened()
    staging = twins.control("b") / "work" / worker._staging_name
    (staging / "stage-0").mkdir()
    (staging / "stage-0" / "directory").mkdir()
    (staging / "stage-0" / "directory" / "half").write_text("half a file")
    keeping = staging / kept.kept_name("pv", time.time())
    keeping.mkdir()
    (keeping / "replaced").write_text("old")
    twins.restart("b")
    assert [n for n in os.listdir(twins.control("b") / "work") if n.startswith("sync-")] == []
    assert os.listdir(twins.control("b") / "lost") == []
    assert [path.name for place in twins.kept() for path in place.iterdir()] == ["replaced"]
    with pytest.raises(RetryLater):
        twins.run(worker, "pv")
    assert twins.stores["b"].empty_trash(lambda: False)
    assert [path.name for path in (twins.control("b") / "trash").iterdir()] == [keeping.name]


def test_a_new_child_reads_what_the_standby_says(twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    worker, found = twins.opened()
    assert found.records == {}
    twins.run(worker, "pv")
    _, again = twins.opened()
    base = twins.noted("pv").base
    assert again.records["pv.json"].base == base
    assert again.promotion == "promotion"


def test_names_of_any_bytes_survive_the_record() -> None:
    record = SyncRecord(
        Base("p", 3, 5, 7), UnderWay(4, 6), missed=(os.fsdecode(b"\xff\n"),), unstable=("ä", "\udc80"), waiting=3
    )
    assert decode_sync(encode_sync(record)) == record


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "base": 3}', b"\xff"])
def test_a_damaged_record_is_none(data: bytes | None) -> None:
    assert decode_sync(data) == SyncRecord()


DAY = 86400.0
CLOCKS = [
    (0.0, 0.0, False),
    (DAY, DAY, True),
    (2 * DAY, 0.0, False),  # this machine's clock jumped
    (0.0, 2 * DAY, False),  # the server's did
]


@pytest.mark.parametrize(("local", "server", "goes"), CLOCKS)
def test_h56_what_was_kept_goes_when_both_clocks_say_so(twins: Twins, local: float, server: float, goes: bool) -> None:
    trash = twins.stores["b"].trash
    now = time.time()
    name = kept.kept_name("pv", now)
    os.mkdir(name, dir_fd=trash)
    kept.expire(trash, DAY, now + local + 2, now + server + 2, lambda: False, lambda: False)
    assert (name not in os.listdir(trash)) is goes


def test_h51_a_full_standby_gives_up_the_oldest_first(twins: Twins) -> None:
    trash = twins.stores["b"].trash
    now = time.time()
    names = [kept.kept_name("pv", now - age) for age in (300, 200, 100)]
    for name in reversed(names):
        os.mkdir(name, dir_fd=trash)
    full = iter([True, False, False])
    assert kept.expire(trash, DAY, now, now, lambda: False, lambda: next(full))
    assert sorted(os.listdir(trash)) == sorted(names[1:])


def test_an_expired_copy_that_was_removed_in_part_is_no_kept_one_any_more(twins: Twins) -> None:
    store = twins.stores["b"]
    name = kept.kept_name("pv", time.time() - 2 * DAY)
    os.makedirs(twins.control("b") / "trash" / name / "a" / "b")
    assert not kept.expire(store.trash, 0.0, time.time() + 1, time.time() + 1, stop_after(1), lambda: False)
    assert twins.kept() == []
    assert store.empty_trash(lambda: False)
    assert os.listdir(store.trash) == []


def stop_after(looks: int) -> Callable[[], bool]:
    counted = iter([False] * looks)
    return lambda: next(counted, True)


def test_the_identity_files_are_read_anew(twins: Twins) -> None:
    """A child that looked once and trusted it for ever would write to a side that was demoted since."""
    twins.make("pv")
    worker, _ = twins.opened()
    assert twins.run(worker, "pv").clean
    (twins.control("a") / "export.json").unlink()
    (twins.root("a") / "pv/file").write_text("data")
    with pytest.raises(RefusedForSafety, match="gone"):
        twins.run(worker, "pv")
    assert not (twins.root("b") / "pv/file").exists()
