"""Replicas that are missing, swapped, replaced or twice the same directory, under the whole controller."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfs_provisioner.volumes import exports
from tests.nfs.conftest import MakeHanging
from tests.nfs.stand import Stand, directory_of, entries, eventually, has_exactly, identity
from tests.plugins.hang import HangingDirectory
from tests.plugins.loopfs import LoopFileSystem
from tests.plugins.packages import require_root

pytestmark = [pytest.mark.nfs, pytest.mark.usefixtures("impatient")]


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


def test_a_replaced_standby_waits_for_accept_and_is_made_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "HOUSEKEEPING", 3600.0)
    roots = stand.local_export("pair", "ab")
    stand.start_controller().ready("pair")
    volumes = stand.bound(*stand.claims("pair", 4))
    stand.delete(volumes[0])
    stand.gone(volumes[0])
    names = {directory_of(volume) for volume in volumes[1:]} | {f"archived-{directory_of(volumes[0])}"}
    assert eventually(lambda: entries(roots["b"]) == names, "the standby follows")
    # A pair knows its members long before the next round of housekeeping.
    assert eventually(lambda: set(identity(roots["a"])["members"]) == {"a", "b"}, "the members are noted")
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
