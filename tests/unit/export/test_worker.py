"""The operations of a child process, called in this one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from nfs_provisioner.errors import LostLeadership, RefusedForSafety, RetryLater
from nfs_provisioner.export.moves import GiveUp
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.worker import LeaseEnd, Worker
from tests.unit.export.world import MARKER, World, identity, volume


@pytest.fixture
def worker(world: World, lease: LeaseEnd) -> Worker:
    return Worker(str(world.root), lease)


def test_a_child_process_loads_no_configuration() -> None:
    """There is one for each replica: what all of them load without use costs memory, and time at each start."""
    look = "import sys, nfs_provisioner.export.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "nfs_provisioner.export.moves" in loaded
    parts = {".".join(name.split(".")[:2]) for name in loaded}
    assert not parts & {"yaml", "kubernetes", "prometheus_client", "rich", "nfs_provisioner.config"}


def attach(worker: Worker, term: str = "term") -> None:
    found = worker.inspect().identity
    worker.attach(found or identity(), found, term)


def live(worker: Worker, pv: str, directory: str) -> None:
    worker.operations["provision"]([volume(pv, directory)])
    worker.make_live([pv])


def test_h16_an_ended_lease_stops_every_operation(world: World, worker: Worker, lease: LeaseEnd) -> None:
    with pytest.raises(RetryLater, match="not attached"):
        worker.operations["provision"]([volume("pv", "app")])
    attach(worker)
    live(worker, "pv", "app")
    lease.set(time.clock_gettime(time.CLOCK_BOOTTIME))
    before = sorted(str(path) for path in world.root.rglob("*"))
    arguments: dict[str, tuple[object, ...]] = {
        "provision": ([volume("new", "new")],),
        "update": ("pv", {"requested": 1}, frozenset({State.LIVE})),
        "adopt": (volume("adopted", "app"),),
        "restore": (volume("new", "new"), "pv"),
        "give_up": ([GiveUp("pv", "archive", None, frozenset({State.LIVE}))],),
        "raise_seq": (),
        "set_members": ({"b": "x"},),
        "server_time": (),
        "attach": (identity(), worker.store.identity, "later"),
    }
    arguments.pop("restore")  # pv is no archive; refused before the lease matters
    for name, given in arguments.items():
        with pytest.raises(LostLeadership):
            worker.operations[name](*given)
    assert sorted(str(path) for path in world.root.rglob("*")) == before


def test_h46_what_changed_between_look_and_attach_is_looked_at_again(world: World, worker: Worker) -> None:
    """Somebody mounted the disk, or another controller was quicker."""
    worker.inspect()
    other = World(world.root)
    other.start()
    with pytest.raises(RefusedForSafety, match="changed between look and start"):
        worker.attach(identity("b"), None, "term")
    other.stop()


def test_moves_that_were_begun_are_finished_by_load(world: World, worker: Worker) -> None:
    store = world.start()
    record = world.make(store, "pv", "app")
    store.write(record.advanced(state=State.ARCHIVING, target="archived-app"))
    world.stop()
    attach(worker)
    loaded, problems = worker.load()
    assert problems == []
    assert [(r.pv, r.state, r.directory) for r in loaded] == [("pv", State.ARCHIVED, "archived-app")]
    assert (world.root / "archived-app" / MARKER).exists()


def test_one_bad_volume_of_a_batch_stops_no_other(worker: Worker, world: World) -> None:
    attach(worker)
    for pv in ("one", "two", "three"):
        worker.operations["provision"]([volume(pv, pv)])
    (world.root / "two").rmdir()
    results = worker.make_live(["one", "two", "unknown", "three"])
    assert [isinstance(result, VolumeRecord) for result in results] == [True, False, False, True]
    assert {pv: state for pv, (state, _) in world.states().items()} == {
        "one": State.LIVE, "two": State.CREATING, "three": State.LIVE,
    }  # fmt: skip


def test_an_unexplained_directory_of_an_older_term_is_kept(world: World, worker: Worker) -> None:
    store = world.start()
    (world.root / "app").mkdir()
    (world.root / "app" / MARKER).write_text("data")
    os.rename("app", "app", src_dir_fd=store.root, dst_dir_fd=store.work)
    world.stop()
    attach(worker)
    _, problems = worker.load()
    assert len(problems) == 1 and "lost/app~" in problems[0]
    (kept,) = (world.control / "lost").iterdir()
    assert (kept / MARKER).read_text() == "data"


@pytest.mark.parametrize("call", ["open", "rename"])
def test_a_replica_that_refuses_a_record_is_told_with_the_records_name(
    worker: Worker, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the name that the file has until it is whole: that one means nothing to people, and differs each time."""
    attach(worker)
    real = getattr(os, call)

    def refuse(*arguments: Any, **named: Any) -> Any:
        if call == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **named)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0], None, *arguments[1:2][call == "open" :])

    told = set()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        for _ in range(2):
            (result,) = worker.operations["provision"]([volume("pv", "app")])
            told.add(result.message)
    assert told == {f"{worker.store.path}: Read-only file system: pv.json"}


def test_a_record_that_cannot_be_read_is_named_and_stops_no_other(world: World, worker: Worker) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    world.make(store, "bad", "bad")
    (world.control / "volumes/bad.json").write_text("{")
    world.stop()
    attach(worker)
    loaded, problems = worker.load()
    assert [record.pv for record in loaded] == ["pv"]
    assert len(problems) == 1 and "bad.json" in problems[0]
    assert replace(loaded[0]).manifests == {}, "the controller keeps no manifests in memory"


def test_h51_what_cannot_be_removed_from_trash_keeps_nothing_else_there(world: World, worker: Worker) -> None:
    """Neither what other volumes left, nor what passes kept: a standby would fill up with that."""
    attach(worker)
    for pv in ("damaged", "gone"):
        live(worker, pv, pv)
    trash = world.control / "trash"
    for name in ("damaged~1", "gone~1", "kept~other~20200101T000000Z"):
        (trash / name).mkdir()
        (trash / name / "file").write_text("data")
    (world.control / "volumes" / "damaged.json").write_text("{")
    worker.load()
    worker.expire_kept(0.0)
    end = time.monotonic() + 30.0
    while len(left := os.listdir(trash)) > 1:
        assert time.monotonic() < end, left
        time.sleep(0.01)
    assert left == ["damaged~1"]
