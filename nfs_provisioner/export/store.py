"""One replica's root: its identity, its records, and the directories that the records name.

Runs in the child process of the replica (`worker.py`). Each public method is one request of the controller and leaves
the export in a state from which the same request, or a restart, goes on. Nothing is touched that no record names.
The order of the steps is the contract's; `docs/design.md` says why each is where it is.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from nfs_provisioner.errors import Infeasible, RefusedForSafety, RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export import records
from nfs_provisioner.export.paths import record_file_name
from nfs_provisioner.export.records import CONTROL_DIRECTORY, IDENTITY_FILE, Identity, State, VolumeRecord

#: Entries of a root that file servers put there themselves.
_SERVER_ENTRIES = frozenset({"lost+found", ".snapshot", ".snapshots", ".zfs"})
_SUBDIRECTORIES = ("volumes", "sync", "work", "trash", "lost")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a replica is before anything was written to it."""

    identity: Identity | None
    empty: bool  # no entries but the server's own
    handle: str
    filesystem: str
    place: str  # device and inode of the root: two paths with the same place are one directory
    unmounted: bool  # the path lies on the root file system of a container: nothing is mounted there


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the server behind this replica lets the controller do, found by trying."""

    chown: bool
    links: bool
    nanoseconds: bool
    root: bool  # this process is root, so a refused chown means root_squash


@dataclass(frozen=True, slots=True)
class Space:
    """statvfs of the replica, in bytes and inodes."""

    size: int
    free: int
    inodes_free: int


class Store:
    """An open export root. `guard` is called before each step that changes something and raises to stop it."""

    def __init__(self, path: str, *, guard: Callable[[], None], now: Callable[[], str]) -> None:
        self.path = path
        self.now = now
        self._lease_guard = guard
        self.root = fs.open_root(path)
        self.identity: Identity | None = None
        self.abilities = Abilities(chown=False, links=False, nanoseconds=False, root=os.geteuid() == 0)
        self._term = ""
        self._counter = iter(range(1, 1 << 62)).__next__
        self._identity_lock = threading.Lock()
        self.archives = threading.Lock()  # held while an archive is restored or purged
        self.root_sync = fs.GroupSync(self.root)

    # -- identity -----------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Look, and change nothing."""
        identity = None
        with contextlib.suppress(FileNotFoundError), fs.opened(self.root, CONTROL_DIRECTORY) as control:
            data = fs.read_file(control, IDENTITY_FILE)
            if data is not None:
                identity = records.decode_identity(data, source=f"{self.path}/{CONTROL_DIRECTORY}/{IDENTITY_FILE}")
        filesystem = fs.filesystem_type(self.root)
        return Facts(
            identity=identity,
            empty=next(self._entries(), None) is None,
            handle=fs.root_handle(self.root),
            filesystem=filesystem,
            place="{0.st_dev}:{0.st_ino}".format(os.fstat(self.root)),
            unmounted=filesystem == "overlay" and os.fstat(self.root).st_dev == os.stat("/").st_dev,
        )

    def _entries(self) -> Iterator[str]:
        with os.scandir(self.root) as scan:
            for entry in scan:
                if entry.name not in _SERVER_ENTRIES and entry.name != CONTROL_DIRECTORY:
                    yield entry.name

    def activate(self, identity: Identity, term: str) -> Abilities:
        """Write `identity`, start `term`, sweep older ones, and try what the server allows. Must come before writes."""
        fs.make_directory(self.root, CONTROL_DIRECTORY, 0o700)
        self.control = os.open(CONTROL_DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.root)
        owner = os.fstat(self.control)
        if owner.st_mode & 0o077:
            os.fchmod(self.control, 0o700)
        for name in _SUBDIRECTORIES:
            fs.make_directory(self.control, name, 0o700)
        directories = {name: os.open(name, fs._DIRECTORY, dir_fd=self.control) for name in _SUBDIRECTORIES}
        self.volumes, self.works, self.trash = directories["volumes"], directories["work"], directories["trash"]
        self.lost, self.sync = directories["lost"], directories["sync"]
        self.volumes_sync = fs.GroupSync(self.volumes)
        self._start_term(term)
        if identity != self.identity:
            self.write_identity(identity)
        os.fsync(self.control)
        self.root_sync.sync()
        self.abilities = self._probe()
        return self.abilities

    def close(self) -> None:
        """Give the descriptors back. Only for a store that is replaced; calls under way fail."""
        for name in ("root", "control", "volumes", "works", "work", "trash", "lost", "sync"):
            fd = getattr(self, name, None)
            if fd is not None:
                os.close(fd)

    def _start_term(self, term: str) -> None:
        """Make work/<term> and take over what older terms left: files are garbage, directories somebody's data."""
        self._term = f"{term}-{os.urandom(4).hex()}"
        os.mkdir(self._term, 0o700, dir_fd=self.works)
        self.work = os.open(self._term, fs._DIRECTORY, dir_fd=self.works)
        for old in os.listdir(self.works):
            if old == self._term:
                continue
            with fs.opened(self.works, old) as fd:
                for name in os.listdir(fd):
                    if fs.directory_inode(fd, name) is None:
                        os.unlink(name, dir_fd=fd)
                    else:
                        free = name if not fs.exists(self.work, name) else f"{name}~{os.urandom(4).hex()}"
                        os.rename(name, free, src_dir_fd=fd, dst_dir_fd=self.work)
            os.rmdir(old, dir_fd=self.works)
        os.fsync(self.works)

    def guard(self) -> None:
        """Before each step: the lease still holds, and no newer worker has removed this one's term."""
        self._lease_guard()
        if not fs.exists(self.works, self._term):
            raise RetryLater(f"{self.path}: a newer worker took this replica over")

    def write_identity(self, identity: Identity) -> None:
        """Make `identity` this replica's, durably."""
        self.guard()
        self._write(self.control, IDENTITY_FILE, records.encode_identity(identity))
        os.fsync(self.control)
        self.identity = identity

    def set_members(self, members: Mapping[str, str]) -> None:
        """Note which replicas belong to the pair; one that is known and comes back empty is not taken for a new one."""
        with self._identity_lock:
            identity = self._identity()
            if dict(identity.members) != dict(members):
                self.write_identity(replace(identity, members=dict(members)))

    def server_time(self) -> float:
        """The file server's clock, Unix seconds: the time it gives to a new file."""
        self.guard()
        name = f"clock{self._counter()}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.work)
        try:
            os.write(fd, b"x")
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            os.unlink(name, dir_fd=self.work)

    def raise_seq(self, seq: int | None = None) -> int:
        """Set this replica's seq (the active's: one more than before). Never lowers it."""
        with self._identity_lock:
            identity = self._identity()
            wanted = identity.seq + 1 if seq is None else max(seq, identity.seq)
            if wanted != identity.seq:
                self.write_identity(replace(identity, seq=wanted))
            return wanted

    def _identity(self) -> Identity:
        if self.identity is None:
            raise RefusedForSafety(f"{self.path}: not activated; its identity was not proven")
        return self.identity

    def still_mounted(self) -> None:
        """RefusedForSafety when the path leads to another directory than the one that was opened and identified."""
        now, then = os.stat(self.path), os.fstat(self.root)
        if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
            raise RefusedForSafety(f"{self.path}: another file system is mounted here than the one that was identified")

    def _probe(self) -> Abilities:
        """Try each thing on a file of our own. OSError (EROFS, ENOSPC, EACCES) names what is wrong with the replica."""
        name = "probe"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=self.work)
        try:
            os.write(fd, b"probe")
            os.fsync(fd)
            chown = _allowed(lambda: os.fchown(fd, 12345, 12345)) and os.fstat(fd).st_uid == 12345
            os.utime(fd, ns=(1_000_000_001, 1_000_000_001))
            nanoseconds = os.fstat(fd).st_mtime_ns == 1_000_000_001
            links = _allowed(lambda: os.link(name, "probe-link", src_dir_fd=self.work, dst_dir_fd=self.work))
        finally:
            os.close(fd)
            for probe in (name, "probe-link"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(probe, dir_fd=self.work)
        return Abilities(chown=chown, links=links, nanoseconds=nanoseconds, root=os.geteuid() == 0)

    def space(self) -> Space:
        """Size and what is left for everybody, bytes; checks on the way that the mount is still the same."""
        self.still_mounted()
        found = os.fstatvfs(self.root)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_favail)

    # -- records ------------------------------------------------------------------------------------------------

    def load(self, pool: Executor) -> tuple[list[VolumeRecord], list[str]]:
        """All records without manifests, and a message for each that cannot be read. In parallel: NFS is slow."""

        def read(name: str) -> VolumeRecord | str | None:
            try:
                data = fs.read_file(self.volumes, name)
                source = f"{self.path}/{CONTROL_DIRECTORY}/volumes/{name}"
                return None if data is None else records.decode_record(data, source=source, manifests=False)
            except RefusedForSafety as error:
                return error.message

        names = [name for name in os.listdir(self.volumes) if name.endswith(".json")]
        found = [entry for entry in pool.map(read, names, chunksize=64) if entry is not None]
        return [e for e in found if isinstance(e, VolumeRecord)], [e for e in found if isinstance(e, str)]

    def read(self, pv: str) -> VolumeRecord | None:
        """The record of `pv` as it is on disk now."""
        name = record_file_name(pv)
        data = fs.read_file(self.volumes, name)
        if data is None:
            return None
        record = records.decode_record(data, source=f"{self.path}/{CONTROL_DIRECTORY}/volumes/{name}")
        if record.pv != pv:
            raise RefusedForSafety(f"{self.path}: the record {name} says it belongs to {record.pv}, not to {pv}")
        return record

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

    def write(self, record: VolumeRecord, *, sync: bool = True) -> VolumeRecord:
        """Write a record durably; without `sync` its name is durable only with the caller's sync of `volumes`."""
        self.guard()
        self._write(self.volumes, record_file_name(record.pv), records.encode_record(record))
        if sync:
            self.volumes_sync.sync()
        return record

    def _write(self, directory: int, name: str, data: bytes) -> None:
        fs.write_file(self.work, directory, name, data, f"r{self._counter()}")

    def forget(self, pv: str) -> None:
        """Remove a record that names nothing any more."""
        self.guard()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record_file_name(pv), dir_fd=self.volumes)
        self.volumes_sync.sync()

    # -- provisioning -------------------------------------------------------------------------------------------

    def provision(self, wanted: VolumeRecord) -> VolumeRecord:
        """Record and directory of a new volume; the same again after a crash. Returns the record as it now is.

        A failure half-way takes back what this call did. Only an empty directory under a record of ours is reused.
        """
        record = self.read(wanted.pv)
        fresh = record is None
        if record is None:
            self.require_free(wanted)
            record = self.write(replace(wanted, state=State.CREATING, since=self.now()))
        elif record.claim.uid != wanted.claim.uid:
            raise RefusedForSafety(
                f"{self.path}: {wanted.pv} is recorded for claim {record.claim} with uid {record.claim.uid}"
            )
        elif record.state is not State.CREATING:
            if record.state in (State.LIVE, State.RESTORING, State.ORPHANED):
                return record
            raise RefusedForSafety(f"{self.path}: {wanted.pv} is {record.state} already; its PV cannot be made again")
        try:
            _made, inode = self._make_volume_directory(record, may_exist=not fresh)
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

    def _make_volume_directory(self, record: VolumeRecord, *, may_exist: bool) -> tuple[bool, int]:
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
            else:
                self.root_sync.sync()
        return made, inode

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
                if inode is not None:
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
        """The volume has its PV: finish the record with the inode of its directory. The caller syncs `volumes`."""
        record = self.require(pv, states=(State.CREATING, State.RESTORING, State.LIVE, State.ORPHANED, State.RETAINED))
        if record.state is State.LIVE:
            return record
        inode = fs.inode_at(self.root, record.directory)
        if inode is None or (record.inode is not None and inode != record.inode):
            raise RefusedForSafety(missing_directory(self.path, record, inode))
        return self.write(record.advanced(state=State.LIVE, inode=inode, since=self.now()), sync=False)

    def adopt(self, record: VolumeRecord) -> VolumeRecord:
        """Record a directory that another provisioner made and a bound PV names. The directory is not changed."""
        existing = self.read(record.pv)
        if existing is not None:
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

        What cannot be removed does not keep the rest; its error is raised at the end.
        """
        refused: dict[str, OSError | RefusedForSafety] = {}
        while names := [name for name in os.listdir(self.trash) if name not in refused and self._is_given_up(name)]:
            for name in names:  # again until nothing is left: deep trees leave their lower part beside them
                try:
                    if stop() or not fs.remove_tree(self.trash, name, stop=stop):
                        return False
                except (OSError, RefusedForSafety) as error:
                    refused[name] = error
        if refused:
            raise next(iter(refused.values()))
        return True

    def _is_given_up(self, name: str) -> bool:
        """Whether the record that an entry of trash belongs to says so, too: until then a restart looks for it here."""
        source = f"{name.rpartition('~')[0]}.json"
        data = fs.read_file(self.volumes, source)
        return data is None or records.decode_record(data, source=source, manifests=False).state is not State.DELETING


def missing_directory(path: str, record: VolumeRecord, found: int | None) -> str:
    """What to say when a volume's directory is not what its record says."""
    what = "is not there" if found is None else f"is another directory now (inode {found}, was {record.inode})"
    return (
        f"{path}: the directory {record.directory!r} of {record.pv} {what}. Nothing was changed. "
        "If it was moved, move it back; if it was removed on purpose, take the finalizer off the PV."
    )


def _allowed(operation: Callable[[], object]) -> bool:
    try:
        operation()
    except (PermissionError, NotImplementedError):
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


_UNSUPPORTED = frozenset({22, 38, 95})  # EINVAL, ENOSYS, EOPNOTSUPP


def _is_not_empty(error: OSError) -> bool:
    return error.errno in (39, 17)  # ENOTEMPTY; some servers say EEXIST
