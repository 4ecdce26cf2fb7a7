"""`recover ROOT`: the cluster is gone, the data is not. Reads an export's root and prints the manifests of its volumes.

Changes nothing. PVs come first, with a claimRef without uid (a dead claim's uid would make the PV Released at once),
then the claims, each with its volumeName; applied in this order they bind in milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from nfs_provisioner.config import format_quantity
from nfs_provisioner.errors import NfsProvisionerError, RefusedForSafety
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.records import (
    CONTROL_DIRECTORY,
    IDENTITY_FILE,
    Identity,
    State,
    VolumeRecord,
    decode_identity,
    decode_record,
)

JsonObject = dict[str, Any]
_IN_USE = (State.LIVE, State.ORPHANED, State.CREATING, State.RESTORING)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found. `documents` are PVs, then claims; `notes` name what has no manifest, and why."""

    identity: Identity
    documents: list[JsonObject]
    notes: list[str]


def recover(root: str) -> Recovered:
    """Read the records below `root`. NfsProvisionerError when it is not an export's root."""
    try:
        top = fs.open_root(root)
    except OSError as error:
        raise NfsProvisionerError(
            f"{root}: {error.strerror}; give the directory that the NFS server exports"
        ) from error
    try:
        with fs.opened(top, CONTROL_DIRECTORY) as control, fs.opened(control, "volumes") as volumes:
            data = fs.read_file(control, IDENTITY_FILE)
            if data is None:
                raise FileNotFoundError
            identity = decode_identity(data, source=f"{root}/{CONTROL_DIRECTORY}/{IDENTITY_FILE}")
            notes: list[str] = []
            records = list(_records(volumes, root, notes))
    except FileNotFoundError as error:
        raise NfsProvisionerError(
            f"{root}: there is no {CONTROL_DIRECTORY}/{IDENTITY_FILE}; this is not an nfs-provisioner export's root"
        ) from error
    except OSError as error:
        hint = "; run it as root, whose files these are" if isinstance(error, PermissionError) else ""
        raise NfsProvisionerError(f"{root}/{CONTROL_DIRECTORY} cannot be read: {error.strerror}{hint}") from error
    finally:
        os.close(top)
    pvs, claims = [], []
    for record in sorted(records, key=lambda r: (r.claim.namespace, r.claim.name, r.pv)):
        if record.state not in _IN_USE:
            notes.append(f"{record.pv} of claim {record.claim}: {record.state}, {record.directory!r}; no manifest")
        elif "pv" not in record.manifests:
            notes.append(f"{record.pv} of claim {record.claim}: its record holds no manifest; {record.directory!r}")
        else:
            pvs.append(_volume(record))
            claims.append(_claim(record))
    return Recovered(identity, pvs + claims, notes)


def _records(volumes: int, root: str, notes: list[str]) -> Iterator[VolumeRecord]:
    for name in sorted(os.listdir(volumes)):
        if not name.endswith(".json"):
            continue
        data = fs.read_file(volumes, name)
        try:
            if data is not None:
                yield decode_record(data, source=f"{root}/{CONTROL_DIRECTORY}/volumes/{name}")
        except RefusedForSafety as error:
            notes.append(error.message)


def _volume(record: VolumeRecord) -> JsonObject:
    manifest: JsonObject = dict(record.manifests["pv"])
    spec = dict(manifest["spec"])
    spec["claimRef"] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": record.claim.namespace,
        "name": record.claim.name,
    }
    spec["capacity"] = {"storage": format_quantity(record.requested)}
    return {**manifest, "spec": spec}


def _claim(record: VolumeRecord) -> JsonObject:
    manifest: JsonObject = dict(record.manifests.get("claim") or {})
    pv = record.manifests["pv"]["spec"]
    spec = {
        "accessModes": pv["accessModes"],
        "storageClassName": pv["storageClassName"],
        **manifest.get("spec", {}),
        "resources": {"requests": {"storage": format_quantity(record.requested)}},
        "volumeName": record.pv,
    }
    metadata = {**manifest.get("metadata", {}), "namespace": record.claim.namespace, "name": record.claim.name}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def as_yaml(found: Recovered, root: str) -> str:
    """The manifests, with a head that says what to do with them."""
    namespaces = sorted({d["metadata"]["namespace"] for d in found.documents if d["kind"] == "PersistentVolumeClaim"})
    head = [
        f"# Volumes found at {root} (NFSExport {found.identity.export}, replica {found.identity.replica}, "
        f"epoch {found.identity.epoch}).",
        f"# Before applying: create the namespaces ({', '.join(namespaces) or 'none'}), the StorageClasses",
        "# and the NFSExport.",
        "# The controller of the new cluster takes the export over after:",
        f"#   nfs-provisioner accept {found.identity.export} --replica {found.identity.replica}",
    ]
    body: str = yaml.safe_dump_all(found.documents, sort_keys=False, explicit_start=True) if found.documents else ""
    return "\n".join(head) + "\n" + body
