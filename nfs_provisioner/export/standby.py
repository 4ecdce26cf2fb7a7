"""What a standby does to hold the same directories, archives and deletions as its active replica.

Each step takes the active's record and leaves the standby with an equal one (only `inode` is its own). Which step is
needed is decided elsewhere, by comparing records; contents of volumes are not this module's business.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Literal

from nfs_provisioner.errors import Infeasible, RefusedForSafety
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export import moves
from nfs_provisioner.export.records import MOVING, State, VolumeRecord
from nfs_provisioner.export.store import Store

Kind = Literal["make", "move", "remove", "update", "forget"]
#: Errors of one path, which say nothing about the server.
_IN_THE_WAY = frozenset({errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.ENAMETOOLONG})
_HELD = (State.LIVE, State.ARCHIVED, State.RETAINED, State.ORPHANED)


@dataclass(frozen=True, slots=True)
class Step:
    """One step towards `record`, the active's. `donor` is the PV whose record holds the directory on the standby."""

    kind: Kind
    record: VolumeRecord
    donor: str | None = None


def take(store: Store, step: Step) -> VolumeRecord | None:
    """Take one step; the standby's record afterwards, None when it was forgotten. Repeating is harmless.

    The record on disk decides how far the way is: an earlier step may have been cut off anywhere.
    """
    active = step.record
    if step.kind == "forget":
        store.require(active.pv, states=(State.DELETED,))
        store.forget(active.pv)
        return None
    mine = _settled(store, active)
    if active.state is State.DELETED:
        return _remove(store, mine, active)
    if mine is not None and mine.state is not State.CREATING:
        if mine.directory != active.directory:
            mine = moves.move_to(store, mine, State.ARCHIVING, active.directory)
        return store.write(replace(active, inode=mine.inode))
    if step.kind == "make":
        return _make(store, active, step.donor)
    return _take_over(store, active, step.donor or active.pv)


def take_all(store: Store, steps: list[Step], seq: int) -> list[VolumeRecord | str]:
    """Take steps; results in the same order: the record, or a message of what failed.

    One may have to wait for a name that another one frees, so what failed is tried again as long as anything moves on.
    `seq` is the active's number for this comparison; it is written last, so that it says "everything up to here".
    """
    results: list[VolumeRecord | str] = [""] * len(steps)
    waiting = list(range(len(steps)))
    while waiting:
        failed = []
        for number in waiting:
            try:
                results[number] = take(store, steps[number]) or steps[number].record
            except (RefusedForSafety, Infeasible) as error:
                results[number] = error.message
                failed.append(number)
            except OSError as error:
                if error.errno not in _IN_THE_WAY:
                    raise
                results[number] = f"{store.path}: {steps[number].record.directory}: {error.strerror}"
                failed.append(number)
        if len(failed) == len(waiting):
            break
        waiting = failed
    store.raise_seq(seq)
    return results


def _settled(store: Store, active: VolumeRecord) -> VolumeRecord | None:
    """The standby's record of this PV, after what an earlier step began was finished or taken back."""
    mine = store.read(active.pv)
    if mine is None:
        return None
    if mine.target is not None:
        if moves.on_its_way(store, mine) and mine.state is not State.DELETING:
            # In work/ nothing names it yet, and the place that it was meant for may be somebody else's by now.
            if active.state is State.DELETED:
                mine = store.write(mine.advanced(state=State.DELETING, target=moves.trash_target(mine)))
            else:
                mine = store.write(mine.advanced(target=active.directory))
        mine = moves.finish(store, mine, fixed=True)
    if mine.state is State.RESTORING:
        moves.leave_to_successor(store, mine)
    if mine.state is State.CREATING and (mine.directory, mine.claim.uid) != (active.directory, active.claim.uid):
        return store.undo(mine.pv)
    return mine


def _make(store: Store, active: VolumeRecord, beside: str | None) -> VolumeRecord:
    """A new directory. One that the adopted volume `beside` shares with this one, or lies in, is there already."""
    if active.shared and beside is not None:
        other = store.require(beside, states=_HELD)
        inode = fs.inode_at(store.root, active.directory)
        if inode is not None and f"{other.directory}/".startswith(f"{active.directory}/"):
            return store.write(replace(active, inode=inode))
    made = store.provision(replace(active, rev=1, target=None, inode=None))
    return store.write(replace(active, inode=made.inode))


def _take_over(store: Store, active: VolumeRecord, donor: str) -> VolumeRecord:
    """The tree is here under another PV's name: its directory becomes this one's."""
    left = store.require(donor, states=(*_HELD, *MOVING))
    if left.tree != active.tree:
        raise RefusedForSafety(f"{store.path}: {donor} does not hold the data of {active.pv} any more; looking again")
    if left.target is not None:
        left = moves.finish(store, left)
    if store.read(active.pv) is not None:
        store.undo(active.pv)
    taking = replace(
        active, state=State.RESTORING, directory=left.directory, target=active.directory, inode=left.inode,
        origin=donor, since=store.now(),
    )  # fmt: skip
    moved = moves.finish(store, store.write(taking), fixed=True)
    moves.leave_to_successor(store, moved)
    return store.write(replace(active, inode=moved.inode))


def _remove(store: Store, mine: VolumeRecord | None, active: VolumeRecord) -> VolumeRecord:
    """Follow a tombstone: the tombstone is written when nothing is left that it would hide."""
    if mine is not None and mine.state is State.CREATING:
        mine = store.undo(mine.pv)
    if mine is not None and mine.state is not State.DELETED:
        states = (*_HELD, State.RESTORING)
        mine = moves.give_up(store, mine.pv, "delete", claim_uid=None, states=states)
        if mine.state is not State.DELETED:
            raise RefusedForSafety(
                f"{store.path}: {mine.pv} is {mine.state} here and deleted on the active; it is kept"
            )
    return store.write(replace(active, inode=None))
