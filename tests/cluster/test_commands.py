"""The commands as people use them: a kubeconfig or a URL, tables and JSON, exit codes, and what the log says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import MANIFESTS
from tests.cluster.site import NAMESPACES, ExportOnDisk, Site, eventually
from tests.contract.client import Json
from tests.plugins.controller import NAMESPACE, Controller
from tests.plugins.packages import find, require, require_root

pytestmark = pytest.mark.cluster

#: The API server proxies to no loopback address; this one is for documentation and is put on `lo` for a moment.
ADDRESS = f"192.0.2.{130 + os.getpid() % 120}"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    require("ip", debian=[])
    require_root("an address on lo that the API server can proxy to")
    subprocess.run((find("ip"), "address", "replace", f"{ADDRESS}/32", "dev", "lo"), check=True)
    yield ADDRESS
    subprocess.run((find("ip"), "address", "del", f"{ADDRESS}/32", "dev", "lo"), check=True)


@pytest.fixture(scope="module")
def controller(site: Site, web: ExportOnDisk, address: str) -> Iterator[Controller]:
    with site.controller(bind=address).start() as made:
        yield made.wait_ready(web.name)
        assert made.stop() == 0
        assert "Traceback" not in made.log


@pytest.fixture(scope="module")
def volumes(site: Site, web: ExportOnDisk, controller: Controller) -> dict[str, Json]:
    """A bound claim and an archive."""
    storage_class = site.storage_class("plain", web)
    _, pv = site.bind("photos", storage_class, "5Gi")
    gone, archived = site.bind("gone", storage_class)
    site.give_up(gone, archived)
    (web.root() / "somebodys").mkdir(exist_ok=True)
    return {"photos": pv, "gone": archived}


def cli(*arguments: str, columns: int = 250) -> Done:
    command = (sys.executable, "-m", "nfs_provisioner", *arguments)
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": str(columns)}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)


def good(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.fixture(scope="module")
def viewer(site: Site, controller: Controller) -> Iterator[Path]:
    """The kubeconfig of a person with the shipped role for `status`; the shipped Service leads to the controller.

    The API server proxies to addresses of pods only, and there is no kubelet: the pod is one on paper.
    """
    name = site.name("viewer")
    kubectl = site.plane.kubectl
    kubectl("create", "serviceaccount", name, "-n", NAMESPACE)
    kubectl("create", "rolebinding", name, "-n", NAMESPACE, "--role=nfs-provisioner-status",
            f"--serviceaccount={NAMESPACE}:{name}")  # fmt: skip
    service = yaml.safe_load((MANIFESTS / "service.yaml").read_text())
    del service["spec"]["selector"]
    home = f"{NAMESPACES}/{NAMESPACE}"
    site.api.post(f"{home}/services", service).ok()
    container = {"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": controller.port}]}
    spec = {"serviceAccountName": "nfs-provisioner", "containers": [container]}  # the default one may still be missing
    site.api.post(f"{home}/pods", {"metadata": {"name": name}, "spec": spec}).ok()
    status = {"phase": "Running", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}
    site.api.patch(f"{home}/pods/{name}/status", {"status": status}).ok()
    pod = {"kind": "Pod", "name": name, "namespace": NAMESPACE}
    subset = {
        "addresses": [{"ip": ADDRESS, "targetRef": pod}],
        "ports": [{"name": "http", "port": controller.port}],
    }
    site.api.post(f"{home}/endpoints", {"metadata": {"name": "nfs-provisioner"}, "subsets": [subset]}).ok()
    yield site.plane.service_account_kubeconfig(NAMESPACE, name)
    site.api.delete(f"{home}/pods/{name}", {"gracePeriodSeconds": 0})
    site.api.delete(f"{home}/services/nfs-provisioner")
    site.api.delete(f"{home}/endpoints/nfs-provisioner")
    kubectl("delete", "rolebinding,serviceaccount", name, "-n", NAMESPACE)


def test_status_volumes_and_archives_come_through_the_api_servers_proxy(
    site: Site, web: ExportOnDisk, volumes: dict[str, Json], viewer: Path
) -> None:
    eventually(lambda: good(cli("status", "--kubeconfig", str(viewer))), "the proxy knows the endpoint")
    through = ("--kubeconfig", str(viewer))

    def shown() -> bool:
        (export,) = json.loads(good(cli("status", web.name, "-o", "json", *through)))["exports"]
        assert (export["name"], export["phase"], export["active"]) == (web.name, "Ready", "a")
        return True

    eventually(shown, "the export is Ready")  # a moment ago it may have been Degraded: the standby was slow
    (row,) = json.loads(good(cli("volumes", "-n", site.namespace, "-o", "json", *through)))
    assert row["volume"] == volumes["photos"]["metadata"]["name"]
    assert "archived-" in good(cli("archives", *through))


def test_status_without_the_right_is_refused_and_says_what_is_missing(site: Site, viewer: Path) -> None:
    done = cli("status", "--kubeconfig", str(site.account))
    assert viewer and done.returncode == 1
    assert "services/proxy" in done.stderr or "forbidden" in done.stderr


def test_status_tells_what_a_person_needs(web: ExportOnDisk, volumes: dict[str, Json], controller: Controller) -> None:
    assert volumes
    controller.until(
        lambda: (web.name, 1) in [(e["name"], e["unmanaged"]) for e in controller.status()["exports"]], "it counted"
    )
    (table, line) = eventually(lambda: table_with(web, controller), "the export is Ready")
    assert line.split()[1:3] == ["Ready", "a"]
    assert "5Gi" in line and "10Ti" in line and "a active, b standby" in line
    assert "a mirror" in table
    assert "1 entries at its root belong to no volume" in table or "1 entry" in table
    assert yaml.safe_load(good(cli("status", "--url", controller.url, "-o", "yaml")))["exports"][0]["name"] == web.name
    missing = cli("status", "no-such", "--url", controller.url)
    assert missing.returncode == 2 and "no-such" in missing.stderr


def table_with(export: ExportOnDisk, controller: Controller) -> tuple[str, str]:
    """What `status` prints, and the line of an export that is Ready."""
    table = good(cli("status", "--url", controller.url))
    found = [line for line in table.splitlines() if line.startswith(export.name) and "Ready" in line]
    assert len(found) == 1, table
    return table, found[0]


def test_volumes_name_claim_directory_and_size(site: Site, volumes: dict[str, Json], controller: Controller) -> None:
    table = good(cli("volumes", "--url", controller.url))
    (line,) = [line for line in table.splitlines() if "photos" in line]
    pv = volumes["photos"]["metadata"]["name"]
    directory = f"{site.namespace}-photos-{pv}"
    words = [word for word in line.split() if not word.startswith("web-")]
    assert words[:2] == [site.namespace, "photos"] and words[-4:-2] == [directory, "Bound"] and words[-1] == pv
    assert "5Gi" in words and re.fullmatch(r"-|\d+[smh]", words[-2])  # how long ago it was copied
    assert "photos" not in good(cli("volumes", "-n", "elsewhere", "--url", controller.url))


def test_archives_name_whose_they_were(site: Site, volumes: dict[str, Json], controller: Controller) -> None:
    (row,) = json.loads(good(cli("archives", "-o", "json", "--url", controller.url)))
    assert row["name"] == f"archived-{site.namespace}-gone-{volumes['gone']['metadata']['name']}"
    assert (row["namespace"], row["claim"]) == (site.namespace, "gone")
    assert "for ever" in good(cli("archives", "list", "--url", controller.url))


def test_nobody_at_the_url_is_said_in_one_line(controller: Controller) -> None:
    done = cli("status", "--url", f"http://127.0.0.1:{controller.port}")
    assert done.returncode == 1
    assert done.stderr.startswith("nfs-provisioner: http://127.0.0.1") and done.stderr.count("\n") == 1


def test_get_nfsx_shows_the_export_at_a_glance(site: Site, web: ExportOnDisk, volumes: dict[str, Json]) -> None:
    assert volumes

    def glance() -> bool:
        head, line = site.plane.kubectl("get", "nfsx", web.name).splitlines()
        shown = dict(zip(head.split(), line.split(), strict=False))
        assert (shown["NAME"], shown["ACTIVE"], shown["PHASE"]) == (web.name, "a", "Ready")
        return True

    eventually(glance, "the status is written")


def test_recover_prints_volumes_before_claims_and_names_what_has_no_manifest(
    site: Site, web: ExportOnDisk, volumes: dict[str, Json]
) -> None:
    name = volumes["photos"]["metadata"]["name"]
    eventually(lambda: web.record(name)["state"] == "live", "the record is finished")
    done = cli("recover", str(web.root()))
    assert done.returncode == 0
    pv, claim = yaml.safe_load_all(done.stdout)
    assert (pv["kind"], pv["metadata"]["name"]) == ("PersistentVolume", name)
    assert "uid" not in pv["spec"]["claimRef"]
    assert (claim["kind"], claim["spec"]["volumeName"]) == ("PersistentVolumeClaim", name)
    assert claim["metadata"]["namespace"] == site.namespace
    assert "archived" in done.stderr and "gone" in done.stderr
    nothing = cli("recover", str(site.directory))
    assert nothing.returncode == 1 and ".nfs-provisioner" in nothing.stderr


GOOD_CONFIG = "apiVersion: nfs-provisioner.io/v1alpha1\nkind: ProvisionerConfig\nprovisioner: example.com/nfs\n"
BAD = {
    "unknown key": ("workres: 9\n", "workers"),
    "wrong type": ("workers: many\n", "workers"),
    "bad duration": ("leaderElection: {leaseDuration: 15}\n", "leaderElection.leaseDuration"),
    "no lease left": ("leaderElection: {leaseDuration: 5s}\n", "leaderElection.renewDeadline"),
}


@pytest.mark.parametrize("case", BAD)
def test_configuration_with_a_typo_is_refused_with_file_line_and_key(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    file = tmp_path / "config.yaml"
    file.write_text(GOOD_CONFIG + text)
    for done in (cli("check-config", str(file)), cli("run", "--config", str(file), "--kubeconfig", "/dev/null")):
        assert done.returncode == 2
        assert f"{file}:4" in done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_check_config_passes_what_is_shipped() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [root / "manifests/storageclass.yaml", *sorted((root / "manifests/examples").glob("nfsexport-*.yaml"))]
    assert good(cli("check-config", *map(str, files))).count("ok: ") >= len(files)


def test_bad_configuration_on_reload_keeps_the_old_one(site: Site, web: ExportOnDisk, controller: Controller) -> None:
    said = len(controller.log)
    right = controller.config_file.read_text()
    controller.config_file.write_text(right + "workres: 9\n")
    try:
        reloads = "nfs_provisioner_config_last_reload_successful"
        controller.until(lambda: controller.metric(reloads) == 0, "the metric says so")
        # It may have been read half-written, too.
        controller.until(lambda: "workres" in controller.log[said:], "the log says so")
        site.bind("still-served", site.storage_class("still-served", web))
    finally:
        controller.config_file.write_text(right)
    controller.until(lambda: controller.metric(reloads) == 1, "the corrected file is taken")
    assert controller.leads


def test_run_without_a_way_to_the_cluster_says_so(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(GOOD_CONFIG + "http: {bind: 127.0.0.1, port: 0}\n")
    done = cli("run", "--config", str(file), "--kubeconfig", str(tmp_path / "missing"))
    assert done.returncode == 2
    assert str(tmp_path / "missing") in done.stderr and "Traceback" not in done.stderr
