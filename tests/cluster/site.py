"""One module's share of the real control plane: a namespace, NFSExports on local directories, classes and claims.

Everything carries the site's suffix and is removed at the end. The controller runs under the shipped ServiceAccount;
only this file and the tests are the cluster's administrator.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.contract.client import STRATEGIC, Client, Credentials, Json
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import LASTING_LEASE, Controller

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
EXPORTS = "/apis/nfs-provisioner.io/v1alpha1/nfsexports"
NAMESPACES = "/api/v1/namespaces"
VOLUMES = "/api/v1/persistentvolumes"
CONTROL = ".nfs-provisioner"
FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
EXPORT_FINALIZER = "nfs-provisioner.io/volumes"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
EXPORT_LABEL = "nfs-provisioner.io/export"
RESTORE = "nfs-provisioner.io/restore-archive"
REQUEST = "nfs-provisioner.io/request"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/nfs-provisioner/leases/nfs-provisioner"
DEADLINE = 120.0

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], what: str, seconds: float = DEADLINE) -> Found:
    """Polls until `look` gives something true, and returns that.

    An AssertionError in it counts as not yet, and so does a file that went while it was looked at. A look that costs
    much is taken less often: the machine is needed by those who are waited for.
    """
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        try:
            if found := look():
                return found
            assert began < end, f"{what}: not in {seconds:g} s"
        except (AssertionError, FileNotFoundError):
            if began > end:
                raise
        time.sleep(max(0.05, 2 * (time.monotonic() - began)))


@dataclass(frozen=True, slots=True)
class ExportOnDisk:
    """An NFSExport and its replicas' directories, looked at from behind."""

    name: str
    path: str  # on the server
    roots: Mapping[str, Path]

    def root(self, replica: str = "a") -> Path:
        return self.roots[replica]

    def entries(self, replica: str = "a") -> set[str]:
        """Names at the root, without our own directory."""
        return {entry.name for entry in self.root(replica).iterdir()} - {CONTROL}

    def records(self, replica: str = "a") -> dict[str, Json]:
        """Every record, by PV name."""
        found: list[Json] = []
        for file in (self.root(replica) / CONTROL / "volumes").glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # a tombstone that went while the others were read
                found.append(json.loads(file.read_text()))
        return {record["pv"]: record for record in found}

    def record(self, pv: str, replica: str = "a") -> Json:
        found = self.records(replica).get(pv)
        assert found is not None, f"replica {replica} has no record of {pv}"
        return found

    def identity(self, replica: str = "a") -> Json:
        found: Json = json.loads((self.root(replica) / CONTROL / "export.json").read_text())
        return found

    def leftovers(self, replica: str = "a") -> list[str]:
        """What should not stay: entries in work/<term>/, trash/ and lost/. A pair's child keeps empty ones in work/."""
        control = self.root(replica) / CONTROL
        ours = [*control.glob("work/[!s]*/*"), *control.glob("work/sync-*/*/*")]
        found = [*ours, *control.glob("trash/*"), *control.glob("lost/*")]
        return [str(path.relative_to(control)) for path in found]

    def consistent(self, replica: str = "a") -> dict[str, Json]:
        """Asserts that the replica's root holds exactly what its records name; returns the records."""
        records = self.records(replica)
        held = {r["directory"]: r for r in records.values() if r["state"] != "deleted"}
        assert len(held) == sum(r["state"] != "deleted" for r in records.values()), "two records name one directory"
        tops = {directory.split("/")[0] for directory in held}
        assert self.entries(replica) == tops, (
            f"replica {replica}: entries and records differ: {self.entries(replica) ^ tops}"
        )
        for directory, record in held.items():
            assert (self.root(replica) / directory).stat().st_ino == record["inode"], record
        assert self.leftovers(replica) == []
        return records

    def same_on_both(self) -> dict[str, Json]:
        """Asserts that both replicas hold the same volumes in the same states; returns the active's records."""
        active, standby = self.consistent("a"), self.consistent("b")
        assert set(active) == set(standby), f"records differ: {set(active) ^ set(standby)}"
        for pv, record in active.items():
            differ = {k: (v, standby[pv][k]) for k, v in record.items() if k != "inode" and v != standby[pv][k]}
            assert not differ, f"{pv}: {differ}"
        assert self.entries("a") == self.entries("b")
        return active


