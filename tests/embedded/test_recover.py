"""The cluster is gone, the data is not: manifests out of an export's records, applied to a new API server."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfs_provisioner.cli import main
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import NAMESPACE, PV, PVC, load
from tests.embedded.site import MI, Site

Json = dict[str, Any]


def recovered(site: Site, capsys: pytest.CaptureFixture[str]) -> tuple[list[Json], str]:
    """What `recover ROOT` prints: the documents on stdout, the notes on stderr."""
    capsys.readouterr()
    assert main(["recover", str(site.root)]) == 0
    printed = capsys.readouterr()
    return list(yaml.safe_load_all(io.StringIO(printed.out))), printed.err


def test_pvs_come_first_without_a_uid_and_then_claims_that_name_them(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.claim("one", labels={"app": "x"}, annotations={"mine": "1"})
    site.claim("two", "20Mi")
    with site.controller():
        names = {name: site.bound(name) for name in ("one", "two")}
    documents, notes = recovered(site, capsys)
    assert [d["kind"] for d in documents] == ["PersistentVolume"] * 2 + ["PersistentVolumeClaim"] * 2
    for pv in documents[:2]:
        assert set(pv["spec"]["claimRef"]) == {"apiVersion", "kind", "namespace", "name"}
        assert "uid" not in pv["metadata"] and "resourceVersion" not in pv["metadata"] and "status" not in pv
    for claim in documents[2:]:
        assert claim["spec"]["volumeName"] == names[claim["metadata"]["name"]]
    one = next(d for d in documents[2:] if d["metadata"]["name"] == "one")
    assert one["metadata"]["labels"] == {"app": "x"} and one["metadata"]["annotations"] == {"mine": "1"}
    assert notes == ""


def test_applied_to_a_new_cluster_the_claims_are_bound_to_their_data(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        (site.directory_of(pv) / "file").write_text("data")
        site.grow("data", "20Mi")
        site.until(lambda: (r := site.record(pv)) is not None and r.requested == 20 * MI, "it has not grown")
    documents, _ = recovered(site, capsys)
    with EmbeddedApiServer() as server:
        api = load(str(server.write_kubeconfig(tmp_path / "new")))
        api.create(NAMESPACE, {"metadata": {"name": "shop"}})
        for document in documents:
            api.create(PV if document["kind"] == "PersistentVolume" else PVC, document)
        site.until(lambda: api.get(PVC, "data", "shop")["status"]["phase"] == "Bound", "the claim is not Bound")
        claim, volume = api.get(PVC, "data", "shop"), api.get(PV, pv)
    assert claim["spec"]["volumeName"] == pv
    assert claim["status"]["capacity"]["storage"] == "20Mi" or claim["status"]["capacity"]["storage"] == str(20 * MI)
    assert volume["status"]["phase"] == "Bound"
    assert volume["spec"]["nfs"]["path"].rsplit("/", 1)[1] == site.directory_of(pv).name


def test_the_controller_of_the_new_cluster_takes_the_volumes_over_after_accept(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        (site.directory_of(pv) / "file").write_text("data")
    documents, _ = recovered(site, capsys)
    with EmbeddedApiServer() as server:
        new = Site(server, tmp_path / "second")
        new.mount_root, new.root = site.mount_root, site.root
        new.make_export()
        new.make_class()
        for document in documents:
            new.api.create(PV if document["kind"] == "PersistentVolume" else PVC, document)
        with new.controller():
            new.until(lambda: new.export_status("web").get("phase") == "Halted", "another cluster's export is used")
            assert main(["accept", "web", "--replica", "a", "--kubeconfig", str(new.kubeconfig)]) == 0
            assert new.bound("data") == pv
            record = new.until(
                lambda: (
                    (r := new.record(pv)) and r.claim.uid == new.api.get(PVC, "data", "shop")["metadata"]["uid"] and r
                ),
                "the record does not follow the new claim",
            )
            assert (site.root / record.directory / "file").read_text() == "data"
            new.delete_claim("data")
            new.gone(pv)
        assert new.directories() == [f"archived-{record.directory}"]


def test_volumes_of_a_tree_that_was_restored_file_by_file_are_ours_again_after_accept(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backup brings back names and contents, never inodes: vouching for the disk vouches for the directories on it."""
    for name in ("data", "gone"):
        site.claim(name)
    with site.controller():
        pv, gone = site.bound("data"), site.bound("gone")
        (site.directory_of(pv) / "file").write_text("data")
        archive = f"archived-{site.directory_of(gone).name}"
        site.delete_claim("gone")
        site.gone(gone)
    site.root.rename(tmp_path / "dead-disk")
    shutil.copytree(tmp_path / "dead-disk", site.root)
    with site.controller():
        site.until(lambda: site.export_status("web").get("phase") == "Halted", "a copied tree is used unasked")
        assert main(["accept", "web", "--replica", "a", "--kubeconfig", str(site.kubeconfig)]) == 0
        site.export_ready("web")
        site.claim("again", annotations={"nfs-provisioner.io/restore-archive": archive})
        site.bound("again")
        directory = site.directory_of(pv)
        site.delete_claim("data")
        site.gone(pv)
    assert (site.root / f"archived-{directory.name}" / "file").read_text() == "data"


