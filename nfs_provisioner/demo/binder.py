"""Binds claims and volumes as kube-controller-manager's PersistentVolume controller does, write by write.

Decides nothing that the real controller would not (pkg/controller/volume/persistentvolume): it names the external
provisioner on a claim, and never makes or deletes a volume itself. The invariant: a claim is Bound only to a volume
whose claimRef carries its uid, and a volume is Released only when no claim with that uid exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

from nfs_provisioner.demo import quantity
from nfs_provisioner.demo.faults import Json
from nfs_provisioner.demo.kinds import class_of
from nfs_provisioner.demo.meta import now
from nfs_provisioner.demo.registry import Registry
from nfs_provisioner.demo.resources import CLAIMS, CLASSES, VOLUMES, Resource
from nfs_provisioner.demo.selectors import label_selector_matches
from nfs_provisioner.demo.store import Change, Entry, Key

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
PROVISIONER_BETA = "volume.beta.kubernetes.io/storage-provisioner"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
NO_PROVISIONER = "kubernetes.io/no-provisioner"


def annotations_of(obj: Json) -> dict[str, str]:
    return obj["metadata"].get("annotations") or {}


def _annotate(obj: Json, *names: str, value: str = "yes") -> None:
    target = obj["metadata"].setdefault("annotations", {})
    for name in names:
        target[name] = value


def _amount(amounts: Json | None) -> object:
    return (amounts or {}).get("storage", "0")


class Binder:
    """One sync function per kind; the queue that calls them is the caller's."""

    def __init__(self, registry: Registry, enqueue: Callable[[Resource, Key], None]) -> None:
        self._registry = registry
        self._enqueue = enqueue
        self._wanted: dict[Key, set[str]] = {}  # claim -> volumes whose claimRef names it
        self._reference: dict[str, Key | None] = {}  # volume -> claim its claimRef names
        self._free: set[str] = set()  # volumes without claimRef
        self._unbound: set[Key] = set()  # claims whose binding is not complete

    # -- what a change makes worth looking at

    def observe(self, resource: Resource, change: Change) -> None:
        if resource is VOLUMES:
            self._volume_changed(change)
        elif resource is CLAIMS:
            self._claim_changed(change)
        elif resource is CLASSES and change.new is not None:
            for key in self._unbound:
                self._enqueue(CLAIMS, key)

    def _volume_changed(self, change: Change) -> None:
        name = change.key[1]
        previous = self._reference.pop(name, None)
        if previous is not None:
            self._wanted[previous].discard(name)
            if not self._wanted[previous]:
                del self._wanted[previous]
        self._free.discard(name)
        if previous is not None:
            self._enqueue(CLAIMS, previous)
        if change.new is None:
            return
        volume = change.new.load()
        reference = volume["spec"].get("claimRef")
        key = (reference.get("namespace", ""), reference.get("name", "")) if reference else None
        self._reference[name] = key
        if key is not None:
            self._wanted.setdefault(key, set()).add(name)
            self._enqueue(CLAIMS, key)
        else:
            self._free.add(name)
            if volume["status"].get("phase") == "Available":
                for waiting in self._unbound:
                    self._enqueue(CLAIMS, waiting)
        self._enqueue(VOLUMES, change.key)

    def _claim_changed(self, change: Change) -> None:
        self._unbound.discard(change.key)
        if change.new is None:
            for name in self._wanted.get(change.key, ()):
                self._enqueue(VOLUMES, ("", name))
            return
        if BIND_COMPLETED not in annotations_of(change.new.load()):
            self._unbound.add(change.key)
        self._enqueue(CLAIMS, change.key)

    # -- claims

    def sync_claim(self, key: Key) -> None:
        claim = self._load(CLAIMS, key)
        if claim is None:
            return
        if BIND_COMPLETED in annotations_of(claim):
            self._sync_bound(key, claim)
        elif claim["spec"].get("volumeName"):
            self._sync_requested(key, claim)
        else:
            self._sync_unbound(key, claim)

    def _sync_unbound(self, key: Key, claim: Json) -> None:
        storage_class = self._load(CLASSES, ("", class_of(claim)))
        mode = storage_class["volumeBindingMode"] if storage_class else ""
        waits = mode == "WaitForFirstConsumer" and SELECTED_NODE not in annotations_of(claim)
        volume = self._best_match(key, claim, waits)
        if volume is not None:
            self._bind(volume, key, claim)
        elif storage_class and not waits and storage_class["provisioner"] != NO_PROVISIONER:
            provisioner = storage_class["provisioner"]
            self._registry.write(
                CLAIMS, key, lambda obj: _annotate(obj, PROVISIONER_BETA, PROVISIONER, value=provisioner)
            )

    def _sync_requested(self, key: Key, claim: Json) -> None:
        """A claim that names its volume waits for exactly that one."""
        volume = self._load(VOLUMES, ("", claim["spec"]["volumeName"]))
        if volume is None:
            return
        reference = volume["spec"].get("claimRef")
        if _refers(reference, key, claim) or (reference is None and _satisfies(volume, claim)):
            self._bind(volume, key, claim)

    def _sync_bound(self, key: Key, claim: Json) -> None:
        name = claim["spec"].get("volumeName")
        volume = self._load(VOLUMES, ("", name)) if name else None
        reference = volume["spec"].get("claimRef") if volume else None
        if volume is not None and (reference is None or reference.get("uid") == claim["metadata"]["uid"]):
            self._bind(volume, key, claim)
        else:
            self._registry.write(CLAIMS, key, _set_lost)

    def _best_match(self, key: Key, claim: Json, waits: bool) -> Json | None:
        """A volume reserved for the claim, else the smallest available one that fits."""
        best: Json | None = None
        for volume in self._candidates(key):
            spec = volume["spec"]
            reserved = spec.get("claimRef") is not None
            if reserved and not _refers(spec["claimRef"], key, claim):
                continue
            if "deletionTimestamp" in volume["metadata"] or not _large_enough(volume, claim):
                continue
            if reserved:
                return volume
            if waits or volume["status"].get("phase") != "Available" or not _matches_class(volume, claim):
                continue
            labels = volume["metadata"].get("labels") or {}
            if not label_selector_matches(claim["spec"].get("selector"), labels):
                continue
            if best is None or _size(volume) < _size(best):
                best = volume
        return best

    def _candidates(self, key: Key) -> Iterator[Json]:
        for name in sorted(self._wanted.get(key, ())) + sorted(self._free):
            volume = self._load(VOLUMES, ("", name))
            if volume is not None:
                yield volume

    def _bind(self, volume: Json, key: Key, claim: Json) -> None:
        """Volume first, then claim; specification first, then status, as the real controller writes them."""
        volume_key = ("", volume["metadata"]["name"])
        self._registry.write(VOLUMES, volume_key, lambda obj: _reserve(obj, key, claim))
        self._registry.write(VOLUMES, volume_key, lambda obj: _set_phase(obj, "Bound"))
        self._registry.write(CLAIMS, key, lambda obj: _name_volume(obj, volume_key[1]))
        self._registry.write(CLAIMS, key, lambda obj: _set_bound(obj, volume))

    # -- volumes

    def sync_volume(self, key: Key) -> None:
        volume = self._load(VOLUMES, key)
        if volume is None:
            return
        reference = volume["spec"].get("claimRef")
        if reference is None or not reference.get("uid"):
            self._registry.write(VOLUMES, key, lambda obj: _set_phase(obj, "Available"))
            return
        claim_key = (reference.get("namespace", ""), reference.get("name", ""))
        claim = self._load(CLAIMS, claim_key)
        if claim is None or claim["metadata"]["uid"] != reference["uid"]:
            self._release(key, volume)
        elif not claim["spec"].get("volumeName"):
            self._enqueue(CLAIMS, claim_key)
        elif claim["spec"]["volumeName"] == key[1]:
            self._registry.write(VOLUMES, key, lambda obj: _set_phase(obj, "Bound"))
        else:
            self._unbind(key, volume)

    def _release(self, key: Key, volume: Json) -> None:
        if volume["status"].get("phase") not in ("Released", "Failed"):
            self._registry.write(VOLUMES, key, lambda obj: _set_phase(obj, "Released"))
        policy = volume["spec"]["persistentVolumeReclaimPolicy"]
        if policy == "Delete" and not annotations_of(volume).get(PROVISIONED_BY):
            message = f'error getting deleter volume plugin for volume "{key[1]}": no deletable volume plugin matched'
            self._registry.write(VOLUMES, key, lambda obj: _set_phase(obj, "Failed", message))

    def _unbind(self, key: Key, volume: Json) -> None:
        """The claim is bound to another volume."""
        dynamic = PROVISIONED_BY in annotations_of(volume)
        if dynamic and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
            self._release(key, volume)
            return

        def free(obj: Json) -> None:
            if annotations_of(obj).pop(BOUND_BY_CONTROLLER, None) is not None:
                del obj["spec"]["claimRef"]
            else:
                obj["spec"]["claimRef"].pop("uid", None)

        self._registry.write(VOLUMES, key, free)
        self._registry.write(VOLUMES, key, lambda obj: _set_phase(obj, "Available"))

    def _load(self, resource: Resource, key: Key) -> Json | None:
        entry: Entry | None = self._registry.store.get(resource, key)
        return entry.load() if entry is not None else None


