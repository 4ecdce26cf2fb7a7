"""Claims, PVs, records and exports to decide about, with what matters spelled out and everything else filled in."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from nfs_provisioner.config import ExportSpec, ReplicaSpec, StorageClassSpec, parse_class
from nfs_provisioner.export.records import ClaimRef, Policy, State, VolumeRecord
from nfs_provisioner.volumes.decisions import Situation
from nfs_provisioner.volumes.objects import Claim, Volume
from nfs_provisioner.volumes.room import Room

OURS = "nfs-provisioner.io/nfs"
NAME = "pvc-uid-1"
GI = 1 << 30


def claim(**changes: Any) -> Claim:
    """A claim that waits for its volume."""
    fields: dict[str, Any] = {
        "namespace": "shop",
        "name": "data",
        "uid": "uid-1",
        "version": "1",
        "storage_class": "nfs",
        "provisioner": OURS,
        "volume": "",
        "phase": "Pending",
        "deleting": False,
        "requested": GI,
        "access_modes": ("ReadWriteMany",),
    }
    return Claim(**(fields | changes))


def bound_claim(**changes: Any) -> Claim:
    return claim(**({"volume": NAME, "phase": "Bound", "capacity": GI} | changes))


def volume(**changes: Any) -> Volume:
    """The claim's PV, Bound."""
    fields: dict[str, Any] = {
        "name": NAME,
        "uid": "pv-uid",
        "version": "1",
        "phase": "Bound",
        "deleting": False,
        "policy": "Delete",
        "provisioned_by": OURS,
        "export": "web",
        "storage_class": "nfs",
        "capacity": GI,
        "server": "192.0.2.1",
        "path": "/srv/nfs/shop-data",
        "claim": ClaimRef("shop", "data", "uid-1"),
        "owned": True,
    }
    return Volume(**(fields | changes))


def record(state: State = State.LIVE, **changes: Any) -> VolumeRecord:
    """The record of the claim's directory."""
    fields: dict[str, Any] = {
        "pv": NAME,
        "tree": "tree-1",
        "claim": ClaimRef("shop", "data", "uid-1"),
        "directory": "shop-data",
        "state": state,
        "requested": GI,
        "policy": Policy(),
        "storage_class": "nfs",
    }
    return VolumeRecord(**(fields | changes))


def situation(**parts: Any) -> Situation:
    return Situation(NAME, export=None if parts.get("record") is None else "web", **parts)


def storage_class(**parameters: str) -> StorageClassSpec:
    return parse_class({"metadata": {"name": "nfs"}, "provisioner": OURS, "parameters": parameters})


def room(name: str, *, capacity: int = 10 * GI, reserved: int = 0, **changes: Any) -> Room:
    """An export that is ready."""
    spec: dict[str, Any] = {
        "name": name,
        "replicas": (ReplicaSpec("a", "192.0.2.1", "/srv/nfs", f"/exports/{name}/a"),),
        "overcommit": Fraction(1),
        "labels": {"name": name},
    }
    spec |= {key: changes.pop(key) for key in list(changes) if key in ("overcommit", "labels", "reserve")}
    return Room(
        ExportSpec(**spec),
        capacity=capacity,
        available=changes.pop("available", capacity),
        reserved=reserved,
        **changes,
    )
