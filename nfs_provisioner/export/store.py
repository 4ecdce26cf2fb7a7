"""The records of one replica, and the directories that the records name.

Runs in the child process of the replica (`worker.py`). Each public method is one request of the controller and leaves
the export in a state from which the same request, or a restart, goes on. Nothing is touched that no record names.
The order of the steps is the contract's; `docs/design.md` says why each is where it is.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from nfs_provisioner import memory
from nfs_provisioner.errors import Infeasible, RefusedForSafety
from nfs_provisioner.export import batch, kept, records
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.batch import Change
from nfs_provisioner.export.paths import record_file_name
from nfs_provisioner.export.records import CONTROL_DIRECTORY, State, VolumeRecord
from nfs_provisioner.export.root import Root

_STEP = 256  # records that are written together
_IN_PLACE = frozenset({State.LIVE, State.RETAINED, State.ORPHANED})  # their directory is where the PV says


class Store(Root):
    """The records of an open root, and the directories that they name."""

    def __init__(self, path: str, *, guard: Callable[[], None], now: Callable[[], str]) -> None:
        super().__init__(path, guard=guard, now=now)
        self.archives = threading.Lock()  # held while an archive is restored or purged

    # -- records ------------------------------------------------------------------------------------------------

    def load(self, pool: Executor) -> tuple[list[VolumeRecord], list[str]]:
        """All records without manifests, and a message for each that cannot be read. In parallel: NFS is slow."""

        def read(name: str) -> VolumeRecord | str | None:
            try:
                return self._decoded(name, manifests=False)
            except RefusedForSafety as error:
                return error.message

        found = [entry for entry in memory.few_at_once(pool, read, self._record_files()) if entry is not None]
        return [e for e in found if isinstance(e, VolumeRecord)], [e for e in found if isinstance(e, str)]

    def read(self, pv: str) -> VolumeRecord | None:
        """The record of `pv` as it is on disk now."""
        name = record_file_name(pv)
        record = self._decoded(name)
        if record is not None and record.pv != pv:
            raise RefusedForSafety(f"{self.path}: the record {name} says it belongs to {record.pv}, not to {pv}")
        return record

    def _record_files(self) -> list[str]:
        return [name for name in os.listdir(self.volumes) if name.endswith(".json")]

    def _decoded(self, name: str, *, manifests: bool = True) -> VolumeRecord | None:
        data = fs.read_file(self.volumes, name)
        source = f"{self.path}/{CONTROL_DIRECTORY}/volumes/{name}"
        return None if data is None else records.decode_record(data, source=source, manifests=manifests)

    def require(self, pv: str, *, states: Iterable[State], claim_uid: str | None = None) -> VolumeRecord:
        """The record of `pv`, when it is in one of `states` and (if given) belongs to the claim with that uid."""
        record = self.read(pv)
        if record is None:
            raise RefusedForSafety(
                f"{self.path}: no record says that {pv} owns a directory here, so nothing is touched. "
                "Is this the export it was made on?"
            )
        if claim_uid is not None and record.claim.uid not in ("", claim_uid):
            raise RefusedForSafety(
                f"{self.path}: {pv} belongs to claim {record.claim} with uid {record.claim.uid}, not to uid {claim_uid}"
            )
        if record.state not in states:
            raise RefusedForSafety(f"{self.path}: {pv} is {record.state}; expected {' or '.join(sorted(states))}")
        return record

    def write(self, record: VolumeRecord) -> VolumeRecord:
        """Write a record durably."""
        return batch.run(self.writing(record))

    def writing(self, record: VolumeRecord, first: batch.Sync | None = None) -> Change[VolumeRecord]:
        """Write a record durably, in step with others. `first` makes durable what the record is about to say.

        It comes when the record's content is on disk: where that brought a journal up to date, it has little to do.
        """
        self.guard()
        yield from self._writing(self.volumes, record_file_name(record.pv), records.encode_record(record), first)
        yield self.volumes_sync.sync
        return record

    def forget(self, pv: str) -> None:
        """Remove a record that names nothing any more."""
        self.guard()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record_file_name(pv), dir_fd=self.volumes)
        self.volumes_sync.sync()

    def moved_here(self) -> None:
        """A tree that was restored or copied file by file has other inodes: note those that the directories have now.

        Not of moves that were under way: there only the inode tells how far they got. The same again after a crash.
        """
        names = self._record_files()
        for start in range(0, len(names), _STEP):
            found = filter(None, map(self._with_new_inode, names[start : start + _STEP]))
            for written in batch.run_together([self.writing(record) for record in found]):
                if isinstance(written, Exception):
                    raise written

    def _with_new_inode(self, name: str) -> VolumeRecord | None:
        with contextlib.suppress(RefusedForSafety):  # `load` names the records that cannot be read
            record = self._decoded(name)
            if record is None or record.state not in records.SETTLED or not record.holds_directory:
                return None
            inode = None if record.inode is None else fs.inode_at(self.root, record.directory)
            return None if inode in (None, record.inode) else replace(record, inode=inode)
        return None

    # -- provisioning -------------------------------------------------------------------------------------------

    def provision(self, wanted: VolumeRecord) -> VolumeRecord:
        """One new volume; see `provisioning`."""
        return batch.run(self.provisioning(wanted))

    def provisioning(self, wanted: VolumeRecord) -> Change[VolumeRecord]:
        """Record and directory of a new volume; the same again after a crash. Returns the record as it now is.

        A failure half-way takes back what this call did. Only an empty directory under a record of ours is reused.
        """
        record = self.read(wanted.pv)
        fresh = record is None
        if record is None:
            self.require_free(wanted)
            record = yield from self.writing(replace(wanted, state=State.CREATING, since=self.now()))
        elif record.claim.uid != wanted.claim.uid:
            raise RefusedForSafety(
                f"{self.path}: {wanted.pv} is recorded for claim {record.claim} with uid {record.claim.uid}"
            )
        elif record.state is not State.CREATING:
            if record.state in (State.LIVE, State.RESTORING, State.ORPHANED):
                return record
            raise RefusedForSafety(f"{self.path}: {wanted.pv} is {record.state} already; its PV cannot be made again")
        try:
            inode = yield from self._make_volume_directory(record, may_exist=not fresh)
        except (OSError, Infeasible, RefusedForSafety):
            if fresh:
                self._take_back(record)
            raise
        return replace(record, inode=inode)

    def require_free(self, wanted: VolumeRecord) -> None:
        """Infeasible when something of that name exists: said before there is a record that claims it (H05)."""
        with contextlib.suppress(FileNotFoundError), fs.parent_of(self.root, wanted.directory) as (parent, name):
            if fs.exists(parent, name):
                raise Infeasible(
                    f"{wanted.directory!r} exists already on this export and no record says whose it is; "
                    "it is left alone. Choose another pathPattern, or move it away."
                )

    def _make_volume_directory(self, record: VolumeRecord, *, may_exist: bool) -> Change[int]:
        self.guard()
        with fs.parent_of(self.root, record.directory, create=True) as (parent, name):
            made = fs.make_directory(parent, name, 0o700)
            try:
                if not made and not may_exist:
                    self.forget(record.pv)
                    raise Infeasible(
                        f"{record.directory!r} exists already on this export and no record says whose it is; "
                        "it is left alone. Choose another pathPattern, or move it away."
                    )
                with fs.opened(parent, name) as fd:
                    if not made and not fs.is_empty(fd):
                        raise RefusedForSafety(
                            f"{record.directory!r} holds files although the volume {record.pv} was never finished; "
                            "it is left alone. Move it away, and the claim goes on."
                        )
                    self._give(fd, record)
                    inode = os.fstat(fd).st_ino
            except BaseException:
                if made:
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=parent)
                raise
            if "/" in record.directory:
                os.fsync(parent)
        if "/" not in record.directory:
            yield self.root_sync.sync
        return inode

    def _give(self, fd: int, record: VolumeRecord) -> None:
        """Owner and mode of a volume's directory, as its class asked for."""
        policy = record.policy
        now = os.fstat(fd)
        uid, gid = policy.uid, policy.gid
        if (uid, gid) == (0, 0) and not self.abilities.chown:
            uid, gid = now.st_uid, now.st_gid  # nobody asked for an owner: whoever the server made it is right
        try:
            fs.set_owner_and_mode(fd, uid, gid, policy.directory_mode)
        except PermissionError as error:
            raise Infeasible(
                f"the server of {self.path} does not let the controller give a directory to {uid}:{gid} "
                f"({error.strerror}); export it with no_root_squash, or take uid and gid out of the StorageClass"
            ) from error
        got = stat.S_IMODE(os.fstat(fd).st_mode)
        if got != policy.directory_mode:
            raise Infeasible(
                f"directoryMode {policy.directory_mode:04o} became {got:04o} on {self.path}: the server or a missing "
                "capability (CAP_FSETID) drops setuid or setgid; take them out of directoryMode"
            )

    def _take_back(self, record: VolumeRecord) -> None:
        with contextlib.suppress(OSError):  # the disk that just failed may fail again: the record stays, and is redone
            if fs.inode_at(self.root, record.directory) is not None:
                return
            self._remove_empty_parents(record.directory)
            self.forget(record.pv)

    def undo(self, pv: str) -> VolumeRecord | None:
        """Take back a volume whose claim went away before it had a PV. Only an empty directory is removed.

        And that of a clone, with what was copied: it is live before it has a PV, and until then nobody but us can have
        written to it.
        Returns None when nothing is left, or the record (orphaned) of a directory that somebody wrote to.
        """
        record = self.read(pv)
        if record is None:
            return None
        if record.state is not State.CREATING:
            raise RefusedForSafety(f"{self.path}: {pv} is {record.state}; only a volume being created can be undone")
        self.guard()
        try:
            with fs.parent_of(self.root, record.directory) as (parent, name):
                inode = fs.directory_inode(parent, name)
                if inode is not None and record.clone_of is not None and inode == record.inode:
                    os.rename(name, trash_name(record), src_dir_fd=parent, dst_dir_fd=self.trash)
                    os.fsync(parent)
                elif inode is not None:
                    os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if not _is_not_empty(error):
                raise
            return self.write(record.advanced(state=State.ORPHANED, inode=inode, since=self.now()))
        self._remove_empty_parents(record.directory)
        self.root_sync.sync()
        self.forget(pv)
        return None

    def _remove_empty_parents(self, directory: str) -> None:
        """Directories that a nested pattern made on the way go with the last volume in them; rmdir takes empty ones."""
        above = directory.split("/")[:-1]
        while above:
            with contextlib.suppress(FileNotFoundError), fs.parent_of(self.root, "/".join(above)) as (parent, name):
                try:
                    os.rmdir(name, dir_fd=parent)
                except OSError as error:
                    if _is_not_empty(error):
                        return
                    raise
            above.pop()

    def update(self, pv: str, changes: dict[str, Any], *, states: Iterable[State]) -> VolumeRecord:
        """Change fields of a settled record (state, claim, requested, manifests). A change of state sets `since`."""
        record = self.require(pv, states=states)
        if "state" in changes and changes["state"] is not record.state:
            changes = {**changes, "since": self.now()}
        changed = record.advanced(**changes)
        return record if replace(changed, rev=record.rev) == record else self.write(changed)

    def make_live(self, pv: str) -> VolumeRecord:
        """One volume; see `making_live`."""
        return batch.run(self.making_live(pv))

    def making_live(self, pv: str) -> Change[VolumeRecord]:
        """The volume has its PV: finish the record with the inode of its directory."""
        record = self.require(pv, states=(State.CREATING, State.RESTORING, State.LIVE, State.ORPHANED, State.RETAINED))
        if record.state is State.LIVE:
            return record
        inode = fs.inode_at(self.root, record.directory)
        if inode is None or (record.inode is not None and inode != record.inode):
            raise RefusedForSafety(missing_directory(self.path, record, inode))
        return (yield from self.writing(record.advanced(state=State.LIVE, inode=inode, since=self.now())))

    def adopt(self, record: VolumeRecord) -> VolumeRecord:
        """Record a directory that another provisioner made and a bound PV names. The directory is not changed."""
        existing = self.read(record.pv)
        if existing is not None:
            if existing.state not in _IN_PLACE or existing.directory != record.directory:
                raise RefusedForSafety(
                    f"PV {record.pv} names {record.directory!r}, but its record on {self.path} says that the volume is "
                    f"{existing.state} in {existing.directory!r}; it is not taken over. Was the cluster restored to a "
                    "time before that? Then give its data to a new claim, as an archive is restored."
                )
            return existing
        inode = fs.inode_at(self.root, record.directory)
        if inode is None:
            raise RefusedForSafety(
                f"{record.directory!r} is not a directory on {self.path}; the volume {record.pv} is not taken over. "
                "Is the export's path the one that the other provisioner used?"
            )
        return self.write(replace(record, state=State.LIVE, inode=inode, since=self.now()))

    def unmanaged(self, names: frozenset[str]) -> frozenset[str]:
        """Entries of the root that belong to no record. `names` are the first components of all directories."""
        return frozenset(name for name in self._entries() if name not in names)

    def empty_trash(self, stop: Callable[[], bool]) -> bool:
        """Remove what lies in trash, a piece at a time; False when `stop` ended it early.

        What passes kept stays (`expire_kept`). What cannot be removed does not keep the rest; its error is raised
        at the end.
        """
        refused: dict[str, OSError | RefusedForSafety] = {}
        left = set[str]()  # for a restart, which looks for it here
        while names := [name for name in os.listdir(self.trash) if name not in refused and name not in left]:
            for name in names:  # again until nothing is left: deep trees leave their lower part beside them
                try:
                    if not self._is_given_up(name):
                        left.add(name)
                    elif stop() or not fs.remove_tree(self.trash, name, stop=stop):
                        return False
                except (OSError, RefusedForSafety) as error:
                    refused[name] = error
        if refused:
            raise next(iter(refused.values()))
        return True

    def _is_given_up(self, name: str) -> bool:
        """Whether the record that an entry of trash belongs to says so, too: until then a restart looks for it here."""
        if kept.is_kept(name):
            return False
        source = f"{name.rpartition('~')[0]}.json"
        data = fs.read_file(self.volumes, source)
        return data is None or records.decode_record(data, source=source, manifests=False).state is not State.DELETING

    def expire_kept(self, retention: float, stop: Callable[[], bool]) -> bool:
        """Remove what passes kept longer than `retention` seconds ago, by both clocks (H56), and, oldest first, more
        while the disk is nearly full (H51); False when `stop` ended it early."""
        if not any(map(kept.is_kept, os.listdir(self.trash))):
            return True
        now = self.server_time()
        return kept.expire(self.trash, retention, time.time(), now, stop, lambda: kept.nearly_full(self.root))


def trash_name(record: VolumeRecord) -> str:
    """A name in trash that nothing else has."""
    return f"{record_file_name(record.pv).removesuffix('.json')[:200]}~{os.urandom(6).hex()}"


def missing_directory(path: str, record: VolumeRecord, found: int | None) -> str:
    """What to say when a volume's directory is not what its record says."""
    what = "is not there" if found is None else f"is another directory now (inode {found}, was {record.inode})"
    return (
        f"{path}: the directory {record.directory!r} of {record.pv} {what}. Nothing was changed. "
        "If it was moved, move it back; if it was removed on purpose, take the finalizer off the PV."
    )


def _is_not_empty(error: OSError) -> bool:
    return error.errno in (39, 17)  # ENOTEMPTY; some servers say EEXIST
