"""Kubernetes objects: the few fields of theirs that decisions need, and the objects that we write. Pure."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nfs_provisioner.config import capped_quantity, format_quantity
from nfs_provisioner.export.records import ClaimRef

JsonObject = dict[str, Any]

DOMAIN = "nfs-provisioner.io"
FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
EXPORT_FINALIZER = f"{DOMAIN}/volumes"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
STORAGE_PROVISIONER_BETA = "volume.beta.kubernetes.io/storage-provisioner"
CLASS_BETA = "volume.beta.kubernetes.io/storage-class"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
EXPORT_LABEL = f"{DOMAIN}/export"
RESTORE_ARCHIVE = f"{DOMAIN}/restore-archive"
REQUEST = f"{DOMAIN}/request"
DELETE_LIMIT = f"{DOMAIN}/delete-limit"
MANAGED_BY = DOMAIN
NFS_PORT = 2049

#: The same few sizes come with every event; one beyond all bounds must not hide the object.
_size = functools.lru_cache(maxsize=4096)(capped_quantity)
#: The same texts come with thousands of objects, and each claim's names with its PV again: kept in memory once.
_same = sys.intern
_texts: Callable[[tuple[str, ...]], tuple[str, ...]] = functools.lru_cache(maxsize=256)(lambda texts: texts)
_NOTHING: Mapping[str, str] = {}
_NOT_KEPT = ("kubectl.kubernetes.io/", "pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/")


@dataclass(frozen=True, slots=True)
class DataSource:
    """A claim's dataSourceRef (or dataSource): what its volume is to begin with."""

    kind: str
    name: str
    group: str = ""  # apiGroup; empty is the core one
    namespace: str = ""  # only a dataSourceRef has one; empty is the claim's own

    def __str__(self) -> str:
        kind = f"{self.kind}.{self.group}" if self.group else self.kind
        return f"{kind} {self.namespace}/{self.name}" if self.namespace else f"{kind} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Claim:
    """A PersistentVolumeClaim. Sizes in bytes; `capacity` and `allocated` are what its status says."""

    namespace: str
    name: str
    uid: str
    version: str
    storage_class: str
    provisioner: str
    volume: str
    phase: str
    deleting: bool
    requested: int
    capacity: int | None = None
    resizing: str = ""  # status.allocatedResourceStatuses.storage
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    data_source: DataSource | None = None
    attributes_class: str = ""
    delete_limit: str = ""  # its annotation: "none" for a volume that lives by deleting
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    selector: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """Name of the PV that this claim is about: the one it names, or the one it would get."""
        return self.volume or f"pvc-{self.uid}"

    @property
    def ref(self) -> ClaimRef:
        """For records."""
        return ClaimRef(self.namespace, self.name, self.uid)

    @property
    def clone_from(self) -> str:
        """Name of the claim, in the same namespace, that it asks a copy of; empty when it asks for none."""
        source = self.data_source
        if source is None or (source.kind, source.group) != ("PersistentVolumeClaim", ""):
            return ""
        return source.name if source.namespace in ("", self.namespace) else ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Volume:
    """A PersistentVolume. `claim` is its claimRef, `owned` whether it carries our finalizer."""

    name: str
    uid: str
    version: str
    phase: str
    deleting: bool
    policy: str
    provisioned_by: str
    export: str
    storage_class: str
    capacity: int
    server: str
    path: str
    claim: ClaimRef | None
    owned: bool
    mount_options: tuple[str, ...] = ()


def claim_from(raw: JsonObject, provisioners: frozenset[str]) -> Claim | None:
    """The claim, if one of `provisioners` is asked for (or made its volume); None for everybody else's."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    annotations = metadata.get("annotations") or {}
    provisioner = annotations.get(STORAGE_PROVISIONER) or annotations.get(STORAGE_PROVISIONER_BETA) or ""
    volume = spec.get("volumeName", "")
    # Nobody writes the annotation when a claim names its volume itself, as recovered ones do: those may be ours.
    if provisioner not in provisioners and (provisioner or not volume):
        return None
    bound = bool(volume) and status.get("phase") == "Bound"
    capacity = (status.get("capacity") or {}).get("storage")
    return Claim(
        namespace=_same(metadata["namespace"]),
        name=_same(metadata["name"]),
        uid=_same(metadata["uid"]),
        version=metadata["resourceVersion"],
        storage_class=_class_of(annotations, spec),
        provisioner=_same(provisioner),
        volume=_same(volume),
        phase=_same(status.get("phase", "Pending")),
        deleting="deletionTimestamp" in metadata,
        requested=_size(((spec.get("resources") or {}).get("requests") or {}).get("storage", "0")),
        capacity=None if capacity is None else _size(capacity),
        resizing=(status.get("allocatedResourceStatuses") or {}).get("storage", ""),
        access_modes=_texts(tuple(spec.get("accessModes") or ())),
        volume_mode=_same(spec.get("volumeMode", "Filesystem")),
        data_source=_data_source(spec),
        attributes_class=spec.get("volumeAttributesClassName") or "",
        delete_limit=_same(annotations.get(DELETE_LIMIT, "")),
        # Bound claims are the many: what only provisioning reads is not kept for them.
        labels=_NOTHING if bound else metadata.get("labels") or _NOTHING,
        annotations=_NOTHING if bound else annotations,
        selector=None if bound else spec.get("selector"),
    )


def _data_source(spec: Mapping[str, Any]) -> DataSource | None:
    source = spec.get("dataSourceRef") or spec.get("dataSource")
    return source and DataSource(*(source.get(key) or "" for key in ("kind", "name", "apiGroup", "namespace")))


def volume_from(raw: JsonObject, provisioners: frozenset[str]) -> Volume | None:
    """The PV, if one of `provisioners` made it and it is an NFS volume; None for everybody else's."""
    metadata, spec = raw["metadata"], raw["spec"]
    annotations = metadata.get("annotations") or {}
    made_by = annotations.get(PROVISIONED_BY, "")
    nfs = spec.get("nfs")
    if made_by not in provisioners or not nfs:
        return None
    ref = spec.get("claimRef")
    return Volume(
        name=_same(metadata["name"]),
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        phase=_same((raw.get("status") or {}).get("phase", "Pending")),
        deleting="deletionTimestamp" in metadata,
        policy=_same(spec.get("persistentVolumeReclaimPolicy", "Retain")),
        provisioned_by=_same(made_by),
        export=_same((metadata.get("labels") or {}).get(EXPORT_LABEL, "")),
        storage_class=_class_of(annotations, spec),
        capacity=_size((spec.get("capacity") or {}).get("storage", "0")),
        server=_same(nfs["server"]),
        path=nfs["path"],
        claim=None if ref is None else ClaimRef(*(_same(ref.get(key, "")) for key in ("namespace", "name", "uid"))),
        owned=FINALIZER in (metadata.get("finalizers") or ()),
        mount_options=tuple(spec.get("mountOptions") or ()),
    )


