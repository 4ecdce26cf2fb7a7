"""What the manifests and the Dockerfile must say, checked without a cluster; tests/cluster has the real API server."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfs_provisioner.config import check_files, parse_controller_config, parse_export
from nfs_provisioner.errors import InvalidInput
from tests.cluster.nfsexport_cases import NONSENSE, changed

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
YAML_FILES = sorted([*MANIFESTS.rglob("*.yaml"), *(ROOT / "kustomize").rglob("*.yaml")])
IN_SERVICE_NAMESPACE = ROOT / "kustomize/components/service/rbac.yaml"

# The baseline pod security standard lets nothing else be added. The controller needs these and no more.
CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"}

# (API group, resource, the only names or none for all) -> verbs. Nothing else may be in the controller's roles.
CLUSTER_RULES = {
    ("", "persistentvolumes", ()): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "persistentvolumeclaims", ()): {"get", "list", "watch"},
    ("", "persistentvolumeclaims/status", ()): {"patch"},
    ("", "events", ()): {"create", "patch"},
    ("", "namespaces", ("kube-system",)): {"get"},
    ("storage.k8s.io", "storageclasses", ()): {"get", "list", "watch"},
    ("nfs-provisioner.io", "nfsexports", ()): {"get", "list", "watch", "patch"},
    ("nfs-provisioner.io", "nfsexports/status", ()): {"patch"},
}
OWN_NAMESPACE_RULES = {
    ("coordination.k8s.io", "leases", ()): {"create"},
    ("coordination.k8s.io", "leases", ("nfs-provisioner",)): {"get", "update"},
}
SERVICE_NAMESPACE_RULES = {
    ("", "services", ()): {"get"},
    ("discovery.k8s.io", "endpointslices", ()): {"get", "list", "watch", "create", "patch", "delete"},
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def one(name: str, kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents(MANIFESTS / name) if document["kind"] == kind)
    return found


def rules(path: Path, kind: str, name: str) -> dict[tuple[str, str, tuple[str, ...]], set[str]]:
    (role,) = (d for d in documents(path) if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return {
        (group, resource, tuple(rule.get("resourceNames", ()))): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def pod_spec() -> dict[str, Any]:
    spec: dict[str, Any] = one("deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only,) = pod_spec()["containers"]
    assert isinstance(only, dict)
    return only


def leaves(value: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Every scalar and every empty collection of a document, with the keys that lead to it."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for key, child in children for leaf in leaves(child, f"{at}.{key}")]
    yield from inner or [(at, value)]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_document_names_its_kind_and_holds_no_null(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        assert document["apiVersion"]
        assert document["kind"]
        # An explicit null, also an empty "key:", makes every apply say "configured".
        assert [at for at, value in leaves(document) if value is None] == []


def test_base_lists_every_manifest() -> None:
    listed = set(yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"])
    assert listed == {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"}


def test_roles_allow_exactly_what_the_controller_does() -> None:
    rbac = MANIFESTS / "rbac.yaml"
    assert rules(rbac, "ClusterRole", "nfs-provisioner") == CLUSTER_RULES
    assert rules(rbac, "Role", "nfs-provisioner") == OWN_NAMESPACE_RULES
    assert rules(IN_SERVICE_NAMESPACE, "Role", "nfs-provisioner-endpoints") == SERVICE_NAMESPACE_RULES


def test_only_the_known_roles_are_bound_and_only_to_the_controller() -> None:
    bindings = [
        d for path in (MANIFESTS / "rbac.yaml", IN_SERVICE_NAMESPACE) for d in documents(path) if "roleRef" in d
    ]
    account = one("serviceaccount.yaml", "ServiceAccount")["metadata"]
    assert {(b["kind"], b["roleRef"]["kind"], b["roleRef"]["name"]) for b in bindings} == {
        ("ClusterRoleBinding", "ClusterRole", "nfs-provisioner"),
        ("RoleBinding", "Role", "nfs-provisioner"),
        ("RoleBinding", "Role", "nfs-provisioner-endpoints"),
    }
    for binding in bindings:
        (subject,) = binding["subjects"]
        assert (subject["kind"], subject["name"], subject["namespace"]) == (
            "ServiceAccount",
            account["name"],
            account["namespace"],
        )


def test_the_viewer_role_reads_exports_and_nothing_else() -> None:
    rbac = MANIFESTS / "rbac.yaml"
    assert rules(rbac, "ClusterRole", "nfs-provisioner-viewer") == {
        ("nfs-provisioner.io", "nfsexports", ()): {"get", "list", "watch"}
    }
    ((_, resource, names), verbs), *more = rules(rbac, "Role", "nfs-provisioner-status").items()
    assert (resource, verbs, more) == ("services/proxy", {"get"}, [])
    service = one("service.yaml", "Service")
    assert f"{service['metadata']['name']}:{service['spec']['ports'][0]['name']}" in names


def test_container_has_only_the_rights_it_needs() -> None:
    security = container()["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["privileged"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert set(security["capabilities"]["add"]) == CAPABILITIES
    pod = pod_spec()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["runAsUser"] == 0
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "configMap", "emptyDir"}
    mounts = {mount["mountPath"]: mount for mount in container()["volumeMounts"]}
    assert mounts["/tmp"]["name"] == "tmp"


def test_h36_liveness_asks_healthz_and_readiness_readyz() -> None:
    probes = {name: container()[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {probe["port"] for probe in probes.values()} == {"http"}


def test_an_update_starts_a_pod_before_it_stops_one() -> None:
    spec = one("deployment.yaml", "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_container_has_requests_limits_and_knows_its_name() -> None:
    resources = container()["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys()
    assert "memory" in resources["limits"]
    environment = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container()["env"]}
    assert environment == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}


def test_configuration_is_valid_and_is_where_the_container_reads_it() -> None:
    data = one("configmap.yaml", "ConfigMap")["data"]
    config = parse_controller_config(data["config.yaml"], "configmap.yaml")
    assert config.leader_election.enabled
    assert {"containerPort": config.http.port, "name": "http"} in container()["ports"]
    assert one("service.yaml", "Service")["spec"]["ports"] == [
        {"name": "http", "port": config.http.port, "targetPort": "http"}
    ]
    assert config.provisioner == one("storageclass.yaml", "StorageClass")["provisioner"]
    (volume,) = (v["name"] for v in pod_spec()["volumes"] if "configMap" in v)
    (mount,) = (m["mountPath"] for m in container()["volumeMounts"] if m["name"] == volume)
    assert container()["args"] == ["run", "--config", f"{mount}/config.yaml"]


def test_labels_and_names_lead_to_each_other() -> None:
    deployment = one("deployment.yaml", "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert one("service.yaml", "Service")["spec"]["selector"].items() <= labels.items()
    assert pod_spec()["serviceAccountName"] == one("serviceaccount.yaml", "ServiceAccount")["metadata"]["name"]
    namespace = one("namespace.yaml", "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    namespaced = [d["metadata"]["namespace"] for p in MANIFESTS.glob("*.yaml") for d in documents(p) if "metadata" in d
                  and "namespace" in d["metadata"]]  # fmt: skip
    assert set(namespaced) == {namespace["name"]}


def test_crd_has_the_names_and_columns_of_the_contract() -> None:
    crd = one("crd.yaml", "CustomResourceDefinition")["spec"]
    assert (crd["group"], crd["scope"]) == ("nfs-provisioner.io", "Cluster")
    assert crd["names"]["kind"] == "NFSExport"
    assert crd["names"]["shortNames"] == ["nfsx"]
    (version,) = crd["versions"]
    assert (version["name"], version["subresources"]) == ("v1alpha1", {"status": {}})
    columns = [column["name"].upper() for column in version["additionalPrinterColumns"]]
    assert columns == ["ACTIVE", "PHASE", "LAG", "USED", "RESERVED", "CAPACITY", "VOLUMES", "AGE"]


def test_crd_tells_what_would_be_right_wherever_it_refuses() -> None:
    schema = one("crd.yaml", "CustomResourceDefinition")["spec"]["versions"][0]["schema"]

    def validations(node: object) -> Iterator[dict[str, str]]:
        if isinstance(node, dict):
            yield from node.get("x-kubernetes-validations", ())
            for child in node.values():
                yield from validations(child)

    found = list(validations(schema))
    assert len(found) > 10
    assert [rule["rule"] for rule in found if not rule.get("message")] == []


@pytest.mark.parametrize("case", NONSENSE)
def test_the_controllers_own_check_refuses_what_the_api_server_refuses(case: str) -> None:
    base, change, _ = NONSENSE[case]
    parse_export(base, mount_root="/exports")
    with pytest.raises(InvalidInput):
        parse_export(changed(base, change), mount_root="/exports")


def test_examples_pass_the_controllers_own_check() -> None:
    report = check_files([*sorted((MANIFESTS / "examples").glob("*.yaml")), MANIFESTS / "storageclass.yaml"])
    assert report.problems == []
    assert len(report.checked) == 3


def test_examples_show_a_fleet_a_statefulset_a_selector_and_a_clone() -> None:
    examples = {path.name: documents(path) for path in (MANIFESTS / "examples").glob("*.yaml")}
    by_kind = {d["kind"]: d for d in examples["web-fleet.yaml"]}
    fleet, claim = by_kind["Deployment"]["spec"], by_kind["PersistentVolumeClaim"]
    assert (fleet["replicas"], claim["spec"]["accessModes"]) == (3, ["ReadWriteMany"])
    (volume,) = fleet["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (stateful,) = (d for d in examples["statefulset.yaml"] if d["kind"] == "StatefulSet")
    (template,) = stateful["spec"]["volumeClaimTemplates"]
    class_name = one("storageclass.yaml", "StorageClass")["metadata"]["name"]
    assert template["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == class_name
    # The claim with a selector finds one of the exports that the examples hold, and not the other.
    (selecting,), (cloning,) = examples["selector.yaml"], examples["clone.yaml"]
    assert cloning["spec"]["dataSource"] == {"kind": "PersistentVolumeClaim", "name": selecting["metadata"]["name"]}
    assert cloning["spec"]["resources"] == selecting["spec"]["resources"]
    wanted = selecting["spec"]["selector"]["matchLabels"].items()
    exports = {d["metadata"]["name"]: d for name in examples if "nfsexport" in name for d in examples[name]}
    specs = {name: parse_export(export, mount_root="/exports") for name, export in exports.items()}
    assert [name for name, spec in specs.items() if wanted <= spec.labels.items()] == ["scratch"]
    assert len(specs) == 2


@pytest.mark.parametrize("replica", ["a", "b"])
def test_managed_mount_keeps_the_order_of_its_options(replica: str) -> None:
    """The kubelet sorts the list of options; softerr after nosoftreval would switch softreval back on."""
    (volume,) = (
        d
        for d in documents(ROOT / f"kustomize/components/replica-{replica}/mount.yaml")
        if d["kind"] == "PersistentVolume"
    )
    (options,) = volume["spec"]["mountOptions"]
    names = options.split(",")
    assert names.index("softerr") < names.index("nosoftreval")
    assert {"actimeo=1", "lookupcache=pos", "nosharecache"} <= set(names)
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


def test_the_two_replica_components_differ_in_the_replica_alone() -> None:
    for name in ("kustomization.yaml", "mount.yaml", "deployment.yaml"):
        a, b = ((ROOT / f"kustomize/components/replica-{replica}" / name).read_text() for replica in "ab")
        swapped = re.sub(r"(mount-|replica-|EXPORT[-/]|name=|Replica )a\b", r"\1b", a).replace("serverA", "serverB")
        assert swapped == b, name


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> list[list[tuple[str, str]]]:
    split: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            split.append([])
        if split:
            split[-1].append((word, rest))
    return split


def test_image_starts_the_controller() -> None:
    final = dict(stages()[-1])
    assert (final["ENTRYPOINT"], final["CMD"]) == ('["nfs-provisioner"]', '["run"]')
    assert container().get("command") is None  # the Deployment relies on the image's entry point


def test_image_base_is_pinned_and_both_stages_use_it() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    assert re.fullmatch(r"python:3\.\d+-slim(@sha256:[0-9a-f]{64})?", arguments["PYTHON"])
    assert [stage[0][1].split()[0] for stage in stages()] == ["${PYTHON}", "${PYTHON}"]


def test_image_installs_exactly_what_the_lock_file_names() -> None:
    builder = [rest for word, rest in stages()[0] if word == "RUN"]
    (locked,) = (shlex.split(rest) for rest in builder if "requirements.lock" in rest)
    assert "--require-hashes" in locked
    assert locked[locked.index("-r") + 1] == "requirements.lock"
    (package,) = (rest for rest in builder if re.search(r"install .* \.(\s|$)", rest))
    assert "--no-deps" in package


def test_final_stage_installs_nothing_and_keeps_no_installer() -> None:
    final = stages()[-1]
    runs = " ; ".join(rest for word, rest in final if word == "RUN")
    assert not re.search(r"\b(apt-get|apk|gcc|pip3? install|-m pip)\b", runs)
    assert re.search(r"rm -rf .*site-packages/\*.* /usr/local/bin/pip\*", runs)
    assert all("--from=builder" in rest for word, rest in final if word == "COPY")
    assert dict(final)["USER"] not in ("root", "0", "0:0")


def test_image_carries_oci_labels() -> None:
    labels = dict(stages()[-1])["LABEL"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_everything_the_image_copies_is_sent_to_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    sources = [
        source
        for word, rest in stages()[0]
        if word == "COPY"
        for source in rest.split()[:-1]
        if not source.startswith("--")
    ]
    assert {f"!{source.removeprefix('./')}" for source in sources} == {line for line in ignore if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text
