"""Taking over volumes that another provisioner made (`adoptFrom`): the record first, then one patch of the PV.

Directories are left as they are. Two PVs on the same or on nested directories (the incumbent allows both) are recorded
as shared: such a directory is never moved or deleted, whatever their policies say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from uuid import uuid4

from nfs_provisioner.config import format_quantity, parse_parameters
from nfs_provisioner.errors import Infeasible, InvalidInput, RefusedForSafety, RetryLater
from nfs_provisioner.export.paths import conflict_key, contains, relative_of
from nfs_provisioner.export.records import ClaimRef, Policy, State, VolumeRecord
from nfs_provisioner.kube.api import PV, Api
from nfs_provisioner.volumes.decisions import frozen_policy
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import (
    EXPORT_LABEL,
    FINALIZER,
    PROVISIONED_BY,
    Claim,
    JsonObject,
    Volume,
    claim_manifest,
)
from nfs_provisioner.volumes.registry import Registry

log = logging.getLogger(__name__)

_KEPT = frozenset({State.LIVE, State.ARCHIVED, State.RETAINED, State.ORPHANED})


def find_export(registry: Registry, volume: Volume) -> Export:
    """The export on whose active replica the volume lies, by server and path. Infeasible when there is none."""
    for export in registry.all():
        if _directory_on(export, volume) is not None:
            return export
    known = ", ".join(f"{r.server}:{r.path}" for export in registry.all() for r in export.spec.replicas) or "none"
    raise Infeasible(
        f"PV {volume.name} lies at {volume.server}:{volume.path}, which is on no NFSExport (known: {known}); "
        "create an NFSExport with that server and path, and it is taken over"
    )


def _directory_on(export: Export, volume: Volume) -> str | None:
    for replica in export.spec.replicas:
        servers = {replica.server, export.spec.address, export.client_address}
        if volume.server in servers and (not export.active_replica or replica.name == export.active_replica):
            try:
                return relative_of(replica.path, volume.path)
            except RefusedForSafety:
                continue
    return None


def adopt(
    api: Api,
    export: Export,
    volume: Volume,
    claim: Claim | None,
    storage_class: JsonObject | None,
    provisioner: str,
    check: Callable[[], None],
) -> None:
    """Record the directory, then make the PV ours by one compare-and-swap patch."""
    directory = _directory_on(export, volume)
    if directory is None or volume.claim is None:
        raise RetryLater(f"PV {volume.name} moved away while it was being taken over")
    record = VolumeRecord(
        pv=volume.name,
        tree=uuid4().hex,
        claim=ClaimRef(volume.claim.namespace, volume.claim.name, volume.claim.uid),
        directory=directory,
        state=State.LIVE,
        requested=volume.capacity,
        policy=_policy(storage_class),
        storage_class=volume.storage_class,
        manifests=_manifests(volume, claim, provisioner, export.name),
    )
    export.recorded(export.call("adopt", record), volume.name)
    # Looked for when this one can be seen, too: of two that are taken over at once, the later one finds the other.
    sharing = _sharing(export, directory, volume.name)
    if sharing:
        log.warning("PV %s shares %s with %s: none is ever moved or deleted", volume.name, directory, sharing)
    for name in (*sharing, volume.name) if sharing else ():
        export.recorded(export.call("update", name, {"shared": True}, _KEPT), name)
    check()
    metadata: JsonObject = {
        "uid": volume.uid,
        "resourceVersion": volume.version,
        "annotations": {PROVISIONED_BY: provisioner},
        "labels": {EXPORT_LABEL: export.name},
    }
    if volume.policy == "Delete":
        metadata["finalizers"] = [FINALIZER]
    api.patch(PV, volume.name, {"metadata": metadata}, kind="strategic")
    log.info(
        "PV %s of claim %s was taken over from %s: %s", volume.name, volume.claim, volume.provisioned_by, directory
    )


def _sharing(export: Export, directory: str, name: str) -> list[str]:
    """Every other volume on this directory, on one around it, or on one inside it."""
    if export.catalog.owner(directory, besides=name) is None:
        return []
    others = ((r.pv, r.directory) for r in export.catalog.all() if r.holds_directory and r.pv != name)
    return _touching(directory, others)


def left_alone(export: Export, directory: str, volumes: Iterable[Volume]) -> list[str]:
    """Those of `volumes` that lie on this directory, on one around it, or on one inside it."""
    places = ((volume.name, _directory_on(export, volume)) for volume in volumes)
    return _touching(directory, ((pv, place) for pv, place in places if place is not None))


def _touching(directory: str, others: Iterable[tuple[str, str]]) -> list[str]:
    """Names of those whose directory is this one, one around it, or one inside it."""
    mine = conflict_key(directory)
    keyed = ((name, conflict_key(place)) for name, place in others)
    return [name for name, theirs in keyed if theirs == mine or contains(theirs, mine) or contains(mine, theirs)]


def _policy(storage_class: JsonObject | None) -> Policy:
    """What the volume's class says, if it is still there and understood; archiving is what loses nothing."""
    if storage_class is None:
        return Policy()
    try:
        return frozen_policy(parse_parameters(storage_class.get("parameters") or {}))
    except InvalidInput as error:
        log.warning("the class of an adopted volume is not understood (%s); its volumes are archived", error.message)
        return Policy()


def _manifests(volume: Volume, claim: Claim | None, provisioner: str, export: str) -> JsonObject:
    assert volume.claim is not None
    size = {"storage": format_quantity(volume.capacity)}
    modes = list(claim.access_modes) if claim is not None else ["ReadWriteMany"]
    spec: JsonObject = {
        "capacity": size,
        "accessModes": modes,
        "persistentVolumeReclaimPolicy": volume.policy,
        "storageClassName": volume.storage_class,
        "volumeMode": "Filesystem",
        "nfs": {"server": volume.server, "path": volume.path},
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": volume.claim.namespace,
            "name": volume.claim.name,
            "uid": volume.claim.uid,
        },
    }
    if volume.mount_options:
        spec["mountOptions"] = list(volume.mount_options)
    metadata: JsonObject = {
        "name": volume.name,
        "annotations": {PROVISIONED_BY: provisioner},
        "labels": {EXPORT_LABEL: export},
    }
    if volume.policy == "Delete":
        metadata["finalizers"] = [FINALIZER]
    made: JsonObject = {"pv": {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}}
    if claim is not None:
        made["claim"] = claim_manifest(claim)
    return made
