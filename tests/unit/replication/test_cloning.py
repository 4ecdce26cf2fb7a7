"""Clones: made within one replica by its child, whose operations are called in this process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from nfs_provisioner.errors import Infeasible, LostLeadership, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export import clones, moves
from nfs_provisioner.export.records import ClaimRef, State, VolumeRecord
from nfs_provisioner.export.standing import CloneStanding
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.replication import cloning
from nfs_provisioner.replication.cloning import CloningWorker
from nfs_provisioner.replication.tree import moment
from tests.plugins.loopfs import MIB, LoopFileSystem
from tests.plugins.packages import require_root
from tests.plugins.passes import Cut, Picture, Steps, during_copy, exchange
from tests.unit.export.world import World, identity, volume

DEADLINE = 120.0
T = TypeVar("T")


def wanted(pv: str = "new", of: str = "old") -> VolumeRecord:
    return volume(pv, pv, clone_of=of)


@dataclass
class Ground:
    """One replica with the live volume `old`, and its child."""

    world: World
    lease: LeaseEnd
    worker: CloningWorker

    @property
    def source(self) -> Path:
        return self.world.root / "old"

    @property
    def clone(self) -> Path:
        return self.world.root / "new"

    def restart(self) -> None:
        """Another child takes over."""
        self.worker = CloningWorker(str(self.world.root), self.lease, pause=0.0)
        found = self.worker.inspect().identity
        self.worker.attach(found or identity(), found, "term")
        self.worker.load()

    def made(self, record: VolumeRecord | None = None) -> CloneStanding:
        """Ask until it is copied. Raises what it ends with."""
        return until(lambda: standing(self.worker.clone(record or wanted())), "the clone is not copied")

    def ended(self, pv: str = "new") -> None:
        until(lambda: not self.worker._copies[pv].running, "the copy goes on")

    def record(self, pv: str = "new") -> VolumeRecord:
        return self.world.records()[pv]

    def staged(self) -> list[str]:
        return [name for name in os.listdir(self.world.control / "work") if name.startswith("sync-")]


def standing(of: CloneStanding) -> CloneStanding | None:
    return None if of.running else of


def until(condition: Callable[[], T | None], what: str) -> T:
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.005)
    return found


def fill(place: Path, files: int = 20) -> None:
    """Something of every kind."""
    (place / "sub" / "deeper").mkdir(parents=True)
    for number in range(files):
        (place / "sub" / f"file-{number}").write_bytes(os.urandom(number * 100))
    os.link(place / "sub" / "file-3", place / "sub" / "deeper" / "again")
    os.symlink("../outside", place / "link")
    os.mkfifo(place / "fifo", 0o640)
    os.chown(place / "sub" / "file-1", 1000, 2000)
    os.chmod(place / "sub" / "file-2", 0o4711)
    os.setxattr(place / "sub" / "file-4", "user.colour", b"green")
    with (place / "sparse").open("wb") as sparse:
        sparse.truncate(8 * MIB)
        sparse.seek(4 * MIB)
        sparse.write(b"data")
    os.chmod(place, 0o2771)
    os.utime(place / "sub", ns=(1, 1_234_567_890_123_456_789))


def ground_in(root: Path) -> Iterator[Ground]:
    require_root("giving directories to other owners")
    root.mkdir(exist_ok=True)
    lease = LeaseEnd()
    lease.set(time.clock_gettime(time.CLOCK_BOOTTIME) + 3600)
    world = World(root)
    made = Ground(world, lease, CloningWorker(str(root), lease))
    made.restart()
    made.worker.operations["provision"]([volume("old", "old")])
    made.worker.make_live(["old"])
    yield made
    for pv in list(made.worker._copies):
        made.worker._stop(pv)
    world.stop()
    os.close(lease.fd)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    yield from ground_in(tmp_path / "export")


def test_a_clone_has_all_that_its_source_has(ground: Ground) -> None:
    fill(ground.source)
    before = Picture.of(ground.source)
    done = ground.made()
    assert Picture.of(ground.clone) == before == Picture.of(ground.source)
    assert done.record.copied and done.record.state is State.CREATING and done.record.clone_of == "old"
    assert done.record.inode == ground.clone.stat().st_ino
    assert done.files >= 21 and done.bytes > 19_000
    assert done.skipped == () and ground.staged() == []
    assert ground.worker.make_live(["new"])[0] == replace(
        done.record, rev=4, state=State.LIVE, since=ground.record().since
    )
    assert ground.world.broken_promises() == []


def test_what_is_copied_is_never_written_to_again(ground: Ground) -> None:
    """Its PV may exist although nobody heard so: somebody may use it already."""
    fill(ground.source)
    ground.made()
    (ground.clone / "sub" / "file-1").write_text("its owner's")
    (ground.source / "later").write_text("later")
    for again in (False, True):
        if again:
            ground.restart()
        assert ground.made().record.copied
        assert (ground.clone / "sub" / "file-1").read_text() == "its owner's"
        assert not (ground.clone / "later").exists()


def test_a_large_tree_tells_how_far_it_is(ground: Ground) -> None:
    fill(ground.source)
    reached, go_on = threading.Event(), threading.Event()

    def hold(_number: int) -> None:
        reached.set()
        assert go_on.wait(DEADLINE)

    with during_copy(hold):
        first = ground.worker.clone(wanted())
        assert first.running and first.record.inode is not None and first.record.manifests == {}
        assert reached.wait(DEADLINE)
        assert ground.worker.clone(wanted()).running
        go_on.set()
        assert ground.made().files >= 21


def test_what_was_copied_before_a_restart_is_not_copied_again(ground: Ground) -> None:
    fill(ground.source)
    with during_copy(lambda number: fail(errno.EIO) if number >= 15 else None), pytest.raises(RetryLater, match="EIO"):
        ground.made()
    there = {path: path.stat().st_ino for path in ground.clone.rglob("file-*")}
    ground.restart()
    ground.made()
    assert Picture.of(ground.clone) == Picture.of(ground.source)
    assert all(path.stat().st_ino == inode for path, inode in there.items())
    assert len(there) >= 10


def fail(number: int) -> None:
    raise OSError(number, "EIO, made to fail")


def test_files_that_keep_changing_end_it_with_what_to_do(ground: Ground) -> None:
    fill(ground.source)
    busy = ground.source / "sub" / "file-9"

    def write(_number: int) -> None:
        moment()  # of the size that it had: only the time tells, which some kernels count in steps
        busy.write_bytes(os.urandom(900))

    with during_copy(write), pytest.raises(RetryLater, match=r"keep changing.*sub/file-9.*scale its pods to zero"):
        ground.made()
    assert not ground.record().copied
    ground.made()
    assert Picture.of(ground.clone) == Picture.of(ground.source)


def test_what_changes_between_two_passes_arrives(ground: Ground) -> None:
    fill(ground.source)
    store = ground.worker.store
    clone = clones.prepare(store, wanted())

    def change() -> None:
        (ground.source / "sub" / "file-9").write_text("new")
        (ground.source / "sub" / "file-10").unlink()
        (ground.source / "sub" / "more").mkdir()

    with during_copy(lambda number: fail(errno.EIO) if number == 5 else None):
        record, _ = cloning.fill(store, clone, guard=store.guard, between=change)
    assert record.copied
    assert Picture.of(ground.clone) == Picture.of(ground.source)


def test_a_source_archived_meanwhile_is_copied_from_its_archive(ground: Ground) -> None:
    fill(ground.source)

    def archive(number: int) -> None:
        if number == 0:
            states = (State.LIVE,)
            moves.give_up(ground.worker.store, "old", "archive", claim_uid=None, states=states)

    with during_copy(archive), pytest.raises(RetryLater, match="moved meanwhile"):
        ground.made()
    ground.made()
    assert Picture.of(ground.clone) == Picture.of(ground.world.root / "archived-old")


def test_a_source_deleted_meanwhile_makes_no_half_clone(ground: Ground) -> None:
    """What is gone from it when the pass comes by looks as if it had never been."""
    fill(ground.source)

    def delete(number: int) -> None:
        if number == 0:
            moves.give_up(ground.worker.store, "old", "delete", claim_uid=None, states=(State.LIVE,))
            ground.worker._trash_waits.set()

    with during_copy(delete), pytest.raises(Infeasible, match="deleted since before all of it was copied"):
        ground.made()
    assert not ground.record().copied
    assert ground.worker.undo("new") is None


def test_a_source_that_is_deleted_after_the_walk_makes_no_clone(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look of the pass and the word that all is copied."""
    from nfs_provisioner.replication import passes

    fill(ground.source)
    real = passes.run_pass

    def then_deleted(job: passes.Job) -> passes.Result:
        result = real(job)
        moves.give_up(ground.worker.store, "old", "delete", claim_uid=None, states=(State.LIVE,))
        return result

    monkeypatch.setattr(passes, "run_pass", then_deleted)
    with pytest.raises(Infeasible):
        ground.made()
    assert not ground.record().copied


