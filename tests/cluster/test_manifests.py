"""The manifests on a real API server: what it accepts, what it refuses and says, what applying twice does.

Everything made here has a name of its own or is removed again; the CRD, the namespace, the ServiceAccount and the roles
stay, because they are the same for every test of a run.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nfs_provisioner.config import parse_export
from nfs_provisioner.volumes.status import ExportStatus, ReplicaStatus, status_object
from tests.cluster.conftest import served
from tests.cluster.nfsexport_cases import (
    GOOD,
    NONSENSE,
    REFUSED_BY_THE_SERVER_ALONE,
    Json,
    both,
    changed,
    drop,
    pair,
    put,
    single,
)
from tests.cluster.site import eventually
from tests.controlplane.controlplane import ControlPlane, KubectlError

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "manifests/crd.yaml"
NAMESPACE = "nfs-provisioner"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:nfs-provisioner"
LASTING = {"CustomResourceDefinition", "Namespace", "ServiceAccount", "Role", "RoleBinding", "ClusterRole",
           "ClusterRoleBinding"}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the CRD served."""
    control_plane.kubectl("apply", "-f", str(CRD))
    served(control_plane, "nfsexports.nfs-provisioner.io")
    return control_plane


@pytest.fixture
def name(cluster: ControlPlane) -> Iterator[str]:
    """A name for one NFSExport, which is removed afterwards."""
    name = f"manifests-{uuid.uuid4().hex[:8]}"
    yield name
    cluster.kubectl("delete", "nfsx", name, "--ignore-not-found", "--wait=false")


def create(cluster: ControlPlane, export: Json, *, dry_run: bool = True) -> Json:
    flags = ["--dry-run=server"] if dry_run else []
    stored: Json = json.loads(
        cluster.kubectl("create", "--validate=strict", "-o", "json", "-f", "-", *flags, input=json.dumps(export))
    )
    return stored


def replace(cluster: ControlPlane, export: Json) -> str:
    return cluster.kubectl("replace", "--validate=strict", "-f", "-", input=json.dumps(export))


@pytest.mark.parametrize("case", NONSENSE | REFUSED_BY_THE_SERVER_ALONE)
def test_nonsense_is_refused_and_the_refusal_says_why(cluster: ControlPlane, case: str) -> None:
    base, change, message = (NONSENSE | REFUSED_BY_THE_SERVER_ALONE)[case]
    with pytest.raises(KubectlError, match=message):
        create(cluster, changed(base, change))


@pytest.mark.parametrize("case", GOOD)
def test_good_objects_are_accepted_by_the_server_and_by_the_controller(cluster: ControlPlane, case: str) -> None:
    export = changed(pair(), GOOD[case])
    stored = create(cluster, export)
    # Defaults of the schema and of the controller are the same: the object means the same with and without them.
    with_defaults, without = (parse_export(each, mount_root="/exports") for each in (stored, export))
    assert with_defaults.replication == without.replication
    assert with_defaults.reserve == without.reserve
    assert with_defaults.overcommit == without.overcommit
    assert with_defaults.replicas == without.replicas


def test_defaults_are_filled_in(cluster: ControlPlane) -> None:
    spec = create(cluster, single())["spec"]
    del spec["replicas"]
    assert spec == {
        "overcommit": "1.0",
        "reserve": "5%",
        "replication": {"interval": "30s", "maxLag": "5m", "deleteLimit": "20%", "trashRetention": "24h"},
        "failover": {"recyclePods": False},
    }


def test_defaults_fill_what_a_section_leaves_out(cluster: ControlPlane) -> None:
    stored = create(cluster, changed(single(), put("replication", to={"interval": "10s"})))
    assert stored["spec"]["replication"]["maxLag"] == "5m"


def test_a_replicas_path_cannot_change(cluster: ControlPlane, name: str) -> None:
    create(cluster, single(name), dry_run=False)
    with pytest.raises(KubectlError, match="a replica's path cannot change"):
        replace(cluster, changed(single(name), put("replicas", 0, "path", to="/elsewhere")))


def test_a_replica_keeps_its_path_when_the_order_changes(cluster: ControlPlane, name: str) -> None:
    mirror = changed(pair(name), both(drop("service"), put("replicas", 1, "path", to="/data")))
    create(cluster, mirror, dry_run=False)
    replace(cluster, changed(mirror, lambda export: export["spec"]["replicas"].reverse()))
    swapped = changed(mirror, both(put("replicas", 0, "path", to="/data"), put("replicas", 1, "path", to="/srv/nfs")))
    with pytest.raises(KubectlError, match="a replica's path cannot change"):
        replace(cluster, swapped)


