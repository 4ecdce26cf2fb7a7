"""Giving up, archiving, restoring and purging: a volume's directory changes its place or leaves.

Each move is recorded with its target before it begins, and goes through `work/<term>/`, so that wherever it is cut
off, the inode in the record tells where the directory is, and `finish` goes on from there. A rename never lands on a
directory that this move did not claim by mkdir.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from nfs_provisioner.errors import RefusedForSafety
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.batch import Change, run, run_together
from nfs_provisioner.export.paths import archive_name, record_file_name
from nfs_provisioner.export.records import CONTROL_DIRECTORY, LATEST, MOMENT, MOVING, State, VolumeRecord
from nfs_provisioner.export.store import Store, missing_directory, trash_name

_DONE = {State.ARCHIVING: State.ARCHIVED, State.DELETING: State.DELETED, State.RESTORING: State.RESTORING}
_RESTORABLE = frozenset({State.ARCHIVED, State.RETAINED})
_TRASH = f"{CONTROL_DIRECTORY}/trash"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """What is to be done with a volume whose PV is being deleted: `action` is archive, delete or retain.

    `claim_uid`, when given, must be the record's; `states` are those from which this may be done. `avoid` holds
    directory names that were given up a moment ago and must not be reused yet.
    """

    pv: str
    action: str
    claim_uid: str | None
    states: frozenset[State]
    avoid: frozenset[str] = frozenset()


def give_up(
    store: Store,
    pv: str,
    action: str,
    *,
    claim_uid: str | None,
    states: Iterable[State],
    avoid: Collection[str] = (),
) -> VolumeRecord:
    """One volume; see `give_up_all`."""
    result = give_up_all(store, [GiveUp(pv, action, claim_uid, frozenset(states), frozenset(avoid))])[0]
    if isinstance(result, Exception):
        raise result
    return result


def give_up_all(store: Store, wanted: Sequence[GiveUp]) -> list[VolumeRecord | Exception]:
    """Archive, delete or retain volumes: for each its settled record, or what stopped it. Repeating is harmless."""
    archives = any(not one.states.isdisjoint(_RESTORABLE) for one in wanted)
    with store.archives if archives else contextlib.nullcontext():
        return run_together([_giving_up(store, one) for one in wanted])


def _giving_up(store: Store, one: GiveUp) -> Change[VolumeRecord]:
    wanted = {"archive": State.ARCHIVED, "delete": State.DELETED, "retain": State.RETAINED}[one.action]
    states = {*one.states, *MOVING, *_DONE.values(), State.RETAINED}
    record = store.require(one.pv, states=states, claim_uid=one.claim_uid)
    if record.state in MOVING and record.target is not None:
        record = yield from finishing(store, record, avoid=one.avoid)
    if record.state is State.RESTORING:  # a restore that is taken back must be finished first
        leave_to_successor(store, record)
    if record.state not in one.states:
        return record
    if wanted is State.RETAINED or record.shared:
        return (yield from store.writing(record.advanced(state=State.RETAINED, since=store.now())))
    inode = fs.inode_at(store.root, record.directory)
    if inode is None or inode != record.inode:
        raise RefusedForSafety(missing_directory(store.path, record, inode))
    moving = State.ARCHIVING if wanted is State.ARCHIVED else State.DELETING
    target = _archive_target(store, record, one.avoid) if moving is State.ARCHIVING else trash_target(record)
    begun = yield from store.writing(record.advanced(state=moving, target=target, since=store.now()))
    return (yield from finishing(store, begun, avoid=one.avoid))


def move_to(store: Store, record: VolumeRecord, state: State, target: str) -> VolumeRecord:
    """The same move with a target that the other replica chose (a standby follows its active)."""
    inode = fs.inode_at(store.root, record.directory)
    if inode is None or inode != record.inode:
        raise RefusedForSafety(missing_directory(store.path, record, inode))
    return finish(store, store.write(record.advanced(state=state, target=target, since=store.now())), fixed=True)


def restore(store: Store, wanted: VolumeRecord, archive_pv: str) -> VolumeRecord:
    """Make an archive the directory of a new volume: its data moves, nothing is copied. Returns the new record.

    The new record takes the tree over before the move, the old one becomes a tombstone after it.
    """
    with store.archives:  # or two claims, or a claim and a purge, could both find it there
        found = store.read(wanted.pv)
        record = found or store.write(_taken_over(store, wanted, archive_pv))
        if record.state is State.RESTORING:
            if record.target is not None:
                try:
                    record = finish(store, record)
                except OSError as error:
                    if found is None and error.errno in fs.FULL:  # others may have happened on the server all the same
                        _not_begun(store, record)
                    raise
            leave_to_successor(store, record)
    return record


def _not_begun(store: Store, record: VolumeRecord) -> None:
    """A restore that failed before the archive was moved never was: of two records that name one directory, the
    archive's could be purged, and the new volume would be without its files."""
    with contextlib.suppress(OSError):
        if fs.inode_at(store.root, record.directory) == record.inode:
            store.forget(record.pv)


