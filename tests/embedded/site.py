"""A cluster small enough for one test: embedded API server, one export on a local directory, the controller in-process.

The controller is the daemon with its real worker processes. `cut_off` ends one as a crash at a given API request does:
that request and everything after it, on the API and on the files, never happens (or the request does, and nobody hears
its answer). Knows how to wait, and asserts nothing but that what it waits for comes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from nfs_provisioner import daemon
from nfs_provisioner.config import ControllerConfig, HttpConfig, LeaderElectionConfig
from nfs_provisioner.daemon import Daemon
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.export.records import State, VolumeRecord, decode_record, encode_record
from nfs_provisioner.export.replica import Replica
from nfs_provisioner.kube.api import EVENT, NAMESPACE, NFS_EXPORT, PV, PVC, STORAGE_CLASS, Api, NotFound, load
from nfs_provisioner.volumes import exports, measuring

T = TypeVar("T")
Json = dict[str, Any]
Moment = Literal["before", "after"]

PROVISIONER = "test.example/nfs"
DEADLINE = 50.0  # seconds: less than what a volume waits that nobody wakes (SLOWLY, AWAY, AGAIN)
MI = 1 << 20


def unhurried(patch: pytest.MonkeyPatch) -> None:
    """A disk that stalls for long is not taken for a server that is gone, nor a slow start for a replica that is away,
    and the last write is waited for: nothing here is about those times, and each of them has something told instead."""
    patch.setattr(exports, "FIRST_LOOK", 120.0)
    for method in (Replica.call, Replica.call_all, exports.Export.call):
        defaults = method.__kwdefaults__
        assert defaults is not None
        patch.setitem(defaults, "deadline", 120.0)
    for module in (measuring, daemon):
        patch.setattr(module, "LAST_WRITE", 30.0)


class Cut(LostLeadership):
    """The process is gone: what raises this does not happen any more."""


class CutOff(Api):
    """An Api that is cut off at the `at`th request of a worker thread. Others' requests are not counted."""

    def __init__(self, inner: Api, at: int, moment: Moment, on_cut: Callable[[], None]) -> None:
        super().__init__(inner._connection, "cut-off", lambda *_: None)
        self._at = at
        self._moment = moment
        self._on_cut = on_cut
        self._requests = threading.Lock()
        self.seen: list[str] = []
        self.cut = False

    def _json(self, verb: str, *arguments: Any, **options: Any) -> Json:
        if not threading.current_thread().name.startswith("worker-"):
            return super()._json(verb, *arguments, **options)
        with self._requests:  # one at a time, so that nothing overtakes the cut
            if self.cut:
                raise Cut("cut off")
            self.seen.append(f"{verb} {arguments[0].plural}")
            if len(self.seen) != self._at:
                return super()._json(verb, *arguments, **options)
            try:
                if self._moment == "after":
                    super()._json(verb, *arguments, **options)
            finally:
                self._on_cut()
                self.cut = True  # last of all: who sees it ends the controller, and the request is to be made before
            raise Cut(f"cut off {self._moment} {self.seen[-1]}")