def test_one_replica_can_be_exchanged_but_not_both_at_once(cluster: ControlPlane, name: str) -> None:
    create(cluster, pair(name), dry_run=False)
    exchange_one = both(put("replicas", 1, "name", to="c"), put("replicas", 1, "server", to="10.0.0.13"))
    with pytest.raises(KubectlError, match="at least one replica must keep its name"):
        replace(cluster, changed(pair(name), both(exchange_one, put("replicas", 0, "name", to="d"))))
    replace(cluster, changed(pair(name), exchange_one))


def test_a_replicas_server_and_mount_can_change(cluster: ControlPlane, name: str) -> None:
    create(cluster, pair(name), dry_run=False)
    moved = both(put("replicas", 1, "server", to="10.0.0.99"), put("replicas", 1, "mountPath", to="/exports/new"))
    assert "replaced" in replace(cluster, changed(pair(name), moved))


def test_get_nfsx_prints_what_a_person_needs(cluster: ControlPlane, name: str) -> None:
    create(cluster, pair(name), dry_run=False)
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=10, seconds=5)
    status = {
        "observedGeneration": 1,
        "active": "a",
        "epoch": 3,
        "phase": "Degraded",
        "used": "20Gi",
        "reserved": "40Gi",
        "capacity": "100Gi",
        "volumes": 7,
        "replicas": [
            {"name": "a", "role": "active", "reachable": True, "lastCleanPass": "2020-01-01T00:00:00.000000Z"},
            {"name": "b", "role": "standby", "reachable": True, "lastCleanPass": began.isoformat()},
        ],
    }
    patch_status(cluster, name, status)
    heading, row = (line.split() for line in cluster.kubectl("get", "nfsx", name).splitlines())
    assert heading == ["NAME", "ACTIVE", "PHASE", "LAG", "USED", "RESERVED", "CAPACITY", "VOLUMES", "AGE"]
    assert row[:-1] == [name, "a", "Degraded", "10m", "20Gi", "40Gi", "100Gi", "7"]


def test_a_standby_that_was_never_clean_prints_no_lag(cluster: ControlPlane, name: str) -> None:
    create(cluster, pair(name), dry_run=False)
    patch_status(cluster, name, {"active": "a", "phase": "Ready", "replicas": [{"name": "b", "role": "standby"}]})
    row = cluster.kubectl("get", "nfsx", name, "--no-headers").split()
    assert row[:3] == [name, "a", "Ready"]
    assert len(row) == 4  # and the age


def test_status_is_a_subresource(cluster: ControlPlane, name: str) -> None:
    create(cluster, {**single(name), "status": {"phase": "Ready"}}, dry_run=False)
    assert "status" not in json.loads(cluster.kubectl("get", "nfsx", name, "-o", "json"))
    with pytest.raises(KubectlError, match='Unsupported value: "Fine"'):
        patch_status(cluster, name, {"phase": "Fine"})


def test_the_status_that_the_controller_writes_is_stored_whole(cluster: ControlPlane, name: str) -> None:
    stored = create(cluster, pair(name), dry_run=False)
    now = "2026-01-02T03:04:05.678901Z"
    status = ExportStatus(
        generation=1,
        phase="Ready",
        message="all is well",
        usable=True,
        active="a",
        epoch=2,
        promotion="5f3c",
        capacity=100 << 30,
        available=60 << 30,
        reserved=30 << 30,
        volumes=3,
        archives=1,
        unmanaged=0,
        replicas=[ReplicaStatus("a", "active", True), ReplicaStatus("b", "standby", False, "does not answer")],
        handled={"request": "accept --replica b epoch=2", "result": "done", "message": "accepted", "time": now},
    )
    made = status_object(status, {}, now)
    cluster.kubectl(
        "replace", "--subresource=status", "--validate=strict", "-f", "-", input=json.dumps(stored | {"status": made})
    )
    assert json.loads(cluster.kubectl("get", "nfsx", name, "-o", "json"))["status"] == made


def test_explain_describes_every_field(cluster: ControlPlane) -> None:
    for field in ("replicas", "service", "address", "overcommit", "replication.trashRetention"):
        described = cluster.kubectl("explain", f"nfsx.spec.{field}").partition("DESCRIPTION:")[2]
        assert "<empty>" not in described.partition("FIELDS:")[0]


def patch_status(cluster: ControlPlane, name: str, status: Json) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "nfsx", name, "--subresource=status", "--type=merge", "-p", patch)


