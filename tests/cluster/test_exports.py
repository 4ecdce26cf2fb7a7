"""NFSExports: the address that volumes get, requests, the finalizer, volumes of another provisioner."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import MANIFESTS
from tests.cluster.site import (
    EXPORT_FINALIZER,
    EXPORTS,
    FINALIZER,
    NAMESPACES,
    PROVISIONED_BY,
    REQUEST,
    VOLUMES,
    ExportOnDisk,
    Site,
    eventually,
)
from tests.contract.client import Json
from tests.plugins.controller import Controller

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def controller(site: Site, web: ExportOnDisk) -> Iterator[Controller]:
    with site.controller(adoptFrom=[incumbent(site)]).start() as made:
        yield made.wait_ready(web.name)
        assert made.stop() == 0
        assert "Traceback" not in made.log


def incumbent(site: Site) -> str:
    return f"cluster.local/{site.name('old-provisioner')}"


# -- the address that clients use -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(site: Site) -> Json:
    """A Service without selector, and the role for its namespace as the overlay has it."""
    namespace = site.new_namespace("storage")
    role = (MANIFESTS.parent / "kustomize/components/service/rbac.yaml").read_text()
    site.plane.kubectl("apply", "-f", "-", input=role.replace("SERVICE-NAMESPACE", namespace))
    body = {"metadata": {"name": "web-nfs"}, "spec": {"ports": [{"name": "nfs", "port": 2049}]}}
    return site.api.post(f"{NAMESPACES}/{namespace}/services", body).ok()


def test_service_gives_volumes_its_address_and_its_endpoint_follows_the_active_replica(
    site: Site, service: Json
) -> None:
    namespace = service["metadata"]["namespace"]
    export = site.export("stable", service={"namespace": namespace, "name": "web-nfs"})
    _, pv = site.bind("stable", site.storage_class("stable", export))
    assert pv["spec"]["nfs"]["server"] == service["spec"]["clusterIP"]
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    (found,) = eventually(lambda: site.api.get(slices).ok()["items"], "the endpoint is written")
    path = f"{slices}/{found['metadata']['name']}"
    assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "web-nfs"
    assert [endpoint["addresses"] for endpoint in found["endpoints"]] == [["192.0.2.11"]]
    assert [(port["port"], port["protocol"]) for port in found["ports"]] == [(2049, "TCP")]
    site.api.delete(path).ok()
    site.api.eventually(path, lambda again: again["metadata"]["uid"] != found["metadata"]["uid"])
    site.api.patch(path, {"endpoints": [{"addresses": ["192.0.2.99"]}]}).ok()
    site.api.eventually(path, lambda again: again["endpoints"][0]["addresses"] == ["192.0.2.11"])
    replicas = site.api.get(f"{EXPORTS}/{export.name}").ok()["spec"]["replicas"]
    replicas[0]["server"] = "192.0.2.77"  # the server was replaced
    site.api.patch(f"{EXPORTS}/{export.name}", {"spec": {"replicas": replicas}}).ok()
    site.api.eventually(path, lambda again: again["endpoints"][0]["addresses"] == ["192.0.2.77"])


def test_service_that_is_missing_is_named_and_waited_for(site: Site, service: Json) -> None:
    namespace = service["metadata"]["namespace"]
    export = site.export("later", "a", service={"namespace": namespace, "name": "later"})
    claim = site.claim("later", site.storage_class("later", export))
    site.event(claim, "ProvisioningFailed", f"Service {namespace}/later does not exist")
    body = {"metadata": {"name": "later"}, "spec": {"ports": [{"name": "nfs", "port": 2049}]}}
    made = site.api.post(f"{NAMESPACES}/{namespace}/services", body).ok()
    assert site.bound(claim)["spec"]["nfs"]["server"] == made["spec"]["clusterIP"]


def test_address_is_what_volumes_name(site: Site) -> None:
    export = site.export("moved", address="nfs.example.net")
    _, pv = site.bind("moved", site.storage_class("moved", export))
    assert pv["spec"]["nfs"]["server"] == "nfs.example.net"


def test_pair_without_address_is_a_mirror_and_says_so(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    _, pv = site.bind("mirrored", plain)
    assert pv["spec"]["nfs"]["server"] == "192.0.2.11"
    (shown,) = [export for export in controller.status()["exports"] if export["name"] == web.name]
    assert shown["mirror"] is True


# -- requests and the end of an export ------------------------------------------------------------------------------------


def archive_of(site: Site, storage_class: str, name: str) -> str:
    claim, pv = site.bind(name, storage_class)
    site.give_up(claim, pv)
    return "archived-" + str(pv["spec"]["nfs"]["path"]).rsplit("/", 1)[1]


def ask(site: Site, export: ExportOnDisk, request: str) -> Json:
    """Writes a request as kubectl can; returns its answer."""
    site.plane.kubectl("annotate", "--overwrite", "nfsx", export.name, f"{REQUEST}={request}")
    path = f"{EXPORTS}/{export.name}"
    seen = site.api.eventually(path, lambda e: handled(e).get("request") == request)
    return handled(seen)


def handled(export: Json) -> Json:
    answer: Json = export.get("status", {}).get("lastHandledRequest", {})
    return answer


def test_archive_is_purged_by_request_on_both_replicas(site: Site, web: ExportOnDisk, plain: str) -> None:
    archive = archive_of(site, plain, "purged")
    eventually(lambda: archive in web.entries("b"), "the standby has the archive")
    answer = ask(site, web, f"archives purge {archive} epoch=1")
    assert answer["result"] == "Done" and archive in answer["message"]
    assert archive not in web.entries("a")
    eventually(lambda: archive not in web.entries("b"), "the standby followed")
    again = ask(site, web, f"archives purge {archive} epoch=1 at=again")
    assert again["result"] == "Invalid" and "no archive" in again["message"]


@pytest.mark.parametrize(
    ("request_text", "result", "words"),
    [
        ("archives purge ARCHIVE epoch=7", "Refused", "epoch 7"),
        ("archives purge ARCHIVE", "Invalid", "epoch"),
        ("archives prune ARCHIVE epoch=1", "Invalid", "not understood"),
        ("accept --replica z epoch=1", "Invalid", "'z'"),
    ],
)
def test_request_of_another_epoch_or_sense_changes_nothing(
    site: Site, web: ExportOnDisk, plain: str, request_text: str, result: str, words: str
) -> None:
    archive = archive_of(site, plain, f"kept-{len(web.records())}")
    answer = ask(site, web, request_text.replace("ARCHIVE", archive))
    assert answer["result"] == result
    assert words in answer["message"]
    assert archive in web.entries("a")


def run(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "nfs_provisioner", *arguments, "--kubeconfig", str(site.plane.admin_kubeconfig))
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_archive_is_purged_by_command(site: Site, web: ExportOnDisk, plain: str) -> None:
    archive = archive_of(site, plain, "commanded")
    rehearsed = run(site, "archives", "purge", web.name, archive, "--dry-run")
    assert rehearsed.returncode == 0
    assert rehearsed.stdout.startswith("kubectl annotate") and archive in rehearsed.stdout
    assert archive in web.entries("a")
    done = run(site, "archives", "purge", web.name, archive)
    assert (done.returncode, done.stderr) == (0, "")
    assert archive in done.stdout
    assert archive not in web.entries("a")
    missing = run(site, "archives", "purge", web.name, archive)
    assert missing.returncode == 2 and "no archive" in missing.stderr
    nowhere = run(site, "archives", "purge", "no-such-export", archive)
    assert nowhere.returncode == 2 and "no NFSExport" in nowhere.stderr


def test_export_stays_until_its_last_volume_is_gone(site: Site) -> None:
    export = site.export("leaving", "a")
    storage_class = site.storage_class("leaving", export)
    claim, pv = site.bind("leaving", storage_class)
    path = f"{EXPORTS}/{export.name}"
    site.api.eventually(path, lambda e: EXPORT_FINALIZER in e["metadata"].get("finalizers", []))
    site.api.delete(path).ok()
    late = site.claim("too-late", storage_class)
    site.event(late, "ProvisioningFailed", "being deleted")
    assert site.api.get(path).ok()["metadata"]["deletionTimestamp"]
    site.give_up(claim, pv)
    site.api.eventually_gone(path)
    assert [name for name in export.entries() if name.startswith("archived-")]


# -- another provisioner's volumes ------------------------------------------------------------------------------------------


def foreign(site: Site, web: ExportOnDisk, name: str, directory: str, policy: str = "Delete") -> tuple[Json, Json]:
    """A claim bound to a volume as nfs-subdir-external-provisioner leaves it."""
    (web.root() / directory).mkdir(parents=True, exist_ok=True)
    (web.root() / directory / f"file-of-{name}").write_text(name)
    claim = site.claim(name, "")
    body = {
        "metadata": {"name": site.name(f"old-{name}"), "annotations": {PROVISIONED_BY: incumbent(site)}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": policy,
            "nfs": {"server": "192.0.2.11", "path": f"{web.path}/{directory}"},
            "claimRef": {k: claim["metadata"][k] for k in ("namespace", "name", "uid")}
            | {"kind": "PersistentVolumeClaim", "apiVersion": "v1"},
        },
    }
    site.api.post(VOLUMES, body).ok()
    pv = site.bound(claim)
    site.change(claim, {"metadata": {"annotations": {"volume.kubernetes.io/storage-provisioner": incumbent(site)}}})
    return claim, pv


def adopted(site: Site, pv: Json) -> Json:
    path = f"{VOLUMES}/{pv['metadata']['name']}"
    return site.api.eventually(path, lambda v: v["metadata"]["annotations"][PROVISIONED_BY] == site.provisioner)


def test_adopted_volumes_keep_their_places_and_nested_ones_are_archived(site: Site, web: ExportOnDisk) -> None:
    claim, pv = foreign(site, web, "nested", "team/app/data")
    held = adopted(site, pv)
    assert FINALIZER in held["metadata"]["finalizers"]
    assert held["spec"]["nfs"] == pv["spec"]["nfs"]
    eventually(lambda: (web.root("b") / "team/app/data").is_dir(), "the standby has the directory")
    site.give_up(claim, pv)
    assert not (web.root() / "team/app/data").exists()
    archive = web.record(pv["metadata"]["name"])["directory"]
    assert re.search(r"(^|/)archived-", archive)
    assert (web.root() / archive / "file-of-nested").read_text() == "nested"


def test_adopted_volume_of_policy_retain_gets_no_finalizer(site: Site, web: ExportOnDisk) -> None:
    _, pv = foreign(site, web, "kept", "old-kept", policy="Retain")
    assert FINALIZER not in adopted(site, pv)["metadata"].get("finalizers", [])


@pytest.mark.parametrize("nested", [False, True])
def test_directories_shared_by_two_adopted_volumes_are_never_moved(
    site: Site, web: ExportOnDisk, controller: Controller, nested: bool
) -> None:
    first, pv = foreign(site, web, f"one-{nested}".lower(), f"shared-{nested}")
    adopted(site, pv)
    second, other = foreign(site, web, f"two-{nested}".lower(), f"shared-{nested}" + ("/inner" if nested else ""))
    adopted(site, other)
    name = pv["metadata"]["name"]
    controller.until(
        lambda: [row["shared"] for row in controller.status()["volumes"] if row["volume"] == name] == [True], "shared"
    )
    site.give_up(second, other)
    assert (web.root() / f"shared-{nested}/file-of-one-{str(nested).lower()}").exists()
    assert (web.root() / other["spec"]["nfs"]["path"].removeprefix(web.path + "/")).is_dir()
    site.give_up(first, pv)
    assert len(list((web.root() / f"shared-{nested}").rglob("file-of-*"))) == 2


def test_foreign_volume_elsewhere_and_of_unnamed_provisioners_is_left_alone(site: Site, web: ExportOnDisk) -> None:
    (web.root() / "h06").mkdir()
    for number, (server, made_by) in enumerate([("192.0.2.66", incumbent(site)), ("192.0.2.11", "someone.else/nfs")]):
        body = {
            "metadata": {"name": site.name(f"h06-{number}"), "annotations": {PROVISIONED_BY: made_by}},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "capacity": {"storage": "1Gi"},
                "storageClassName": "nobodys",  # so that no claim gets it
                "persistentVolumeReclaimPolicy": "Retain",
                "nfs": {"server": server, "path": f"{web.path}/h06"},
            },
        }
        site.api.post(VOLUMES, body).ok()
    _, pv = foreign(site, web, "after-h06", "after-h06")
    adopted(site, pv)
    for number in range(2):
        found = site.volume(site.name(f"h06-{number}"))
        assert found["metadata"]["annotations"][PROVISIONED_BY] != site.provisioner
        site.api.delete(f"{VOLUMES}/{found['metadata']['name']}")
    assert "h06" in web.entries()
    assert not any(record["directory"] == "h06" for record in web.records().values())
