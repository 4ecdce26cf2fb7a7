"""Claims with a claim as their dataSource: clones, on the controller as it is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import PV, PVC, NotFound
from tests.embedded.site import Site
from tests.plugins import heldworker
from tests.plugins.packages import find, require
from tests.plugins.passes import Picture

Json = dict[str, Any]
MI = 1 << 20


def of(name: str) -> Json:
    return {"dataSource": {"kind": "PersistentVolumeClaim", "name": name}}


def source(site: Site, files: int = 30) -> str:
    """A bound claim `old` with something in it; name of its PV."""
    site.claim("old")
    pv = site.bound("old")
    place = site.directory_of(pv)
    (place / "sub").mkdir()
    for number in range(files):
        (place / "sub" / f"file-{number}").write_bytes(os.urandom(100 * number))
    os.link(place / "sub" / "file-1", place / "again")
    os.symlink("sub", place / "link")
    os.setxattr(place / "sub" / "file-2", "user.colour", b"green")
    os.chown(place / "sub" / "file-3", 1000, 1000)
    return pv


def differences(one: Path, other: Path) -> str:
    require("rsync", debian=["rsync"])
    command = (find("rsync"), "-aHAXnc", "--delete", "--itemize-changes", f"{one}/", f"{other}/")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_clone_is_bound_and_equal_to_its_source(site: Site) -> None:
    with site.controller():
        old = source(site)
        site.claim("new", size="20Mi", **of("old"))
        new = site.bound("new")
    assert differences(site.directory_of(old), site.directory_of(new)) == ""
    assert Picture.of(site.directory_of(old)) == Picture.of(site.directory_of(new))
    record = site.record(new)
    assert record is not None
    assert (record.clone_of, record.copied, record.requested) == (old, True, 20 * MI)
    volume = site.volume(new)
    assert volume is not None and volume["spec"]["nfs"]["path"] == f"/srv/nfs/{record.directory}"


def test_a_clone_has_a_life_of_its_own(site: Site) -> None:
    with site.controller():
        old = source(site)
        site.claim("new", **of("old"))
        new = site.bound("new")
        (site.directory_of(new) / "file").write_text("its own")
        site.delete_claim("old")
        site.gone(old)
        assert (site.directory_of(new) / "file").read_text() == "its own"
        assert not (site.directory_of(old) / "file").exists()
        site.delete_claim("new")
        site.gone(new)
    assert (site.state(old), site.state(new)) == (State.ARCHIVED, State.ARCHIVED)


def test_a_clone_waits_for_its_source_and_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfs_provisioner.volumes.planner.LOOK_AGAIN", 0.5)  # else the controller is never idle
    site.claim("new", **of("old"))
    with site.controller():
        (message,) = site.until(lambda: site.events("Provisioning"), "nobody says what the claim waits for")
        assert "waits for claim shop/old" in message
        assert not site.volumes() and not site.directories()
        site.claim("old")
        old = site.bound("old")
        new = site.bound("new")
    assert site.events("ProvisioningFailed") == []
    assert {r.pv: r.clone_of for r in site.records().values()} == {old: None, new: old}


def test_a_clone_that_asks_for_too_little_is_refused(site: Site) -> None:
    with site.controller():
        old = source(site)
        site.claim("new", size="5Mi", **of("old"))
        (message,) = site.until(lambda: site.events("ProvisioningFailed"), "nobody says that it is too small")
    assert "10485760" in message and "5242880" in message
    assert list(site.records()) == [old]


@pytest.mark.parametrize("other", ["export", "selector"])
def test_a_clone_stays_on_its_sources_export(site: Site, other: str) -> None:
    site.make_export("mail")
    site.make_class("to-mail", export="mail")
    site.make_class("to-web", export="web")
    site.claim("old", storage_class="to-web")
    with site.controller():
        old = site.bound("old")
        more: Json = {"storage_class": "to-mail"}
        if other == "selector":
            more = {"selector": {"matchLabels": {"name": "mail"}}}
        site.claim("new", **of("old"), **more)
        (message,) = site.until(lambda: site.events("ProvisioningFailed"), "nobody says that it cannot be there")
        assert "shop/old lies on NFSExport web" in message
        site.claim("newer", **of("old"))
        newer = site.bound("newer")
    assert set(site.records()) == {old, newer}


class Slow:
    """A source, and a clone of it whose copying stands still from the first files on until `release`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._held = site.directory / "held"
        self._held.touch()
        self.options: Json = {"worker_command": (*heldworker.COMMAND, str(self._held))}  # of the controller

    def make(self) -> None:
        """To be called while a controller runs."""
        self.old = source(self.site)
        for number in range(100):
            (self.site.directory_of(self.old) / f"many-{number}").write_bytes(b"x" * 20_000)
        self.claim = self.site.claim("new", **of("old"))
        self.pv = f"pvc-{self.claim['metadata']['uid']}"
        self.site.until(self.copied, "the copying does not begin")
        self.stands()

    def copied(self) -> list[str]:
        """What the clone has of the files at the top."""
        record = self.site.record(self.pv)
        if record is None or record.inode is None:
            return []
        return [name for name in os.listdir(self.site.directory_of(self.pv)) if name.startswith("many-")]

    def stands(self) -> None:
        """It is under way now."""
        record = self.site.record(self.pv)
        assert record is not None and not record.copied and len(self.copied()) < 100

    def release(self) -> None:
        self._held.unlink()


