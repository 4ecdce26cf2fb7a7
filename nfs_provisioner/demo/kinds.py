"""What is special about each kind: defaults, what may be set, what may change. Reads the store, writes nothing.

Follows the strategies and admission plugins of kube-apiserver as far as a provisioner meets them; a rule that is not
here is one that the embedded server does not have.
"""

from __future__ import annotations

import ipaddress

from nfs_provisioner.demo.faults import (
    Json,
    forbidden,
    invalid,
    wrong,
)
from nfs_provisioner.demo.meta import now
from nfs_provisioner.demo.resources import CLAIMS, CLASSES, SERVICES, Resource
from nfs_provisioner.demo.store import Store
from nfs_provisioner.demo.validation import requested

PVC_PROTECTION = "kubernetes.io/pvc-protection"
PV_PROTECTION = "kubernetes.io/pv-protection"
CLASS_BETA = "volume.beta.kubernetes.io/storage-class"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_ACCESS_MODES = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]
_SERVICE_NETWORK = ipaddress.IPv4Network("10.96.0.0/16")


def add_finalizer(obj: Json, name: str) -> None:
    finalizers = obj["metadata"].setdefault("finalizers", [])
    if name not in finalizers:
        finalizers.append(name)


def class_of(obj: Json) -> str:
    """The class of a claim or volume: the annotation of the time before the field wins, even when it is empty."""
    annotations = obj["metadata"].get("annotations") or {}
    found: str = annotations[CLASS_BETA] if CLASS_BETA in annotations else obj["spec"].get("storageClassName") or ""
    return found


