"""Growing a claim: the flow of the external-resizer, without a node's part (NFS needs none).

Claim: allocatedResources and ControllerResizeInProgress; PV: capacity; claim: capacity, and the mark taken off. Each
step looks at what is there already, so that a crash between any two goes on here. The claim is read for that from the
API: the caches are a moment behind, and would have each growth done and told twice. Of the claim's conditions only
those about resizing are touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from nfs_provisioner.config import capped_quantity, format_quantity
from nfs_provisioner.errors import NfsProvisionerError, RetryLater
from nfs_provisioner.export.catalog import Full
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.kube.api import PV, PVC, Api, JsonObject
from nfs_provisioner.volumes.announcer import Announcer
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import Claim, Volume
from nfs_provisioner.volumes.room import Need, no_room

IN_PROGRESS = "ControllerResizeInProgress"
INFEASIBLE = "ControllerResizeInfeasible"
FAILED = "ControllerResizeError"
NOT_GROWN = "VolumeResizeFailed"  # reason of Events
#: Conditions that say how a growth of the controller's part goes on; all others are somebody else's.
OWN_CONDITIONS = frozenset({FAILED, "Resizing", "FileSystemResizePending"})
FIGURES_FOR = timedelta(minutes=1)  # in which only another size that is asked for changes what a refusal says


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
        _promise(api, export, claim, record, replace(record, requested=wanted), check)
    if record.requested != wanted:  # first what is promised, then what is said: cut off in between, it is too much
        try:
            changed = export.call("update", record.pv, {"requested": wanted}, frozenset({State.LIVE}))
        except NfsProvisionerError:
            export.catalog.put(record)
            raise
        export.recorded(changed, record.pv)
    if not started and not claim.resizing and (claim.capacity is None or claim.requested <= claim.capacity):
        return
    now = api.get(PVC, claim.name, claim.namespace)
    told = _capacity(now) >= wanted
    if started and not told:
        announcer.about_claim(claim, "Resizing", f"growing {volume.name} to {format_quantity(wanted)}", warning=False)
        check()
        now = _patch_claim(api, claim, _mark(wanted, IN_PROGRESS))
    if started:
        check()
        body = {"metadata": {"uid": volume.uid}, "spec": {"capacity": {"storage": format_quantity(wanted)}}}
        api.patch(PV, volume.name, body)
    _finish(api, claim, now, wanted, check)
    if not told:
        message = f"{volume.name} has {format_quantity(wanted)} now"
        announcer.about_claim(claim, "VolumeResizeSuccessful", message, warning=False)


def _finish(api: Api, claim: Claim, now: JsonObject, wanted: int, check: Callable[[], None]) -> None:
    """Say on the claim that it has its size, and take the marks off."""
    status = now.get("status") or {}
    others = _without_own(now)
    clean = len(others) == len(status.get("conditions") or ())
    if _capacity(now) >= wanted and clean and "storage" not in (status.get("allocatedResourceStatuses") or {}):
        return
    size = {"storage": format_quantity(wanted)}
    grown: JsonObject = {"capacity": size, "allocatedResources": size, "allocatedResourceStatuses": {"storage": None}}
    check()
    if clean:
        _patch_claim(api, claim, grown)
    else:
        _patch_claim(api, claim, grown | {"conditions": others}, version=now["metadata"]["resourceVersion"])


def _promise(
    api: Api, export: Export, claim: Claim, record: VolumeRecord, grown: VolumeRecord, check: Callable[[], None]
) -> None:
    """Reserve the space, or say on the claim that there is none."""
    room = export.room()
    if room.problem:
        raise RetryLater(f"export {export.name}: {room.problem}", reason=NOT_GROWN)
    need = Need(grown.requested - record.requested)
    if room.fits(need):
        try:
            export.catalog.promise(grown, limit=room.limit)
        except Full:  # since the figures were read
            room = export.room()
        else:
            return
    refusal = no_room([room], need, reason=NOT_GROWN)
    now = api.get(PVC, claim.name, claim.namespace)
    mark, moment = _mark(claim.requested, INFEASIBLE), datetime.now(UTC)
    if not _says(now, mark, refusal.message, moment):
        check()
        condition = {
            "type": FAILED,
            "status": "True",
            "reason": "NoRoom",
            "message": refusal.message,
            "lastTransitionTime": _rfc3339(moment),
        }
        status = mark | {"conditions": [*_without_own(now), condition]}
        _patch_claim(api, claim, status, version=now["metadata"]["resourceVersion"])
    raise refusal


def _says(raw: JsonObject, mark: JsonObject, message: str, moment: datetime) -> bool:
    """Whether the claim says that this growth does not fit. Others' figures change all the time: a minute is soon."""
    status = raw.get("status") or {}
    condition: JsonObject = next((c for c in status.get("conditions") or () if c.get("type") == FAILED), {})
    fresh = (condition.get("lastTransitionTime") or "") > _rfc3339(moment - FIGURES_FOR)
    marked = all((status.get(key) or {}).get("storage") == value["storage"] for key, value in mark.items())
    return marked and bool(condition) and (fresh or condition.get("message") == message)


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _mark(wanted: int, status: str) -> JsonObject:
    return {
        "allocatedResources": {"storage": format_quantity(wanted)},
        "allocatedResourceStatuses": {"storage": status},
    }


def _capacity(raw: JsonObject) -> int:
    return capped_quantity(((raw.get("status") or {}).get("capacity") or {}).get("storage", "0"))


def _without_own(raw: JsonObject) -> list[JsonObject]:
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return [condition for condition in conditions if condition.get("type") not in OWN_CONDITIONS]


def _patch_claim(api: Api, claim: Claim, status: JsonObject, *, version: str = "") -> JsonObject:
    """`version` makes it a compare-and-swap: a merge patch replaces the whole list of conditions."""
    metadata = {"uid": claim.uid} | ({"resourceVersion": version} if version else {})
    body = {"metadata": metadata, "status": status}
    return api.patch(PVC, claim.name, body, namespace=claim.namespace, subresource="status")