def _taken_over(store: Store, wanted: VolumeRecord, archive_pv: str) -> VolumeRecord:
    """The record of a restore about to begin, when nothing stands in its way."""
    archive = store.require(archive_pv, states=_RESTORABLE)
    if archive.claim.namespace != wanted.claim.namespace:
        raise RefusedForSafety(
            f"the archive {archive.directory!r} belonged to namespace {archive.claim.namespace!r}, "
            f"not to {wanted.claim.namespace!r}"
        )
    inode = fs.inode_at(store.root, archive.directory)
    if inode is None or inode != archive.inode:
        raise RefusedForSafety(missing_directory(store.path, archive, inode))
    store.require_free(wanted)
    return replace(
        wanted,
        tree=archive.tree,
        state=State.RESTORING,
        directory=archive.directory,
        target=wanted.directory,
        inode=archive.inode,
        origin=archive_pv,
        since=store.now(),
    )


def leave_to_successor(store: Store, record: VolumeRecord) -> None:
    """What `record` was restored from names nothing any more: make it a tombstone that says where it went."""
    if record.origin is None:
        return
    old = store.read(record.origin)
    if old is not None and old.tree == record.tree and old.holds_directory:
        store.write(old.advanced(state=State.DELETED, successor=record.pv, since=store.now()))


def finish(
    store: Store, record: VolumeRecord, *, owned: Collection[str] | None = None, fixed: bool = False
) -> VolumeRecord:
    """One move; see `finishing`."""
    return run(finishing(store, record, owned=owned, fixed=fixed))


def finishing(
    store: Store,
    record: VolumeRecord,
    *,
    avoid: Collection[str] = (),
    owned: Collection[str] | None = None,
    fixed: bool = False,
) -> Change[VolumeRecord]:
    """Carry a recorded move out, from wherever it is. Returns the settled record.

    `owned` (after a restart) holds every directory that some other record names, so that a claimed but still empty
    target of this move can be told from somebody's empty archive. `fixed` targets are never replaced by others.
    """
    if record.target is None:
        return record
    slot = _slot_of(store, record)
    if slot is None:
        place = fs.inode_at(store.root, record.directory)
        if place == record.inode:
            slot = _take_out(store, record)
        elif fs.inode_at(store.root, record.target) != record.inode:
            raise RefusedForSafety(missing_directory(store.path, record, place))
    if slot is not None:
        record = _put(store, record, slot, avoid=avoid, owned=owned, fixed=fixed)
    store._remove_empty_parents(record.directory)
    here = record.directory if record.state is State.DELETING else record.target
    assert here is not None
    done = record.advanced(
        state=_DONE[record.state], directory=here, former=record.directory, target=None, since=_ended(store, record)
    )
    return (yield from store.writing(done, first=store.root_sync.sync))


def _ended(store: Store, record: VolumeRecord) -> str:
    """When a move ended. An archive's age decides about it one day: of both clocks, the one that says later (H56).

    However much later: a machine that begins in 1970 would otherwise date what the next hour may delete. What a server
    of the future dated is kept until a person purges it.
    """
    if record.state is not State.ARCHIVING or record.policy.archive_retention is None:
        return store.now()
    server = datetime.fromtimestamp(min(store.server_time(), LATEST), UTC)
    return max(store.now(), server.strftime(MOMENT))


def on_its_way(store: Store, record: VolumeRecord) -> bool:
    """Whether the directory of a move that was begun lies in work/ now, neither where it was nor where it goes."""
    return _slot_of(store, record) is not None


def _slot_of(store: Store, record: VolumeRecord) -> str | None:
    """Name of the entry in work/<term>/ that is this volume's directory on its way."""
    stem = record_file_name(record.pv).removesuffix(".json")
    for name in (stem, *(n for n in os.listdir(store.work) if n.startswith(f"{stem}~"))):
        if record.inode is not None and fs.directory_inode(store.work, name) == record.inode:
            return name
    return None


