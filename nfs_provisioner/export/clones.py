"""The directory of a clone: made, known by its inode while it is filled, finished, or given up with all that is in it.

Fills nothing itself: `replication/cloning.py` does. Invariant: nothing is written into the directory before its inode
is on record, nor after the record says that it is copied; and only a directory with the recorded inode counts as ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from nfs_provisioner.errors import Infeasible, RefusedForSafety, RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.records import MOVING, State, VolumeRecord
from nfs_provisioner.export.store import Store, missing_directory

_READABLE = frozenset({State.LIVE, State.ARCHIVED, State.RETAINED, State.ORPHANED})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare(store: Store, wanted: VolumeRecord) -> VolumeRecord:
    """Record and directory of a clone; the same again after a crash. Returns the record as it is on disk."""
    record = store.read(wanted.pv)
    begun = record is not None and record.state is State.CREATING and record.inode is not None
    if record is not None and begun and record.claim.uid == wanted.claim.uid:
        _same_directory(store, record)
        return record
    made = store.provision(wanted)
    return store.write(made.advanced()) if made.state is State.CREATING else made


def finish(store: Store, record: VolumeRecord) -> VolumeRecord:
    """Everything is in it, durably: from here on only its owner writes to it."""
    now = _same_directory(store, store.require(record.pv, states=(State.CREATING,), claim_uid=record.claim.uid))
    return store.write(now.advanced(copied=True))


def source_of(store: Store, clone: VolumeRecord) -> VolumeRecord:
    """The record that the clone is copied from. It may be archived meanwhile: the files are the same."""
    assert clone.clone_of is not None
    source = store.read(clone.clone_of)
    if source is None or source.state not in _READABLE | MOVING | {State.CREATING}:
        raise Infeasible(
            f"{clone.clone_of}, which {clone.pv} was to be a clone of, is {source.state if source else 'gone'} since "
            "before all of it was copied; delete the claim"
        )
    if source.claim.namespace != clone.claim.namespace:
        raise RefusedForSafety(
            f"{store.path}: {source.pv} belongs to namespace {source.claim.namespace!r} now, not to "
            f"{clone.claim.namespace!r}; nothing more is copied from it"
        )
    if source.state not in _READABLE:
        raise RetryLater(f"{store.path}: {source.pv} is {source.state} now; the copy goes on after that")
    return source


@contextlib.contextmanager
def opened(store: Store, record: VolumeRecord, root: int | None = None) -> Iterator[int]:
    """Descriptor of the record's directory, reached without following a link. `root` stands in for the store's."""
    with fs.parent_of(store.root if root is None else root, record.directory) as (parent, name):
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        inode = os.fstat(fd).st_ino
        if inode != record.inode:
            raise RefusedForSafety(missing_directory(store.path, record, inode))
        yield fd
    finally:
        os.close(fd)


def _same_directory(store: Store, record: VolumeRecord) -> VolumeRecord:
    inode = fs.inode_at(store.root, record.directory)
    if inode is None or inode != record.inode:
        raise RefusedForSafety(missing_directory(store.path, record, inode))
    return record
