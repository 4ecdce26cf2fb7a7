"""What claims and classes ask for: where the directory goes, what is refused, what is restored, what is taken over."""

from __future__ import annotations

from typing import Any

import pytest

from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import EVENT, NAMESPACE, NFS_EXPORT, PV, PVC, STORAGE_CLASS
from nfs_provisioner.volumes.objects import REQUEST, RESTORE_ARCHIVE
from tests.embedded.site import PROVISIONER, Site
from tests.embedded.test_cut_off import foreign_volume

Json = dict[str, Any]


def refused(site: Site, containing: str, reason: str = "ProvisioningFailed") -> str:
    return site.until(
        lambda: next((message for message in site.events(reason) if containing in message), None),
        f"no Event {reason} contains {containing!r}",
    )


def archived(site: Site, name: str = "data", size: str = "10Mi") -> str:
    """An archive with a file in it; its name. A controller must run."""
    site.claim(name, size)
    pv = site.bound(name)
    (site.directory_of(pv) / "file").write_text(name)
    site.delete_claim(name)
    site.gone(pv)
    record = site.record(pv)
    assert record is not None and record.state is State.ARCHIVED
    return record.directory


def test_a_pv_says_what_its_claim_and_class_ask_for(site: Site) -> None:
    site.api.create(
        STORAGE_CLASS,
        {
            "metadata": {"name": "full"},
            "provisioner": PROVISIONER,
            "mountOptions": ["nfsvers=4.1", "hard"],
            "reclaimPolicy": "Delete",
            "parameters": {"directoryMode": "2750", "pathPattern": "${.PVC.annotations.example.com/team}/${.PVC.name}"},
        },
    )
    site.claim("data", storage_class="full", annotations={"example.com/team": "blue"}, accessModes=["ReadWriteOncePod"])
    with site.controller():
        pv = site.bound("data")
    made = site.api.get(PV, pv)
    metadata, spec = made["metadata"], made["spec"]
    assert pv == f"pvc-{site.api.get(PVC, 'data', 'shop')['metadata']['uid']}"
    assert metadata["labels"] == {"nfs-provisioner.io/export": "web"}
    assert metadata["annotations"]["pv.kubernetes.io/provisioned-by"] == PROVISIONER
    assert "external-provisioner.volume.kubernetes.io/finalizer" in metadata["finalizers"]
    assert spec["nfs"] == {"server": "192.0.2.1", "path": "/srv/nfs/blue/data"}
    assert spec["mountOptions"] == ["nfsvers=4.1", "hard"]
    assert spec["accessModes"] == ["ReadWriteOncePod"]
    assert spec["persistentVolumeReclaimPolicy"] == "Delete"
    assert (site.root / "blue" / "data").stat().st_mode & 0o7777 == 0o2750


def test_h01_a_missing_label_is_refused_and_leaves_nothing(site: Site) -> None:
    site.make_class("teams", pathPattern="teams/${.PVC.labels.team}")
    site.claim("data", storage_class="teams")
    site.claim("good")
    with site.controller():
        good = site.bound("good")
        refused(site, "the label 'team'")
        assert list(site.records()) == [good]
        assert site.directories() == [site.directory_of(good).name]
        site.api.patch(PVC, "data", {"metadata": {"labels": {"team": "red"}}}, namespace="shop")
        assert site.directory_of(site.bound("data")) == site.root / "teams" / "red"


def test_h03_two_claims_of_one_directory_do_not_share_it(site: Site) -> None:
    site.make_class("flat", pathPattern="${.PVC.namespace}-${.PVC.labels.app}")
    site.claim("one", storage_class="flat", labels={"app": "x"})
    with site.controller():
        first = site.bound("one")
        site.claim("two", storage_class="flat", labels={"app": "x"})
        message = refused(site, "shop-x")
        assert "shop/one" in message and "pathPattern" in message
        assert [v["metadata"]["name"] for v in site.volumes()] == [first]


def test_h05_a_directory_that_is_somebodys_is_not_taken(site: Site) -> None:
    (site.root / "theirs").mkdir()
    (site.root / "theirs" / "file").write_text("theirs")
    site.make_class("flat", pathPattern="theirs")
    site.claim("data", storage_class="flat")
    with site.controller():
        refused(site, "exists already")
        assert not site.volumes() and not site.records()
    assert (site.root / "theirs" / "file").read_text() == "theirs"


def test_the_export_with_most_unreserved_space_is_taken_and_a_selector_is_obeyed(site: Site) -> None:
    site.make_export("vault", capacity="20Gi")
    with site.controller():
        site.export_ready("web")
        site.export_ready("vault")
        site.claim("any", "1Gi")
        site.claim("picky", selector={"matchLabels": {"name": "web"}})
        site.claim("nobody", selector={"matchLabels": {"name": "nothing"}})
        for name in ("any", "picky"):
            site.until(
                lambda name=name: (site.get_claim(name) or {})["status"]["phase"] == "Bound",  # type: ignore[misc]
                f"{name} is not Bound",
            )
        refused(site, "labels")
    labels = {
        v["spec"]["claimRef"]["name"]: v["metadata"]["labels"]["nfs-provisioner.io/export"] for v in site.volumes()
    }
    assert labels == {"any": "vault", "picky": "web"}