def _take_out(store: Store, record: VolumeRecord) -> str:
    slot = record_file_name(record.pv).removesuffix(".json")
    store.guard()
    with fs.parent_of(store.root, record.directory) as (parent, name):
        os.rename(name, slot, src_dir_fd=parent, dst_dir_fd=store.work)
        moved = fs.directory_inode(store.work, slot)
        if moved != record.inode:  # swapped between look and rename: put it back where it was
            if not fs.exists(parent, name):
                os.rename(slot, name, src_dir_fd=store.work, dst_dir_fd=parent)
            raise RefusedForSafety(missing_directory(store.path, record, moved))
        if "/" in record.directory:
            os.fsync(parent)
    return slot


def _put(
    store: Store, record: VolumeRecord, slot: str, *, avoid: Collection[str], owned: Collection[str] | None, fixed: bool
) -> VolumeRecord:
    """Claim the target by mkdir and rename over the empty directory that mkdir made."""
    assert record.target is not None
    if record.state is State.DELETING:
        store.guard()
        os.rename(slot, record.target.rsplit("/", 1)[1], src_dir_fd=store.work, dst_dir_fd=store.trash)
        os.fsync(store.trash)
        return record
    while True:
        assert record.target is not None
        store.guard()
        with fs.parent_of(store.root, record.target, create=True) as (parent, name):
            claimed = fs.make_directory(parent, name, 0o700)
            if claimed or _is_own_claim(store, parent, name, record, owned):
                try:
                    os.rename(slot, name, src_dir_fd=store.work, dst_dir_fd=parent)
                except OSError:
                    with contextlib.suppress(OSError):
                        if _slot_of(store, record) == slot:  # it did not land after all
                            os.rmdir(name, dir_fd=parent)  # or the next try would find it taken, and leave it for ever
                    raise
                if "/" in record.target:
                    os.fsync(parent)  # the root itself is synced by `finish`
                return record
        if fixed or record.state is State.RESTORING:
            raise RefusedForSafety(
                f"{store.path}: {record.target!r} exists already; {record.pv} cannot move there. "
                f"It is kept in {CONTROL_DIRECTORY}/work. Move {record.target!r} away, and it goes on."
            )
        record = store.write(record.advanced(target=_archive_target(store, record, avoid)))


def _is_own_claim(store: Store, parent: int, name: str, record: VolumeRecord, owned: Collection[str] | None) -> bool:
    """After a restart: the empty, private directory that this move's mkdir made, and that no other record names."""
    if owned is None or record.target in owned:
        return False
    with contextlib.suppress(NotADirectoryError), fs.opened(parent, name) as fd:
        found = os.fstat(fd)
        return stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.fstat(store.work).st_uid and fs.is_empty(fd)
    return False


def _archive_target(store: Store, record: VolumeRecord, avoid: Collection[str]) -> str:
    return archive_name(record.directory, lambda name: name in avoid or fs.exists(store.root, name), datetime.now(UTC))


def trash_target(record: VolumeRecord) -> str:
    """A name in trash that nothing else has."""
    return f"{_TRASH}/{trash_name(record)}"


def recover(store: Store, loaded: Iterable[VolumeRecord]) -> tuple[list[VolumeRecord], list[str]]:
    """After a restart: finish every move that a record says was begun. Returns all records, and what went wrong.

    What older terms left in work/ and no record explains is moved to lost/, never removed.
    """
    settled: list[VolumeRecord] = []
    problems: list[str] = []
    loaded = list(loaded)
    names = [r.directory for r in loaded if r.holds_directory]
    # Of two moves to one target, the one that landed before the end: the other must not take it for its own mkdir.
    names += [r.target for r in loaded if r.target and r.inode and fs.inode_at(store.root, r.target) == r.inode]
    for slim in loaded:
        record = slim
        if (slim.state in MOVING and slim.target is not None) or slim.state is State.RESTORING:
            try:
                full = store.read(slim.pv) or slim
                owned = set(names) - {slim.directory}
                record = finish(store, full, owned=owned)
                names.append(record.directory)  # the next one's target may have been the same
                if record.state is State.RESTORING:
                    leave_to_successor(store, record)
            except RefusedForSafety as error:
                problems.append(error.message)
        settled.append(record.slim())
    pending = {record_file_name(r.pv).removesuffix(".json") for r in settled if r.state in MOVING}
    for name in os.listdir(store.work):
        if fs.directory_inode(store.work, name) is not None and name.split("~")[0] not in pending:
            kept = f"{name}~{os.urandom(4).hex()}"
            os.rename(name, kept, src_dir_fd=store.work, dst_dir_fd=store.lost)
            problems.append(
                f"{store.path}: a directory that no record explains was kept as {CONTROL_DIRECTORY}/lost/{kept}"
            )
    return settled, problems