@pytest.fixture
def applied(cluster: ControlPlane) -> Iterator[Callable[[str], str]]:
    """Applies YAML as a user does and returns all that kubectl said; takes back what no other test shares."""
    texts = set()

    def apply(text: str) -> str:
        texts.add(text)
        return cluster.kubectl("apply", "--server-side=false", "-f", "-", input=text, check=False)

    yield apply
    for text in texts:
        passing = [document for document in yaml.safe_load_all(text) if document["kind"] not in LASTING]
        # Deployment first, so that no pod protects a claim; the rest in any order.
        passing.sort(key=lambda document: document["kind"] != "Deployment")
        cluster.kubectl(
            "delete", "--ignore-not-found", "--timeout=200s", "-f", "-", input=yaml.safe_dump_all(passing), check=False
        )


def build(cluster: ControlPlane, folder: Path) -> str:
    return cluster.kubectl("kustomize", str(folder))


def complaints(said: str) -> list[str]:
    return [line for line in said.splitlines() if not re.fullmatch(r"\S+ (created|configured|unchanged)", line)]


@pytest.mark.parametrize("overlay", ["single", "pair"])
def test_overlay_applies_without_a_warning_and_twice_changes_nothing(
    cluster: ControlPlane, applied: Callable[[str], str], overlay: str
) -> None:
    text = build(cluster, ROOT / "kustomize" / overlay)
    assert complaints(applied(text)) == []
    # Pods are made: their admission is where the namespace's pod security standard is enforced.
    kubectl = cluster.kubectl
    two = "--for=jsonpath={.status.replicas}=2"
    kubectl("wait", two, "--timeout=120s", "deployment/nfs-provisioner", "-n", NAMESPACE)
    kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=120s", "pvc", "--all", "-n", NAMESPACE)
    again = applied(text)
    assert complaints(again) == []
    assert [line for line in again.splitlines() if not line.endswith(" unchanged")] == []


