"""What tenants and administrators get wrong: each is told once and clearly, hurts nobody else, and works once corrected."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.cluster.site import CLASSES, EXPORTS, RESTORE, VOLUMES, ExportOnDisk, Site, eventually
from tests.contract.client import Json
from tests.plugins.controller import Controller
from tests.plugins.hang import CHANGES, HangingDirectory

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def web(site: Site) -> ExportOnDisk:
    return site.export("web", "a")


@pytest.fixture(scope="module", autouse=True)
def controller(site: Site, web: ExportOnDisk) -> Iterator[Controller]:
    with site.controller().start() as made:
        yield made.wait_ready(web.name)
        assert made.stop() == 0
        assert "Traceback" not in made.log


@pytest.fixture
def unharmed(site: Site, web: ExportOnDisk, plain: str) -> Iterator[None]:
    """In the end another claim is bound, and nothing but it is new on the export."""
    before, records = web.entries(), set(web.records())
    yield
    claim, pv = site.bind(f"neighbour-{len(records)}", plain)
    assert set(web.records()) - records == {pv["metadata"]["name"]}
    assert len(web.entries() - before) == 1
    site.give_up(claim, pv)


def refused(site: Site, controller: Controller, claim: Json, *words: str) -> Json:
    """Waits for the warning, and reads it as a person does."""

    def look() -> Json:
        event = site.event(claim, "ProvisioningFailed", words[0])
        assert event["type"] == "Warning"
        for word in words:
            assert word in event["message"]
        described = " ".join(site.describe(claim).split())
        assert "Warning ProvisioningFailed" in described
        assert " ".join(event["message"].split()) in described  # the next try may have found other figures in between
        return event

    event = eventually(look, "kubectl describe shows the warning")
    assert site.api.get(site.claim_path(claim)).ok()["status"]["phase"] == "Pending"
    assert site.api.get(f"{VOLUMES}/pvc-{claim['metadata']['uid']}").code == 404
    made = datetime.fromisoformat(claim["metadata"]["creationTimestamp"]).timestamp()
    assert tries(controller, claim) <= 6 + (time.time() - made) / 5  # with pauses that grow
    return event


def tries(controller: Controller, claim: Json) -> int:
    """How often the controller came to the same end. That its watch had not brought the class yet is none."""
    unknown = "StorageClass '[^']*' does not exist"
    return len(re.findall(rf"INFO \S+reconciler: pvc-{claim['metadata']['uid']}: (?!{unknown})", controller.log))


def settled(site: Site, controller: Controller, claim: Json) -> None:
    """Nothing is tried again by itself. A class that came just before its claim is an event of its own, and when an
    export that a stall of the disk took away is back, everything is looked at again."""
    before, attached = tries(controller, claim), controller.log.count(" attached: ")
    site.describe(claim)
    after, late = tries(controller, claim), controller.log.count(" attached: ") - attached
    assert 1 <= before <= 2 + flapped(controller, claim)
    assert after <= before + late


def flapped(controller: Controller, claim: Json) -> int:
    """How often an export came (back) after the claim was first refused."""
    return controller.log.partition(f"pvc-{claim['metadata']['uid']}: ")[2].count(" attached: ")


PATTERNS = {
    "label": "${.PVC.labels.team}",
    "annotation": "${.PVC.namespace}/${.PVC.annotations.team}",
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("kind", PATTERNS)
def test_h01_pattern_with_a_missing_value_makes_nothing_until_the_claim_has_it(
    site: Site, web: ExportOnDisk, controller: Controller, kind: str
) -> None:
    parameters = {"pathPattern": PATTERNS[kind], "onDelete": "delete"}
    storage_class = site.storage_class(f"h01-{kind}", web, parameters=parameters)
    before = web.entries()
    claim = site.claim(f"h01-{kind}", storage_class)
    refused(site, controller, claim, "team", "missing")
    settled(site, controller, claim)
    assert web.entries() == before
    site.change(claim, {"metadata": {f"{kind}s": {"team": "blue"}}})
    pv = site.bound(claim)
    assert pv["spec"]["nfs"]["path"].endswith("/blue")
    site.give_up(claim, pv)
    forget(web, pv)


def forget(export: ExportOnDisk, pv: Json) -> None:
    """Its tombstone is kept for two minutes; this test has seen enough of it."""
    eventually(lambda: export.record(pv["metadata"]["name"])["state"] == "deleted", "deleted")
    (export.root() / ".nfs-provisioner/volumes" / f"{pv['metadata']['name']}.json").unlink()


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("value", ["..", ".", "/", "/etc", "a/../../b", "a//b", ".nfs-provisioner/volumes", "a\nb"])
def test_h02_value_that_leads_elsewhere_makes_nothing(
    site: Site, web: ExportOnDisk, controller: Controller, value: str
) -> None:
    """Annotations take any text, and it is a tenant who writes them."""
    name = f"h02-{value.encode().hex()}"
    parameters = {"pathPattern": "${.PVC.annotations.place}"}
    storage_class = site.storage_class(name, web, parameters=parameters)
    claim = site.claim(name, storage_class, annotations={"place": value})
    refused(site, controller, claim, "pathPattern", f"{claim['metadata']['namespace']}/{name}")
    settled(site, controller, claim)
    site.delete(claim)


def test_h03_second_claim_of_one_directory_is_refused_and_the_first_keeps_its_data(
    site: Site, web: ExportOnDisk, controller: Controller
) -> None:
    parameters = {"pathPattern": "h03-${.PVC.labels.first}-${.PVC.labels.second}"}
    storage_class = site.storage_class("h03", web, parameters=parameters)
    first, pv = site.bind("h03-first", storage_class, labels={"first": "a-b", "second": "c"})
    (web.root() / "h03-a-b-c/file").write_text("first's")
    second = site.claim("h03-second", storage_class, labels={"first": "a", "second": "b-c"})
    refused(site, controller, second, "h03-a-b-c", f"{site.namespace}/h03-first")
    site.delete(second)
    assert (web.root() / "h03-a-b-c/file").read_text() == "first's"
    site.give_up(first, pv)
    assert (web.root() / "archived-h03-a-b-c/file").read_text() == "first's"


@pytest.mark.parametrize("inner", [True, False])
def test_h04_volume_inside_or_around_another_is_refused(
    site: Site, web: ExportOnDisk, controller: Controller, inner: bool
) -> None:
    prefix = f"h04-{inner}".lower()
    parameters = {"pathPattern": prefix + "${.PVC.annotations.below}", "onDelete": "delete"}
    storage_class = site.storage_class(prefix, web, parameters=parameters)
    below = ["/x", "/x/y"] if inner else ["/x/y", "/x"]
    site.bind(f"{prefix}-first", storage_class, annotations={"below": below[0]})
    second = site.claim(f"{prefix}-second", storage_class, annotations={"below": below[1]})
    refused(site, controller, second, f"{prefix}{below[1]}", f"{prefix}-first")
    site.delete(second)
    assert not (web.root() / f"{prefix}/x/y").exists() or not inner


def test_h05_directory_that_is_somebodys_is_neither_adopted_nor_deleted(
    site: Site, web: ExportOnDisk, controller: Controller
) -> None:
    (web.root() / "h05-legacy").mkdir(0o711)
    (web.root() / "h05-legacy/file").write_text("legacy")
    storage_class = site.storage_class("h05", web, parameters={"pathPattern": "h05-legacy", "onDelete": "delete"})
    claim = site.claim("h05", storage_class)
    refused(site, controller, claim, "h05-legacy", "exists already")
    site.delete(claim)
    eventually(lambda: not any(r["claim"]["name"] == "h05" for r in web.records().values()), "no record stays")
    assert (web.root() / "h05-legacy/file").read_text() == "legacy"
    assert (web.root() / "h05-legacy").stat().st_mode & 0o777 == 0o711
    (web.root() / "h05-legacy/file").unlink()
    (web.root() / "h05-legacy").rmdir()


@pytest.mark.usefixtures("unharmed")
def test_block_claim_is_refused(site: Site, plain: str, controller: Controller) -> None:
    claim = site.claim("block", plain, volumeMode="Block")
    refused(site, controller, claim, "volumeMode Block")
    settled(site, controller, claim)
    site.delete(claim)


SOURCES: dict[str, Json] = {
    "snapshot": {"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"}},
    "unknown": {"dataSourceRef": {"apiGroup": "example.com", "kind": "Populator", "name": "p"}},
    "foreign-claim": {"dataSourceRef": {"apiGroup": "example.com", "kind": "PersistentVolumeClaim", "name": "other"}},
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("source", SOURCES)
def test_h60_data_source_that_cannot_be_honoured_binds_no_empty_volume(
    site: Site, plain: str, controller: Controller, source: str
) -> None:
    claim = site.claim(f"h60-{source}", plain, **SOURCES[source])
    refused(site, controller, claim, "dataSource", "empty volume")
    settled(site, controller, claim)
    site.delete(claim)


@pytest.mark.usefixtures("unharmed")
def test_h60_attributes_class_is_refused_instead_of_pending_for_ever(
    site: Site, plain: str, controller: Controller
) -> None:
    claim = site.claim("h60-attributes", plain, volumeAttributesClassName="fast")
    refused(site, controller, claim, "volumeAttributesClassName 'fast'")
    settled(site, controller, claim)
    site.delete(claim)


PARAMETERS = {
    "unknown": ({"onDelte": "retain"}, "onDelete"),
    "value": ({"onDelete": "Archive"}, "archive"),
    "mode": ({"directoryMode": "rwx"}, "octal"),
    "pattern": ({"pathPattern": "${.PVC.nmae}"}, "did you mean .PVC.name"),
    "absolute": ({"pathPattern": "/x/${.PVC.name}"}, "leave the '/' out"),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("case", PARAMETERS)
def test_h10_wrong_parameter_refuses_the_class_and_its_correction_binds_the_claim(
    site: Site, web: ExportOnDisk, controller: Controller, case: str
) -> None:
    wrong, hint = PARAMETERS[case]
    storage_class = site.storage_class(f"wrong-{case}", web, parameters=wrong)
    claim = site.claim(f"wrong-{case}", storage_class)
    refused(site, controller, claim, storage_class, next(iter(wrong)), hint)
    settled(site, controller, claim)
    site.replace_class(storage_class, parameters={"export": web.name, "onDelete": "delete"})
    pv = site.bound(claim)
    site.give_up(claim, pv)
    forget(web, pv)


@pytest.mark.usefixtures("unharmed")
def test_class_naming_a_missing_export_is_told_which_there_are_and_waits_for_it(
    site: Site, web: ExportOnDisk, controller: Controller
) -> None:
    later = site.directories("later", "a")
    storage_class = site.storage_class("missing", later)
    claim = site.claim("missing", storage_class)
    refused(site, controller, claim, later.name, "does not exist", web.name)
    settled(site, controller, claim)
    site.export("later", "a")
    pv = site.bound(claim)
    assert pv["metadata"]["labels"]["nfs-provisioner.io/export"] == later.name


@pytest.mark.usefixtures("unharmed")
def test_selector_that_matches_no_export_names_their_labels_and_waits_for_one(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    other = site.export("labelled", "a", labels={"tier": "bronze"})
    anywhere = site.storage_class("anywhere", parameters={"export": other.name})
    claim = site.claim("gold", anywhere, selector={"matchLabels": {"tier": "gold"}})
    refused(site, controller, claim, "selector", "tier=bronze")
    site.api.patch(f"{EXPORTS}/{other.name}", {"metadata": {"labels": {"tier": "gold"}}}).ok()
    site.bound(claim)


def test_restore_of_another_namespaces_archive_is_refused_as_if_there_were_none(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    theirs = site.new_namespace("theirs")
    claim, pv = site.bind("secret", plain, namespace=theirs)
    directory = pv["spec"]["nfs"]["path"].rsplit("/", 1)[1]
    (web.root() / directory / "file").write_text("secret")
    site.give_up(claim, pv)
    thief = site.claim("thief", plain, annotations={RESTORE: f"archived-{directory}"})
    told = refused(site, controller, thief, f"archived-{directory}")["message"]
    settled(site, controller, thief)
    nothing = site.claim("nothing", plain, annotations={RESTORE: "archived-never-there"})
    same = refused(site, controller, nothing, "archived-never-there")["message"]
    assert told.replace(f"archived-{directory}", "X") == same.replace("archived-never-there", "X")
    assert (web.root() / f"archived-{directory}/file").read_text() == "secret"
    site.change(thief, {"metadata": {"annotations": {RESTORE: None}}})
    fresh = site.bound(thief)
    assert list((web.root() / fresh["spec"]["nfs"]["path"].rsplit("/", 1)[1]).iterdir()) == []
    site.delete(nothing)


def test_export_whose_replicas_are_one_directory_halts_and_goes_on_once_corrected(
    site: Site, plain: str, controller: Controller
) -> None:
    twice = site.directories("twice")
    body = site.export_body(twice)
    wrong = [dict(replica) for replica in body["spec"]["replicas"]]
    link = site.mounts / twice.name / "link"
    link.symlink_to(twice.root("a"), target_is_directory=True)
    wrong[1]["mountPath"] = str(link)
    site.api.post(EXPORTS, body | {"spec": body["spec"] | {"replicas": wrong}}).ok()
    site.exports[twice.name] = twice
    storage_class = site.storage_class("twice", twice)
    claim = site.claim("twice", storage_class)
    halted = eventually(lambda: (s := site.export_status(twice)).get("phase") == "Halted" and s, "the export is Halted")
    assert isinstance(halted, dict)
    assert (
        "same directory" in halted["conditions"][0]["message"]
        or "share a directory" in halted["conditions"][0]["message"]
    )
    refused(site, controller, claim, twice.name)
    assert list(twice.root("a").iterdir()) == []
    site.bind("twice-neighbour", plain)
    site.api.patch(f"{EXPORTS}/{twice.name}", {"spec": {"replicas": body["spec"]["replicas"]}}).ok()
    site.bound(claim)
    eventually(twice.same_on_both, "both replicas are used")


def test_export_that_cannot_be_understood_says_so_in_its_status(site: Site, controller: Controller) -> None:
    """The API server lets this pass: only the controller knows its mountRoot."""
    outside = site.directories("outside", "a")
    body = site.export_body(outside)
    body["spec"]["replicas"][0]["mountPath"] = "/elsewhere/a"
    site.api.post(EXPORTS, body).ok()
    site.exports[outside.name] = outside
    status: Any = eventually(
        lambda: (s := site.export_status(outside)).get("phase") == "Halted" and s, "it says Halted"
    )
    message = status["conditions"][0]["message"]
    assert "mountPath" in message and str(site.mounts) in message
    claim = site.claim("outside", site.storage_class("outside", outside))
    refused(site, controller, claim, outside.name, "mountPath")


FAULTS = {"read-only": (errno.EROFS, "Read-only file system"), "full": (errno.ENOSPC, "No space left on device")}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("fault", FAULTS)
def test_read_only_or_full_export_is_named_and_used_again_when_it_works(
    site: Site, controller: Controller, fault: str
) -> None:
    number, words = FAULTS[fault]
    export = site.directories(fault, "a")
    backing = site.directory / f"backing-{fault}"
    backing.mkdir()
    with HangingDirectory(backing, export.root()) as disk:
        site.api.post(EXPORTS, site.export_body(export)).ok()
        site.exports[export.name] = export
        eventually(lambda: site.export_status(export).get("phase") == "Ready", "the export is Ready")
        storage_class = site.storage_class(fault, export)
        before = set(backing.iterdir())
        disk.fail(number, only=CHANGES)
        claim = site.claim(fault, storage_class)
        refused(site, controller, claim, words, str(export.root()))
        assert set(backing.iterdir()) == before
        disk.release()
        site.bound(claim)
        assert len(set(backing.iterdir()) - before) == 1
        assert controller.http("/healthz")[0] == 200


def test_full_quota_of_promises_is_told_and_freed_space_is_used(site: Site, controller: Controller) -> None:
    tiny = site.export("tiny", "a", capacity="2Gi")
    storage_class = site.storage_class("tiny", tiny, parameters={"onDelete": "delete"})
    first, pv = site.bind("tiny-first", storage_class, "2Gi")
    second = site.claim("tiny-second", storage_class, "1Gi")
    refused(site, controller, second, tiny.name, "promised")
    site.give_up(first, pv)
    site.bound(second)


def test_class_deleted_before_its_claim_was_served(site: Site, web: ExportOnDisk, plain: str) -> None:
    """The claim waits for a class of that name; nothing is made by a class nobody knows."""
    later = site.storage_class("deleted", web, volumeBindingMode="WaitForFirstConsumer")
    claim = site.claim("deleted", later)
    site.event(claim, "WaitForFirstConsumer")
    site.api.delete(f"{CLASSES}/{later}").ok()
    site.change(
        claim,
        {
            "metadata": {
                "annotations": {
                    "volume.kubernetes.io/selected-node": "node-1",
                    "volume.kubernetes.io/storage-provisioner": site.provisioner,
                }
            }
        },
    )
    site.event(claim, "ProvisioningFailed", later)
    site.storage_class("deleted", web)
    site.bound(claim)