class Kinds:
    """The rules, bound to a store because some look at other objects (the default class, a class's growth)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next_address = 10

    def default(self, resource: Resource, obj: Json) -> None:
        """What decoding fills in, in new objects and in updates."""
        if resource.plural in ("persistentvolumeclaims", "persistentvolumes", "services", "pods"):
            spec = obj.setdefault("spec", {})
        match resource.plural:
            case "persistentvolumeclaims":
                spec.setdefault("volumeMode", "Filesystem")
                spec.setdefault("resources", {})
            case "persistentvolumes":
                spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
                spec.setdefault("volumeMode", "Filesystem")
            case "storageclasses":
                obj.setdefault("reclaimPolicy", "Delete")
                obj.setdefault("volumeBindingMode", "Immediate")
            case "services":
                _default_service(spec)
            case "customresourcedefinitions":
                names = obj["spec"]["names"]
                names.setdefault("singular", names["kind"].lower())
                names.setdefault("listKind", names["kind"] + "List")
                obj["spec"].setdefault("conversion", {"strategy": "None"})
            case "endpointslices":
                obj.setdefault("endpoints", None)
                obj.setdefault("ports", None)
                for endpoint in obj["endpoints"] or []:
                    endpoint.setdefault("conditions", {})
            case "pods":
                spec.setdefault("restartPolicy", "Always")
                spec.setdefault("terminationGracePeriodSeconds", 30)
            case "events":
                obj.setdefault("type", "Normal")
                for field, empty in (("source", {}), ("reportingComponent", ""), ("reportingInstance", "")):
                    obj.setdefault(field, empty)

    def prepare(self, resource: Resource, obj: Json) -> None:
        """Mutating admission and the strategy's preparation of a new object."""
        if resource.status:
            obj.pop("status", None)
        match resource.plural:
            case "persistentvolumeclaims":
                self._prepare_claim(obj)
            case "persistentvolumes":
                add_finalizer(obj, PV_PROTECTION)
                obj["status"] = {"phase": "Pending", "lastPhaseTransitionTime": now()}
            case "namespaces":
                obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"].get("name")
                obj["spec"] = {"finalizers": ["kubernetes"]}
                obj["status"] = {"phase": "Active"}
            case "services":
                self._prepare_service(obj)
            case "pods":
                obj["status"] = {"phase": "Pending"}

    def _prepare_claim(self, obj: Json) -> None:
        add_finalizer(obj, PVC_PROTECTION)
        spec = obj["spec"]
        if spec.get("storageClassName") is None and CLASS_BETA not in (obj["metadata"].get("annotations") or {}):
            default = self._default_class()
            if default is not None:
                spec["storageClassName"] = default
        _mirror_data_source(spec)
        obj["status"] = {"phase": "Pending"}

    def _default_class(self) -> str | None:
        """The newest class marked as default; by name among those of one second."""
        marked = []
        for (_, name), entry in self._store.scan(CLASSES):
            metadata = entry.load()["metadata"]
            if (metadata.get("annotations") or {}).get(DEFAULT_CLASS) == "true":
                marked.append((metadata["creationTimestamp"], name))
        if not marked:
            return None
        newest = max(created for created, _ in marked)
        return min(name for created, name in marked if created == newest)

    def _prepare_service(self, obj: Json) -> None:
        spec = obj["spec"]
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        if spec["type"] == "ClusterIP" and not spec.get("clusterIP"):
            spec["clusterIP"] = self._free_address()
        elif spec.get("clusterIP") not in (None, "", "None"):
            self._claim_address(obj["metadata"].get("name") or "", spec["clusterIP"])
        if spec.get("clusterIP"):
            spec["clusterIPs"] = [spec["clusterIP"]]
        obj["status"] = {"loadBalancer": {}}

    def _free_address(self) -> str:
        taken = self._taken_addresses()
        while str(_SERVICE_NETWORK[self._next_address]) in taken:
            self._next_address += 1
        return str(_SERVICE_NETWORK[self._next_address])

    def _taken_addresses(self) -> set[str | None]:
        return {entry.load()["spec"].get("clusterIP") for _, entry in self._store.scan(SERVICES)}

    def _claim_address(self, name: str, address: str) -> None:
        why = ""
        if ipaddress.ip_address(address) not in _SERVICE_NETWORK:
            why = "the provided network does not match the current range"
        elif address in self._taken_addresses():
            why = "provided IP is already allocated"
        if why:
            found = [wrong("spec.clusterIPs", [address], f"failed to allocate IP {address}: {why}")]
            raise invalid("", "Service", name, found)

    def prepare_update(self, resource: Resource, new: Json, old: Json) -> None:
        """What an update takes over from the old object when it does not say it."""
        if resource is SERVICES:
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                if not new["spec"].get(field) and field in old["spec"]:
                    new["spec"][field] = old["spec"][field]

    def admit_update(self, resource: Resource, new: Json, old: Json) -> None:
        """Validating admission: growing a claim needs a class that allows it."""
        if resource is not CLAIMS or requested(new) <= requested(old):
            return
        name = new["metadata"]["name"]
        if old.get("status", {}).get("phase") != "Bound":
            raise forbidden("", resource.plural, name, "Only bound persistent volume claims can be expanded")
        entry = self._store.get(CLASSES, ("", class_of(old)))
        if entry is None or not entry.load().get("allowVolumeExpansion"):
            why = (
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must"
                " support resize"
            )
            raise forbidden("", resource.plural, name, why)


def _default_service(spec: Json) -> None:
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    spec.setdefault("internalTrafficPolicy", "Cluster")
    for port in spec.get("ports", []):
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))


def _mirror_data_source(spec: Json) -> None:
    """dataSource takes claims and snapshots only, and says the same as dataSourceRef (KEP-1495)."""
    source, reference = spec.get("dataSource"), spec.get("dataSourceRef")
    if source is not None:
        known = (source.get("apiGroup") or "", source.get("kind"))
        if known not in (("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")):
            del spec["dataSource"]
        elif reference is None:
            spec["dataSourceRef"] = dict(source)
    elif reference is not None and not reference.get("namespace"):
        spec["dataSource"] = dict(reference)
