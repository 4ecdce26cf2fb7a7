"""A claim's life on the real control plane: made, grown, archived, restored, retained, purged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.site import CLASSES, EXPORTS, FINALIZER, RESTORE, VOLUMES, ExportOnDisk, Site, eventually
from tests.contract.client import Json
from tests.plugins.controller import Controller

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def web(site: Site) -> ExportOnDisk:
    return site.export("web", labels={"tier": "standard"})


@pytest.fixture(scope="module")
def small(site: Site) -> ExportOnDisk:
    """10 Gi and no more."""
    return site.export("small", "a", capacity="10Gi", labels={"tier": "small"})


@pytest.fixture(scope="module", autouse=True)
def controller(site: Site, web: ExportOnDisk, small: ExportOnDisk) -> Iterator[Controller]:
    with site.controller().start() as made:
        yield made.wait_ready(web.name, small.name)
        assert made.stop() == 0
        assert "Traceback" not in made.log


def directory_of(export: ExportOnDisk, pv: Json) -> str:
    """The PV's directory below the export."""
    path: str = pv["spec"]["nfs"]["path"]
    assert path.startswith(export.path + "/")
    return path.removeprefix(export.path + "/")


# -- made -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"])
def test_claim_of_each_access_mode_gets_its_volume(site: Site, web: ExportOnDisk, plain: str, mode: str) -> None:
    claim, pv = site.bind(f"mode-{mode.lower()}", plain, accessModes=[mode])
    uid = claim["metadata"]["uid"]
    assert pv["metadata"]["name"] == f"pvc-{uid}"
    assert pv["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] == site.provisioner
    assert pv["metadata"]["labels"] == {"nfs-provisioner.io/export": web.name}
    assert FINALIZER in pv["metadata"]["finalizers"]
    assert pv["spec"]["accessModes"] == [mode]
    assert pv["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    name = f"{site.namespace}-mode-{mode.lower()}-pvc-{uid}"
    assert pv["spec"]["nfs"] == {"server": "192.0.2.11", "path": f"{web.path}/{name}"}
    assert (web.root("a") / name).stat().st_mode & 0o7777 == 0o777
    eventually(lambda: (web.root("b") / name).is_dir(), "the standby has the directory")
    event = site.event(claim, "ProvisioningSucceeded", name)
    assert event["type"] == "Normal"


def test_claim_that_waits_for_its_consumer_gets_its_volume_with_the_node(site: Site, web: ExportOnDisk) -> None:
    waiting = site.storage_class("waiting", web, volumeBindingMode="WaitForFirstConsumer")
    claim = site.claim("consumer", waiting)
    site.event(claim, "WaitForFirstConsumer")
    assert site.api.get(site.claim_path(claim)).ok()["status"]["phase"] == "Pending"
    assert claim["metadata"]["uid"] not in str(web.entries())
    site.change(claim, {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "node-1"}}})
    pv = site.bound(claim)
    assert "nodeAffinity" not in pv["spec"]
    assert (web.root() / directory_of(web, pv)).is_dir()


def test_mode_owner_and_mount_options_come_from_the_class(site: Site, web: ExportOnDisk) -> None:
    owned = site.storage_class(
        "owned",
        web,
        parameters={"directoryMode": "2750", "uid": "1234", "gid": "4321"},
        mountOptions=["nfsvers=4.2", "hard"],
    )
    _, pv = site.bind("owned", owned)
    assert pv["spec"]["mountOptions"] == ["nfsvers=4.2", "hard"]
    for replica in "ab":
        root = web.root(replica) / directory_of(web, pv)
        found = eventually(lambda root=root: root.exists() and root.stat(), "the directory is there")  # type: ignore[misc]
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o2750, 1234, 4321)


def test_path_pattern_names_the_directory_and_parents_go_with_the_last_volume(site: Site, web: ExportOnDisk) -> None:
    pattern = "teams/${.PVC.labels.team}/${.PVC.name}"
    nested = site.storage_class("nested", web, parameters={"pathPattern": pattern, "onDelete": "delete"})
    claim, pv = site.bind("photos", nested, labels={"team": "red"})
    assert pv["spec"]["nfs"]["path"] == f"{web.path}/teams/red/photos"
    second, other = site.bind("videos", nested, labels={"team": "red"})
    eventually(lambda: (web.root("b") / "teams/red/videos").is_dir(), "the standby has both")
    site.give_up(claim, pv)
    assert [p.name for p in (web.root() / "teams/red").iterdir()] == ["videos"]
    site.give_up(second, other)
    eventually(lambda: "teams" not in web.entries("a") | web.entries("b"), "the empty parents are gone on both")


