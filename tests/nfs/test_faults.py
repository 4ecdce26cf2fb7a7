"""Replicas that hang, refuse, fill up, vanish or turn into something else, under the whole controller.

What a healthy export does is compared with what a sick one still does (its claims are all Bound while the other still
hangs), never with a number of seconds.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfs_provisioner.export import attachment
from nfs_provisioner.export.replica import Replica
from nfs_provisioner.kube import workqueue
from nfs_provisioner.replication import mirror
from nfs_provisioner.volumes import decisions, exports
from tests.nfs.stand import (
    CALL_DEADLINE,
    CONTROL,
    Stand,
    directory_of,
    entries,
    eventually,
    has_exactly,
    identity,
    leftovers,
    records,
)
from tests.plugins.hang import CHANGES, HangingDirectory
from tests.plugins.loopfs import MIB, LoopFileSystem
from tests.plugins.packages import require_root

pytestmark = pytest.mark.nfs

#: A deadline that a busy machine does not reach by being slow.
UNHURRIED = 7.0

MakeHanging = Callable[[str, str], HangingDirectory]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's own rules with shorter times: what is waited for here is that things happen, not how late."""
    give_calls_up_after(CALL_DEADLINE, monkeypatch)
    monkeypatch.setattr(workqueue.exponential, "__defaults__", (0.1, 1.0))
    monkeypatch.setattr(attachment, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(attachment, "LONGEST_PAUSE", 1.0)
    monkeypatch.setattr(exports, "FIRST_LOOK", 1.0)
    monkeypatch.setattr(decisions, "LOOK_AGAIN", 0.5)
    monkeypatch.setattr(mirror, "LONGEST_PAUSE", 1.0)


def give_calls_up_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the deadline of every call on a replica that names no other."""
    assert Replica.call.__kwdefaults__ is not None
    monkeypatch.setitem(Replica.call.__kwdefaults__, "deadline", seconds)


@pytest.fixture
def hanging(stand: Stand, tmp_path: Path) -> Iterator[MakeHanging]:
    """`hanging(export, replica)`: a directory below the mount root that does what it is told."""
    with ExitStack() as mounts:

        def make(export: str, replica: str) -> HangingDirectory:
            backing = tmp_path / "backing" / export / replica
            backing.mkdir(parents=True)
            return mounts.enter_context(HangingDirectory(backing, stand.exports / export / replica))

        yield make
        stand.stop_controller()


@pytest.fixture
def disk(stand: Stand, tmp_path: Path) -> Iterator[LoopFileSystem]:
    """A small file system of its own, mounted where replica a of export `disk` is expected."""
    mountpoint = stand.exports / "disk" / "a"
    with LoopFileSystem(tmp_path / "image", 16 * MIB, mountpoint=mountpoint) as found:
        yield found
        stand.stop_controller()


# -- a server that does not answer ------------------------------------------------------------------------------------


def test_h33_h36_a_replica_that_hangs_from_the_start_delays_nobody_else(stand: Stand, hanging: MakeHanging) -> None:
    sick = hanging("sick", "a")
    well = stand.local_export("well")
    stand.export("sick", {"a": sick.path})
    sick.hang()
    stand.start_controller()
    waiting = stand.claim("sick")
    made = stand.bound(*stand.claims("well", 20))
    assert sick.waiting() > 0  # all that while it still hangs
    assert stand.phase(waiting) == "Pending"
    stand.replica_says("sick", "a", "no answer to 'inspect'")
    stand.event("sick", "ReplicaUnreachable", "replica a", "no answer to 'inspect'")
    stand.event(waiting, "ProvisioningFailed", "export sick", "replica a", "no answer to 'inspect'")
    assert stand.healthy()
    assert eventually(lambda: has_exactly(well["a"], made), "the healthy export has what its PVs name")
    sick.release()
    volumes = stand.bound(waiting)
    stand.event("sick", "ReplicaReachable", "replica a")
    assert eventually(lambda: has_exactly(sick.backing, volumes), "the sick export has what its PVs name")


def test_h33_a_replica_that_hangs_while_volumes_are_made(
    stand: Stand, hanging: MakeHanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_calls_up_after(UNHURRIED, monkeypatch)
    sick = hanging("sick", "a")
    stand.local_export("well")
    stand.export("sick", {"a": sick.path})
    stand.start_controller().ready("sick", "well")
    hung = stand.worker("sick", "a")
    sick.hang(only={"mkdir"})
    # More than there are workers and connections: none of them may be one that others need.
    waiting = stand.claims("sick", 15)
    sick.wait_for_hung_call()
    stand.bound(*stand.claims("well", 20))
    assert stand.worker("sick", "a") == hung and sick.waiting() > 0  # the others did not even wait for its deadline
    assert {stand.phase(name) for name in waiting} == {"Pending"}
    stand.replica_says("sick", "a", "no answer to")
    stand.event(waiting[0], "ProvisioningFailed", "replica a", "no answer to")
    assert stand.healthy()
    sick.release()
    volumes = stand.bound(*waiting)
    # The calls of the killed worker land late, on the server's side: none may leave a second directory.
    assert eventually(lambda: has_exactly(sick.backing, volumes), "the export has what its PVs name")


def test_h33_a_hanging_standby_delays_no_claim_of_its_partner(
    stand: Stand, hanging: MakeHanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_calls_up_after(UNHURRIED, monkeypatch)
    standby = hanging("pair", "b")
    active = stand.exports / "pair" / "a"
    active.mkdir()
    stand.export("pair", {"a": active, "b": standby.path})
    stand.start_controller().ready("pair")
    before = stand.bound(*stand.claims("pair", 3))
    assert eventually(lambda: has_exactly(standby.backing, before), "the standby follows")
    hung = stand.worker("pair", "b")
    standby.hang()
    standby.wait_for_hung_call()
    during = stand.bound(*stand.claims("pair", 20))
    stand.delete(*before[:2])
    stand.gone(*before[:2])
    assert stand.worker("pair", "b") == hung  # nobody waited for its deadline
    stand.replica_says("pair", "b", "no answer to")
    stand.says("pair", "Degraded", "replica b", "no answer to")
    assert entries(standby.backing) == {directory_of(volume) for volume in before}  # and it has not followed
    assert stand.healthy()
    standby.release()
    stand.ready("pair")
    names = {directory_of(volume) for volume in [*before[2:], *during]}
    names |= {f"archived-{directory_of(volume)}" for volume in before[:2]}
    assert eventually(lambda: entries(standby.backing) == names, "the standby has caught up")
    assert entries(active) == names


def test_h33_an_active_replica_that_hangs_stops_its_own_export_only_and_recovers(
    stand: Stand, hanging: MakeHanging
) -> None:
    active = hanging("pair", "a")
    standby = stand.exports / "pair" / "b"
    standby.mkdir()
    stand.export("pair", {"a": active.path, "b": standby})
    stand.local_export("well")
    stand.start_controller().ready("pair", "well")
    before = stand.bound(*stand.claims("pair", 2))
    active.hang()
    waiting = stand.claim("pair")
    stand.bound(*stand.claims("well", 10))
    stand.says("pair", "Degraded", "active replica a", "no answer to")
    assert stand.phase(waiting) == "Pending"
    active.release()
    volumes = [*before, *stand.bound(waiting)]
    stand.ready("pair")
    for root in (active.backing, standby):
        assert eventually(lambda root=root: has_exactly(root, volumes), "both have what the PVs name")  # type: ignore[misc]


def test_h33_a_worker_that_is_stopped_is_replaced(stand: Stand) -> None:
    stopped = stand.local_export("stopped")
    stand.local_export("well")
    stand.start_controller().ready("stopped", "well")
    pid = stand.worker("stopped", "a")
    os.kill(pid, signal.SIGSTOP)
    waiting = stand.claims("stopped", 3)
    stand.bound(*stand.claims("well", 10))
    volumes = stand.bound(*waiting)
    assert stand.worker("stopped", "a") != pid
    assert not Path(f"/proc/{pid}").exists()  # killed and reaped although it was stopped
    assert eventually(lambda: has_exactly(stopped["a"], volumes), "the export has what its PVs name")


# -- a server that refuses --------------------------------------------------------------------------------------------

REFUSALS = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EACCES)


@pytest.mark.parametrize("operations", [CHANGES, frozenset({"mkdir"})], ids=["every-change", "mkdir-alone"])
def test_a_refusal_reaches_its_claim_and_leaves_nothing_behind(
    stand: Stand, hanging: MakeHanging, operations: frozenset[str]
) -> None:
    sick = {errno.errorcode[number].lower(): hanging(errno.errorcode[number].lower(), "a") for number in REFUSALS}
    stand.local_export("well")
    for export, directory in sick.items():
        stand.export(export, {"a": directory.path})
    stand.start_controller().ready("well", *sick)
    for number, directory in zip(REFUSALS, sick.values(), strict=True):
        directory.fail(number, only=operations)
    waiting = {export: stand.claim(export) for export in sick}
    for number, (export, claim) in zip(REFUSALS, waiting.items(), strict=True):
        stand.event(claim, "ProvisioningFailed", f"{export}/a", os.strerror(number))
    stand.bound(*stand.claims("well", 5))
    assert stand.healthy()
    for export, directory in sick.items():
        assert stand.phase(waiting[export]) == "Pending"
        assert entries(directory.backing) == set(), export
        assert leftovers(directory.backing) == [], export
        if operations is not CHANGES:  # where nothing can be changed, nothing can be taken back
            # Each new try writes one first, and takes it back.
            assert eventually(lambda d=directory: records(d.backing) == {}, export)  # type: ignore[misc]
        directory.release()
    for export, directory in sick.items():
        volumes = stand.bound(waiting[export])
        assert eventually(lambda d=directory, v=volumes: has_exactly(d.backing, v), export)  # type: ignore[misc]


def test_a_full_disk_delays_its_claims_until_there_is_room(stand: Stand, disk: LoopFileSystem) -> None:
    stand.local_export("well")
    stand.export("disk", {"a": disk.path})
    stand.start_controller().ready("disk", "well")
    ballast = disk.fill()
    waiting = stand.claim("disk")
    stand.event(waiting, "ProvisioningFailed", "disk/a", os.strerror(errno.ENOSPC))
    stand.bound(*stand.claims("well", 5))
    assert entries(disk.path) == {"lost+found", "ballast"}
    assert stand.phase(waiting) == "Pending"
    ballast.unlink()
    (volume,) = stand.bound(waiting)
    assert entries(disk.path) == {"lost+found", directory_of(volume)}


def test_a_disk_below_its_reserve_takes_no_new_claim_and_says_so(stand: Stand, disk: LoopFileSystem) -> None:
    stand.export("disk", {"a": disk.path}, reserve="50%", capacity="16Mi")
    stand.start_controller().ready("disk")
    ballast = disk.fill(leave=4 * MIB)
    eventually(lambda: stand.overview("disk")["available"] < 5 * MIB, "the controller has seen it")
    waiting = stand.claim("disk")
    stand.event(waiting, "ProvisioningFailed", "export disk", "really free", "spec.reserve")
    assert entries(disk.path) == {"lost+found", "ballast"}
    ballast.unlink()
    stand.bound(waiting)


def test_a_disk_that_turns_read_only_delays_its_claims_until_it_is_writable(stand: Stand, disk: LoopFileSystem) -> None:
    stand.local_export("well")
    stand.export("disk", {"a": disk.path})
    stand.start_controller().ready("disk", "well")
    disk.read_only()
    waiting = stand.claim("disk")
    stand.event(waiting, "ProvisioningFailed", "disk/a", os.strerror(errno.EROFS))
    stand.bound(*stand.claims("well", 5))
    disk.read_only(False)
    (volume,) = stand.bound(waiting)
    assert entries(disk.path) == {"lost+found", directory_of(volume)}


def test_an_export_that_is_read_only_from_the_start_is_named_at_once(stand: Stand, disk: LoopFileSystem) -> None:
    disk.read_only()
    stand.export("disk", {"a": disk.path})
    stand.start_controller()
    stand.replica_says("disk", "a", os.strerror(errno.EROFS))
    assert entries(disk.path) == {"lost+found"}
    disk.read_only(False)
    stand.ready("disk")
    stand.bind("disk")


def test_h62_a_squashed_root_is_named_at_once_and_refused_where_it_matters(stand: Stand, hanging: MakeHanging) -> None:
    squashed = hanging("squashed", "a")
    squashed.fail(errno.EPERM, only={"chown"})
    stand.export("squashed", {"a": squashed.path})
    stand.storage_class("owned", export="squashed", uid="1000", gid="1000")
    stand.start_controller()
    stand.replica_says("squashed", "a", "root is squashed", "no_root_squash")
    plain = stand.bind("squashed")  # nobody asked for an owner
    refused = stand.claim("owned")
    stand.event(refused, "ProvisioningFailed", "1000:1000", "no_root_squash")
    assert eventually(lambda: has_exactly(squashed.backing, [plain]), "nothing is left of the refused one")
    assert stand.phase(refused) == "Pending"


# -- directories that are not what they seem --------------------------------------------------------------------------


@pytest.mark.parametrize("means", ["symlink", "bind"])
def test_two_replicas_on_one_directory_are_refused(stand: Stand, means: str) -> None:
    active, again = stand.exports / "twice" / "a", stand.exports / "twice" / "b"
    active.mkdir(parents=True)
    with ExitStack() as mounts:
        if means == "symlink":
            again.symlink_to(active)
        else:
            mounts.enter_context(BindMount(active, again))
        stand.export("twice", {"a": active, "b": again})
        stand.start_controller()
        stand.says("twice", "Halted", "replicas a and b are the same directory")
        waiting = stand.claim("twice")
        stand.event(waiting, "ProvisioningFailed", "same directory")
        assert list(active.iterdir()) == []
        stand.stop_controller()


def test_two_replicas_that_are_two_mounts_of_one_directory_are_no_pair(stand: Stand, hanging: MakeHanging) -> None:
    active = hanging("twice", "a")
    # As the same server under two names: nothing in stat(2) tells that these are one directory.
    with HangingDirectory(active.backing, stand.exports / "twice" / "b") as again:
        stand.export("twice", {"a": active.path, "b": again.path})
        stand.start_controller()
        stand.says("twice", "Degraded", "replica b", "is replica 'a''s")
        volume = stand.bind("twice")
        assert eventually(lambda: has_exactly(active.backing, [volume]), "the first goes on alone")
        stand.stop_controller()


def test_h46_a_mount_that_is_missing_at_the_start_is_not_taken_for_an_empty_export(
    stand: Stand, disk: LoopFileSystem
) -> None:
    stand.export("disk", {"a": disk.path})
    stand.start_controller().ready("disk")
    volume = stand.bind("disk")
    stand.stop_controller()
    disk.unmount()
    stand.start_controller()
    stand.says("disk", "Halted", "active replica a", "export.json is gone", "not mounted")
    waiting = stand.claim("disk")
    stand.event(waiting, "ProvisioningFailed", "export disk", "export.json is gone")
    stand.delete(volume)
    stand.event(volume["metadata"]["name"], "VolumeFailedDelete", "not touched")
    assert list(disk.path.iterdir()) == []
    disk.mount()
    (after,) = stand.bound(waiting)
    stand.gone(volume)
    names = {"lost+found", f"archived-{directory_of(volume)}", directory_of(after)}
    assert eventually(lambda: entries(disk.path) == names, "both went on")


def test_h46_a_mount_that_goes_away_while_the_controller_runs_is_noticed(stand: Stand, disk: LoopFileSystem) -> None:
    stand.export("disk", {"a": disk.path})
    stand.start_controller().ready("disk")
    volume = stand.bind("disk")
    disk.unmount()
    stand.says("disk", "Halted", "active replica a", "export.json is gone")
    waiting = stand.claim("disk")
    stand.event(waiting, "ProvisioningFailed", "export disk", "export.json is gone")
    assert list(disk.path.iterdir()) == []
    disk.mount()
    (after,) = stand.bound(waiting)
    assert entries(disk.path) == {"lost+found", directory_of(volume), directory_of(after)}


def test_h38_two_mounts_that_were_swapped_are_left_alone(stand: Stand) -> None:
    roots = stand.local_export("pair", "ab")
    stand.start_controller().ready("pair")
    volume = stand.bind("pair")
    assert eventually(lambda: has_exactly(roots["b"], [volume]), "the standby follows")
    stand.stop_controller()
    swap(roots["a"], roots["b"])
    before = {replica: tree(root) for replica, root in roots.items()}
    stand.start_controller()
    stand.says("pair", "Halted", "active replica a", "replica 'b''s", "two mounts are swapped")
    waiting = stand.claim("pair")
    stand.event(waiting, "ProvisioningFailed", "two mounts are swapped")
    assert {replica: tree(root) for replica, root in roots.items()} == before
    swap(roots["a"], roots["b"])
    volumes = [volume, *stand.bound(waiting)]
    stand.ready("pair")
    for root in roots.values():
        assert eventually(lambda root=root: has_exactly(root, volumes), "both go on")  # type: ignore[misc]


def test_a_replaced_standby_waits_for_accept_and_is_made_again(stand: Stand) -> None:
    roots = stand.local_export("pair", "ab")
    stand.start_controller().ready("pair")
    volumes = stand.bound(*stand.claims("pair", 4))
    stand.delete(volumes[0])
    stand.gone(volumes[0])
    names = {directory_of(volume) for volume in volumes[1:]} | {f"archived-{directory_of(volumes[0])}"}
    assert eventually(lambda: entries(roots["b"]) == names, "the standby follows")
    # A pair knows its members long before the next round of housekeeping.
    assert eventually(lambda: set(identity(roots["a"])["members"]) == {"a", "b"}, "the members are noted", 5)
    stand.stop_controller()
    replace_by_empty(roots["b"])
    stand.start_controller()
    stand.replica_says("pair", "b", "is empty now", "accept pair --replica b")
    stand.bind("pair")  # its partner goes on alone
    assert list(roots["b"].iterdir()) == []
    epoch = stand.status("pair")["epoch"]
    stand.request("pair", f"accept --replica b epoch={epoch + 1}")
    eventually(lambda: stand.status("pair").get("lastHandledRequest", {}).get("result") == "Refused", "another epoch's")
    assert list(roots["b"].iterdir()) == []
    stand.request("pair", f"accept --replica b epoch={epoch}")
    eventually(lambda: stand.status("pair").get("lastHandledRequest", {}).get("result") == "Done", "accepted")
    stand.ready("pair")
    assert eventually(lambda: entries(roots["b"]) == entries(roots["a"]) > names, "its directories are made again")


def test_a_replaced_active_disk_stops_the_pair_and_touches_neither_side(stand: Stand) -> None:
    roots = stand.local_export("pair", "ab")
    stand.start_controller().ready("pair")
    volumes = stand.bound(*stand.claims("pair", 2))
    assert eventually(lambda: has_exactly(roots["b"], volumes), "the standby follows")
    stand.stop_controller()
    replace_by_empty(roots["a"])
    before = tree(roots["b"])
    stand.start_controller()
    stand.says("pair", "Halted", "active replica a", "export.json is gone", "accept pair --replica a")
    waiting = stand.claim("pair")
    stand.event(waiting, "ProvisioningFailed", "export pair", "export.json is gone")
    assert list(roots["a"].iterdir()) == []
    assert tree(roots["b"]) == before


# -- deletions that take long -----------------------------------------------------------------------------------------


def test_h14_a_large_volume_is_removed_while_claims_and_deletions_go_on(stand: Stand, hanging: MakeHanging) -> None:
    slow = hanging("slow", "a")
    stand.export("slow", {"a": slow.path})
    stand.storage_class("fleeting", export="slow", onDelete="delete")
    stand.start_controller().ready("slow")
    large, small = stand.bound(stand.claim("fleeting"), stand.claim("fleeting"))
    for part in range(5):
        directory = slow.backing / directory_of(large) / str(part)
        directory.mkdir()
        for number in range(1000):
            os.close(os.open(directory / str(number), os.O_CREAT | os.O_WRONLY))
    trash = slow.backing / CONTROL / "trash"
    slow.hang(only={"unlink"}, after=100)
    stand.delete(large)
    stand.gone(large)
    slow.wait_for_hung_call()
    made = stand.bound(*stand.claims("slow", 20))
    stand.delete(small)
    stand.gone(small)
    assert slow.waiting() > 0 and list(trash.iterdir())  # all that while the large one is being removed
    assert entries(slow.backing) == {directory_of(volume) for volume in made}
    slow.release()
    assert eventually(lambda: has_exactly(slow.backing, made), "the trash is empty")


# -- what breaks disks ------------------------------------------------------------------------------------------------


class BindMount:
    """`path` shows `target` too."""

    def __init__(self, target: Path, path: Path) -> None:
        require_root("a bind mount")
        self._target, self._path = target, path

    def __enter__(self) -> BindMount:
        self._path.mkdir()
        subprocess.run(("mount", "--bind", str(self._target), str(self._path)), check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(("umount", "--lazy", str(self._path)), check=True)


def swap(one: Path, two: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def replace_by_empty(root: Path) -> None:
    root.rename(root.with_name(f"old-{root.name}"))
    root.mkdir()


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below, with contents and times: what differs was touched."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_ino,
            path.lstat().st_ctime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
    }
