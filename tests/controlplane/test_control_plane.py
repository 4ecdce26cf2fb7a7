"""The harness itself: the cluster that tests and benchmarks trust must be one that says no, binds, and remembers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.controlplane import ControlPlane, KubectlError
from tests.controlplane.processes import Child, StartupError

pytestmark = pytest.mark.cluster

STORAGE_CLASS = "harness-test"
PROVISIONER_ANNOTATION = "volume.kubernetes.io/storage-provisioner"


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    name = f"harness-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    return name


def test_an_unprivileged_service_account_may_not_list_volumes(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "serviceaccount", "nobody", f"--namespace={namespace}")
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "nobody")
    with pytest.raises(KubectlError, match=rf'"system:serviceaccount:{namespace}:nobody" cannot list'):
        control_plane.kubectl("get", "persistentvolumes", kubeconfig=kubeconfig)


def test_a_service_account_may_do_what_its_role_says_and_no_more(control_plane: ControlPlane, namespace: str) -> None:
    account = f"{namespace}:reader"
    control_plane.kubectl("create", "serviceaccount", "reader", f"--namespace={namespace}")
    control_plane.kubectl("create", "clusterrole", namespace, "--verb=list", "--resource=persistentvolumes")
    binding = ("create", "clusterrolebinding", namespace, f"--clusterrole={namespace}", f"--serviceaccount={account}")
    control_plane.kubectl(*binding)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "reader")

    def listed() -> bool:  # the authorizer learns of a new role through a watch of its own
        listing = ("get", "persistentvolumes", "--output=json")
        return '"items"' in control_plane.kubectl(*listing, kubeconfig=kubeconfig, check=False)

    _eventually(listed, "the role takes effect")
    whoami = json.loads(control_plane.kubectl("auth", "whoami", "--output=json", kubeconfig=kubeconfig))
    assert whoami["status"]["userInfo"]["username"] == f"system:serviceaccount:{account}"
    with pytest.raises(KubectlError, match="forbidden"):
        control_plane.kubectl("delete", "persistentvolume", "any", kubeconfig=kubeconfig)


def test_a_prebound_volume_is_bound_and_then_released(control_plane: ControlPlane, namespace: str) -> None:
    provisioner = f"{namespace}.example/nfs"
    _apply(control_plane, _storage_class(namespace, provisioner), _claim(namespace))
    get_claim = ("get", "pvc", "data", f"--namespace={namespace}", "--output=json")

    def annotated() -> bool:
        claim = json.loads(control_plane.kubectl(*get_claim))
        return bool(claim["metadata"].get("annotations", {}).get(PROVISIONER_ANNOTATION) == provisioner)

    _eventually(annotated, "the controller-manager asks the provisioner")
    uid = json.loads(control_plane.kubectl(*get_claim))["metadata"]["uid"]
    _apply(control_plane, _volume(namespace, uid))
    wait = ("wait", "--timeout=120s")
    control_plane.kubectl(*wait, "pvc/data", f"--namespace={namespace}", "--for=jsonpath={.status.phase}=Bound")
    claim = json.loads(control_plane.kubectl(*get_claim))
    assert claim["spec"]["volumeName"] == f"pvc-{uid}"
    assert "kubernetes.io/pvc-protection" in claim["metadata"]["finalizers"]

    control_plane.kubectl("delete", "pvc", "data", f"--namespace={namespace}")
    control_plane.kubectl(*wait, f"pv/pvc-{uid}", "--for=jsonpath={.status.phase}=Released")
    control_plane.kubectl("delete", "pv", f"pvc-{uid}")
    control_plane.kubectl("delete", "storageclass", namespace)


def test_a_restarted_apiserver_keeps_port_data_and_tokens(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "configmap", "kept", "--from-literal=answer=42", f"--namespace={namespace}")
    control_plane.kubectl("create", "serviceaccount", "someone", f"--namespace={namespace}")
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "someone")
    before = control_plane.pids
    control_plane.stop_apiserver(grace=0)
    with pytest.raises(KubectlError, match="refused"):
        control_plane.kubectl("get", "namespaces")
    control_plane.start_apiserver()
    after = control_plane.pids
    assert after["kube-apiserver"] != before["kube-apiserver"]
    assert after["kube-controller-manager"] == before["kube-controller-manager"], "it must ride out a restart"
    kept = ("get", "configmap", "kept", f"--namespace={namespace}", "--output=jsonpath={.data.answer}")
    assert control_plane.kubectl(*kept) == "42"
    assert f"{namespace}:someone" in control_plane.kubectl("auth", "whoami", kubeconfig=kubeconfig)


def test_a_paused_apiserver_accepts_connections_and_answers_nothing(control_plane: ControlPlane) -> None:
    port = int(control_plane.server.rpartition(":")[2])
    control_plane.pause_apiserver()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            pass
        with pytest.raises(KubectlError, match=r"imeout|deadline exceeded"):
            control_plane.kubectl("get", "--raw=/readyz", "--request-timeout=500ms")
    finally:
        control_plane.resume_apiserver()
    control_plane.wait_ready()
    assert control_plane.kubectl("get", "--raw=/readyz") == "ok"


def test_without_a_controller_manager_nothing_happens_to_a_claim(tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path, controller_manager=False, no_fsync=True) as bare:
        assert bare.pids.keys() == {"etcd", "kube-apiserver"}
        pids = bare.pids.values()
        _apply(bare, _storage_class(STORAGE_CLASS, "example.com/nfs"))
        assert bare.kubectl("get", "serviceaccounts", "--all-namespaces", "--output=name") == ""
    assert not any(_alive(pid) for pid in pids)
    with pytest.raises(StartupError, match="earlier control plane"):
        ControlPlane.start(tmp_path)


def test_a_server_that_refuses_to_start_is_named_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"(?s)kube-apiserver exited with 1; .*unknown flag: --no-such-flag"):
        ControlPlane.start(tmp_path, no_fsync=True, apiserver_flags=["--no-such-flag"])


def test_secrets_are_readable_by_nobody_else(control_plane: ControlPlane) -> None:
    files = [control_plane.admin_kubeconfig, *(control_plane.directory / "secrets").iterdir()]
    assert len(files) >= 4
    assert [file for file in files if file.stat().st_mode & 0o077] == []


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from tests.controlplane.processes import Child
child = Child("sleep", ["sleep", "600"], pathlib.Path({str(tmp_path / "log")!r}))
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _alive(pid)
        parent.kill()
    _eventually(lambda: not _alive(pid), "the child dies")


def test_a_child_that_ignores_sigterm_or_is_paused_is_ended(tmp_path: Path) -> None:
    child = Child("stubborn", ["sh", "-c", "trap '' TERM; echo ready; exec sleep 600"], tmp_path / "log")
    child.start()
    pid = child.pid
    child.wait_until(lambda: "ready" in child.tail(), deadline=time.monotonic() + 60, what="was not ready")
    child.signal(signal.SIGSTOP)
    child.stop(grace=0.2)
    assert not _alive(pid)


def _storage_class(name: str, provisioner: str) -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": provisioner,
    }


def _claim(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": namespace,
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }


def _volume(namespace: str, claim_uid: str) -> dict[str, Any]:
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "data", "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{claim_uid}"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Mi"},
            "storageClassName": namespace,
            "persistentVolumeReclaimPolicy": "Retain",
            "nfs": {"server": "192.0.2.10", "path": f"/srv/{claim_uid}"},
            "claimRef": reference | {"uid": claim_uid},
        },
    }


def _apply(control_plane: ControlPlane, *objects: dict[str, Any]) -> None:
    documents = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    control_plane.kubectl("create", "--filename=-", input=json.dumps(documents))


def _eventually(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """A dead orphan that nobody reaps, as in a container whose first process does not, is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