def test_export_with_most_unreserved_space_is_chosen(site: Site, web: ExportOnDisk, small: ExportOnDisk) -> None:
    either = site.storage_class("either", parameters={"export": f"{small.name},{web.name}"})
    _, pv = site.bind("roomy", either)
    assert pv["metadata"]["labels"]["nfs-provisioner.io/export"] == web.name


def test_selector_chooses_the_export_by_its_labels(site: Site, small: ExportOnDisk) -> None:
    anywhere = site.storage_class("anywhere")
    claim = site.claim("picky", anywhere, selector={"matchLabels": {"tier": "small"}})
    pv = site.bound(claim)
    assert pv["metadata"]["labels"]["nfs-provisioner.io/export"] == small.name
    site.give_up(claim, pv)


# -- given up -----------------------------------------------------------------------------------------------------------


def test_archive_keeps_the_data_on_both_replicas_and_says_so(site: Site, web: ExportOnDisk, plain: str) -> None:
    claim, pv = site.bind("kept", plain)
    directory = directory_of(web, pv)
    (web.root() / directory / "file").write_text("data")
    eventually(lambda: (web.root("b") / directory).is_dir(), "the standby has the directory")
    site.give_up(claim, pv)
    assert (web.root() / f"archived-{directory}/file").read_text() == "data"
    eventually(lambda: f"archived-{directory}" in web.entries("b"), "the standby has the archive")
    assert directory not in web.entries("a") | web.entries("b")
    exports = site.api.get(f"{EXPORTS}/{web.name}").ok()
    site.event(exports, "VolumeArchived", f"archived-{directory}")


@pytest.mark.parametrize("parameters", [{"onDelete": "delete"}, {"archiveOnDelete": "false"}])
def test_delete_leaves_nothing_behind(site: Site, web: ExportOnDisk, parameters: dict[str, str]) -> None:
    deleting = site.storage_class("deleting" + next(iter(parameters)).lower(), web, parameters=parameters)
    claim, pv = site.bind("gone", deleting)
    directory = directory_of(web, pv)
    for number in range(50):
        (web.root() / directory / f"file-{number}").touch()
    site.give_up(claim, pv)
    assert directory not in web.entries("a")
    uid = claim["metadata"]["uid"]
    eventually(lambda: uid not in str(web.entries("a") | web.entries("b")), "no trace at the roots")
    eventually(lambda: not (web.leftovers("a") + web.leftovers("b")), "the trash is emptied")


def test_retain_by_parameter_keeps_the_directory_and_lets_the_volume_go(site: Site, web: ExportOnDisk) -> None:
    retaining = site.storage_class("retaining", web, parameters={"onDelete": "retain"})
    claim, pv = site.bind("retained", retaining)
    directory = directory_of(web, pv)
    site.give_up(claim, pv)
    assert directory in web.entries("a")
    assert web.record(pv["metadata"]["name"])["state"] == "retained"


def test_archive_on_delete_loses_against_on_delete(site: Site, web: ExportOnDisk) -> None:
    both = site.storage_class("both", web, parameters={"onDelete": "retain", "archiveOnDelete": "false"})
    claim, pv = site.bind("both", both)
    site.give_up(claim, pv)
    assert directory_of(web, pv) in web.entries("a")


def test_reclaim_policy_retain_leaves_volume_and_directory(site: Site, web: ExportOnDisk) -> None:
    retain = site.storage_class("policy-retain", web, reclaimPolicy="Retain")
    claim, pv = site.bind("policy", retain)
    assert FINALIZER not in pv["metadata"].get("finalizers", [])
    site.delete(claim)
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    site.api.eventually(path, lambda found: found["status"]["phase"] == "Released")
    assert directory_of(web, pv) in web.entries("a")
    site.api.delete(path).ok()
    site.gone(pv)
    eventually(lambda: web.record(pv["metadata"]["name"])["state"] == "retained", "the record says retained")
    assert directory_of(web, pv) in web.entries("a")


