"""Which steps bring a standby's records to its active's. Pure: two sets of records in, ordered steps out.

Records are levels: however long the standby was away, comparing them tells what is due. A record that the active does
not have is never a reason to remove anything; only the active's tombstone is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from nfs_provisioner.export.records import SETTLED, State, VolumeRecord
from nfs_provisioner.export.standby import Step


@dataclass(frozen=True, slots=True)
class Difference:
    """`steps` in the order to take them; `strangers` are volumes that only the standby knows: kept, and reported."""

    steps: tuple[Step, ...]
    strangers: tuple[str, ...]


def compare(active: Iterable[VolumeRecord], standby: Mapping[str, VolumeRecord]) -> Difference:
    """Moves come first (a restored tree must have left its archive before the archive's tombstone counts)."""
    known = {record.pv: record for record in active}
    trees = {
        record.tree: record
        for record in standby.values()
        if record.state in SETTLED and record.state is not State.DELETED
    }
    alive = {record.tree for record in known.values() if record.state is not State.DELETED}
    steps = [
        step for record in known.values() if (step := _step(record, standby.get(record.pv), trees, alive)) is not None
    ]
    forget = [
        Step("forget", record)
        for record in standby.values()
        if record.state is State.DELETED and record.pv not in known
    ]
    order = {"move": 0, "make": 1, "update": 2, "remove": 3, "forget": 4}
    strangers = tuple(
        sorted(pv for pv, record in standby.items() if pv not in known and record.state is not State.DELETED)
    )
    return Difference(tuple(sorted([*steps, *forget], key=lambda step: order[step.kind])), strangers)


def _step(
    active: VolumeRecord, mine: VolumeRecord | None, trees: Mapping[str, VolumeRecord], alive: Set[str]
) -> Step | None:
    if active.state not in SETTLED:
        return None
    if mine is None or mine.state is State.CREATING:
        if active.state is State.DELETED:
            return None
        donor = trees.get(active.tree)
        if donor is not None and donor.pv != active.pv:
            return Step("move", active, donor.pv)
        return Step("make", active)
    if (mine.rev, mine.state) == (active.rev, active.state):
        return None
    if active.state is State.DELETED:
        if mine.state is State.DELETED:
            return Step("update", active)
        # A tree that lives on under another PV is moved away first, by that PV's step.
        return None if active.tree in alive and trees.get(active.tree) is mine else Step("remove", active)
    if mine.state in SETTLED and mine.directory != active.directory:
        return Step("move", active, active.pv)
    return Step("update", active)
