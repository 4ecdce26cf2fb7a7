"""The two roots of a pair as its child process holds them: who they are, and the directory of a volume on each.

Reads only. Invariant: a descriptor of a volume's directory is given out only when this side's own record names it, by
place and inode, and no link was followed on the way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export import records
from nfs_provisioner.export.paths import record_file_name
from nfs_provisioner.export.records import CONTROL_DIRECTORY, IDENTITY_FILE, Identity, VolumeRecord
from nfs_provisioner.replication.pairtalk import DOUBT, Expected
from nfs_provisioner.replication.volumes import PASSED

_CHANGING = frozenset({"seq", "members", "parents"})  # what an identity may say anew while it stays the same
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def doubted(message: str) -> RefusedForSafety:
    """A side is not what it was, so that both are to be looked at anew."""
    return RefusedForSafety(message, reason=DOUBT)


class Side:
    """One open root. `local`: whether it is a disk of this machine."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.root = fs.open_root(path)
        try:
            self.local = fs.is_local(self.root)
            self.control = os.open(CONTROL_DIRECTORY, _DIRECTORY, dir_fd=self.root)
            try:
                self.volumes = os.open("volumes", _DIRECTORY, dir_fd=self.control)
            except OSError:
                os.close(self.control)
                raise
        except OSError:
            os.close(self.root)
            raise

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self.volumes, self.control, self.root):
            os.close(fd)

    def prove(self, expected: Identity) -> Identity:
        """What export.json says now. RefusedForSafety unless this is the replica, on its own disk, at its own path."""
        now, then = os.stat(self.path), os.fstat(self.root)
        if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
            raise doubted(f"{self.path}: another file system is mounted here than the one that was identified")
        try:
            with fs.opened(self.root, CONTROL_DIRECTORY) as control:
                data = fs.read_file(control, IDENTITY_FILE)
        except FileNotFoundError:
            data = None
        if data is None:
            raise doubted(f"{self.path}: {IDENTITY_FILE} is gone: this may be another disk")
        found = records.decode_identity(data, source=f"{self.path}/{CONTROL_DIRECTORY}/{IDENTITY_FILE}")
        for field in fields(Identity):
            is_now, was = getattr(found, field.name), getattr(expected, field.name)
            if field.name not in _CHANGING and is_now != was:
                raise doubted(
                    f"{self.path}: {IDENTITY_FILE} says {field.name} {is_now}, not {was} as when the pair was proven; "
                    "nothing is copied until it is looked at anew"
                )
        handle = fs.root_handle(self.root)
        if handle != found.root:
            raise doubted(f"{self.path}: its root is {handle}, and {IDENTITY_FILE} was written on {found.root}")
        return found

    def record(self, pv: str) -> VolumeRecord:
        """The record of `pv` as it is now. RetryLater when its directory is not one to be passed now."""
        name = record_file_name(pv)
        data = fs.read_file(self.volumes, name)
        if data is None:
            raise RetryLater(f"{self.path}: there is no record of {pv} now")
        record = records.decode_record(data, source=f"{self.path}/{CONTROL_DIRECTORY}/volumes/{name}", manifests=False)
        if record.pv != pv:
            raise RefusedForSafety(f"{self.path}: the record {name} says it belongs to {record.pv}, not to {pv}")
        if record.state not in PASSED:
            raise RetryLater(f"{self.path}: {pv} is {record.state} now")
        return record

    @contextlib.contextmanager
    def volume(self, record: VolumeRecord) -> Iterator[int]:
        """Descriptor of the record's directory."""
        with fs.parent_of(self.root, record.directory) as (parent, name):
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            inode = os.fstat(fd).st_ino
            if inode != record.inode:
                raise RefusedForSafety(
                    f"{self.path}: {record.directory!r} is another directory than the one of {record.pv} "
                    f"(inode {inode}, was {record.inode}); it is not touched"
                )
            yield fd
        finally:
            os.close(fd)

    def still_there(self, record: VolumeRecord) -> None:
        """RetryLater or RefusedForSafety unless the record still says the same, and its path leads where it did."""
        now = self.record(record.pv)
        if (now.directory, now.inode, now.tree) != (record.directory, record.inode, record.tree):
            raise RetryLater(f"{self.path}: {record.pv} was moved meanwhile")
        if fs.inode_at(self.root, record.directory) != record.inode:
            raise RefusedForSafety(f"{self.path}: {record.directory!r} is not the directory of {record.pv} any more")


def prove(active: Side, standby: Side, expected: Expected) -> Identity:
    """Both sides, and which of them is newer; what the active says. RefusedForSafety when anything is in doubt.

    The standby first: its seq follows the active's, so a seq raised between the two looks must not look like a
    rollback.
    """
    theirs = standby.prove(expected.standby)
    mine = active.prove(expected.active)
    if mine.active != mine.replica or theirs.active != mine.replica or mine.pair != theirs.pair:
        raise doubted(f"{active.path} is not the active side of {standby.path}")
    if theirs.seq > mine.seq:
        raise doubted(
            f"{standby.path} has seen seq {theirs.seq} of the active side, and {active.path} says {mine.seq}: it was "
            "rolled back (restored from a backup or a snapshot?); nothing is copied from it"
        )
    return mine
