"""Growing a claim: the flow of the external-resizer, without a node's part (NFS needs none).

Claim: allocatedResources and ControllerResizeInProgress; PV: capacity; claim: capacity, and the mark taken off. Each
step looks at what is there already, so that a crash between any two goes on here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from nfs_provisioner.config import format_quantity
from nfs_provisioner.errors import NfsProvisionerError, RetryLater
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.kube.api import PV, PVC, Api, JsonObject
from nfs_provisioner.volumes.announcer import Announcer
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import Claim, Volume

IN_PROGRESS = "ControllerResizeInProgress"
INFEASIBLE = "ControllerResizeInfeasible"


def grow(
    api: Api,
    export: Export,
    claim: Claim,
    volume: Volume,
    record: VolumeRecord,
    announcer: Announcer,
    check: Callable[[], None],
) -> None:
    """Bring PV, record and claim to the size that the claim asks for. RetryLater (and a condition) if it cannot fit."""
    wanted = max(claim.requested, volume.capacity)
    started = wanted > volume.capacity
    if started and record.requested < wanted:
        _promise(api, export, claim, replace(record, requested=wanted), check)
    if record.requested != wanted:  # first what is promised, then what is said: cut off in between, it is too much
        try:
            changed = export.call("update", record.pv, {"requested": wanted}, frozenset({State.LIVE}))
        except NfsProvisionerError:
            export.catalog.put(record)
            raise
        export.recorded(changed, record.pv)
    if started:
        announcer.about_claim(claim, "Resizing", f"growing {volume.name} to {format_quantity(wanted)}", warning=False)
        check()
        _patch_claim(api, claim, _mark(claim, wanted, IN_PROGRESS))
        check()
        api.patch(
            PV,
            volume.name,
            {"metadata": {"uid": volume.uid}, "spec": {"capacity": {"storage": format_quantity(wanted)}}},
        )
    if started or claim.resizing or (claim.capacity is not None and claim.requested > claim.capacity):
        check()
        _patch_claim(
            api,
            claim,
            {
                "capacity": {"storage": format_quantity(wanted)},
                "allocatedResources": {"storage": format_quantity(wanted)},
                "allocatedResourceStatuses": None,
                "conditions": None,
            },
        )
        message = f"{volume.name} has {format_quantity(wanted)} now"
        announcer.about_claim(claim, "VolumeResizeSuccessful", message, warning=False)


def _promise(api: Api, export: Export, claim: Claim, grown: VolumeRecord, check: Callable[[], None]) -> None:
    """Reserve the space, or say on the claim that there is none."""
    room = export.room()
    problem = room.problem
    if not problem:
        try:
            export.catalog.promise(grown, limit=room.limit)
        except RetryLater as error:
            problem = error.message
        else:
            return
    message = f"export {export.name}: {problem}"
    if claim.resizing != INFEASIBLE and not room.problem:
        check()
        condition = {
            "type": "ControllerResizeError",
            "status": "True",
            "reason": "NoRoom",
            "message": message,
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        _patch_claim(api, claim, _mark(claim, claim.requested, INFEASIBLE) | {"conditions": [condition]})
    raise RetryLater(message, reason="VolumeResizeFailed")


def _mark(_claim: Claim, wanted: int, status: str) -> JsonObject:
    return {
        "allocatedResources": {"storage": format_quantity(wanted)},
        "allocatedResourceStatuses": {"storage": status},
    }


def _patch_claim(api: Api, claim: Claim, status: JsonObject) -> None:
    body = {"metadata": {"uid": claim.uid}, "status": status}
    api.patch(PVC, claim.name, body, namespace=claim.namespace, subresource="status")
