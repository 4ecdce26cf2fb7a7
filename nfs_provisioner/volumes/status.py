"""The status of an NFSExport: what it says, and when it is worth a write. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfs_provisioner.config import format_quantity

JsonObject = dict[str, Any]

_REASONS = {"Ready": "Ready", "Degraded": "ReplicaAway", "Initializing": "WaitingForReplicas"}
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
    size: int | None = None  # of the active replica's file system, whatever spec.capacity says
    reserved: int = 0
    volumes: int = 0
    archives: int = 0
    unmanaged: int | None = None
    replicas: Sequence[ReplicaStatus] = ()
    handled: Mapping[str, str] | None = None

    @property
    def used(self) -> int | None:
        """Bytes taken on the active replica's file system, by whomever."""
        if self.size is None or self.available is None:
            return None
        return max(0, self.size - self.available)


def status_object(status: ExportStatus, before: Mapping[str, Any], now: str) -> JsonObject:
    """The status subresource's content. Conditions keep the time of their last change from `before`."""
    sizes = {"capacity": status.capacity, "used": status.used, "available": status.available}
    made: JsonObject = {
        "observedGeneration": status.generation,
        "phase": status.phase,
        "conditions": [_ready(status, before, now)],
        "reserved": format_quantity(status.reserved),
        "volumes": status.volumes,
        "archives": status.archives,
        "replicas": [
            {"name": r.name, "role": r.role, "reachable": r.reachable} | ({"message": r.message} if r.message else {})
            for r in status.replicas
        ],
    }
    made |= {key: rounded(value) for key, value in sizes.items() if value is not None}
    if status.promotion:
        made |= {"active": status.active, "epoch": status.epoch, "promotion": status.promotion}
    if status.unmanaged is not None:
        made["unmanaged"] = status.unmanaged
    if status.handled is not None:
        made["lastHandledRequest"] = dict(status.handled)
    return made


def _ready(status: ExportStatus, before: Mapping[str, Any], now: str) -> JsonObject:
    value = "True" if status.usable else "False"
    old = next((c for c in before.get("conditions") or () if c.get("type") == "Ready"), None)
    changed = old is None or old.get("status") != value
    return {
        "type": "Ready",
        "status": value,
        "observedGeneration": status.generation,
        "lastTransitionTime": now if changed or old is None else old["lastTransitionTime"],
        "reason": _REASONS.get(status.phase, status.phase),
        "message": status.message[:32768],
    }


def rounded(size: int) -> str:
    """A size for people and for few writes: whole Mi. Byte-exact figures are in the metrics."""
    mebi = 1 << 20
    return format_quantity(size // mebi * mebi) if size >= mebi else format_quantity(size)


def urgent(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether something changed that people and other controllers wait for, not just counts."""
    return _without_counts(before) != _without_counts(after)


def _without_counts(status: Mapping[str, Any]) -> JsonObject:
    return {key: value for key, value in status.items() if key not in _COUNTS}
