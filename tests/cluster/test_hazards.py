"""What people and machines do to volumes behind the controller's back: no data may be touched by mistake."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.cluster.site import (
    EXPORTS,
    FINALIZER,
    PROVISIONED_BY,
    VOLUMES,
    ExportOnDisk,
    Site,
    eventually,
    with_file,
    without_finalizer,
)
from tests.plugins.controller import ENDLESS_LEASE, Controller

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def controller(site: Site, web: ExportOnDisk) -> Iterator[Controller]:
    with site.controller(lease=ENDLESS_LEASE).start() as made:  # one test pauses it
        yield made.wait_ready(web.name)
        assert "Traceback" not in made.log


def seen(site: Site, plain: str, name: str) -> None:
    """The controller has seen everything before: a claim made after it is bound."""
    claim, pv = site.bind(f"seen-{name}", plain)
    site.give_up(claim, pv)


@pytest.mark.usefixtures("controller")
def test_h12_h58_volume_deleted_before_its_claim_keeps_its_data_until_the_claim_goes(
    site: Site, web: ExportOnDisk, plain: str
) -> None:
    claim, pv, file = with_file(site, web, plain, "h58")
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    site.api.delete(path).ok()
    site.api.eventually(path, lambda found: "deletionTimestamp" in found["metadata"])
    seen(site, plain, "h58")
    assert site.volume(pv["metadata"]["name"])["status"]["phase"] == "Bound"
    assert file.read_text() == "h58"
    assert web.record(pv["metadata"]["name"])["state"] == "live"
    site.give_up(claim, pv)
    assert (file.parent.with_name(f"archived-{file.parent.name}") / "file").read_text() == "h58"


@pytest.mark.usefixtures("controller")
def test_h12_volume_of_policy_retain_deleted_by_hand_keeps_its_directory(
    site: Site, web: ExportOnDisk, plain: str
) -> None:
    claim, pv, file = with_file(site, web, plain, "h12")
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    site.api.patch(path, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}).ok()
    site.api.eventually(path, lambda found: FINALIZER not in found["metadata"].get("finalizers", []))
    site.api.delete(path).ok()
    site.delete(claim)
    site.gone(pv)
    eventually(lambda: web.record(pv["metadata"]["name"])["state"] == "retained", "retained")
    assert file.read_text() == "h12"


def test_h06_volume_that_no_record_names_is_not_deleted_here(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    """Somebody wrote a PV in our name, at a directory that is another's."""
    _, pv, file = with_file(site, web, plain, "h06-victim")
    impostor = site.claim("h06-impostor", "")
    body = {
        "metadata": {
            "name": site.name("h06"),
            "annotations": {PROVISIONED_BY: site.provisioner},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Delete",
            "nfs": pv["spec"]["nfs"],
            "claimRef": {key: impostor["metadata"][key] for key in ("namespace", "name", "uid")},
        },
    }
    forged = site.api.post(VOLUMES, body).ok()
    site.bound(impostor)
    site.delete(impostor)
    site.event(forged, "VolumeFailedDelete", "is not touched")
    assert file.read_text() == "h06-victim"
    assert site.api.get(f"{VOLUMES}/{site.name('h06')}").code == 200
    controller.until(
        lambda: controller.metric("controller_persistentvolume_delete_failed_total") >= 1, "the metric says so"
    )
    without_finalizer(site.api, site.name("h06"))


def test_h07_repointed_export_is_not_the_old_one_and_nothing_on_it_is_touched(
    site: Site, controller: Controller
) -> None:
    export = site.export("h07", "a")
    storage_class = site.storage_class("h07", export)
    claim, pv, file = with_file(site, export, storage_class, "h07")
    other = site.mounts / export.name / "other"
    (other / file.parent.name).mkdir(parents=True)
    (other / file.parent.name / "file").write_text("of another server")
    path = f"{EXPORTS}/{export.name}"
    right = site.api.get(path).ok()["spec"]["replicas"]
    site.api.patch(path, {"spec": {"replicas": [right[0] | {"mountPath": str(other)}]}}).ok()
    status = eventually(lambda: (s := site.export_status(export)).get("phase") == "Halted" and s, "it is Halted")
    assert isinstance(status, dict) and "accept" in status["conditions"][0]["message"]
    site.delete(claim)
    site.event(pv, "VolumeFailedDelete")
    assert sorted(p.name for p in other.iterdir()) == [file.parent.name]
    assert (other / file.parent.name / "file").read_text() == "of another server"
    assert file.read_text() == "h07"
    site.api.patch(path, {"spec": {"replicas": right}}).ok()
    site.gone(pv)
    assert (file.parent.with_name(f"archived-{file.parent.name}") / "file").read_text() == "h07"
    assert (other / file.parent.name / "file").read_text() == "of another server"
    assert controller.http("/healthz")[0] == 200


