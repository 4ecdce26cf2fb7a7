"""One replica's root as such: whose it is, which term writes to it, what its server can do.

Runs in the child process of the replica. Writes nothing but `export.json` and its like, the term's own directory and
probes in it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.export import batch, kept, records
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.batch import Change
from nfs_provisioner.export.records import CONTROL_DIRECTORY, IDENTITY_FILE, Identity

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

    @property
    def local(self) -> bool:
        """Whether it is a disk of this machine."""
        return self.filesystem in fs.LOCAL_TYPES


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the server behind this replica lets the controller do, found by trying."""

    chown: bool
    links: bool
    nanoseconds: bool
    root: bool  # this process is root, so a refused chown means root_squash


@dataclass(frozen=True, slots=True)
class Space:
    """statvfs of the replica, in bytes and inodes; `inodes_free` is None where there is no limit to them."""

    size: int
    free: int  # for everybody
    inodes_free: int | None
    used: int  # what only root may still use is neither free nor used: `df` counts the same
    device: int  # equal on one file system


class Root:
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
        self.root_sync = fs.GroupSync(self.root)

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
        if self.identity is None or self.identity.root != identity.root:
            self.relearn()  # before the new root is written down: cut off in between, it is done again
        if identity != self.identity:
            self.write_identity(identity)
        os.fsync(self.control)
        self.root_sync.sync()
        self.abilities = self._probe()
        return self.abilities

    def relearn(self) -> None:
        """A person vouched for a tree that was copied here: for those who know more of it than its root."""

    def close(self) -> None:
        """Give the descriptors back. Only for a store that is replaced; calls under way fail."""
        for name in ("root", "control", "volumes", "works", "work", "trash", "lost", "sync"):
            fd = getattr(self, name, None)
            if fd is not None:
                os.close(fd)

    def _start_term(self, term: str) -> None:
        """Make work/<term> and take over what older terms left: files are garbage, directories somebody's data.

        What passes staged is neither: copies of what the other side has. It goes to trash, never to lost/.
        """
        self._term = f"{term}-{os.urandom(4).hex()}"
        os.mkdir(self._term, 0o700, dir_fd=self.works)
        self.work = os.open(self._term, fs._DIRECTORY, dir_fd=self.works)
        for old in os.listdir(self.works):
            if old == self._term:
                continue
            if kept.is_staging(old):
                kept.sweep(self.works, self.trash, old)
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
        self.write_control(IDENTITY_FILE, records.encode_identity(identity))
        self.identity = identity

    def write_control(self, name: str, data: bytes) -> None:
        """Replace a file that belongs to the replica as a whole, durably and in one step."""
        self.guard()
        batch.run(self._writing(self.control, name, data))
        os.fsync(self.control)

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
        """Size, what is taken and what is left; checks on the way that the mount is still the same."""
        self.still_mounted()
        found = os.fstatvfs(self.root)
        return Space(
            size=found.f_blocks * found.f_frsize,
            free=found.f_bavail * found.f_frsize,
            inodes_free=found.f_favail if found.f_files else None,
            used=max(0, found.f_blocks - found.f_bfree) * found.f_frsize,
            device=os.fstat(self.root).st_dev,
        )

    def _writing(self, directory: int, name: str, data: bytes, first: batch.Sync | None = None) -> Change[None]:
        try:
            staged = fs.StagedFile(self.work, f"r{self._counter()}", data)
        except OSError as error:
            error.filename = name  # what people can look for, and the same at each try
            raise
        yield staged.sync
        try:
            if first is not None:
                yield first
            self.guard()
        except Exception:
            staged.drop()
            raise
        staged.publish(directory, name)


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
