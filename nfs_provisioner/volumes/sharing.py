"""Which NFSExports promise a file system that is not theirs alone. Pure.

An export without `spec.capacity` promises the whole file system of its active replica. Where another export's replica
lies on the same one, the same space is promised twice, and nobody notices before it is full. Nothing is refused, since
whoever set it up may know better, but it is told. The device tells file systems apart, so what one server shows as two
(two exports of one disk, mounted apart; subvolumes of one pool) is not noticed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NAMED = 5  # others that a message lists


@dataclass(frozen=True, slots=True)
class Ground:
    """What one export lies on. `devices` are of the replicas that can be seen, by name."""

    export: str
    has_capacity: bool  # spec.capacity is set
    active: str  # name of a replica
    devices: Mapping[str, int]


def warnings(grounds: Iterable[Ground]) -> dict[str, str]:
    """Name of each export that promises what others use as well, and what to do about it."""
    grounds = list(grounds)
    on: dict[int, dict[str, str]] = defaultdict(dict)  # device -> export -> one of its replicas there
    for ground in grounds:
        for replica, device in ground.devices.items():
            on[device].setdefault(ground.export, replica)
    found: dict[str, str] = {}
    for ground in grounds:
        if ground.has_capacity or ground.active not in ground.devices:
            continue
        beside = on[ground.devices[ground.active]]
        others = {export: replica for export, replica in sorted(beside.items()) if export != ground.export}
        if others:
            found[ground.export] = _told(others)
    return found


def _told(others: Mapping[str, str]) -> str:
    named = [f"NFSExport {export} (its replica {replica})" for export, replica in list(others.items())[:NAMED]]
    if len(others) > NAMED:
        named.append(f"{len(others) - NAMED} more")
    return (
        f"its file system is also used by {', '.join(named)}, but the whole of it counts as this export's capacity, so "
        "the same space is promised more than once; set spec.capacity of each, so that together they fit"
    )