def test_settings_given_once_reach_every_place(cluster: ControlPlane, tmp_path: Path) -> None:
    for folder in ("manifests", "kustomize"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "kustomize/pair"
    settings = yaml.safe_load((overlay / "settings.yaml").read_text())
    settings["data"] = {
        "image": "registry.example.net:5000/storage/nfs-provisioner:2.0",
        "exportName": "our-big-web",
        "serverA": "192.0.2.1",
        "serverB": "192.0.2.2",
        "path": "/tank/web",
        "serviceNamespace": "storage",
        "serviceIP": "10.96.77.7",
    }
    (overlay / "settings.yaml").write_text(yaml.safe_dump(settings))
    kustomization = (overlay / "kustomization.yaml").read_text()
    (overlay / "kustomization.yaml").write_text(
        kustomization.replace("# - ../components/pinned-ip", "- ../components/pinned-ip")
    )

    text = build(cluster, overlay)
    assert not re.search(
        r"EXPORT|SERVER|PATH|10\.0\.0\.", re.sub(r"(?s)kind: CustomResourceDefinition.*?\n---", "", text)
    )
    found = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(text)}
    assert not [kind for kind, name in found if name == "settings"]

    export = found["NFSExport", "our-big-web"]["spec"]
    assert export["replicas"] == [
        {"name": "a", "server": "192.0.2.1", "path": "/tank/web", "mountPath": "/exports/our-big-web/a"},
        {"name": "b", "server": "192.0.2.2", "path": "/tank/web", "mountPath": "/exports/our-big-web/b"},
    ]
    assert export["service"] == {"namespace": "storage", "name": "our-big-web-nfs"}
    service = found["Service", "our-big-web-nfs"]
    assert (service["metadata"]["namespace"], service["spec"]["clusterIP"]) == ("storage", "10.96.77.7")
    assert "selector" not in service["spec"]
    for kind in ("Role", "RoleBinding"):
        assert found[kind, "nfs-provisioner-endpoints"]["metadata"]["namespace"] == "storage"

    pod = found["Deployment", "nfs-provisioner"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == settings["data"]["image"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    for replica in export["replicas"]:
        volume = f"replica-{replica['name']}"
        assert mounted[volume] == replica["mountPath"]
        claim = found["PersistentVolumeClaim", claims[volume]]
        source = found["PersistentVolume", claim["spec"]["volumeName"]]
        assert source["spec"]["claimRef"]["name"] == claims[volume]
        assert source["spec"]["nfs"] == {"server": replica["server"], "path": replica["path"]}


def test_another_server_is_another_mount(cluster: ControlPlane, applied: Callable[[str], str], tmp_path: Path) -> None:
    """A PersistentVolume's server cannot change: a replaced server must not end in a refused apply."""
    for folder in ("manifests", "kustomize"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "kustomize/single"
    assert complaints(applied(build(cluster, overlay))) == []
    settings = (overlay / "settings.yaml").read_text()
    (overlay / "settings.yaml").write_text(settings.replace("10.0.0.11", "10.0.0.99"))
    assert complaints(applied(build(cluster, overlay))) == []


@pytest.fixture
def namespace(cluster: ControlPlane) -> Iterator[str]:
    name = f"manifests-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    # Where the strictest standard is warned about, an example that breaks it says so.
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/warn=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("example", ["web-fleet.yaml", "statefulset.yaml", "selector.yaml"])
def test_example_applies_without_a_warning(cluster: ControlPlane, namespace: str, example: str) -> None:
    file = ROOT / "manifests/examples" / example
    assert complaints(cluster.kubectl("apply", "-n", namespace, "-f", str(file), check=False)) == []


@pytest.mark.parametrize("example", ["nfsexport-single.yaml", "nfsexport-pair.yaml"])
def test_example_export_is_accepted(cluster: ControlPlane, name: str, example: str) -> None:
    export = yaml.safe_load((ROOT / "manifests/examples" / example).read_text())
    export["metadata"]["name"] = name
    assert create(cluster, export)["spec"]["replicas"] == export["spec"]["replicas"]


@pytest.fixture(scope="module")
def roles(cluster: ControlPlane) -> ControlPlane:
    """The control plane with the controller's account and roles; they stay."""
    for file in ("namespace", "serviceaccount", "rbac"):
        cluster.kubectl("apply", "-f", str(ROOT / f"manifests/{file}.yaml"))
    # The authorizer learns of each kind of role by a watch of its own.
    wanted = [ALLOWED["volumes are made"], ALLOWED["its lease"]]
    eventually(lambda: [can(cluster, each) for each in wanted] == ["yes", "yes"], "the roles have taken effect")
    return cluster


def can(cluster: ControlPlane, request: tuple[str, ...]) -> str:
    return cluster.kubectl("auth", "can-i", *request, f"--as={ACCOUNT}", check=False).splitlines()[-1]


ALLOWED = {
    "volumes are made": ("create", "persistentvolumes"),
    "volumes are deleted": ("delete", "persistentvolumes"),
    "claims are read everywhere": ("list", "persistentvolumeclaims", "--all-namespaces"),
    "a claim grows": ("patch", "persistentvolumeclaims", "--subresource=status", "--all-namespaces"),
    "events about exports": ("create", "events", "-n", "default"),
    "status of exports": ("patch", "nfsexports.nfs-provisioner.io", "--subresource=status"),
    "the finalizer of exports": ("patch", "nfsexports.nfs-provisioner.io"),
    "the cluster's identity": ("get", "namespaces/kube-system"),
    "its lease": ("update", "leases.coordination.k8s.io/nfs-provisioner", "-n", NAMESPACE),
}
DENIED = {
    "secrets": ("get", "secrets", "-n", NAMESPACE),
    "changing a claim": ("patch", "persistentvolumeclaims", "--all-namespaces"),
    "deleting a claim": ("delete", "persistentvolumeclaims", "--all-namespaces"),
    "making pods": ("create", "pods", "-n", NAMESPACE),
    "reading pods": ("list", "pods", "--all-namespaces"),
    "deleting an export": ("delete", "nfsexports.nfs-provisioner.io"),
    "making an export": ("create", "nfsexports.nfs-provisioner.io"),
    "changing a class": ("patch", "storageclasses.storage.k8s.io"),
    "other namespaces": ("get", "namespaces/default"),
    "the lease of another": ("update", "leases.coordination.k8s.io/kube-scheduler", "-n", NAMESPACE),
    "leases elsewhere": ("create", "leases.coordination.k8s.io", "-n", "kube-system"),
    "configuration": ("get", "configmaps", "-n", NAMESPACE),
    "raising its own rights": ("patch", "clusterroles.rbac.authorization.k8s.io/nfs-provisioner"),
}


@pytest.mark.parametrize("case", ALLOWED | DENIED)
def test_the_account_may_do_its_work_and_nothing_else(roles: ControlPlane, case: str) -> None:
    assert can(roles, (ALLOWED | DENIED)[case]) == ("yes" if case in ALLOWED else "no")


def test_whoever_views_the_cluster_sees_exports(roles: ControlPlane) -> None:
    """The aggregation controller copies the rule a moment after the role appears."""
    copied = "--for=jsonpath={.rules[?(@.apiGroups[0]=='nfs-provisioner.io')].resources[0]}=nfsexports"
    roles.kubectl("wait", copied, "--timeout=120s", "clusterrole/view")
