"""The status of an NFSExport: what it says, and when it is worth a write. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nfs_provisioner.config import format_quantity
from nfs_provisioner.export.standing import PairStanding

JsonObject = dict[str, Any]

_REASONS = {"Ready": "Ready", "Degraded": "ReplicaAway", "Initializing": "WaitingForReplicas"}
#: What the last one who knew said of it still counts while it is not known.
_KEPT = ("reserved", "volumes", "archives", "active", "epoch", "promotion", "lastHandledRequest")
#: What changes all the time and may wait for the next minute's write.
_COUNTS = ("capacity", "reserved", "used", "available", "volumes", "archives", "unmanaged")


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica, as people see it. `message` says what is wrong, or what it cannot do."""

    name: str
    role: str
    reachable: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """An export, as people see it. Sizes in bytes; None when the active replica was not seen yet."""

    generation: int
    phase: str
    message: str
    usable: bool  # new volumes can be made now
    active: str = ""
    epoch: int = 0
    promotion: str = ""
    capacity: int | None = None
    available: int | None = None
    used: int | None = None  # on the active replica's file system, by whomever
    reserved: int | None = None  # these three: None when the records were not read yet
    volumes: int | None = None
    archives: int | None = None
    unmanaged: int | None = None
    replicas: Sequence[ReplicaStatus] = ()
    standing: PairStanding | None = None  # how far the standby is; None while it does not follow
    handled: Mapping[str, str] | None = None
    shared: str = ""  # why its capacity is not its own; empty when it is


def status_object(status: ExportStatus, before: Mapping[str, Any], now: str) -> JsonObject:
    """The status subresource's content. Conditions keep the time of their last change from `before`.

    What is not known is left out, but for what was promised and decided there: that is as `before` had it.
    """
    sizes = {"capacity": status.capacity, "used": status.used, "available": status.available}
    made: JsonObject = {key: before[key] for key in _KEPT if before.get(key) is not None} | {
        "observedGeneration": status.generation,
        "phase": status.phase,
        "conditions": _conditions(status, before, now),
        "replicas": [_replica(replica, status.standing) for replica in status.replicas],
    }
    if status.reserved is not None:
        made["reserved"] = format_quantity(status.reserved)
    counts = {"volumes": status.volumes, "archives": status.archives, "unmanaged": status.unmanaged}
    made |= {key: count for key, count in counts.items() if count is not None}
    made |= {key: rounded(value) for key, value in sizes.items() if value is not None}
    if status.promotion:
        made |= {"active": status.active, "epoch": status.epoch, "promotion": status.promotion}
    if status.handled is not None:
        made["lastHandledRequest"] = dict(status.handled)
    return made


def _replica(replica: ReplicaStatus, standing: PairStanding | None) -> JsonObject:
    made: JsonObject = {"name": replica.name, "role": replica.role, "reachable": replica.reachable}
    if replica.message:
        made["message"] = replica.message
    if replica.role == "standby" and standing is not None and standing.last_clean is not None:
        made["lastCleanPass"] = rfc3339(standing.last_clean)
    return made


def rfc3339(moment: float) -> str:
    """Unix time as the API writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(status: ExportStatus, before: Mapping[str, Any], now: str) -> list[JsonObject]:
    value = "True" if status.usable else "False"
    reason = _REASONS.get(status.phase, status.phase)
    made = [_condition("Ready", value, reason, status.message, status.generation, before, now)]
    if status.standing is not None:
        waiting, stopped = status.standing.waiting, status.standing.stopped
        named = ", ".join(f"{pv} ({count})" for pv, count in waiting[:10])
        message = stopped or (f"deletions wait for confirmation on the standby: {named}" if waiting else "")
        state, reason = ("True", "Stopped" if stopped else "DeleteLimit") if message else ("False", "InSync")
        made.append(_condition("SyncStalled", state, reason, message, status.generation, before, now))
    if status.shared:
        made.append(
            _condition("CapacityShared", "True", "SameFileSystem", status.shared, status.generation, before, now)
        )
    return made


def _condition(
    kind: str, value: str, reason: str, message: str, generation: int, before: Mapping[str, Any], now: str
) -> JsonObject:
    old = next((c for c in before.get("conditions") or () if c.get("type") == kind), None)
    changed = old is None or old.get("status") != value
    return {
        "type": kind,
        "status": value,
        "observedGeneration": generation,
        "lastTransitionTime": now if changed or old is None else old["lastTransitionTime"],
        "reason": reason,
        "message": message[:32768],
    }


def rounded(size: int) -> str:
    """A size for people and for few writes: whole Mi. Byte-exact figures are in the metrics."""
    mebi = 1 << 20
    return format_quantity(size // mebi * mebi) if size >= mebi else format_quantity(size)


def urgent(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether something changed that people and other controllers wait for, not just counts."""
    return _without_counts(before) != _without_counts(after)


def _without_counts(status: Mapping[str, Any]) -> JsonObject:
    kept = {key: value for key, value in status.items() if key not in _COUNTS}
    if "replicas" in kept:  # that there was a clean pass is worth a write, when it was is not
        kept["replicas"] = [r | ({"lastCleanPass": ""} if "lastCleanPass" in r else {}) for r in kept["replicas"]]
    return kept
