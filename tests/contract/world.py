"""What most contract tests need: a namespace, classes, claims and volumes, removed at the end."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tests.contract.client import Client, Json

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES = "/api/v1/persistentvolumes"
NAMESPACES = "/api/v1/namespaces"
PROVISIONER = "contract.example.com/nfs"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


def phase(wanted: str) -> Callable[[Json], bool]:
    """True for objects in this phase."""
    return lambda obj: obj.get("status", {}).get("phase") == wanted


def has_provisioner(claim: Json) -> bool:
    """True for claims that a provisioner may act on."""
    return "volume.kubernetes.io/storage-provisioner" in claim["metadata"].get("annotations", {})


class World:
    """One test's objects. Cluster-scoped names are made unique with `name`."""

    def __init__(self, api: Client) -> None:
        self.api = api
        self.suffix = uuid.uuid4().hex[:8]
        self.namespace = self.name("ns")
        self.claims = f"{NAMESPACES}/{self.namespace}/persistentvolumeclaims"
        self.config_maps = f"{NAMESPACES}/{self.namespace}/configmaps"
        self._made: list[str] = []
        self._settled = 0

    def __enter__(self) -> World:
        self.make(NAMESPACES, {"metadata": {"name": self.namespace}})
        return self

    def __exit__(self, *_: object) -> None:
        for path in reversed(self._made):
            if self.api.delete(path, {"gracePeriodSeconds": 0}).code != 404:
                self.api.patch(path, {"metadata": {"finalizers": None}})

    def name(self, name: str) -> str:
        return f"{name}-{self.suffix}"

    def make(self, collection: str, obj: Json) -> Json:
        """Creates the object, to be removed when the test ends."""
        made = self.api.post(collection, obj).ok()
        self._made.append(f"{collection}/{made['metadata']['name']}")
        return made

    def storage_class(self, name: str = "sc", **fields: Any) -> str:
        """Creates a class of a provisioner that does not exist; returns its full name."""
        body = {"metadata": {"name": self.name(name)}, "provisioner": PROVISIONER} | fields
        return str(self.make(CLASSES, body)["metadata"]["name"])

    def claim_body(self, name: str, storage_class: str, size: str = "1Gi", **fields: Any) -> Json:
        """`metadata` is merged into the object's, everything else into its spec."""
        metadata = {"name": name} | fields.pop("metadata", {})
        spec = {
            "storageClassName": storage_class,
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": size}},
        }
        return {"metadata": metadata, "spec": spec | fields}

    def claim(self, name: str, storage_class: str, size: str = "1Gi", **fields: Any) -> Json:
        return self.make(self.claims, self.claim_body(name, storage_class, size, **fields))

    def claim_path(self, name: str) -> str:
        return f"{self.claims}/{name}"

    def volume_body(self, name: str, storage_class: str, size: str = "1Gi", **fields: Any) -> Json:
        metadata = {"name": self.name(name)} | fields.pop("metadata", {})
        spec = {
            "storageClassName": storage_class,
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": size},
            "nfs": {"server": "192.0.2.1", "path": f"/srv/{name}"},
        }
        return {"metadata": metadata, "spec": spec | fields}

    def volume(self, name: str, storage_class: str, size: str = "1Gi", **fields: Any) -> Json:
        return self.make(VOLUMES, self.volume_body(name, storage_class, size, **fields))

    def provisioned(self, name: str, claim: Json, **fields: Any) -> Json:
        """A volume as our provisioner makes it: pre-bound by uid, policy Delete, with provisioned-by."""
        metadata = {"annotations": {PROVISIONED_BY: PROVISIONER}} | fields.pop("metadata", {})
        size = claim["spec"]["resources"]["requests"]["storage"]
        defaults = {"claimRef": reference(claim), "persistentVolumeReclaimPolicy": "Delete", "metadata": metadata}
        return self.volume(name, claim["spec"]["storageClassName"], size, **(defaults | fields))

    def volume_path(self, name: str) -> str:
        return f"{VOLUMES}/{self.name(name)}"

    def bound(self, name: str, storage_class: str, **fields: Any) -> tuple[Json, Json]:
        """A claim and the volume it is bound to, both called `name`."""
        self.provisioned(name, self.claim(name, storage_class), **fields)
        claim = self.api.eventually(self.claim_path(name), phase("Bound"))
        return claim, self.api.get(self.volume_path(name)).ok()

    def settle(self) -> None:
        """Returns when the controllers have seen everything before: something made after it has been bound."""
        self._settled += 1
        name = f"settle-{self._settled}"
        self.volume(name, "", claimRef=reference(self.claim(name, "")))
        self.api.eventually(self.claim_path(name), phase("Bound"))

    def free_volume(self, name: str) -> None:
        """Takes all finalizers off a volume, so that it goes as soon as nothing else holds it."""
        self.api.patch(self.volume_path(name), {"metadata": {"finalizers": None}})


def reference(claim: Json, **changes: Any) -> Json:
    """A claimRef to this claim."""
    metadata = claim["metadata"]
    return {
        "kind": "PersistentVolumeClaim",
        "apiVersion": "v1",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    } | changes