def _class_of(annotations: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """As Kubernetes finds it for claims and PVs: the annotation of the time before the field wins, even when empty."""
    found: str = annotations[CLASS_BETA] if CLASS_BETA in annotations else spec.get("storageClassName") or ""
    return _same(found)


def persistent_volume(
    name: str,
    claim: Claim,
    *,
    provisioner: str,
    export: str,
    server: str,
    path: str,
    capacity: int,
    policy: str,
    mount_options: tuple[str, ...] = (),
) -> JsonObject:
    """The PV of a claim, pre-bound to it. Its labels are ours alone: foreign ones would act on scheduling."""
    metadata: JsonObject = {
        "name": name,
        "annotations": {PROVISIONED_BY: provisioner},
        "labels": {EXPORT_LABEL: export},
    }
    if policy == "Delete":
        metadata["finalizers"] = [FINALIZER]
    spec: JsonObject = {
        "capacity": {"storage": format_quantity(capacity)},
        "accessModes": list(claim.access_modes),
        "persistentVolumeReclaimPolicy": policy,
        "storageClassName": claim.storage_class,
        "volumeMode": "Filesystem",
        "nfs": {"server": server, "path": path},
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace,
            "name": claim.name,
            "uid": claim.uid,
        },
    }
    if mount_options:
        spec["mountOptions"] = list(mount_options)
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}


def claim_manifest(claim: Claim) -> JsonObject:
    """What `recover` needs to write the claim again."""
    metadata: JsonObject = {"namespace": claim.namespace, "name": claim.name}
    annotations = {k: v for k, v in claim.annotations.items() if not k.startswith(_NOT_KEPT)}
    for key, value in (("labels", dict(claim.labels)), ("annotations", annotations)):
        if value:
            metadata[key] = value
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": list(claim.access_modes),
            "storageClassName": claim.storage_class,
            "resources": {"requests": {"storage": format_quantity(claim.requested)}},
        },
    }


def finalizer_patch(volume_uid: str, *, add: bool) -> JsonObject:
    """Strategic merge patch that adds or removes our finalizer on exactly this PV."""
    metadata: JsonObject = {"uid": volume_uid}
    metadata["finalizers" if add else "$deleteFromPrimitiveList/finalizers"] = [FINALIZER]
    return {"metadata": metadata}


def event(
    *,
    kind: str,
    api_version: str,
    name: str,
    namespace: str,
    uid: str,
    reason: str,
    message: str,
    warning: bool,
    component: str,
    moment: str,
) -> JsonObject:
    """A core/v1 Event; those about cluster-scoped objects live in namespace `default`. A hash makes its name unique."""
    home = namespace or "default"
    regarding: JsonObject = {"kind": kind, "apiVersion": api_version, "name": name, "uid": uid}
    if namespace:
        regarding["namespace"] = namespace
    digest = hashlib.sha256(f"{uid}{reason}{message}{moment}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name[:200].rstrip('-.')}.{digest}", "namespace": home},
        "involvedObject": regarding,
        "reason": reason,
        "message": message[:1024],
        "type": "Warning" if warning else "Normal",
        "source": {"component": component},
        "reportingComponent": component,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }


def endpoint_slice(service_namespace: str, service: str, address: str, replica: str) -> JsonObject:
    """The one EndpointSlice of a Service without selector, on the active replica."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(service),
            "namespace": service_namespace,
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
            },
            "annotations": {f"{DOMAIN}/replica": replica},
        },
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "nfs", "port": NFS_PORT, "protocol": "TCP"}],
    }


def slice_name(service: str) -> str:
    """Name of the one slice that belongs to a Service."""
    return f"{service}-nfs-provisioner"