def test_h11_a_link_in_place_of_the_source_leads_nowhere(ground: Ground, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    os.rename(ground.source, tmp_path / "moved")
    os.symlink(outside, ground.source)
    with pytest.raises((OSError, NfsProvisionerError)):
        ground.made()
    assert list(ground.clone.iterdir()) == [] and not ground.record().copied


def test_h40_another_directory_in_place_of_the_source_is_not_copied(ground: Ground, tmp_path: Path) -> None:
    os.rename(ground.source, tmp_path / "moved")
    ground.source.mkdir()
    (ground.source / "file").write_text("somebody's")
    with pytest.raises(RefusedForSafety, match="another directory now"):
        ground.made()
    assert list(ground.clone.iterdir()) == [] and not ground.record().copied


@pytest.mark.parametrize("state", [State.ARCHIVING, State.DELETING, State.RESTORING, State.CREATING])
def test_a_source_on_its_way_is_waited_for(ground: Ground, state: State) -> None:
    store = ground.worker.store
    old = store.read("old")
    assert old is not None
    store.write(old.advanced(state=state))
    with pytest.raises(RetryLater, match=f"old is {state} now"):
        ground.made()
    assert not ground.record().copied


def test_h11_links_that_a_tenant_swaps_in_are_copied_as_links(ground: Ground, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file-1").write_text("secret")
    fill(ground.source)
    os.symlink(outside, ground.source / "swap")
    with during_copy(lambda number: exchange(ground.source / "swap", ground.source / "sub") if number < 3 else None):
        ground.made()
    names = [ground.clone / "swap", ground.clone / "sub"]
    assert any(name.is_symlink() for name in names) or not all(name.exists() for name in names)
    copied = [path for name in names if not name.is_symlink() for path in name.rglob("*") if path.is_file()]
    assert b"secret" not in {path.read_bytes() for path in copied}
    assert (outside / "file-1").read_text() == "secret"


def test_another_directory_than_the_recorded_one_is_not_written_to(ground: Ground) -> None:
    fill(ground.source)
    with during_copy(lambda number: fail(errno.EIO)), pytest.raises(RetryLater):
        ground.made()
    os.rename(ground.clone, ground.world.root / "aside")
    ground.clone.mkdir()
    (ground.clone / "file").write_text("somebody's")
    with pytest.raises(RefusedForSafety, match="another directory now"):
        ground.made()
    ground.worker.undo("new")
    assert [path.name for path in ground.clone.iterdir()] == ["file"], "and it is not removed either"


def test_a_directory_that_was_there_before_is_refused(ground: Ground) -> None:
    ground.clone.mkdir()
    with pytest.raises(Infeasible, match="exists already"):
        ground.made()
    assert "new" not in ground.world.records()


def test_h13_a_clone_that_is_not_wanted_any_more_stops_and_leaves_nothing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloning, "STOPPING", DEADLINE)
    fill(ground.source, files=600)
    reached = threading.Event()
    copied = 0

    def hold(number: int) -> None:
        nonlocal copied
        copied = max(copied, number)
        reached.set()
        assert ground.worker._copies["new"]._stopping.wait(DEADLINE), "nobody asks it to stop"

    with during_copy(hold):
        ground.worker.clone(wanted())
        assert reached.wait(DEADLINE)
        copy = ground.worker._copies["new"]
        assert ground.worker.undo("new") is None
        assert not copy.running, "a thread that writes on would make the directory anew"
    assert copied < 400, "it stops long before the end"
    assert not ground.clone.exists() and "new" not in ground.world.records() and ground.staged() == []
    assert ground.world.broken_promises() == []
    until(lambda: not os.listdir(ground.world.control / "trash"), "trash is not emptied")


def test_a_copy_that_hangs_is_not_taken_back_before_it_has_stopped(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloning, "STOPPING", 0.05)
    fill(ground.source)
    reached, go_on = threading.Event(), threading.Event()

    def hold(_number: int) -> None:
        reached.set()
        assert go_on.wait(DEADLINE)

    with during_copy(hold):
        ground.worker.clone(wanted())
        assert reached.wait(DEADLINE)
        with pytest.raises(RetryLater, match="still being copied"):
            ground.worker.undo("new")
        assert ground.clone.exists() and "new" in ground.world.records()
        go_on.set()
        ground.ended()
        assert ground.worker.undo("new") is None


def test_what_is_copied_already_goes_too(ground: Ground) -> None:
    fill(ground.source)
    ground.made()
    assert ground.worker.undo("new") is None
    assert not ground.clone.exists() and "new" not in ground.world.records()


def test_h16_an_ended_lease_stops_the_copying(ground: Ground) -> None:
    fill(ground.source)
    with during_copy(lambda number: ground.lease.set(0.0) if number == 3 else None):
        ground.worker.clone(wanted())
        ground.ended()
        with pytest.raises(LostLeadership):
            ground.worker.clone(wanted())
    assert not ground.record().copied


def test_another_namespace_is_not_copied_from(ground: Ground) -> None:
    """The PV may have been bound to a claim of another namespace since the clone was planned."""
    fill(ground.source)
    ground.worker.store.update("old", {"claim": ClaimRef("bank", "old", "uid-other")}, states=(State.LIVE,))
    with pytest.raises(RefusedForSafety, match="'bank'"):
        ground.made()
    assert list(ground.clone.iterdir()) == []


def test_a_shared_directory_may_be_cloned(ground: Ground) -> None:
    fill(ground.source)
    store = ground.worker.store
    shared = volume("other", "old", shared=True)
    store.adopt(shared)
    ground.made(wanted(of="other"))
    assert Picture.of(ground.clone) == Picture.of(ground.source)


def test_a_clone_of_a_clone(ground: Ground) -> None:
    fill(ground.source)
    ground.made()
    ground.worker.make_live(["new"])
    ground.made(wanted("newer", of="new"))
    assert Picture.of(ground.world.root / "newer") == Picture.of(ground.source)


def test_many_are_copied_by_turns(ground: Ground) -> None:
    fill(ground.source)
    now, most, lock = 0, 0, threading.Lock()
    names = [f"new-{number}" for number in range(6)]
    real = cloning.fill

    def counted(*arguments: object, **named: object) -> object:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        try:
            return real(*arguments, **named)  # type: ignore[arg-type]
        finally:
            with lock:
                now -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloning, "fill", counted)
        for name in names:
            ground.worker.clone(wanted(name))
        for name in names:
            ground.made(wanted(name))
            assert Picture.of(ground.world.root / name) == Picture.of(ground.source)
    assert 1 <= most <= cloning.AT_ONCE