def test_what_has_no_manifest_is_named_and_a_damaged_record_hides_no_other(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("kept", "gone", "hurt"):
        site.claim(name)
    with site.controller():
        pvs = {name: site.bound(name) for name in ("kept", "gone", "hurt")}
        site.delete_claim("gone")
        site.gone(pvs["gone"])
    (site.root / ".nfs-provisioner" / "volumes" / f"{pvs['hurt']}.json").write_text("{")
    documents, notes = recovered(site, capsys)
    assert [d["metadata"]["name"] for d in documents] == [pvs["kept"], "kept"]
    assert pvs["gone"] in notes and "archived" in notes
    assert pvs["hurt"] in notes


def test_a_directory_that_is_no_export_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recover", str(tmp_path)]) == 1
    assert "export.json" in capsys.readouterr().err
    assert main(["recover", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever is not root has no right to `.nfs-provisioner`; here it is no directory, which root cannot read either."""
    (tmp_path / ".nfs-provisioner").write_text("")
    assert main(["recover", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"nfs-provisioner: {tmp_path}/.nfs-provisioner cannot be read: Not a directory\n"


def test_it_changes_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.claim("data")
    with site.controller():
        site.bound("data")
    before = {path: path.lstat().st_ctime_ns for path in site.root.rglob("*")}
    recovered(site, capsys)
    assert {path: path.lstat().st_ctime_ns for path in site.root.rglob("*")} == before


@pytest.mark.parametrize("control", ["kept", "without export.json"])
def test_a_disk_that_was_restored_from_a_backup_and_accepted_serves_its_volumes_as_before(
    site: Site, tmp_path: Path, control: str
) -> None:
    """Every file has another inode there, and records tell a volume's directory from another by that."""
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
    (site.directory_of(pv) / "file").write_text("data")
    shutil.copytree(site.root, tmp_path / "backup", symlinks=True)
    site.root.rename(tmp_path / "dead disk")
    shutil.move(tmp_path / "backup", site.root)
    if control != "kept":
        (site.root / ".nfs-provisioner" / "export.json").unlink()
    with site.controller():
        site.until(lambda: site.export_status("web").get("phase") == "Halted", "another disk is used unasked")
        assert main(["accept", "web", "--replica", "a", "--kubeconfig", str(site.kubeconfig)]) == 0
        site.export_ready("web")
        record = site.record(pv)
        assert record is not None and record.inode == site.directory_of(pv).stat().st_ino
        site.delete_claim("data")
        site.gone(pv)
    assert (site.directory_of(pv) / "file").read_text() == "data" and site.state(pv) is State.ARCHIVED