@pytest.mark.usefixtures("controller")
def test_h34_directory_that_cannot_be_found_is_an_error_and_not_a_success(
    site: Site, web: ExportOnDisk, plain: str
) -> None:
    claim, pv, file = with_file(site, web, plain, "h34")
    hidden = file.parent.with_name("hidden-by-somebody")
    file.parent.rename(hidden)
    site.delete(claim)
    site.event(pv, "VolumeFailedDelete", "is not there")
    assert site.api.get(f"{VOLUMES}/{pv['metadata']['name']}").code == 200
    hidden.rename(file.parent)
    site.gone(pv, 180)
    assert (file.parent.with_name(f"archived-{file.parent.name}") / "file").read_text() == "h34"


@pytest.mark.usefixtures("controller")
def test_h59_lost_claim_gets_its_volume_back(site: Site, web: ExportOnDisk, plain: str) -> None:
    claim, pv, file = with_file(site, web, plain, "h59-lost")
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    site.api.delete(path).ok()
    site.api.patch(path, {"metadata": {"finalizers": None}}).ok()
    site.api.eventually(path, lambda again: again["metadata"]["uid"] != pv["metadata"]["uid"])
    site.bound(claim)
    assert site.volume(pv["metadata"]["name"])["spec"]["nfs"] == pv["spec"]["nfs"]
    assert file.read_text() == "h59-lost"
    eventually(lambda: web.record(pv["metadata"]["name"])["state"] == "live", "live again")
    site.give_up(claim, site.volume(pv["metadata"]["name"]))
    assert web.record(pv["metadata"]["name"])["state"] == "archived"


@pytest.mark.usefixtures("controller")
def test_h59_volume_bound_anew_by_an_administrator_follows_its_new_claim(
    site: Site, web: ExportOnDisk, plain: str
) -> None:
    claim, pv, file = with_file(site, web, plain, "h59-old")
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    site.api.patch(path, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}).ok()
    site.delete(claim)
    site.api.eventually(path, lambda found: found["status"]["phase"] == "Released")
    site.api.patch(path, {"spec": {"claimRef": None}}).ok()
    heir = site.claim("h59-heir", plain, volumeName=pv["metadata"]["name"])
    site.bound(heir)
    eventually(
        lambda: web.record(pv["metadata"]["name"])["claim"]["uid"] == heir["metadata"]["uid"], "the record follows"
    )
    site.api.patch(path, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}}).ok()
    site.api.eventually(path, lambda found: FINALIZER in found["metadata"]["finalizers"])
    site.give_up(heir, pv)
    assert (file.parent.with_name(f"archived-{file.parent.name}") / "file").read_text() == "h59-old"


def test_volumes_retained_while_the_controller_was_paused_keep_their_data(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    volumes = [with_file(site, web, plain, f"h61-{number}") for number in range(10)]
    controller.signal(signal.SIGSTOP)  # it has to hear first of the release, then of the policy
    for claim, pv, _ in volumes:
        site.delete(claim)
        path = f"{VOLUMES}/{pv['metadata']['name']}"
        site.api.eventually(path, lambda found: found["status"]["phase"] == "Released")
        site.api.patch(path, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}).ok()
    controller.signal(signal.SIGCONT)
    for _, pv, file in volumes:
        path = f"{VOLUMES}/{pv['metadata']['name']}"
        kept = site.api.eventually(path, lambda found: FINALIZER not in found["metadata"].get("finalizers", []))
        assert "deletionTimestamp" not in kept["metadata"]
        assert file.exists()
