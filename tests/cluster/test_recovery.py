"""The cluster is gone with its etcd, the exports are not: a new cluster takes them over, and nothing by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import shipped
from tests.cluster.site import EXPORTS, NAMESPACES, REQUEST, VOLUMES, ExportOnDisk, Site, eventually, with_file
from tests.contract.client import Client, Credentials, Json
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import NAMESPACE

pytestmark = pytest.mark.cluster


def cli(*arguments: str) -> str:
    command = (sys.executable, "-m", "nfs_provisioner", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Another cluster: what is left when the first one's etcd is gone. Nothing but the manifests is there."""
    with ControlPlane.start(tmp_path_factory.mktemp("fresh"), no_fsync=True) as plane:
        shipped(plane)
        yield plane


def applied(plane: ControlPlane, *objects: Json) -> None:
    for body in objects:
        plane.kubectl("apply", "-f", "-", input=json.dumps(body))


def accept(plane: ControlPlane, export: ExportOnDisk, replica: str) -> None:
    request = f"{REQUEST}=accept --replica {replica} epoch=0"
    plane.kubectl("annotate", "--overwrite", "nfsx", export.name, request)


def test_h40_h59_new_cluster_deletes_nothing_and_recovers_everything(site: Site, fresh: ControlPlane) -> None:
    export = site.export("h40", "a")
    storage_class = site.storage_class("h40", export)
    with site.controller().start() as first:
        first.wait_ready(export.name)
        claim, pv, file = with_file(site, export, storage_class, "h40")
        gone, archived_pv, _ = with_file(site, export, storage_class, "h40-archived")
        site.give_up(gone, archived_pv)
        assert first.stop() == 0
    before = export.entries(), export.records(), export.identity()
    api = Client(Credentials.read(fresh.admin_kubeconfig))
    api.post(NAMESPACES, {"metadata": {"name": site.namespace}}).ok()
    applied(fresh, site.class_body("h40", export), site.export_body(export))
    path = f"{EXPORTS}/{export.name}"
    claims = f"{NAMESPACES}/{site.namespace}/persistentvolumeclaims"
    account = fresh.service_account_kubeconfig(NAMESPACE, "nfs-provisioner")
    with site.controller(kubeconfig=account).start() as second:
        halted = api.eventually(path, lambda e: e.get("status", {}).get("phase") == "Halted")
        assert "another cluster" in halted["status"]["conditions"][0]["message"]
        assert (export.entries(), export.records(), export.identity()) == before

        fresh.kubectl("apply", "-f", "-", input=cli("recover", str(export.root())))
        found = api.eventually(f"{claims}/h40", lambda c: c["status"]["phase"] == "Bound")
        assert found["spec"]["volumeName"] == pv["metadata"]["name"]
        assert found["metadata"]["uid"] != claim["metadata"]["uid"]
        assert api.get(f"{claims}/h40-archived").code == 404
        assert api.get(f"{VOLUMES}/{pv['metadata']['name']}").ok()["spec"]["nfs"] == pv["spec"]["nfs"]

        accept(fresh, export, "a")
        second.wait_ready(export.name)
        new_uid = found["metadata"]["uid"]
        eventually(lambda: export.record(pv["metadata"]["name"])["claim"]["uid"] == new_uid, "the record follows")
        assert file.read_text() == "h40"
        api.delete(f"{claims}/h40").ok()
        api.eventually_gone(f"{VOLUMES}/{pv['metadata']['name']}")
        assert (file.parent.with_name(f"archived-{file.parent.name}") / "file").read_text() == "h40"
        assert second.stop() == 0
    api.close()


def test_h40_pair_is_taken_over_by_a_new_cluster_with_one_request(site: Site, fresh: ControlPlane) -> None:
    export = site.export("h40-pair")
    storage_class = site.storage_class("h40-pair", export)
    with site.controller().start() as first:
        first.wait_ready(export.name)
        with_file(site, export, storage_class, "h40-pair")
        eventually(export.same_on_both, "both replicas agree")
        assert first.stop() == 0
    before = {replica: (export.entries(replica), export.records(replica)) for replica in "ab"}
    applied(fresh, site.export_body(export))
    account = fresh.service_account_kubeconfig(NAMESPACE, "nfs-provisioner")
    with site.controller(kubeconfig=account).start() as second:
        second.wait_leading()
        second.until(lambda: "another cluster" in str(second.status()["exports"]), "it is Halted")
        accept(fresh, export, "a")
        second.wait_ready(export.name)
        kept = {replica: (export.entries(replica), set(export.records(replica))) for replica in "ab"}
        assert kept == {replica: (entries, set(records)) for replica, (entries, records) in before.items()}
        assert second.stop() == 0