class Controller:
    """One life of the daemon."""

    def __init__(self, kubeconfig: Path, mount_root: Path, *, adopt_from: tuple[str, ...] = (), **options: Any) -> None:
        """`options` are the daemon's."""
        config = ControllerConfig(
            provisioner=PROVISIONER,
            adopt_from=adopt_from,
            workers=2,
            leader_election=LeaderElectionConfig(enabled=False),
            http=HttpConfig("127.0.0.1", 0),
            mount_root=str(mount_root),
        )
        self.daemon = Daemon(config, kubeconfig=str(kubeconfig), poll=0.2, **options)
        self._thread = threading.Thread(target=self.daemon.run, name="daemon", daemon=True)

    def cut_off(self, at: int, moment: Moment) -> CutOff:
        """To be called before `start`."""
        cut = CutOff(self.daemon.api, at, moment, lambda: self.daemon._lease_end.set(0.0))
        self.daemon.api = cut
        return cut

    def start(self) -> Controller:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Also after it was cut off."""
        self.daemon.stop()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the daemon does not end"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()


class Site:
    """What a test has: `api` to be the user with, `root` to look at the files with."""

    def __init__(self, server: EmbeddedApiServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.kubeconfig = server.write_kubeconfig(directory / "kubeconfig")
        self.api = load(str(self.kubeconfig))
        self.mount_root = directory / "exports"
        self.root = self.mount_root / "web" / "a"
        self.root.mkdir(parents=True, exist_ok=True)
        self.api.create(NAMESPACE, {"metadata": {"name": "shop"}})

    # -- the cluster's objects ----------------------------------------------------------------------------------------

    def make_export(self, name: str = "web", **spec: Any) -> None:
        root = self.mount_root / name / "a"
        root.mkdir(parents=True, exist_ok=True)
        replica = {"name": "a", "server": "192.0.2.1", "path": "/srv/nfs", "mountPath": str(root)}
        self.api.create(
            NFS_EXPORT,
            {
                "apiVersion": "nfs-provisioner.io/v1alpha1",
                "kind": "NFSExport",
                "metadata": {"name": name, "labels": {"name": name}},
                "spec": {"replicas": [replica], "reserve": "0%", "capacity": "10Gi", **spec},
            },
        )

    def make_class(self, name: str = "nfs", policy: str = "Delete", **parameters: str) -> None:
        self.api.create(
            STORAGE_CLASS,
            {
                "metadata": {"name": name},
                "provisioner": PROVISIONER,
                "allowVolumeExpansion": True,
                "reclaimPolicy": policy,
                "parameters": parameters,
            },
        )

    def claim(self, name: str, size: str = "10Mi", storage_class: str = "nfs", **more: Any) -> Json:
        metadata = {"name": name, "annotations": more.pop("annotations", {}), "labels": more.pop("labels", {})}
        spec = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
            **more,
        }
        return self.api.create(PVC, {"metadata": metadata, "spec": spec}, "shop")

    def grow(self, name: str, size: str) -> None:
        self.api.patch(PVC, name, {"spec": {"resources": {"requests": {"storage": size}}}}, namespace="shop")

    def delete_claim(self, name: str) -> None:
        self.api.delete(PVC, name, namespace="shop")

    def force_away(self, pv: str) -> None:
        """Remove a PV as nobody should: deleted, and every finalizer stripped."""
        self.api.delete(PV, pv)
        self.api.patch(PV, pv, {"metadata": {"finalizers": None}})

    def get_claim(self, name: str) -> Json | None:
        try:
            return self.api.get(PVC, name, "shop")
        except NotFound:
            return None

    def volume(self, pv: str) -> Json | None:
        try:
            return self.api.get(PV, pv)
        except NotFound:
            return None

    def volumes(self) -> list[Json]:
        return list(self.api.list(PV)[0])

    def export_status(self, name: str) -> Json:
        found: Json = self.api.get(NFS_EXPORT, name).get("status") or {}
        return found

    def export_condition(self, name: str, kind: str) -> Json:
        """One of its conditions; empty while it has none of this kind."""
        found: list[Json] = self.export_status(name).get("conditions", [])
        return next((c for c in found if c["type"] == kind), {})

    def export_ready(self, name: str) -> None:
        self.until(lambda: self.export_status(name).get("phase") == "Ready", f"NFSExport {name} is not Ready")

    def events(self, reason: str) -> list[str]:
        """Messages of all Events with this reason."""
        found: list[str] = []
        for namespace in ("shop", "default"):
            found += [e["message"] for e in self.api.list(EVENT, namespace)[0] if e["reason"] == reason]
        return found

    # -- the export ---------------------------------------------------------------------------------------------------

    def directories(self, export: str = "web") -> list[str]:
        """What is at the export's root, but for our own directory."""
        return sorted(n for n in os.listdir(self.mount_root / export / "a") if n != ".nfs-provisioner")

    def records(self, export: str = "web") -> dict[str, VolumeRecord]:
        """Every record as it is on disk."""
        folder = self.mount_root / export / "a" / ".nfs-provisioner" / "volumes"
        found: dict[str, VolumeRecord] = {}
        for path in folder.glob("*.json"):
            with suppress(FileNotFoundError):  # it went since the directory was read
                record = decode_record(path.read_bytes(), source=str(path))
                found[record.pv] = record
        return found

    def record(self, pv: str) -> VolumeRecord | None:
        return self.records().get(pv)

    def state(self, pv: str) -> State | None:
        record = self.record(pv)
        return None if record is None else record.state

    def unfinish(self, pv: str) -> None:
        """Put the record back to where it was just before it was finished; the controller must not run."""
        folder = self.mount_root / "web" / "a" / ".nfs-provisioner" / "volumes"
        record = self.record(pv)
        assert record is not None, f"there is no record of {pv}"
        (folder / f"{pv}.json").write_bytes(encode_record(replace(record, state=State.CREATING, inode=None)))

    def directory_of(self, pv: str) -> Path:
        record = self.record(pv)
        assert record is not None, f"there is no record of {pv}"
        return self.root / record.directory

    # -- waiting ------------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], T | None], what: str, seconds: float = DEADLINE) -> T:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"{what} after {seconds:g} s; {self.picture()}"
            time.sleep(0.01)
        return found

    def picture(self) -> str:
        """Everything there is, for a failure's message."""
        claims = [f"{c['metadata']['name']} {c['status'].get('phase')}" for c in self.api.list(PVC, "shop")[0]]
        volumes = [f"{v['metadata']['name']} {v['status'].get('phase')}" for v in self.volumes()]
        records = [f"{r.pv} {r.state} {r.directory}" for r in self.records().values()]
        messages = self.events("ProvisioningFailed") + self.events("VolumeFailedDelete")
        return json.dumps({"claims": claims, "volumes": volumes, "records": records, "events": messages}, indent=1)

    def bound(self, name: str) -> str:
        """Wait until the claim is Bound and its record finished; name of its PV."""

        def settled() -> str | None:
            claim = self.get_claim(name)
            if claim is None or claim["status"].get("phase") != "Bound":
                return None
            pv: str = claim["spec"]["volumeName"]
            return pv if self.state(pv) is State.LIVE else None

        return self.until(settled, f"claim {name} is not Bound")

    def gone(self, pv: str) -> None:
        self.until(lambda: self.volume(pv) is None, f"PV {pv} is still there")

    def becomes(self, pv: str, *states: State | None) -> None:
        self.until(lambda: self.state(pv) in states, f"the record of {pv} is not {' or '.join(map(str, states))}")

    # -- controllers --------------------------------------------------------------------------------------------------

    @contextmanager
    def controller(self, **options: Any) -> Iterator[Controller]:
        controller = Controller(self.kubeconfig, self.mount_root, **options)
        try:
            yield controller.start()
        finally:
            controller.stop()

    def run_cut_off(self, at: int, moment: Moment, until: Callable[[], bool], **options: Any) -> CutOff:
        """One life that is cut off at its `at`th API request, or ends when `until` holds."""
        controller = Controller(self.kubeconfig, self.mount_root, **options)
        cut = controller.cut_off(at, moment)
        controller.start()
        try:
            self.until(lambda: cut.cut or until() or None, "neither cut off nor done")
        finally:
            controller.stop()
        return cut

    def pause_binder(self) -> None:
        """kube-controller-manager is away: nothing is bound, released or let go of."""
        self.server._in_loop(self.server._controllers.stop)

    def resume_binder(self) -> None:
        """It is back, and goes on with what happened meanwhile."""
        self.server._in_loop(self.server._controllers.start)