def test_h35_claims_that_come_together_are_not_promised_the_same_space(site: Site) -> None:
    for number in range(6):
        site.claim(f"c{number}", "3Gi")
    with site.controller():
        site.until(lambda: len(site.volumes()) == 3, "three of three gigabytes fit into ten")
        for _ in range(3):
            refused(site, "promised")
        assert len(site.volumes()) == 3
        assert sum(r.requested for r in site.records().values()) <= 10 << 30


def test_a_class_of_an_export_that_does_not_exist_says_which_do(site: Site) -> None:
    site.make_class("lost", export="nowhere")
    site.claim("data", storage_class="lost")
    with site.controller():
        assert "web" in refused(site, "'nowhere', which does not exist")
        site.make_export("nowhere")
        site.until(lambda: (site.get_claim("data") or {})["status"]["phase"] == "Bound", "the claim is not Bound")


# -- archives ---------------------------------------------------------------------------------------------------------


def test_an_archive_becomes_a_new_claims_volume(site: Site) -> None:
    with site.controller():
        name = archived(site)
        inode = (site.root / name).stat().st_ino
        site.claim("again", annotations={RESTORE_ARCHIVE: name})
        pv = site.bound("again")
        assert (site.directory_of(pv) / "file").read_text() == "data"
        assert site.directory_of(pv).stat().st_ino == inode
        assert site.directories() == [site.directory_of(pv).name]
        site.delete_claim("again")
        site.gone(pv)
    assert site.state(pv) is State.ARCHIVED


def test_an_archive_of_another_namespace_looks_like_none(site: Site) -> None:
    site.api.create(NAMESPACE, {"metadata": {"name": "thief"}})
    with site.controller():
        name = archived(site)
        spec = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "nfs",
            "resources": {"requests": {"storage": "10Mi"}},
        }
        for asked in (name, "no-such-archive"):
            metadata = {"name": asked[:20], "annotations": {RESTORE_ARCHIVE: asked}}
            site.api.create(PVC, {"metadata": metadata, "spec": spec}, "thief")

        def messages() -> set[str]:
            found = [e["message"] for e in site.api.list(EVENT, "thief")[0] if e["reason"] == "ProvisioningFailed"]
            return {m.replace(name, "X").replace("no-such-archive", "X") for m in found} if len(found) > 1 else set()

        assert len(site.until(messages, "nothing is said")) == 1, "the answers tell which archives exist"
    assert (site.root / name / "file").read_text() == "data"


def test_a_claim_smaller_than_its_archive_is_refused(site: Site) -> None:
    with site.controller():
        name = archived(site, size="20Mi")
        site.claim("again", annotations={RESTORE_ARCHIVE: name})
        refused(site, "ask for more")
    assert (site.root / name / "file").read_text() == "data"


def test_two_claims_of_one_archive_get_it_once(site: Site) -> None:
    with site.controller():
        name = archived(site)
        for claim in ("one", "two"):
            site.claim(claim, annotations={RESTORE_ARCHIVE: name})
        site.until(lambda: site.volumes(), "neither got it")
        refused(site, "archive")
        assert len(site.volumes()) == 1
        site.until(lambda: State.LIVE in [r.state for r in site.records().values()], "its record is not finished")
    (live,) = [r for r in site.records().values() if r.state is State.LIVE]
    assert (site.root / live.directory / "file").read_text() == "data"


# -- requests ---------------------------------------------------------------------------------------------------------


def epoch_of(site: Site) -> int:
    return int(site.until(lambda: site.export_status("web").get("epoch"), "the status has no epoch"))


def request(site: Site, text: str) -> Json:
    """Write a request and wait for its answer."""
    site.api.patch(NFS_EXPORT, "web", {"metadata": {"annotations": {REQUEST: text}}})

    def answer() -> Json | None:
        handled: Json = site.export_status("web").get("lastHandledRequest") or {}
        return handled if handled.get("request") == text else None

    return site.until(answer, "the request was not answered")


def test_an_archive_is_purged_on_request_and_only_in_its_epoch(site: Site) -> None:
    with site.controller():
        name = archived(site)
        epoch = epoch_of(site)
        answer = request(site, f"archives purge {name} epoch={epoch + 1}")
        assert answer["result"] == "Refused" and (site.root / name).exists()
        answer = request(site, f"archives purge {name}-not epoch={epoch}")
        assert answer["result"] == "Invalid" and (site.root / name).exists()
        answer = request(site, f"archives purge {name} epoch={epoch}")
        assert answer["result"] == "Done" and not (site.root / name).exists()
        site.until(lambda: site.events("RequestDone"), "no Event says so")


