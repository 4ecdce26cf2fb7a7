"""Hazards of provisioning and deleting, each as a user or an accident brings it about, on the controller as it is."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import PV, PVC, STORAGE_CLASS, Conflict
from nfs_provisioner.volumes import exports
from tests.embedded.site import Site

Json = dict[str, Any]


def written(site: Site, name: str = "data", text: str = "data") -> str:
    """A bound claim with a file in it; name of its PV."""
    pv = site.bound(name)
    (site.directory_of(pv) / "file").write_text(text)
    return pv


def content(site: Site, pv: str) -> str:
    return (site.directory_of(pv) / "file").read_text()


def phase(site: Site, name: str = "data") -> str:
    claim = site.get_claim(name)
    assert claim is not None
    found: str = claim["status"]["phase"]
    return found


def test_h10_a_class_made_anew_changes_nothing_for_the_volumes_it_made(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
        site.api.delete(STORAGE_CLASS, "nfs")
        site.make_class(onDelete="delete")
        site.delete_claim("data")
        site.gone(pv)
    assert site.state(pv) is State.ARCHIVED
    assert content(site, pv) == "data"


def test_h10_a_deleted_class_does_not_block_the_deletion_of_its_volumes(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
        site.api.delete(STORAGE_CLASS, "nfs")
        site.delete_claim("data")
        site.gone(pv)
    assert site.state(pv) is State.ARCHIVED


@pytest.mark.parametrize("parameters", [{"onDelete": "archived"}, {"archiveOnDelete": "no"}, {"pathpattern": "x"}])
def test_h10_a_typo_in_a_class_is_refused_and_takes_no_default(site: Site, parameters: dict[str, str]) -> None:
    site.make_class("typo", **parameters)
    site.claim("data", storage_class="typo")
    with site.controller():
        (message,) = site.until(lambda: site.events("ProvisioningFailed"), "nobody says what is wrong with the class")
    (key,) = parameters
    assert key in message
    assert not site.volumes() and not site.directories() and not site.records()


@pytest.mark.parametrize(("on_delete", "ends"), [("delete", State.DELETED), ("retain", State.RETAINED)])
def test_h10_on_delete_does_what_it_says(site: Site, on_delete: str, ends: State) -> None:
    site.make_class("other", onDelete=on_delete)
    site.claim("data", storage_class="other")
    with site.controller():
        pv = written(site)
        directory = site.directory_of(pv)
        site.delete_claim("data")
        site.gone(pv)
        assert site.state(pv) is ends
        assert directory.exists() == (ends is State.RETAINED)


def test_h12_a_pv_deleted_before_its_claim_is_archived_when_the_claim_goes(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
        site.api.delete(PV, pv)
        site.delete_claim("data")
        site.gone(pv)
    assert site.state(pv) is State.ARCHIVED
    assert site.directories() == [f"archived-shop-data-{pv}"]


def test_h12_a_pv_of_policy_retain_deleted_before_its_claim_keeps_its_directory(site: Site) -> None:
    site.make_class("keep", policy="Retain", onDelete="delete")
    site.claim("data", storage_class="keep")
    with site.controller():
        pv = written(site)
        site.api.delete(PV, pv)
        site.delete_claim("data")
        site.gone(pv)
        site.becomes(pv, State.RETAINED)
    assert content(site, pv) == "data"


def test_h13_a_claim_made_again_under_its_name_gets_a_directory_of_its_own(site: Site) -> None:
    site.claim("data")
    with site.controller():
        old = written(site, text="old")
        site.delete_claim("data")
        site.gone(old)
        site.claim("data")
        new = site.bound("data")
    assert new != old
    assert content(site, old) == "old"
    assert list(site.directory_of(new).iterdir()) == []


def test_h15_a_claim_deleted_while_the_controller_was_down_is_archived_by_the_next(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
    site.delete_claim("data")
    site.until(lambda: (site.volume(pv) or {})["status"]["phase"] == "Released", "the PV is not Released")
    with site.controller():
        site.gone(pv)
    assert site.state(pv) is State.ARCHIVED
    assert content(site, pv) == "data"


def test_h15_a_pv_that_nobody_recorded_as_finished_is_archived_too(site: Site) -> None:
    """Cut off after the PV was posted; then the claim goes: the record still says creating."""
    site.claim("data")
    cut = site.run_cut_off(1, "after", lambda: False)
    assert cut.seen == ["create persistentvolumes"]
    (pv,) = [v["metadata"]["name"] for v in site.volumes()]
    site.unfinish(pv)  # the cut may have come a moment too late for that
    site.until(lambda: phase(site) == "Bound", "the claim is not Bound")
    (site.directory_of(pv) / "file").write_text("data")
    site.delete_claim("data")
    with site.controller():
        site.gone(pv)
        site.becomes(pv, State.ARCHIVED)
    assert content(site, pv) == "data"


def test_h34_a_delete_that_cannot_find_its_directory_is_an_error_until_it_is_back(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
        directory, elsewhere = site.directory_of(pv), site.directory / "elsewhere"
        directory.rename(elsewhere)
        site.delete_claim("data")
        (message,) = site.until(lambda: site.events("VolumeFailedDelete"), "nobody says that the directory is missing")
        assert directory.name in message and "is not there" in message
        assert site.volume(pv) is not None and site.state(pv) is State.LIVE
        elsewhere.rename(directory)
        site.gone(pv)
    assert site.state(pv) is State.ARCHIVED
    assert content(site, pv) == "data"


def test_h34_another_directory_in_its_place_is_not_deleted(site: Site) -> None:
    site.make_class("delete", onDelete="delete")
    site.claim("data", storage_class="delete")
    with site.controller():
        pv = written(site)
        directory = site.directory_of(pv)
        directory.rename(site.directory / "elsewhere")
        directory.mkdir()
        (directory / "file").write_text("somebody's")
        site.delete_claim("data")
        site.until(lambda: site.events("VolumeFailedDelete"), "nobody says that it is another directory")
        assert (directory / "file").read_text() == "somebody's"
        assert site.volume(pv) is not None


def test_h40_a_pv_and_claim_that_vanish_without_a_word_leave_the_data(site: Site) -> None:
    site.make_class("delete", onDelete="delete")
    site.claim("data", storage_class="delete")
    with site.controller():
        pv = written(site)
    site.pause_binder()  # an etcd restored from before the claim: neither was ever released
    site.delete_claim("data")
    site.api.patch(PVC, "data", {"metadata": {"finalizers": None}}, namespace="shop")
    site.force_away(pv)
    site.resume_binder()
    with site.controller():
        site.becomes(pv, State.ORPHANED)
        assert content(site, pv) == "data"


def test_h40_a_missing_record_is_no_reason_to_let_a_released_pv_go(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
    directory = site.directory_of(pv)
    (site.root / ".nfs-provisioner" / "volumes" / f"{pv}.json").unlink()
    site.delete_claim("data")
    with site.controller():
        site.until(lambda: site.events("VolumeFailedDelete"), "nobody says that there is no record")
        assert site.volume(pv) is not None
        assert (directory / "file").read_text() == "data"


def test_h40_a_second_cluster_on_the_same_export_touches_nothing(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
    with EmbeddedApiServer() as other:
        second = Site(other, site.directory / "second")
        shutil.rmtree(second.mount_root)
        second.mount_root = site.mount_root
        second.make_export()
        second.make_class()
        second.claim("theirs")
        with second.controller():
            (message, *_) = second.until(lambda: second.events("ProvisioningFailed"), "nothing is said to the claim")
            assert "cluster" in message
        assert not second.volumes()
    assert site.state(pv) is State.LIVE
    assert site.directories() == [site.directory_of(pv).name]


def test_h56_an_archive_is_purged_when_all_clocks_say_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "HOUSEKEEPING", 0.1)
    site.make_class("brief", archiveRetention="1s")
    site.make_class("long", archiveRetention="1h")
    with site.controller():
        site.claim("brief", storage_class="brief")
        site.claim("long", storage_class="long")
        brief, long = site.bound("brief"), site.bound("long")
        for name in ("brief", "long"):
            site.delete_claim(name)
        site.becomes(long, State.ARCHIVED)
        site.becomes(brief, State.DELETED, None)
        assert [path.name.startswith("archived-shop-long") for path in site.root.glob("archived-*")] == [True]


def test_h58_a_pv_deleted_while_its_claim_lives_is_not_touched(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
        site.api.delete(PV, pv)
        site.until(lambda: "deletionTimestamp" in (site.volume(pv) or {})["metadata"], "the PV is not being deleted")
        site.claim("later")
        site.bound("later")  # what was queued before is done
        assert site.state(pv) is State.LIVE
        assert content(site, pv) == "data"
        assert phase(site) == "Bound"


def test_h58_nor_by_a_controller_that_starts_then(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
    site.api.delete(PV, pv)
    site.claim("later")
    with site.controller():
        site.bound("later")
        assert site.state(pv) is State.LIVE
        assert content(site, pv) == "data"


def test_h59_a_lost_claim_gets_its_pv_back(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = written(site)
        site.force_away(pv)
        site.until(lambda: phase(site) == "Bound" and site.volume(pv), "the claim did not get its PV back")
        site.becomes(pv, State.LIVE)
    assert content(site, pv) == "data"


def test_h59_a_claim_ref_cleared_and_bound_anew_is_followed(site: Site) -> None:
    site.make_class("keep", policy="Retain")
    site.claim("data", storage_class="keep")
    with site.controller():
        pv = written(site)
        site.delete_claim("data")
        site.until(lambda: (site.volume(pv) or {})["status"]["phase"] == "Released", "the PV is not Released")
        site.api.patch(PV, pv, {"spec": {"claimRef": None}})
        made = site.claim("heir", storage_class="keep", volumeName=pv)
        site.until(lambda: phase(site, "heir") == "Bound", "the heir is not Bound")
        site.until(
            lambda: (record := site.record(pv)) is not None and record.claim.uid == made["metadata"]["uid"],
            "the record does not follow",
        )
        site.api.patch(PV, pv, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
        site.delete_claim("heir")
        site.gone(pv)
    record = site.record(pv)
    assert record is not None and record.state is State.ARCHIVED and record.claim.name == "heir"
    assert content(site, pv) == "data"


UNSUPPORTED: list[tuple[Json, str]] = [
    ({"volumeMode": "Block"}, "Block"),
    ({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}}, "VolumeSnapshot"),
    ({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "other", "namespace": "bank"}}, "bank/other"),
    ({"dataSourceRef": {"apiGroup": "example.com", "kind": "PersistentVolumeClaim", "name": "x"}}, "example.com x"),
    ({"dataSourceRef": {"apiGroup": "example.com", "kind": "Thing", "name": "t"}}, "Thing"),
    ({"volumeAttributesClassName": "gold"}, "gold"),
]


@pytest.mark.parametrize(("spec", "named"), UNSUPPORTED, ids=[named for _, named in UNSUPPORTED])
def test_h60_what_cannot_be_honoured_is_refused_and_binds_nothing(site: Site, spec: Json, named: str) -> None:
    site.claim("data", **spec)
    site.claim("good")
    with site.controller():
        good = site.bound("good")
        (message,) = site.until(lambda: site.events("ProvisioningFailed"), "nobody says what is wrong with the claim")
    assert named in message
    assert [v["metadata"]["name"] for v in site.volumes()] == [good]
    assert list(site.records()) == [good]


def test_h61_a_policy_changed_between_deciding_and_acting_is_obeyed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PV becomes Retain when the decision to delete it is made, and the DELETE is not sent yet."""
    site.claim("data")
    with site.controller() as controller:
        pv = written(site)
        api = controller.daemon.api
        delete, refused = api.delete, []

        def too_late(*arguments: Any, **preconditions: Any) -> Json:
            site.api.patch(PV, pv, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
            try:
                return delete(*arguments, **preconditions)
            except Conflict as error:
                refused.append(error)
                raise

        monkeypatch.setattr(api, "delete", too_late)
        site.delete_claim("data")
        site.until(lambda: refused, "the DELETE was not refused")
        site.until(
            lambda: all("external-provisioner" not in f for f in (site.volume(pv) or {})["metadata"]["finalizers"]),
            "the finalizer is still there",
        )
    assert site.state(pv) is State.LIVE
    assert content(site, pv) == "data"
    volume = site.volume(pv)
    assert volume is not None and "deletionTimestamp" not in volume["metadata"]


def test_h61_a_policy_changed_while_the_pv_was_being_deleted_is_obeyed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted by one person while it was Bound, made Retain by another when the decision was made already."""
    site.claim("data")
    with site.controller() as controller:
        pv = written(site)
        api = controller.daemon.api
        get, looked = api.get, []

        def just_before(resource: Any, name: str, *arguments: Any, **options: Any) -> Json:
            if name == pv:
                site.api.patch(PV, pv, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
                looked.append(name)
            return get(resource, name, *arguments, **options)

        monkeypatch.setattr(api, "get", just_before)
        site.api.delete(PV, pv)
        site.delete_claim("data")
        site.gone(pv)
        site.becomes(pv, State.RETAINED)
    assert looked, "nobody looked again before acting"
    assert content(site, pv) == "data"


def test_h59_a_lost_claim_that_was_not_the_volumes_first_gets_it_back_too(site: Site) -> None:
    """The PV is to name the claim that has it now, or it is Released when the first one's name is another claim's; and
    to have the policy that it had at last, not the class's."""
    site.make_class("delete", onDelete="delete")
    site.claim("data", storage_class="delete")
    with site.controller():
        pv = written(site)
        site.api.patch(PV, pv, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
        site.delete_claim("data")
        site.until(lambda: (site.volume(pv) or {})["status"]["phase"] == "Released", "the PV is not Released")
        site.api.patch(PV, pv, {"spec": {"claimRef": None}})
        second = site.claim("second", storage_class="delete", volumeName=pv)
        site.until(
            lambda: (r := site.record(pv)) and r.claim.uid == second["metadata"]["uid"], "the record does not follow"
        )
        site.claim("data", storage_class="delete")
        site.bound("data")
        site.force_away(pv)
        site.until(lambda: site.volume(pv) and phase(site, "second") == "Bound", "it is not Bound again", 20)
        volume = site.volume(pv)
        assert volume is not None and volume["spec"]["claimRef"]["name"] == "second"
        assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
        assert content(site, pv) == "data"
