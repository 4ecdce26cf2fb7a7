"""Replicas that hang, refuse, fill up or take long, under the whole controller.

What a healthy export does is compared with what a sick one still does (its claims are all Bound while the other still
hangs), never with a number of seconds.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.nfs.conftest import MakeHanging, give_calls_up_after, never_give_calls_up
from tests.nfs.stand import (
    CALL_DEADLINE,
    CONTROL,
    Stand,
    directory_of,
    entries,
    eventually,
    has_exactly,
    leftovers,
    records,
)
from tests.plugins.hang import CHANGES
from tests.plugins.loopfs import MIB, LoopFileSystem

pytestmark = [pytest.mark.nfs, pytest.mark.usefixtures("impatient")]

# -- a server that does not answer ------------------------------------------------------------------------------------


def test_h33_h36_a_replica_that_hangs_from_the_start_delays_nobody_else(stand: Stand, hanging: MakeHanging) -> None:
    sick = hanging("sick", "a")
    well = stand.local_export("well")
    stand.export("sick", {"a": sick.path})
    sick.hang()
    stand.start_controller()
    waiting = stand.claim("sick")
    made = stand.bound(*stand.claims("well", 20))
    sick.wait_for_hung_call()  # all that while it still hangs: the next worker's call, if one was just given up
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
    never_give_calls_up(monkeypatch)
    sick = hanging("sick", "a")
    stand.local_export("well")
    stand.export("sick", {"a": sick.path})
    stand.start_controller().ready("sick", "well")
    sick.hang(only={"mkdir"})
    # More than there are workers and connections: none of them may be one that others need.
    waiting = stand.claims("sick", 15)
    sick.wait_for_hung_call()
    stand.bound(*stand.claims("well", 20))
    assert stand.replica("sick", "a").up and sick.waiting() > 0  # the others did not even wait for its deadline
    give_calls_up_after(CALL_DEADLINE, monkeypatch)
    stand.give_up("sick", "a")
    assert {stand.phase(name) for name in waiting} == {"Pending"}
    stand.replica_says("sick", "a", "no answer to")
    stand.event(waiting[0], "ProvisioningFailed", "replica a", "given up")
    assert stand.healthy()
    sick.release()
    volumes = stand.bound(*waiting)
    # The calls of the killed worker land late, on the server's side: none may leave a second directory.
    assert eventually(lambda: has_exactly(sick.backing, volumes), "the export has what its PVs name")


def test_h33_a_hanging_standby_delays_no_claim_of_its_partner(
    stand: Stand, hanging: MakeHanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_give_calls_up(monkeypatch)
    standby = hanging("pair", "b")
    active = stand.exports / "pair" / "a"
    active.mkdir()
    stand.export("pair", {"a": active, "b": standby.path})
    stand.start_controller().ready("pair")
    before = stand.bound(*stand.claims("pair", 3))
    assert eventually(lambda: has_exactly(standby.backing, before), "the standby follows")
    standby.hang()
    standby.wait_for_hung_call()
    during = stand.bound(*stand.claims("pair", 20))
    stand.delete(*before[:2])
    stand.gone(*before[:2])
    assert stand.replica("pair", "b").up and standby.waiting() > 0  # nobody waited for its deadline
    give_calls_up_after(CALL_DEADLINE, monkeypatch)
    stand.give_up("pair", "b")
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
    assert stand.replica("stopped", "a").pid != pid
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "it is killed and reaped although it was stopped")
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
        # What a new try has just begun to write is no leftover.
        eventually(lambda d=directory: leftovers(d.backing) == [], f"{export} has nothing left over")  # type: ignore[misc]
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
    slow.wait_for_hung_call()
    assert list(trash.iterdir())  # all that while the large one is being removed
    assert entries(slow.backing) == {directory_of(volume) for volume in made}
    slow.release()
    assert eventually(lambda: has_exactly(slow.backing, made), "the trash is empty")
