"""The child process of a pair: makes the passes over its volumes, with both roots open.

Requests come as (operation, argument) over socket pairs, one at a time on each, as in `export/worker.py`; while a pass
is under way the child may ask its parent to raise the active's seq. Writes on the standby only: in its own directory
below work/, in trash/ and sync/, and through the engine in the volume's directory. Invariant: before the first write
of a pass both sides were proven, the active's seq was raised, and the pass is noted on disk; the note goes, and the
base comes, only when the engine says that the copy is clean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from nfs_provisioner import memory
from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export import kept, syncrecord
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.syncrecord import SyncRecord
from nfs_provisioner.export.worker import LeaseEnd, die_with_parent, pack_error, unpack_error
from nfs_provisioner.replication.hints import tell
from nfs_provisioner.replication.holds import probe
from nfs_provisioner.replication.indexes import Indexes
from nfs_provisioner.replication.pairtalk import SHOWN, UNWRITABLE, Beat, Expected, Found, Report, Request
from nfs_provisioner.replication.sides import Side, prove
from nfs_provisioner.replication.volumepass import VolumePass, Workplace
from nfs_provisioner.replication.watcher import Watcher

_READERS = 16
_UNWRITABLE = fs.FULL | {errno.EROFS}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PairWorker:
    """The operations. `open` comes first."""

    def __init__(self, active: str, standby: str, lease: LeaseEnd, beat: Beat) -> None:
        self._paths = active, standby
        self._lease = lease
        self.beat = beat
        self._sides: tuple[Side, Side] | None = None
        self._expected: Expected | None = None
        self._staging_name = ""
        self.usage = Indexes()
        self._deleted: Counter[str] = Counter()
        self._deleting = threading.Lock()

    def open(self, expected: Expected, term: str, slot: int) -> Found:
        """Open and prove both roots, take over from an earlier child, and read how far the copies are."""
        if self._sides is not None:
            raise RefusedForSafety("the pair is open already")
        self._lease.check()
        active = Side(self._paths[0])
        try:
            standby = Side(self._paths[1])
        except OSError:
            active.close()
            raise
        try:
            self.beat.bump(slot)
            prove(active, standby, expected)
            self._take_over(standby, term)
        except BaseException:
            active.close()
            standby.close()
            raise
        self._sides, self._expected = (active, standby), expected
        return Found(
            active.local and standby.local, expected.active.promotion, self._read_all(slot), self.holds.lacking()
        )

    def _take_over(self, standby: Side, term: str) -> None:
        """Sweep what an earlier child left, and make our own directory in work/: only this child writes now."""
        control = standby.control
        self.works, self.trash, self.sync = (os.open(n, _DIRECTORY, dir_fd=control) for n in ("work", "trash", "sync"))
        for old in filter(kept.is_staging, os.listdir(self.works)):
            kept.sweep(self.works, self.trash, old)
        self._staging_name = f"{kept.STAGING}{term}-{os.urandom(6).hex()}"
        os.mkdir(self._staging_name, 0o700, dir_fd=self.works)
        self.staging = os.open(self._staging_name, _DIRECTORY, dir_fd=self.works)
        self.holds = probe(self.staging)

    def close(self) -> None:
        """Give the descriptors back. Not while a pass is under way."""
        if self._sides is not None:
            for side in self._sides:
                side.close()
            for fd in (self.works, self.trash, self.sync, self.staging):
                os.close(fd)
            self._sides = None

    def _read_all(self, slot: int) -> dict[str, SyncRecord]:
        def read(name: str) -> SyncRecord:
            self.beat.bump(slot)
            found = syncrecord.decode_sync(fs.read_file(self.sync, name))
            return replace(found, missed=(), unstable=(), foreign=found.foreign[:SHOWN])

        names = [n for n in os.listdir(self.sync) if n.endswith(".json") and not n.endswith(".dirs.json")]
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(zip(names, memory.few_at_once(pool, read, names), strict=True))

    @contextlib.contextmanager
    def active_volume(self, pv: str) -> Iterator[int]:
        """A volume's directory on the active side, to be watched."""
        if self._sides is None:
            raise RetryLater("the pair is not open yet")
        active = self._sides[0]
        with active.volume(active.record(pv)) as directory:
            yield directory

    def guard(self) -> None:
        """Before each step: the lease still holds, and no newer worker of the standby has taken over."""
        self._lease.check()
        if not fs.exists(self.works, self._staging_name):
            raise RetryLater(f"{self._paths[1]}: a newer worker took this replica over")

    def run(self, request: Request, slot: int, raise_seq: Callable[[], int]) -> Report:
        """One pass. Raises what ended it."""
        if self._sides is None or self._expected is None:
            raise RetryLater("the pair is not open yet")
        self.guard()
        prove(*self._sides, self._expected)
        active, standby = self._sides
        mine, theirs = active.record(request.pv), standby.record(request.pv)
        if (mine.rev, mine.directory, mine.tree) != (theirs.rev, theirs.directory, theirs.tree):
            raise RetryLater(f"{request.pv}: the standby has not followed its record yet")
        if mine.rev != request.rev:
            raise RetryLater(f"{request.pv}: its record changed meanwhile")
        with active.volume(mine) as source, standby.volume(theirs) as target, self._workplace(slot) as workplace:
            made = VolumePass(self, request, (mine, theirs), workplace, slot, raise_seq)
            try:
                return made.make(source, target)
            except BaseException:
                self.usage.forget(request.pv)  # what this pass was to look at is not looked at by the next partial one
                raise

    @contextlib.contextmanager
    def _workplace(self, slot: int) -> Iterator[Workplace]:
        """The slot's own two directories: they stay, so that a pass that finds nothing writes nothing."""
        stage, spare = f"stage-{slot}", f"spare-{slot}"
        for name in (stage, spare):
            fs.make_directory(self.staging, name, 0o700)
        with fs.opened(self.staging, stage) as staging, fs.opened(self.staging, spare) as keeping:
            for left in os.listdir(staging):  # of a pass that failed
                fs.remove_tree(staging, left)
            workplace = Workplace(staging, keeping, spare)
            try:
                yield workplace
            finally:
                if workplace.kept_as:
                    kept.keep(self.staging, workplace.kept_as, self.trash)

    def prove(self, records: tuple[VolumeRecord, VolumeRecord]) -> int:
        """Both sides and the volume's directories, anew; the active's seq."""
        assert self._sides is not None and self._expected is not None
        self.guard()
        seq = prove(*self._sides, self._expected).seq
        for side, record in zip(self._sides, records, strict=True):
            side.still_there(record)
        return seq

    def note_deleted(self, pv: str, entries: int) -> None:
        """So many went from this volume's copy. From any thread."""
        with self._deleting:
            self._deleted[pv] += entries

    def deleted(self, pv: str, *, told: bool = False) -> int:
        """Entries that went, and that nobody was told of, because the passes failed. `told`: now somebody is."""
        with self._deleting:
            return self._deleted.pop(pv, 0) if told else self._deleted[pv]

    @property
    def local(self) -> bool:
        """Whether both sides are disks of this machine."""
        assert self._sides is not None
        return all(side.local for side in self._sides)

    @property
    def promotion(self) -> str:
        """Of the active side, as it was proven."""
        assert self._expected is not None
        return self._expected.active.promotion

    def write(self, name: str, data: bytes) -> None:
        """A file in sync/, durably."""
        self.guard()
        staged = fs.StagedFile(self.staging, f"{name[:200]}.{os.urandom(4).hex()}", data)
        staged.sync()
        staged.publish(self.sync, name)
        os.fsync(self.sync)


