"""What the demo plays on: a directory, the embedded API server in it, and the controller as it is shipped.

Starts, waits and tidies up; tells no story. Nothing is faked: the controller is the one `run` starts, and speaks HTTP
to the server. Invariant: whatever happens, what was started is ended, and what was made is removed (but for --keep).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nfs_provisioner.config import ControllerConfig, HttpConfig, LeaderElectionConfig
from nfs_provisioner.daemon import Daemon
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.demo.proxy import TARGET
from nfs_provisioner.errors import InvalidInput, NfsProvisionerError
from nfs_provisioner.export.filesystem import filesystem_type
from nfs_provisioner.kube.api import EVENT, NAMESPACE, NFS_EXPORT, PV, PVC, SERVICE, STORAGE_CLASS, Api, NotFound, load
from nfs_provisioner.replication.measuring import REPLICA_COMMAND

T = TypeVar("T")
JsonObject = dict[str, Any]

NAMESPACES = ("nfs-provisioner", "shop")
EXPORT = "web"
SERVER_PATH = "/srv/nfs/web"
REPLICAS = ("a", "b")
DEADLINE = 120.0  # seconds within which each thing that is waited for happens, or the demo has failed; disks stall
_LOOK_EVERY = 0.004  # seconds; what is measured is no more exact than this
_SHARED_MEMORY = Path("/dev/shm")


class Stage:
    """One machine's worth of the product. `api` is a client like kubectl, `root` the directory of one replica."""

    def __init__(self, directory: Path, server: EmbeddedApiServer, kubeconfig: Path, daemon: Daemon) -> None:
        self.directory = directory
        self.server = server
        self.kubeconfig = kubeconfig
        self.daemon = daemon
        self.api: Api = load(str(kubeconfig))
        self.controller = threading.Thread(target=daemon.run, name="controller", daemon=True)

    @property
    def url(self) -> str:
        """Of the controller's HTTP."""
        return f"http://127.0.0.1:{self.daemon.web.port}"

    def root(self, replica: str) -> Path:
        """What the NFS server of `replica` would export."""
        return self.directory / "exports" / EXPORT / replica

    def directory_of(self, volume: JsonObject, replica: str = REPLICAS[0]) -> Path:
        """Where a PV's server:path lies on this machine."""
        path: str = volume["spec"]["nfs"]["path"]
        return self.root(replica) / path.removeprefix(SERVER_PATH + "/")

    # -- what a user does ---------------------------------------------------------------------------------------------

    def make_class(self, name: str, **parameters: str) -> None:
        """A StorageClass of this provisioner."""
        self.api.create(
            STORAGE_CLASS,
            {
                "metadata": {"name": name},
                "provisioner": self.daemon.config.provisioner,
                "allowVolumeExpansion": True,
                "reclaimPolicy": "Delete",
                "parameters": {"export": EXPORT, **parameters},
            },
        )

    def make_export(self) -> None:
        """The pair. Its servers have addresses that are kept for documentation: nobody connects to them here."""
        replicas = [
            {"name": name, "server": f"192.0.2.1{number}", "path": SERVER_PATH, "mountPath": str(self.root(name))}
            for number, name in enumerate(REPLICAS, start=1)
        ]
        spec = {
            "replicas": replicas,
            "address": "192.0.2.10",
            "reserve": "0%",
            "replication": {"interval": "1s"},  # thirty in the field; nobody wants to wait for that here
        }
        self.api.create(
            NFS_EXPORT,
            {
                "apiVersion": "nfs-provisioner.io/v1alpha1",
                "kind": "NFSExport",
                "metadata": {"name": EXPORT},
                "spec": spec,
            },
        )

    def claim(
        self,
        name: str,
        *,
        storage_class: str = "nfs",
        size: str = "10Mi",
        annotations: Mapping[str, str] | None = None,
    ) -> JsonObject:
        """Create a claim in namespace shop."""
        spec = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        }
        return self.api.create(
            PVC, {"metadata": {"name": name, "annotations": dict(annotations or {})}, "spec": spec}, "shop"
        )

    def bound(self, name: str) -> JsonObject:
        """Wait for a claim of namespace shop to be Bound; returns its PV."""
        claim = self.wait(lambda: self._if_bound(name), f"claim shop/{name} is not Bound")
        return self.api.get(PV, claim["spec"]["volumeName"])

    def _if_bound(self, name: str) -> JsonObject | None:
        claim = self.api.get(PVC, name, "shop")
        return claim if (claim.get("status") or {}).get("phase") == "Bound" else None

    def gone(self, volume: JsonObject) -> None:
        """Wait for a PV to be gone."""
        name = volume["metadata"]["name"]

        def absent() -> bool:
            try:
                self.api.get(PV, name)
            except NotFound:
                return True
            return False

        self.wait(absent, f"PV {name} is still there")

    def event(self, claim: str, reason: str, word: str) -> JsonObject:
        """Wait for an Event about a claim of namespace shop whose message has this word: on a slow machine it may be
        told first that an export is not ready."""

        def about(event: JsonObject) -> bool:
            return (event["involvedObject"]["name"], event["reason"]) == (claim, reason) and word in event["message"]

        def found() -> JsonObject | None:
            return next(filter(about, self.api.list(EVENT, "shop")[0]), None)

        return self.wait(found, f"there is no Event {reason} with {word!r} about claim shop/{claim}")

    # -- what the controller says -------------------------------------------------------------------------------------

    def status(self) -> JsonObject | None:
        """What `nfs-provisioner status -o json` reads; None while this controller does not lead."""
        try:
            found: JsonObject = json.loads(self._get("/api/status"))
        except urllib.error.HTTPError:
            return None
        return found

    def ready_status(self) -> JsonObject | None:
        """The status, once the export is Ready with both replicas."""
        status = self.status()
        return status if status is not None and [e["phase"] for e in status["exports"]] == ["Ready"] else None

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        lines = (line for line in self._get("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE) as response:
            body: bytes = response.read()
        return body.decode()

    def worker(self, replica: str, *, besides: int | None = None) -> int | None:
        """Pid of the child process that does the file-system calls on `replica`, and on that alone. `besides` may have
        been killed, and still be waiting for its disk."""
        wanted = {os.fsencode(self.root(replica)), os.fsencode(REPLICA_COMMAND[-1])}
        for process in (found for found in Path("/proc").glob("[0-9]*") if found.name != str(besides)):
            with contextlib.suppress(OSError):  # it ended while we looked
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and wanted <= set((process / "cmdline").read_bytes().split(b"\0")):
                    return int(process.name)
        return None

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """Look until the condition holds; NfsProvisionerError when it does not in time."""
        end = time.monotonic() + DEADLINE
        while not (found := condition()):
            if time.monotonic() > end or not self.controller.is_alive():
                raise NfsProvisionerError(f"{what} after {DEADLINE:g} s")
            time.sleep(_LOOK_EVERY)
        return found


@contextlib.contextmanager
def staged(port: int, keep: Path | None) -> Iterator[Stage]:
    """A running stage, in `keep` or in a directory that is removed at the end. InvalidInput when that cannot be had."""
    with _directory(keep) as directory, _logging_to(directory / "controller.log"):
        for replica in REPLICAS:
            (directory / "exports" / EXPORT / replica).mkdir(parents=True)
        with EmbeddedApiServer() as server:
            kubeconfig = server.write_kubeconfig(directory / "kubeconfig")
            stage = Stage(directory, server, kubeconfig, _daemon(port, directory, kubeconfig))
            for name in NAMESPACES:
                stage.api.create(NAMESPACE, {"metadata": {"name": name}})
            stage.api.create(SERVICE, _service(stage.daemon.web.port), NAMESPACES[0])
            stage.controller.start()
            try:
                yield stage
            finally:
                stage.daemon.stop()
                stage.controller.join()
                stage.api.close()


def _daemon(port: int, directory: Path, kubeconfig: Path) -> Daemon:
    config = ControllerConfig(
        # Longer than in a cluster: nobody waits for this lease, and a machine may pause.
        leader_election=LeaderElectionConfig(namespace=NAMESPACES[0], lease_duration=120.0, renew_deadline=100.0),
        http=HttpConfig("127.0.0.1", port),
        mount_root=str(directory / "exports"),
    )
    try:
        return Daemon(config, kubeconfig=str(kubeconfig), poll=0.2)
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"--port {port} cannot be used ({error}); --port 0 takes any free one") from None


def _service(port: int) -> JsonObject:
    """Through it `nfs-provisioner status` finds the controller, as in a cluster."""
    return {
        "metadata": {"name": "nfs-provisioner", "annotations": {TARGET: f"127.0.0.1:{port}"}},
        "spec": {"ports": [{"name": "http", "port": 8080}]},
    }


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        made = Path(tempfile.mkdtemp(prefix="nfs-provisioner-demo-", dir=_base())).resolve()
        try:
            yield made
        finally:
            shutil.rmtree(made)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        occupied, unmounted = any(keep.iterdir()), _is_containers_own(keep)
    except OSError as error:
        raise InvalidInput(f"--keep {keep}: {error.strerror}; name a directory that can be written") from None
    if occupied:
        raise InvalidInput(f"--keep {keep}: it is not empty; name a new directory, nothing in this one is touched")
    if unmounted:
        raise InvalidInput(f"--keep {keep}: this is the container's own file system; name a directory of a volume")
    yield keep.resolve()


def _base() -> str:
    usual = tempfile.gettempdir()
    return str(_SHARED_MEMORY) if _is_containers_own(usual) and os.access(_SHARED_MEMORY, os.W_OK) else usual


def _is_containers_own(path: str | Path) -> bool:
    """The controller refuses a replica on a container's own file system: there a mount is missing."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return filesystem_type(fd) == "overlay" and os.fstat(fd).st_dev == os.stat("/").st_dev
    finally:
        os.close(fd)


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """The controller's log goes to a file: what it says would stand between the lines of the story."""
    root, level = logging.getLogger(), logging.getLogger().level
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