def test_finalizer_follows_the_reclaim_policy(site: Site, web: ExportOnDisk, plain: str) -> None:
    claim, pv = site.bind("turns", plain)
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    site.api.patch(path, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}).ok()
    site.api.eventually(path, lambda found: FINALIZER not in found["metadata"].get("finalizers", []))
    site.api.patch(path, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}).ok()
    site.api.eventually(path, lambda found: FINALIZER in found["metadata"]["finalizers"])
    site.give_up(claim, pv)
    assert f"archived-{directory_of(web, pv)}" in web.entries("a")


def test_h10_a_class_edited_or_deleted_later_changes_nothing_for_existing_volumes(
    site: Site, web: ExportOnDisk
) -> None:
    fickle = site.storage_class("fickle", web, parameters={"onDelete": "archive"})
    first, pv = site.bind("first", fickle)
    second, other = site.bind("second", fickle)
    parameters = {"export": web.name, "onDelete": "delete"}
    site.replace_class(fickle, parameters=parameters)
    site.give_up(first, pv)
    assert f"archived-{directory_of(web, pv)}" in web.entries("a")
    site.api.delete(f"{CLASSES}/{fickle}").ok()
    site.give_up(second, other)
    assert f"archived-{directory_of(web, other)}" in web.entries("a")


# -- restored -----------------------------------------------------------------------------------------------------------


def test_archive_is_restored_by_annotation_without_copying(site: Site, web: ExportOnDisk, plain: str) -> None:
    claim, pv = site.bind("before", plain)
    directory = directory_of(web, pv)
    (web.root() / directory / "file").write_text("precious")
    inode = (web.root() / directory / "file").stat().st_ino
    eventually(lambda: (web.root("b") / directory).is_dir(), "the standby has the directory")
    site.give_up(claim, pv)
    archive = f"archived-{directory}"
    _, restored = site.bind("after", plain, annotations={RESTORE: archive})
    found = web.root() / directory_of(web, restored) / "file"
    assert (found.read_text(), found.stat().st_ino) == ("precious", inode)
    assert archive not in web.entries("a")
    eventually(lambda: directory_of(web, restored) in web.entries("b"), "the standby followed")
    assert archive not in web.entries("b")
    assert web.record(restored["metadata"]["name"])["tree"] == web.record(restored["metadata"]["name"], "b")["tree"]


# -- grown ----------------------------------------------------------------------------------------------------------------


def test_grown_claim_has_volume_status_and_record_of_the_new_size(site: Site, web: ExportOnDisk, plain: str) -> None:
    claim, pv = site.bind("grows", plain)
    site.grow(claim, "3Gi")
    site.api.eventually(
        site.claim_path(claim),
        lambda c: c["status"]["capacity"]["storage"] == "3Gi" and not c["status"].get("allocatedResourceStatuses"),
    )
    assert site.volume(pv["metadata"]["name"])["spec"]["capacity"]["storage"] == "3Gi"
    assert web.record(pv["metadata"]["name"])["requested"] == 3 << 30
    site.event(claim, "VolumeResizeSuccessful", "3Gi")


def test_growth_that_does_not_fit_says_so_and_can_be_taken_back(site: Site, small: ExportOnDisk) -> None:
    tight = site.storage_class("tight", small)
    claim, pv = site.bind("swells", tight)
    site.grow(claim, "100Gi")

    def refused(found: Json) -> bool:
        conditions = found["status"].get("conditions") or []
        infeasible = found["status"].get("allocatedResourceStatuses") == {"storage": "ControllerResizeInfeasible"}
        return infeasible and any(
            c["type"] == "ControllerResizeError" and "promised" in c["message"] for c in conditions
        )

    site.api.eventually(site.claim_path(claim), refused)
    site.event(claim, "VolumeResizeFailed", small.name)
    assert site.volume(pv["metadata"]["name"])["spec"]["capacity"]["storage"] == "1Gi"
    site.grow(claim, "2Gi")
    settled = site.api.eventually(
        site.claim_path(claim),
        lambda c: c["status"]["capacity"]["storage"] == "2Gi" and not c["status"].get("allocatedResourceStatuses"),
    )
    assert not settled["status"].get("conditions")
    assert small.record(pv["metadata"]["name"])["requested"] == 2 << 30
    site.give_up(claim, pv)
