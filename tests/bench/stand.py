"""What the benchmarks run on: a control plane of their own, and on it, in turns, the floor or the controller.

Responsible for starting, ending and preparing; measures nothing. etcd syncs its disk, the controller-manager's client
is faster than its default (it would measure itself), the controller runs under the shipped ServiceAccount and roles,
the floor as the administrator. Only one of them runs at a time: the other's watches would cost processor time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.burst import PATIENCE, BenchError, Result
from tests.contract.client import Client, Credentials, Json
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import NAMESPACE as CONTROLLER_NAMESPACE
from tests.plugins.controller import Controller

PROVISIONER = "bench.example.com/nfs"
FLOOR = "bench.example.com/floor"
CLAIMS_NAMESPACE = "bench"
FLOOR_CLASS = "floor"
REPLICAS = "ab"

_MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_EXPORTS = "/apis/nfs-provisioner.io/v1alpha1/nfsexports"


def progress(message: str) -> None:
    """One line for whoever waits."""
    print(message, file=sys.stderr, flush=True)


class Export:
    """An NFSExport with two local directories, and a class of its name that archives."""

    def __init__(self, name: str, mounts: Path) -> None:
        self.name = name
        self.roots = {replica: mounts / name / replica for replica in REPLICAS}
        for root in self.roots.values():
            root.mkdir(parents=True)

    def entries(self, replica: str) -> list[str]:
        """Directories at the root."""
        return [entry.name for entry in self.roots[replica].iterdir() if not entry.name.startswith(".")]

    def archives(self, replica: str) -> int:
        """Directories that are archives by their names."""
        return sum(name.startswith("archived-") for name in self.entries(replica))

    def body(self) -> Json:
        replicas = [
            {"name": name, "server": f"192.0.2.{number}", "path": f"/srv/{self.name}", "mountPath": str(root)}
            for number, (name, root) in enumerate(self.roots.items(), 11)
        ]
        # A capacity of its own, so that the disk's size does not matter.
        spec = {"replicas": replicas, "capacity": "10Ti", "reserve": "0%"}
        return {
            "apiVersion": "nfs-provisioner.io/v1alpha1",
            "kind": "NFSExport",
            "metadata": {"name": self.name},
            "spec": spec,
        }


class Stand:
    """Not thread-safe: one thing is measured at a time."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self.plane = plane
        self._directory = directory
        self._mounts = directory / "exports"
        files = [f"--filename={_MANIFESTS / name}.yaml" for name in ("crd", "namespace", "serviceaccount", "rbac")]
        plane.kubectl("apply", *files)
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/nfsexports.nfs-provisioner.io")
        self._account = plane.service_account_kubeconfig(CONTROLLER_NAMESPACE, "nfs-provisioner", duration="24h")
        self._credentials = Credentials.read(plane.admin_kubeconfig)
        self.api.post("/api/v1/namespaces", {"metadata": {"name": CLAIMS_NAMESPACE}}).ok()
        self._add_class(FLOOR_CLASS, FLOOR, {})

    @property
    def api(self) -> Client:
        """The administrator's, on a new connection: minutes pass between uses, and the server closes idle ones."""
        return Client(self._credentials, timeout=PATIENCE)

    @property
    def versions(self) -> str:
        """Of the servers."""
        found: Json = json.loads(self.plane.kubectl("version", "-o", "json"))
        etcd = subprocess.run([self.plane.binaries.etcd, "--version"], capture_output=True, text=True, check=True)
        return f"Kubernetes {found['serverVersion']['gitVersion']}, etcd {etcd.stdout.splitlines()[0].split()[-1]}"

    def add_export(self, name: str) -> Export:
        """A fresh one: what earlier rounds archived must not slow the next."""
        export = Export(name, self._mounts)
        self.api.post(_EXPORTS, export.body()).ok()
        self._add_class(name, PROVISIONER, {"export": name, "onDelete": "archive"})
        return export

    def remove_export(self, export: Export) -> None:
        """Its directories stay."""
        self.api.delete(f"{_CLASSES}/{export.name}").ok()
        self.api.delete(f"{_EXPORTS}/{export.name}").ok()
        self.api.eventually_gone(f"{_EXPORTS}/{export.name}", 60.0)

    def burst(
        self,
        storage_class: str,
        claims: int,
        *,
        rate: float = 0.0,
        keep: bool = False,
        alive: Callable[[], object] = lambda: None,
    ) -> Result:
        """In a process of its own. Raises BenchError when not every claim was bound (and deleted), and what `alive`
        raises, which is asked now and then: who provisions may have died."""
        words = [sys.executable, "-m", "tests.bench.burst", str(self.plane.admin_kubeconfig), storage_class]
        words += [f"--namespace={CLAIMS_NAMESPACE}", f"--claims={claims}", f"--rate={rate}"] + ["--keep"] * keep
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                while True:
                    alive()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        found, errors = process.communicate(timeout=1.0)
                        break
            finally:
                process.kill()
        if process.returncode != 0:
            raise BenchError(f"{' '.join(words[1:])} exited with {process.returncode}: {errors.strip()[-2000:]}")
        return Result(**json.loads(found))

    @contextlib.contextmanager
    def floor(self) -> Iterator[None]:
        """The floor, working."""
        words = [sys.executable, "-m", "tests.bench.floor", str(self.plane.admin_kubeconfig), FLOOR]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != "watching\n":
                    raise BenchError("the floor did not start")
                yield
                if process.poll() is not None:
                    raise BenchError(f"the floor ended with {process.returncode}")
            finally:
                process.kill()

    def controller(self, name: str) -> Controller:
        """Not started yet."""
        return Controller(
            self._directory / name,
            self._account,
            provisioner=PROVISIONER,
            mount_root=self._mounts,
            log={"level": "warning"},
        )

    @contextlib.contextmanager
    def ours(self, export: Export) -> Iterator[Controller]:
        """The controller, leading, with this export Ready."""
        with self.controller(f"controller-{export.name}").start() as controller:
            yield controller.wait_ready(export.name)
            if (code := controller.stop()) != 0:
                raise BenchError(f"the controller ended with {code}: {controller.tail()}")

    @staticmethod
    def require_running(controller: Controller) -> None:
        if controller.exit_code is not None:
            raise BenchError(f"the controller ended with {controller.exit_code}: {controller.tail()}")

    def _add_class(self, name: str, provisioner: str, parameters: Json) -> None:
        body = {"metadata": {"name": name}, "provisioner": provisioner, "parameters": parameters}
        self.api.post(_CLASSES, body).ok()
