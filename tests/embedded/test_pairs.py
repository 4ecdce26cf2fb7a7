"""A pair at work: what tenants write arrives on the standby, and everybody can see how far it is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export import catalog
from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import NFS_EXPORT, PVC
from nfs_provisioner.volumes import exports
from tests.embedded.site import DEADLINE, Controller, Site
from tests.plugins.loopfs import LoopFileSystem

Json = dict[str, Any]


FAILED = 'nfs_provisioner_replication_passes_total{export="web",result="failed"}'
PAUSED = 150.0  # seconds: for as long as passes failed, they pause after that


class Pair(Site):
    """Export `web` with replicas a and b."""

    def replica(self, name: str) -> Json:
        root = self.mount_root / "web" / name
        root.mkdir(parents=True, exist_ok=True)
        return {"name": name, "server": f"192.0.2.{ord(name)}", "path": "/srv/nfs", "mountPath": str(root)}

    def make_pair(self, **replication: str) -> None:
        replicas = [self.replica("a"), self.replica("b")]
        self.make_export(replicas=replicas, address="nfs.example.net", replication={"interval": "1s", **replication})

    def on(self, replica: str, pv: str) -> Path:
        """The volume's directory there."""
        return self.mount_root / "web" / replica / self.directory_of(pv).name

    def copied(self, pv: str) -> list[str]:
        """What the standby's copy has."""
        place = self.on("b", pv)
        return sorted(os.listdir(place)) if place.exists() else []

    def put(self, replica: str, pv: str, name: str, text: str) -> None:
        """A whole file at one moment: no pass sees it before it is written."""
        made = self.directory / "being written"
        made.write_text(text)
        made.rename(self.on(replica, pv) / name)

    def filled(self, pv: str, files: int) -> tuple[Path, Path]:
        """A directory with so many files in a volume, and the copy of it, when it has them all."""
        many, there = (self.on(replica, pv) / "many" for replica in ("a", "b"))
        many.mkdir()
        for number in range(files):
            (many / f"f{number}").touch()
        self.until(lambda: there.exists() and len(os.listdir(there)) == files, "the files did not arrive")
        return many, there

    def empty(self, directory: Path) -> None:
        """All that lies in it goes at one moment, and with it the directory."""
        directory.rename(self.directory / f"gone-{directory.name}")

    def clean(self, pv: str) -> None:
        """Wait for the end of a pass that wrote something: what is written from here on is younger than that."""
        file, probe = self.mount_root / "web/b/.nfs-provisioner/sync" / f"{pv}.json", self.directory / "probe"
        wrote: int = self.until(
            lambda: json.loads(file.read_text())["wrote"] if file.exists() else None, "the pass does not end"
        )

        def ticked() -> bool:
            probe.touch()
            return probe.stat().st_mtime_ns > wrote

        self.until(ticked, "the file system's clock stands still")

    def arrives(self, pv: str, name: str, text: str, seconds: float = DEADLINE) -> None:
        file = self.on("b", pv) / name
        self.until(lambda: file.exists() and file.read_text() == text, f"{name} did not arrive on the standby", seconds)

    def standby(self) -> Json:
        found: list[Json] = self.export_status("web").get("replicas", [])
        return next((replica for replica in found if replica["role"] == "standby"), {})

    def condition(self, kind: str) -> str:
        return str(self.export_condition("web", kind).get("status", ""))


def seen(controller: Controller) -> Json:
    """What /api/status says; nothing yet, while nobody leads."""
    code, found = controller.daemon.status()
    return found if code == 200 and found["exports"] else {"exports": [{"lag": None}], "volumes": []}


def message_of(controller: Controller, pv: str) -> str:
    return next((str(row["message"]) for row in seen(controller)["volumes"] if row["volume"] == pv), "")


def scrape(controller: Controller) -> dict[str, float]:
    lines = controller.daemon.metrics.render().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture
def site(embedded_api: EmbeddedApiServer, tmp_path: Path) -> Pair:
    made = Pair(embedded_api, tmp_path)
    made.make_class()
    return made