def serve(connection: Connection, worker: PairWorker, slot: int) -> None:
    """Answer the requests of one connection until the parent closes it or dies."""

    def raise_seq() -> int:
        connection.send(("raise_seq", None, None))
        seq, packed = connection.recv()
        if packed is not None:
            raise unpack_error(packed)
        return int(seq)

    while True:
        try:
            operation, arguments = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        result: Any = None
        packed = None
        try:
            if operation == "open":
                result = worker.open(arguments[0], arguments[1], slot)
            else:
                result = worker.run(arguments[0], slot, raise_seq)
        except EOFError:  # the parent went while it was asked
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the parent must hear of it
            packed = _packed(error)
        try:
            connection.send(("done", result, packed))
        except OSError:
            os._exit(0)
        if operation == "open":
            result = None
            memory.give_back()


def _packed(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:  # the source is never written
        error = RetryLater(f"the standby cannot be written: {error.strerror}", reason=UNWRITABLE)
    return pack_error(error, "passing")


def main() -> None:
    """Entry point: pairwork.py SOCKET_FD,SOCKET_FD,... LEASE_FD BEAT_FD ACTIVE STANDBY."""
    sockets, lease, beat, active, standby = sys.argv[1:]
    die_with_parent()
    memory.one_arena()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.umask(0)
    os.nice(5)  # claims come first
    worker = PairWorker(active, standby, LeaseEnd(int(lease)), Beat(int(beat)))
    first, *others, hints = [Connection(int(fd)) for fd in sockets.split(",")]
    try:
        watcher = Watcher(worker.active_volume)
        threading.Thread(target=tell, args=(hints, watcher), daemon=True).start()
    except OSError as error:  # fs.inotify.max_user_instances; the comparisons do without
        print(f"pair: file-system events cannot be had: {error}", file=sys.stderr, flush=True)
        hints.close()
    for slot, connection in enumerate(others, start=1):
        threading.Thread(target=serve, args=(connection, worker, slot), daemon=True).start()
    serve(first, worker, 0)


if __name__ == "__main__":
    main()