class Site:
    """A module's objects and controllers. Cluster-scoped names are made unique with `name`."""

    def __init__(self, plane: ControlPlane, account: Path, directory: Path) -> None:
        self.plane = plane
        self.account = account
        self.directory = directory
        self.suffix = uuid.uuid4().hex[:6]
        self.provisioner = f"site-{self.suffix}.example.com/nfs"
        self.mounts = directory / "exports"
        self.api = Client(Credentials.read(plane.admin_kubeconfig))
        self.namespace = self.new_namespace("apps")
        self.exports: dict[str, ExportOnDisk] = {}
        self._classes: list[str] = []
        self._controllers: list[Controller] = []

    def name(self, name: str) -> str:
        return f"{name}-{self.suffix}"

    # -- controllers --------------------------------------------------------------------------------------------------

    def controller(self, *, kubeconfig: Path | None = None, **settings: Any) -> Controller:
        """A controller of this site, not started; ended with the site at the latest."""
        made = Controller(
            self.directory / f"controller-{len(self._controllers)}",
            kubeconfig or self.account,
            provisioner=settings.pop("provisioner", self.provisioner),
            mount_root=self.mounts,
            **({"lease": LASTING_LEASE} | settings),
        )
        self._controllers.append(made)
        return made

    def give_lease_back(self) -> None:
        """What waiting for the end of a killed leader's lease would come to."""
        self.api.patch(LEASE, {"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}).ok()

    # -- objects ------------------------------------------------------------------------------------------------------

    def new_namespace(self, name: str) -> str:
        made = self.api.post(NAMESPACES, {"metadata": {"name": self.name(name)}}).ok()
        self._namespaces = [*getattr(self, "_namespaces", []), made["metadata"]["name"]]
        return str(made["metadata"]["name"])

    def directories(self, name: str, replicas: str = "ab", path: str | None = None) -> ExportOnDisk:
        """The directories of an export that is still to be made."""
        full = self.name(name)
        roots = {replica: self.mounts / full / replica for replica in replicas}
        for root in roots.values():
            root.mkdir(parents=True, exist_ok=True)
        return ExportOnDisk(full, path or f"/srv/{full}", roots)

    def export_body(self, on_disk: ExportOnDisk, *, labels: Mapping[str, str] | None = None, **spec: Any) -> Json:
        """Capacity is fixed, so that no test depends on the machine's disk."""
        replicas = [
            {"name": name, "server": f"192.0.2.{ord(name) - 86}", "path": on_disk.path, "mountPath": str(root)}
            for name, root in on_disk.roots.items()
        ]
        return {
            "apiVersion": "nfs-provisioner.io/v1alpha1",
            "kind": "NFSExport",
            "metadata": {"name": on_disk.name, "labels": dict(labels or {})},
            "spec": {"replicas": replicas, "capacity": "10Ti", "reserve": "0%"} | spec,
        }

    def export(self, name: str = "web", replicas: str = "ab", *, path: str | None = None, **spec: Any) -> ExportOnDisk:
        """Replicas are called a (192.0.2.11) and b (192.0.2.12)."""
        on_disk = self.directories(name, replicas, path)
        self.api.post(EXPORTS, self.export_body(on_disk, **spec)).ok()
        self.exports[on_disk.name] = on_disk
        return on_disk

    def export_status(self, export: ExportOnDisk) -> Json:
        found: Json = self.api.get(f"{EXPORTS}/{export.name}").ok().get("status") or {}
        return found

    def storage_class(
        self,
        name: str,
        export: ExportOnDisk | None = None,
        *,
        parameters: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> str:
        """A class on `export` alone (if given); returns its full name."""
        self.api.post(CLASSES, self.class_body(name, export, parameters) | fields).ok()
        if self.name(name) not in self._classes:
            self._classes.append(self.name(name))
        return self.name(name)

    def class_body(
        self, name: str, export: ExportOnDisk | None = None, parameters: Mapping[str, str] | None = None
    ) -> Json:
        return {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": self.name(name)},
            "provisioner": self.provisioner,
            "allowVolumeExpansion": True,
            "parameters": ({"export": export.name} if export else {}) | dict(parameters or {}),
        }

    def replace_class(self, full_name: str, **fields: Any) -> None:
        """Parameters are immutable: correcting a class is deleting it and making it anew."""
        old = self.api.get(f"{CLASSES}/{full_name}").ok()
        self.api.delete(f"{CLASSES}/{full_name}").ok()
        kept = {key: old[key] for key in ("provisioner", "parameters", "allowVolumeExpansion") if key in old}
        self.api.post(CLASSES, {"metadata": {"name": full_name}} | kept | fields).ok()

    def claims_path(self, namespace: str | None = None) -> str:
        return f"{NAMESPACES}/{namespace or self.namespace}/persistentvolumeclaims"

    def claim_path(self, claim: Json) -> str:
        return f"{self.claims_path(claim['metadata']['namespace'])}/{claim['metadata']['name']}"

    def claim(
        self,
        name: str,
        storage_class: str,
        size: str = "1Gi",
        *,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Json:
        """POST a claim, ReadWriteMany unless told otherwise."""
        body = {
            "metadata": {"name": name, "labels": dict(labels or {}), "annotations": dict(annotations or {})},
            "spec": {
                "storageClassName": storage_class,
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": size}},
            }
            | spec,
        }
        return self.api.post(self.claims_path(namespace), body).ok()

    def bound(self, claim: Json, seconds: float = DEADLINE) -> Json:
        """Waits until the claim is Bound; returns its PV."""
        seen = self.api.eventually(self.claim_path(claim), lambda c: c["status"]["phase"] == "Bound", seconds)
        return self.api.get(f"{VOLUMES}/{seen['spec']['volumeName']}").ok()

    def bind(self, name: str, storage_class: str, size: str = "1Gi", **fields: Any) -> tuple[Json, Json]:
        """A new claim and its PV."""
        claim = self.claim(name, storage_class, size, **fields)
        return claim, self.bound(claim)

    def change(self, claim: Json, patch: Json) -> Json:
        return self.api.patch(self.claim_path(claim), patch).ok()

    def grow(self, claim: Json, size: str) -> Json:
        return self.change(claim, {"spec": {"resources": {"requests": {"storage": size}}}})

    def delete(self, claim: Json) -> None:
        self.api.delete(self.claim_path(claim)).ok()

    def volume(self, name: str) -> Json:
        return self.api.get(f"{VOLUMES}/{name}").ok()

    def volumes(self) -> dict[str, Json]:
        """Every PV that this site's provisioner made."""
        items = self.api.get(VOLUMES).ok()["items"]
        made = [pv for pv in items if pv["metadata"].get("annotations", {}).get(PROVISIONED_BY) == self.provisioner]
        return {pv["metadata"]["name"]: pv for pv in made}

    def gone(self, pv: Json, seconds: float = DEADLINE) -> None:
        """Waits until the PV is gone."""
        self.api.eventually_gone(f"{VOLUMES}/{pv['metadata']['name']}", seconds)

    def give_up(self, claim: Json, pv: Json) -> None:
        """Deletes the claim and waits until its PV is gone."""
        self.delete(claim)
        self.gone(pv)

    def events(self, obj: Json) -> list[Json]:
        """The Events about one object."""
        namespace = obj["metadata"].get("namespace", "default")
        uid = obj["metadata"]["uid"]
        selector = f"involvedObject.uid={uid}"
        found: list[Json] = self.api.get(f"{NAMESPACES}/{namespace}/events", fieldSelector=selector).ok()["items"]
        return found

    def event(self, obj: Json, reason: str, words: str = "", seconds: float = DEADLINE) -> Json:
        """Waits for an Event with this reason, whose message holds these words."""

        def look() -> Json | None:
            found = self.events(obj)
            told = [e for e in found if e["reason"] == reason and words in e["message"]]
            assert told, f"no Event {reason} with {words!r} among {[(e['reason'], e['message']) for e in found]}"
            return told[0]

        found = eventually(look, f"Event {reason}", seconds)
        assert found is not None
        return found

    def describe(self, claim: Json) -> str:
        """What a person reads."""
        return self.plane.kubectl("describe", "pvc", claim["metadata"]["name"], "-n", claim["metadata"]["namespace"])

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the controllers, then removes every object, finalizers and all."""
        for controller in self._controllers:
            controller.kill()
        self.api.delete(LEASE)  # of a controller that a test killed: the next module need not wait for its end
        for namespace in self._namespaces:
            self.api.delete(f"{NAMESPACES}/{namespace}/persistentvolumeclaims")
            self.api.delete(f"{NAMESPACES}/{namespace}")
        for path in [f"{VOLUMES}/{name}" for name in self.volumes()] + [f"{EXPORTS}/{name}" for name in self.exports]:
            self.api.delete(path)
            self.api.patch(path, {"metadata": {"finalizers": None}})
        for name in self._classes:
            self.api.delete(f"{CLASSES}/{name}")
        self.api.close()


def without_finalizer(api: Client, pv: str) -> None:
    """Takes our finalizer off, as a person would."""
    api.patch(f"{VOLUMES}/{pv}", {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}, STRATEGIC)


def with_file(site: Site, export: ExportOnDisk, storage_class: str, name: str) -> tuple[Json, Json, Path]:
    """A claim, its PV, and a file in it."""
    claim, pv = site.bind(name, storage_class)
    file = export.root() / str(pv["spec"]["nfs"]["path"]).rsplit("/", 1)[1] / "file"
    file.write_text(name)
    eventually(lambda: export.record(pv["metadata"]["name"])["state"] == "live", "the record is finished")
    return claim, pv, file


def agree(site: Site, export: ExportOnDisk) -> bool:
    """Bound claims, PVs, live records and directories name each other one to one, on both replicas."""
    records = {
        pv: r for pv, r in export.same_on_both().items() if r["state"] not in ("deleted", "archived", "retained")
    }
    assert {r["state"] for r in records.values()} <= {"live"}
    volumes = {
        n: v for n, v in site.volumes().items() if v["metadata"]["labels"]["nfs-provisioner.io/export"] == export.name
    }
    assert set(volumes) == set(records)
    for pv, volume in volumes.items():
        assert volume["spec"]["nfs"]["path"] == f"{export.path}/{records[pv]['directory']}"
        assert volume["spec"]["claimRef"]["uid"] == records[pv]["claim"]["uid"]
    return True


def restart_apiserver(site: Site) -> None:
    site.plane.start_apiserver()
    site.api.close()  # it connects again with its next request