def _refers(reference: Json | None, key: Key, claim: Json) -> bool:
    """Whether a claimRef means this claim; without uid the name is enough."""
    if reference is None or (reference.get("namespace"), reference.get("name")) != key:
        return False
    return not reference.get("uid") or reference["uid"] == claim["metadata"]["uid"]


def _size(volume: Json) -> Fraction:
    return quantity.parse(_amount(volume["spec"].get("capacity")))


def _large_enough(volume: Json, claim: Json) -> bool:
    spec = claim["spec"]
    requested = quantity.parse(_amount((spec.get("resources") or {}).get("requests")))
    return (
        quantity.parse(_amount(volume["spec"].get("capacity"))) >= requested
        and volume["spec"].get("volumeMode", "Filesystem") == spec.get("volumeMode", "Filesystem")
        and set(spec.get("accessModes") or []) <= set(volume["spec"].get("accessModes") or [])
    )


def _matches_class(volume: Json, claim: Json) -> bool:
    return class_of(volume) == class_of(claim)


def _satisfies(volume: Json, claim: Json) -> bool:
    return _large_enough(volume, claim) and _matches_class(volume, claim)


def _reserve(volume: Json, key: Key, claim: Json) -> None:
    if not _refers(volume["spec"].get("claimRef"), key, claim):
        _annotate(volume, BOUND_BY_CONTROLLER)
    elif volume["spec"]["claimRef"].get("uid"):
        return
    volume["spec"]["claimRef"] = {
        "kind": "PersistentVolumeClaim",
        "namespace": key[0],
        "name": key[1],
        "uid": claim["metadata"]["uid"],
        "apiVersion": "v1",
        "resourceVersion": claim["metadata"]["resourceVersion"],
    }


def _set_phase(volume: Json, phase: str, message: str = "") -> None:
    status = volume["status"]
    if status.get("phase") == phase:
        return
    status |= {"phase": phase, "lastPhaseTransitionTime": now()}
    status.pop("message", None)
    if message:
        status["message"] = message


def _name_volume(claim: Json, volume: str) -> None:
    if claim["spec"].get("volumeName") != volume:
        claim["spec"]["volumeName"] = volume
        _annotate(claim, BOUND_BY_CONTROLLER)
    _annotate(claim, BIND_COMPLETED)


def _set_bound(claim: Json, volume: Json) -> None:
    status = claim.setdefault("status", {})
    if status.get("phase") != "Bound":
        status["phase"] = "Bound"
        status["capacity"] = {"storage": _amount(volume["spec"].get("capacity"))}
    status["accessModes"] = volume["spec"]["accessModes"]


def _set_lost(claim: Json) -> None:
    claim["status"]["phase"] = "Lost"
    for field in ("accessModes", "capacity"):
        claim["status"].pop(field, None)