def test_a_copy_under_way_shows_and_holds_up_nobody(site: Site) -> None:
    slow = Slow(site)
    with site.controller(**slow.options):
        slow.make()
        site.claim("other")
        site.bound("other")
        slow.stands()
        slow.release()
        site.bound("new")
        messages = site.until(lambda: site.events("Provisioning"), "nobody said that it is copied")
    assert messages[0].startswith("copying claim shop/old: ")
    assert differences(site.directory_of(slow.old), site.directory_of(slow.pv)) == ""
    assert site.events("ProvisioningFailed") == []


def test_h13_a_claim_deleted_while_it_is_copied_leaves_nothing_behind(site: Site) -> None:
    slow = Slow(site)
    with site.controller(**slow.options):
        slow.make()
        site.delete_claim("new")
        site.until(lambda: site.record(slow.pv) is None, "the record is still there")
        control = site.root / ".nfs-provisioner"
        site.until(lambda: not os.listdir(control / "trash"), "trash is not emptied")
        assert [n for n in os.listdir(control / "work") if n.startswith("sync-")] == []
        with pytest.raises(NotFound):
            site.api.get(PVC, "new", "shop")
    assert site.directories() == [site.directory_of(slow.old).name]
    assert [v["metadata"]["name"] for v in site.volumes()] == [slow.old]


def test_a_controller_that_ends_while_it_copies_goes_on_after_a_restart(site: Site) -> None:
    slow = Slow(site)
    with site.controller(**slow.options):
        slow.make()
    slow.stands()
    there = {name: (site.directory_of(slow.pv) / name).stat().st_ino for name in slow.copied()}
    with site.controller():
        site.bound("new")
    place = site.directory_of(slow.pv)
    assert differences(site.directory_of(slow.old), place) == ""
    assert there and all((place / name).stat().st_ino == inode for name, inode in there.items()), "copied twice"


def test_a_source_deleted_while_it_is_copied_is_copied_from_its_archive(site: Site) -> None:
    slow = Slow(site)
    with site.controller(**slow.options):
        slow.make()
        site.delete_claim("old")
        site.becomes(slow.old, State.ARCHIVED)
        slow.stands()
        slow.release()
        site.bound("new")
    assert differences(site.directory_of(slow.old), site.directory_of(slow.pv)) == ""


def test_h13_a_claim_deleted_while_the_controller_is_down_takes_its_half_copy_along(site: Site) -> None:
    slow = Slow(site)
    with site.controller(**slow.options):
        slow.make()
    site.delete_claim("new")
    with site.controller():
        site.until(lambda: site.record(slow.pv) is None, "the record is still there")
    assert site.directories() == [site.directory_of(slow.old).name]


def test_a_worker_that_dies_while_it_copies_goes_on(site: Site) -> None:
    slow = Slow(site)
    with site.controller(**slow.options) as controller:
        slow.make()
        assert controller.daemon.registry is not None
        (export,) = controller.daemon.registry.all()
        (attachment,) = export.attachments()
        assert attachment.replica.pid is not None
        os.kill(attachment.replica.pid, signal.SIGKILL)
        slow.release()
        site.bound("new")
    assert differences(site.directory_of(slow.old), site.directory_of(slow.pv)) == ""


def test_h40_a_clone_that_had_its_pv_before_a_crash_is_not_taken_back_when_both_objects_vanish(site: Site) -> None:
    site.make_class("kept", policy="Retain")
    with site.controller():
        source(site)
    claim = site.claim("new", size="20Mi", storage_class="kept", **of("old"))
    pv = f"pvc-{claim['metadata']['uid']}"
    at = 1
    while site.volume(pv) is None:  # the last of these lives ends when the PV was posted, and nobody heard the answer
        site.run_cut_off(at, "after", lambda: site.volume(pv) is not None)
        at += 1
    site.until(lambda: (site.get_claim("new") or {})["status"].get("phase") == "Bound", "the claim is not Bound")
    (site.directory_of(pv) / "precious").write_text("written by a pod")
    site.delete_claim("new")
    site.until(lambda: (site.volume(pv) or {})["status"]["phase"] == "Released", "the PV is not Released")
    site.api.delete(PV, pv)  # of policy Retain: nothing holds it, and its data is to stay
    site.until(lambda: site.volume(pv) is None, "the PV is still there")
    with site.controller():
        site.becomes(pv, State.ORPHANED, None)
        assert (site.directory_of(pv) / "precious").read_text() == "written by a pod"