def test_a_file_arrives_on_the_standby_and_the_lag_is_seen(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    began = time.monotonic()
    with site.controller() as controller:
        pv = site.bound("data")
        site.put("a", pv, "file", "data")
        site.arrives(pv, "file", "data")
        site.until(lambda: seen(controller)["exports"][0]["lag"] is not None, "no lag is seen")
        (row,) = seen(controller)["volumes"]
        assert 0 <= row["lag"] < time.monotonic() - began and row["waiting"] == 0 and row["lastCleanPass"]
        site.until(lambda: site.standby().get("lastCleanPass"), "status has no lastCleanPass")
        site.export_ready("web")
        site.until(lambda: site.condition("SyncStalled") == "False", "it is said to be stalled")
        copied = 'nfs_provisioner_replication_copied_files_total{export="web"}'
        site.until(lambda: scrape(controller).get(copied), "the pass that copied does not end")
        levels = scrape(controller)
        assert 0 <= levels['nfs_provisioner_replication_lag_seconds{export="web"}'] < time.monotonic() - began
        assert levels['nfs_provisioner_replication_passes_total{export="web",result="clean"}'] >= 1
        assert levels[copied] == 1
        (site.on("a", pv) / "file").write_text("newer")
        site.arrives(pv, "file", "newer")
        (site.on("a", pv) / "file").unlink()
        site.until(lambda: not (site.on("b", pv) / "file").exists(), "the deletion did not arrive")


def test_a_second_replica_added_to_a_living_export_is_filled(site: Pair) -> None:
    site.make_export(replicas=[site.replica("a")], address="nfs.example.net", replication={"interval": "1s"})
    site.claim("data")
    with site.controller() as controller:
        pv = site.bound("data")
        (site.on("a", pv) / "file").write_text("data")
        site.claim("old")
        old = site.bound("old")
        (site.on("a", old) / "file").write_text("archived")
        site.delete_claim("old")
        site.gone(old)
        replicas = [site.replica("a"), site.replica("b")]
        site.api.patch(NFS_EXPORT, "web", {"spec": {"replicas": replicas}})
        site.arrives(pv, "file", "data")
        site.until(lambda: (site.on("b", old) / "file").exists(), "the archive did not arrive")
        site.until(lambda: seen(controller)["exports"][0]["lag"] is not None, "no lag is seen")
        assert seen(controller)["exports"][0]["phase"] == "Ready"


def test_what_a_restarted_controller_knows_of_the_standby(site: Pair) -> None:
    site.make_pair(interval="20000h", maxLag="40000h")  # within which the moment of the next pass is drawn
    site.claim("data")
    with site.controller() as controller:
        pv = site.bound("data")
        site.until(lambda: seen(controller)["exports"][0]["lag"] is not None, "no lag is seen")
    (site.on("a", pv) / "file").write_text("later")
    with site.controller() as controller:
        site.until(lambda: seen(controller)["exports"][0]["lag"] is not None, "the copy is forgotten")
        assert scrape(controller).get('nfs_provisioner_replication_passes_total{export="web",result="clean"}') is None


def test_too_many_deletions_wait_until_they_are_confirmed(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    with site.controller() as controller:
        pv = site.bound("data")
        many, there = site.filled(pv, 1099)
        site.empty(many)
        site.until(lambda: site.condition("SyncStalled") == "True", "nobody is told that deletions wait")
        (message, *_) = site.until(lambda: site.events("SyncStalled"), "there is no Event")
        assert f"confirm-deletions web {pv}" in message and "1100" in message
        assert len(os.listdir(there)) == 1099
        (site.on("a", pv) / "copied").write_text("meanwhile")
        site.arrives(pv, "copied", "meanwhile")
        request = f"confirm-deletions {pv} epoch=1 at=now"
        site.api.patch(NFS_EXPORT, "web", {"metadata": {"annotations": {"nfs-provisioner.io/request": request}}})
        site.until(lambda: site.copied(pv) == ["copied"], "the deletions were not made")
        site.until(lambda: site.condition("SyncStalled") == "False", "it is still said to be stalled")
        assert site.export_status("web")["lastHandledRequest"]["result"] == "Done"
        site.until(lambda: seen(controller)["volumes"][0]["waiting"] == 0, "they still wait")


def test_h38_a_standby_that_somebody_else_writes_to_stops_the_pair_until_a_person_has_looked(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    site.claim("other")
    with site.controller() as controller:
        pv, other = site.bound("data"), site.bound("other")
        for name, volume in (("file", pv), ("first", other)):
            (site.on("a", volume) / name).write_text("data")
            site.arrives(volume, name, "data")
        site.clean(pv)
        (site.on("b", pv) / "strange").write_text("written by a pod that mounts the standby")
        site.until(lambda: site.condition("SyncStalled") == "True", "nobody is told of the strange file")
        site.until(lambda: site.export_status("web")["phase"] == "Halted", "it is not Halted")
        (message, *_) = site.until(lambda: site.events("SyncStalled"), "there is no Event")
        assert f"confirm-deletions web {pv}" in message and "strange" in message
        # Whatever pass was under way: it has ended when the volume's next one is refused.
        site.until(lambda: "the pair is stopped" in message_of(controller, other), "the other volume is not stopped")
        (site.on("a", other) / "second").write_text("waits")
        refused = scrape(controller)[FAILED]
        site.until(lambda: scrape(controller)[FAILED] >= refused + 2, "the other volume has no turn")
        assert not (site.on("b", other) / "second").exists()
        assert (site.on("b", pv) / "strange").read_text().startswith("written by a pod")
        request = f"confirm-deletions {pv} epoch=1 at=now"
        site.api.patch(NFS_EXPORT, "web", {"metadata": {"annotations": {"nfs-provisioner.io/request": request}}})
        site.until(lambda: site.copied(pv) == ["file"], "the strange file did not go to trash")
        site.arrives(other, "second", "waits", PAUSED)
        site.until(lambda: site.condition("SyncStalled") == "False", "it is still said to be stopped")
        site.until(lambda: site.export_status("web")["phase"] == "Ready", "it is still Halted")


def test_a_claim_that_lives_by_deleting_says_so(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        annotation = {"metadata": {"annotations": {"nfs-provisioner.io/delete-limit": "none"}}}
        site.api.patch(PVC, "data", annotation, namespace="shop")
        many, _ = site.filled(pv, 1100)
        site.empty(many)
        site.until(lambda: site.copied(pv) == [], "the deletions were not made")
        assert site.events("SyncStalled") == []


def test_h21_sides_that_changed_places_while_nobody_looked_are_not_written(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        (site.on("a", pv) / "file").write_text("old")
        site.arrives(pv, "file", "old")
    directory = site.directory_of(pv).name
    root = site.mount_root / "web"
    (root / "a" / directory / "file").write_text("new")
    (root / "a").rename(root / "x")
    (root / "b").rename(root / "a")
    (root / "x").rename(root / "b")
    with site.controller():
        site.until(lambda: site.export_status("web").get("phase") == "Halted", "swapped sides are not noticed")
        assert (root / "b" / directory / "file").read_text() == "new"
        assert (root / "a" / directory / "file").read_text() == "old"


def test_h20_a_source_that_vanishes_under_the_controller_leaves_the_standby(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        directory = site.directory_of(pv).name
        (site.on("a", pv) / "file").write_text("data")
        site.arrives(pv, "file", "data")
        root = site.mount_root / "web"
        (root / "a").rename(root / "unplugged")
        (root / "a").mkdir()
        site.until(lambda: site.export_status("web").get("phase") in ("Halted", "Degraded"), "it is not noticed")
        assert (root / "b" / directory / "file").read_text() == "data"
        (root / "a").rmdir()
        (root / "unplugged").rename(root / "a")
        (root / "a" / directory / "file").write_text("goes on")
        site.arrives(pv, "file", "goes on")


def test_h21_a_standby_that_somebody_promoted_meanwhile_stops_the_pair(site: Pair) -> None:
    """In place, under the open descriptors: only the proof of the next pass can tell."""
    site.make_pair()
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        (site.on("a", pv) / "file").write_text("old")
        site.arrives(pv, "file", "old")
        file = site.mount_root / "web" / "b" / ".nfs-provisioner" / "export.json"
        site.until(lambda: set(json.loads(file.read_bytes())["members"]) == {"a", "b"}, "the members are not noted")
        site.clean(pv)  # and nobody else writes it any more
        found = json.loads(file.read_bytes())
        (site.directory / "theirs").write_text(json.dumps(found | {"epoch": 2, "promotion": "theirs", "active": "b"}))
        (site.directory / "theirs").rename(file)
        (site.on("a", pv) / "file").write_text("newer")
        site.until(lambda: site.export_status("web").get("phase") == "Diverged", "nobody notices")
        assert (site.on("b", pv) / "file").read_text() == "old"


def test_events_bring_a_change_long_before_the_next_comparison(site: Pair) -> None:
    site.make_pair(interval="1h", maxLag="2h")
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        there = site.on("a", pv)
        site.until(lambda: site.standby().get("lastCleanPass"), "the first pass did not end")
        (there / "sub").mkdir()
        (there / "sub" / "file").write_text("data")
        site.arrives(pv, "sub/file", "data")
        (there / "sub").rename(there / "moved")
        site.arrives(pv, "moved/file", "data")
        site.until(lambda: site.copied(pv) == ["moved"], "the old name stayed")
        (there / "moved" / "file").write_text("newer")
        site.arrives(pv, "moved/file", "newer")
        site.claim("later")
        later = site.bound("later")
        (site.on("a", later) / "file").write_text("data")
        site.arrives(later, "file", "data")


def test_h38_a_pair_that_is_stopped_stays_so_when_the_controller_restarts(site: Pair) -> None:
    site.make_pair()
    site.claim("data")
    site.claim("other")
    with site.controller():
        pv, other = site.bound("data"), site.bound("other")
        for volume in (pv, other):
            (site.on("a", volume) / "file").write_text("data")
            site.arrives(volume, "file", "data")
        site.clean(pv)
        (site.on("b", pv) / "strange").write_text("written by a pod that mounts the standby")
        site.until(lambda: site.export_status("web").get("phase") == "Halted", "it is not stopped")
    (site.on("a", other) / "file").write_text("waits")
    with site.controller() as controller:
        site.until(lambda: "the pair is stopped" in message_of(controller, other), "the other volume is not stopped")
        site.until(lambda: site.export_status("web")["phase"] == "Halted", "it is not Halted")
        assert (site.on("b", other) / "file").read_text() == "data"
        (site.on("b", pv) / "strange").unlink()
        site.arrives(other, "file", "waits", PAUSED)
        site.until(lambda: site.export_status("web")["phase"] == "Ready", "it is still Halted")


def test_many_deletions_that_are_few_of_the_volume_stop_nothing(site: Pair) -> None:
    """The pass that an event begins sees some directories; what the volume has, it learns from a whole one."""
    site.make_pair(interval="1h", maxLag="2h")
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        there = site.on("a", pv)
        for name, count in (("few", 1100), ("many", 6000)):
            (there / name).mkdir()
            for number in range(count):
                (there / name / f"f{number}").touch()
        copy = site.on("b", pv)
        site.until(lambda: sum(len(files) for _, _, files in os.walk(copy)) == 7100, "the files did not arrive")
        site.empty(there / "few")
        site.until(lambda: site.copied(pv) == ["many"], "the deletions were not made")
        assert site.events("SyncStalled") == []


def test_h22_a_standby_that_cannot_be_written_is_seen_long_before_it_is_late(site: Pair, tmp_path: Path) -> None:
    place = site.mount_root / "web" / "b"
    with LoopFileSystem(tmp_path / "disk", 64 << 20, mountpoint=place) as disk:
        (place / "lost+found").rmdir()
        site.make_pair(maxLag="1h")
        site.claim("data")
        with site.controller():
            pv = site.bound("data")
            (site.on("a", pv) / "file").write_text("data")
            site.arrives(pv, "file", "data")
            site.clean(pv)
            disk.read_only()
            (site.on("a", pv) / "file").write_text("newer")
            site.until(lambda: "Read-only" in str(site.export_status("web").get("conditions")), "nobody is told")
            site.until(lambda: site.export_status("web")["phase"] == "Degraded", "it is not Degraded")
            disk.read_only(False)
            site.arrives(pv, "file", "newer", PAUSED)
            site.until(lambda: site.export_status("web")["phase"] == "Ready", "it is still said")


def test_h52_a_volume_whose_record_on_the_standby_is_damaged_is_not_forgotten_before_its_copy_is_gone(
    site: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "REUSE_PAUSE", 0.0)
    monkeypatch.setattr(exports, "HOUSEKEEPING", 0.1)
    site.make_class("delete", onDelete="delete")
    site.make_pair()
    site.claim("data", storage_class="delete")
    site.claim("other", storage_class="delete")
    with site.controller():
        pv, other = site.bound("data"), site.bound("other")
        site.put("a", pv, "file", "data")
        site.arrives(pv, "file", "data")
        site.until(lambda: site.on("b", other).exists(), "the other volume is not on the standby")
        copy, beside = site.on("b", pv), site.on("b", other)
    damaged = site.mount_root / "web/b/.nfs-provisioner/volumes" / f"{pv}.json"
    whole = damaged.read_text()
    damaged.write_text("{")
    with site.controller() as controller:
        site.until(lambda: site.standby().get("lastCleanPass"), "the standby does not follow")
        for name in ("data", "other"):
            site.delete_claim(name)
        site.gone(pv)
        site.gone(other)
        site.until(lambda: not beside.exists(), "the other volume is still on the standby")
        assert f"{pv}.json" in str(seen(controller)["exports"][0]["message"]), "nobody says why"
    assert site.state(pv) is State.DELETED and copy.exists()
    damaged.write_text(whole)
    with site.controller():
        site.until(lambda: not copy.exists(), "the copy is still on the standby")
        site.becomes(pv, None)