def test_a_killed_childs_staging_is_swept_by_the_next(ground: Ground) -> None:
    fill(ground.source)
    store = ground.worker.store
    clone = clones.prepare(store, wanted())
    with Steps().counted() as steps:
        steps.cut(40)
        with pytest.raises(Cut):
            cloning.fill(store, clone, guard=store.guard)
    assert ground.staged()
    ground.restart()
    assert ground.staged() == []
    ground.made()
    assert Picture.of(ground.clone) == Picture.of(ground.source)


def test_a_full_disk_is_an_error_and_what_is_copied_stays(tmp_path: Path) -> None:
    with LoopFileSystem(tmp_path, 40 * MIB) as disk:
        for ground in ground_in(disk.path / "export"):
            for number in range(12):
                (ground.source / f"file-{number}").write_bytes(os.urandom(2 * MIB))
            with pytest.raises(RetryLater, match=r"copying claim ns/old.*full"):
                ground.made()
            there = {path.name for path in ground.clone.iterdir()}
            assert not ground.record().copied and ground.staged() == []
            for number in range(8):
                (ground.source / f"file-{number}").unlink()
            ground.made()
            assert Picture.of(ground.clone) == Picture.of(ground.source)
            assert there, "nothing of what had room was kept"


def test_a_child_that_clones_nothing_loads_no_engine() -> None:
    look = "import sys, nfs_provisioner.replication.cloning; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    engine = {name for name in loaded if name.startswith("nfs_provisioner.replication.")}
    assert engine == {"nfs_provisioner.replication.cloning"}
    assert not {name.split(".")[0] for name in loaded} & {"yaml", "kubernetes", "prometheus_client", "rich"}
