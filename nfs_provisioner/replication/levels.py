"""Which steps bring a standby's records to its active's. Pure: two sets of records in, ordered steps out.

Records are levels: however long the standby was away, comparing them tells what is due. A record that the active does
not have is never a reason to remove anything; only the active's tombstone is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from nfs_provisioner.export.records import SETTLED, State, VolumeRecord
from nfs_provisioner.export.standby import Step


@dataclass(frozen=True, slots=True)
class Difference:
    """`steps` in the order to take them; `strangers` are volumes that only the standby knows: kept, and reported."""

    steps: tuple[Step, ...]
    strangers: tuple[str, ...]


def compare(active: Iterable[VolumeRecord], standby: Mapping[str, VolumeRecord]) -> Difference:
    """What is removed frees its name for a move, a move for what is made; outer directories come before inner ones."""
    known = {record.pv: record for record in active}
    alive = {record.tree for record in known.values() if record.state is not State.DELETED}
    trees = _holders(known, standby)
    beside = _beside(known, standby)
    steps = [
        step
        for record in known.values()
        if not _heir_is_missing(record, known)
        and (step := _step(record, standby.get(record.pv), trees, alive, beside.get(record.pv))) is not None
    ]
    forget = [
        Step("forget", record)
        for record in standby.values()
        if record.state is State.DELETED and record.pv not in known
    ]
    strangers = tuple(
        sorted(
            pv
            for pv, record in standby.items()
            if record.state is not State.DELETED and (pv not in known or _heir_is_missing(known[pv], known))
        )
    )
    order = {kind: number for number, kind in enumerate(("remove", "move", "make", "update", "forget"))}
    ordered = sorted([*steps, *forget], key=lambda step: (order[step.kind], step.record.directory, step.record.pv))
    return Difference(tuple(ordered), strangers)


def _heir_is_missing(tombstone: VolumeRecord, known: Mapping[str, VolumeRecord]) -> bool:
    """Whether the tree went on to a volume that the active does not know: its record may be the one that is damaged,
    and what the standby still has under the old name its only copy."""
    return tombstone.successor is not None and tombstone.successor not in known


def _holders(known: Mapping[str, VolumeRecord], standby: Mapping[str, VolumeRecord]) -> dict[str, VolumeRecord]:
    """The standby's record that holds each tree; of two, the one that is to have it, or the one that takes it over."""

    def rank(record: VolumeRecord) -> tuple[bool, bool, str]:
        rightful = known.get(record.pv)
        wanted = rightful is not None and rightful.tree == record.tree and rightful.state is not State.DELETED
        return wanted, record.state is State.RESTORING, record.pv

    holding = [record for record in standby.values() if record.state not in (State.DELETED, State.CREATING)]
    return {record.tree: record for record in sorted(holding, key=rank)}


def _beside(known: Mapping[str, VolumeRecord], standby: Mapping[str, VolumeRecord]) -> dict[str, str]:
    """For each shared volume, another one whose directory on the standby is the same or lies inside."""
    shared = sorted((record for record in known.values() if record.shared), key=lambda record: record.pv)
    # By directory. Two are enough: one of them is another volume than the one that asks.
    inside: dict[str, list[str]] = {record.directory: [] for record in shared}
    first: dict[str, str] = {}
    for record in shared:
        first.setdefault(record.directory, record.pv)
    for record in sorted(standby.values(), key=lambda record: record.pv) if shared else ():
        if record.state in SETTLED and record.state is not State.DELETED:
            for place in (record.directory, *_around(record.directory)):
                if place in inside and len(inside[place]) < 2:
                    inside[place].append(record.pv)
    found: dict[str, str] = {}
    for record in shared:
        others = (pv for pv in (*inside[record.directory], first[record.directory]) if pv != record.pv)
        if (other := next(others, None)) is not None:
            found[record.pv] = other
    return found


def _around(directory: str) -> Iterator[str]:
    while "/" in directory:
        directory = directory.rpartition("/")[0]
        yield directory


def _step(
    active: VolumeRecord,
    mine: VolumeRecord | None,
    trees: Mapping[str, VolumeRecord],
    alive: Set[str],
    beside: str | None,
) -> Step | None:
    if active.state not in SETTLED:
        return None
    if mine is not None and (mine.rev, mine.state, mine.directory) == (active.rev, active.state, active.directory):
        return None
    holder = trees.get(active.tree)
    if active.state is State.DELETED:
        if mine is None:
            return None
        if mine.state is State.DELETED:
            return Step("update", active)
        # A tree that lives on under another PV is moved away first, by that PV's step.
        leaving = holder is mine or (holder is not None and holder.state is State.RESTORING)
        return None if active.tree in alive and leaving else Step("remove", active)
    if mine is None or mine.state is State.CREATING:
        if holder is not None and holder.pv != active.pv:
            return Step("move", active, holder.pv)
        return Step("make", active, beside)
    return Step("update" if mine.directory == active.directory else "move", active, active.pv)