def test_a_request_that_was_answered_is_not_carried_out_again_by_the_next_controller(site: Site) -> None:
    with site.controller():
        name = archived(site)
        request(site, f"archives purge {name} epoch={epoch_of(site)}")
        before = site.export_status("web")["lastHandledRequest"]
    with site.controller():
        archived(site, "later")
        assert site.export_status("web")["lastHandledRequest"] == before


# -- volumes of another provisioner -----------------------------------------------------------------------------------

ADOPT = ("other.example/nfs",)


def adopted(site: Site, pv: str) -> bool:
    by = site.api.get(PV, pv)["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"]
    return bool(by == PROVISIONER) and site.state(pv) is State.LIVE


def test_an_adopted_volume_is_left_as_it_is_and_goes_as_ours_do(site: Site) -> None:
    foreign_volume(site, "theirs", "shop-theirs-pvc-1")
    with site.controller(adopt_from=ADOPT):
        site.until(lambda: adopted(site, "theirs"), "it was not taken over")
        assert (site.root / "shop-theirs-pvc-1" / "file").read_text() == "theirs"
        site.delete_claim("theirs")
        site.gone("theirs")
    assert site.directories() == ["archived-shop-theirs-pvc-1"]


def test_h06_a_volume_of_a_server_that_is_no_export_is_not_taken_over(site: Site) -> None:
    foreign_volume(site, "theirs", "data")
    site.api.delete(NFS_EXPORT, "web")
    site.make_export("other", replicas=[
        {"name": "a", "server": "192.0.2.77", "path": "/srv/nfs", "mountPath": str(site.mount_root / "other" / "a")}
    ])  # fmt: skip
    with site.controller(adopt_from=ADOPT):
        refused(site, "192.0.2.1:/srv/nfs/data")
        assert not adopted(site, "theirs")


@pytest.mark.parametrize("second", ["team", "team/inner"], ids=["one directory", "a nested one"])
def test_h04_adopted_directories_that_are_shared_are_never_moved_or_deleted(site: Site, second: str) -> None:
    foreign_volume(site, "one", "team")
    foreign_volume(site, "two", second)
    with site.controller(adopt_from=ADOPT):
        for pv in ("one", "two"):
            site.until(lambda pv=pv: adopted(site, pv), f"{pv} was not taken over")  # type: ignore[misc]
            site.until(lambda pv=pv: (r := site.record(pv)) is not None and r.shared, f"{pv} is not known as shared")  # type: ignore[misc]
        for pv in ("one", "two"):
            site.delete_claim(pv)
            site.gone(pv)
        assert site.state("one") is State.RETAINED
    assert (site.root / "team" / "file").read_text() == "theirs"
    assert (site.root / second / "file").read_text() == "theirs"


@pytest.mark.parametrize("kept", ["team", "team/inner"], ids=["one directory", "a nested one"])
def test_h04_an_adopted_directory_that_a_kept_volume_of_the_other_provisioner_names_is_not_moved(
    site: Site, kept: str
) -> None:
    """That one is not taken over, because it is not bound; its policy Retain says that its data stays."""
    foreign_volume(site, "old", kept)
    site.api.patch(PV, "old", {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    site.delete_claim("old")
    site.until(lambda: (site.volume("old") or {})["status"]["phase"] == "Released", "the PV is not Released")
    foreign_volume(site, "one", "team")
    with site.controller(adopt_from=ADOPT):
        site.until(lambda: adopted(site, "one"), "it was not taken over")
        site.delete_claim("one")
        site.gone("one")
        assert site.state("one") is State.RETAINED
    assert (site.root / kept / "file").read_text() == "theirs"


def test_nothing_is_adopted_unless_it_was_asked_for(site: Site) -> None:
    foreign_volume(site, "theirs", "data")
    site.claim("good")
    with site.controller():
        site.bound("good")
        assert not site.record("theirs")


# -- the export's own object ------------------------------------------------------------------------------------------


def test_an_export_is_kept_while_volumes_are_on_it(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        site.api.delete(NFS_EXPORT, "web")
        site.claim("late")
        refused(site, "being deleted")
        assert site.api.get(NFS_EXPORT, "web")["metadata"]["finalizers"]
        site.delete_claim("data")
        site.gone(pv)

        def gone() -> bool:
            return all(obj["metadata"]["name"] != "web" for obj in site.api.list(NFS_EXPORT)[0])

        site.until(gone, "the NFSExport is still there")


def test_an_export_that_cannot_be_understood_says_why_and_disturbs_no_other(site: Site) -> None:
    site.make_export("bad", overcommit="lots")
    site.claim("data")
    with site.controller():
        site.bound("data")
        found = site.until(lambda: (status := site.export_status("bad")).get("phase") and status, "it has no status")
        assert found["phase"] == "Halted"
        assert "overcommit" in found["conditions"][0]["message"]
