"""What a standby does to hold the same directories, archives and deletions as its active replica.

Each step takes the active's record and leaves the standby with an equal one (only `inode` is its own). Which step is
needed is decided elsewhere, by comparing records; contents of volumes are not this module's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from nfs_provisioner.errors import NfsProvisionerError
from nfs_provisioner.export import moves
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.store import Store

Kind = Literal["make", "move", "remove", "update", "forget"]
_HELD = (State.LIVE, State.ARCHIVED, State.RETAINED, State.ORPHANED)


@dataclass(frozen=True, slots=True)
class Step:
    """One step towards `record`, the active's. `donor` is the PV whose record holds the directory on the standby."""

    kind: Kind
    record: VolumeRecord
    donor: str | None = None


def take(store: Store, step: Step) -> VolumeRecord | None:
    """Take one step; the standby's record afterwards, None when it was forgotten. Repeating is harmless."""
    match step.kind:
        case "make":
            return _make(store, step.record)
        case "move":
            return _move(store, step.record, step.donor or step.record.pv)
        case "remove":
            moves.give_up(store, step.record.pv, "delete", claim_uid=None, states=(*_HELD, State.CREATING))
            return store.write(replace(step.record, inode=None))
        case "update":
            mine = store.require(step.record.pv, states=State)
            return store.write(replace(step.record, inode=mine.inode))
        case "forget":
            store.require(step.record.pv, states=(State.DELETED,))
            store.forget(step.record.pv)
            return None


def take_all(store: Store, steps: list[Step], seq: int) -> list[VolumeRecord | str]:
    """Take steps in order; results in the same order: the record, or a message of what failed.

    `seq` is the active's number for this comparison; it is written last, so that it says "everything up to here".
    """
    results: list[VolumeRecord | str] = []
    for step in steps:
        try:
            results.append(take(store, step) or step.record)
        except NfsProvisionerError as error:
            results.append(error.message)
    store.raise_seq(seq)
    return results


def _make(store: Store, active: VolumeRecord) -> VolumeRecord:
    made = store.provision(replace(active, rev=1, target=None, inode=None))
    return store.write(replace(active, inode=made.inode))


def _move(store: Store, active: VolumeRecord, donor: str) -> VolumeRecord:
    mine = store.require(donor, states=_HELD)
    if donor == active.pv:
        moved = moves.move_to(store, mine, State.ARCHIVING, active.directory)
    else:
        taking = replace(
            active, state=State.RESTORING, directory=mine.directory, target=active.directory, inode=mine.inode,
            origin=donor, since=store.now(),
        )  # fmt: skip
        moved = moves.finish(store, store.write(taking), fixed=True)
        moves.leave_to_successor(store, moved)
    return store.write(replace(active, inode=moved.inode))
