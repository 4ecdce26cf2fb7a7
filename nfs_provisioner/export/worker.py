"""The child process of one replica: does every file-system call on it, so that a hung server hangs nothing else.

Requests come as (operation, arguments) over socket pairs, one at a time on each, and are answered as (result, error).
Several run at once: over NFS each call costs a round trip. The end of the leader's lease
lies in memory shared with the parent and is looked at before each step, because both processes may have been stopped
since the request was sent.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

from nfs_provisioner import memory
from nfs_provisioner.errors import (
    Infeasible,
    LostLeadership,
    NfsProvisionerError,
    RefusedForSafety,
    RetryLater,
)
from nfs_provisioner.export import filesystem, moves, standby, usagefile
from nfs_provisioner.export.batch import run_together
from nfs_provisioner.export.records import MOMENT, MOVING, Identity, State, VolumeRecord
from nfs_provisioner.export.root import Abilities, Facts
from nfs_provisioner.export.store import Store

Outcome = VolumeRecord | NfsProvisionerError
"""What became of one of several volumes: its record, or its own error."""

_THREADS = 8  # requests at once where each call is a round trip
_LOCAL_THREADS = 2  # and where it is not: more only get in each other's way
_READERS = 16
_STEP = 16  # records that are finished in step
_LARGE = frozenset({"load", "read_usage", "write_usage"})  # what brings something of every volume at once
_PR_SET_PDEATHSIG = 1
_ERRORS: dict[str, type[NfsProvisionerError]] = {
    error.__name__: error for error in (RetryLater, Infeasible, RefusedForSafety, LostLeadership)
}


def pack_error(error: Exception, path: str) -> tuple[str, str, str]:
    """Name, message and reason of what a request ended with; OSErrors name the replica and what to look at."""
    if isinstance(error, NfsProvisionerError):
        name = next(n for n, kind in _ERRORS.items() if isinstance(error, kind))
        return name, error.message, error.reason
    if isinstance(error, OSError):
        name = error.filename2 or error.filename  # of a rename, what was to be
        what = f": {name}" if name else ""
        return "RetryLater", f"{path}: {error.strerror or error}{what}", "ProvisioningFailed"
    return "RefusedForSafety", f"{path}: unexpected {type(error).__name__}: {error}", "ProvisioningFailed"


def unpack_error(packed: tuple[str, str, str]) -> NfsProvisionerError:
    """The error to raise in the parent."""
    name, message, reason = packed
    return _ERRORS[name](message, reason=reason)


class LeaseEnd:
    """The moment at which acting must stop, shared with the children. Seconds of the clock that all processes of a
    machine share and that counts through suspend (CLOCK_BOOTTIME), as the elector's does."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("lease-end") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        # As one double: stored and loaded in one piece. struct.pack_into clears the bytes first, and a child that
        # looked in that moment would believe the lease lost.
        self._moment = memoryview(mmap.mmap(self.fd, mmap.PAGESIZE)).cast("d")

    def set(self, moment: float) -> None:
        """Called by the elector when a renewal succeeded (and with 0.0 when the lease is lost)."""
        self._moment[0] = moment

    def check(self) -> None:
        """Raise LostLeadership when the moment has passed."""
        if time.clock_gettime(time.CLOCK_BOOTTIME) >= self._moment[0]:
            raise LostLeadership("the lease may have passed to another controller; nothing more is changed here")


class Worker:
    """The operations, by name. Everything but `inspect` needs `attach` first."""

    def __init__(self, path: str, lease: LeaseEnd) -> None:
        self.path = path
        self._lease = lease
        self._store: Store | None = None
        self._trash_waits = threading.Event()
        self._retention: float | None = None  # of what passes kept; None: nobody has said yet
        self.operations: dict[str, Callable[..., Any]] = {
            "inspect": self.inspect,
            "attach": self.attach,
            "load": self.load,
            "space": lambda: self.store.space(),
            "unmanaged": lambda names: self.store.unmanaged(names),
            "provision": self.provision,
            "make_live": self.make_live,
            "update": lambda pv, changes, states: self.store.update(pv, changes, states=states).slim(),
            "undo": lambda pv: self.store.undo(pv),
            "adopt": lambda record: self.store.adopt(record).slim(),
            "restore": lambda record, archive: moves.restore(self.store, record, archive).slim(),
            "give_up": self.give_up,
            "forget": self.forget,
            "read_many": lambda pvs: {pv: self.store.read(pv) for pv in pvs},
            "raise_seq": lambda: self.store.raise_seq(),
            "follow": self.follow,
            "set_members": lambda members: self.store.set_members(members),
            "server_time": lambda: self.store.server_time(),
            "expire_kept": self.expire_kept,
            "read_usage": lambda: usagefile.read(self.store),
            "write_usage": lambda figures: usagefile.write(self.store, figures),
        }

    @property
    def store(self) -> Store:
        """The activated store."""
        if self._store is None or self._store.identity is None:
            raise RetryLater(f"{self.path}: not attached yet")
        return self._store

    def inspect(self) -> Facts:
        """Open the root and look at it; changes nothing."""
        store = Store(self.path, guard=self._lease.check, now=utc_now)
        facts = store.facts()
        old, self._store = self._store, store
        if old is not None:
            old.close()
        return facts

    def attach(self, identity: Identity, found: Identity | None, term: str) -> Abilities:
        """Activate with `identity`; `found` is what `inspect` saw, and must still be there."""
        store = self._store
        if store is None:
            raise RetryLater(f"{self.path}: not inspected yet")
        self._lease.check()
        if store.facts().identity != found:
            raise RefusedForSafety(f"{self.path}: export.json changed between look and start; looking again")
        store.identity = found
        abilities = store.activate(identity, term)
        threading.Thread(target=self._empty_trash, name="trash", daemon=True).start()
        return abilities

    def load(self) -> tuple[list[VolumeRecord], list[str]]:
        """All records, after finishing what an earlier worker began."""
        with ThreadPoolExecutor(_READERS) as pool:
            loaded, unreadable = self.store.load(pool)
            if any(record.state in MOVING for record in loaded) or os.listdir(self.store.work):
                _, problems = moves.recover(self.store, loaded)
                loaded, unreadable = self.store.load(pool)
                unreadable += problems
        self._trash_waits.set()
        return loaded, unreadable

    def provision(self, wanted: list[VolumeRecord]) -> list[Outcome]:
        """Make volumes; for each its record, or what is wrong with it."""
        return self._outcomes(run_together([self.store.provisioning(record) for record in wanted]))

    def make_live(self, pvs: list[str]) -> list[Outcome]:
        """Finish the records of volumes that have their PVs; for each its record, or what is wrong with it."""
        results: list[Outcome] = []
        for start in range(0, len(pvs), _STEP):  # on a slow disk, a try that does not end in time has got somewhere
            some = pvs[start : start + _STEP]
            results += self._outcomes(run_together([self.store.making_live(pv) for pv in some]))
        return results

    def give_up(self, wanted: list[moves.GiveUp]) -> list[Outcome]:
        """Archive, delete or retain; what was deleted is removed in the background."""
        try:
            return self._outcomes(moves.give_up_all(self.store, wanted))
        finally:
            self._trash_waits.set()

    def _outcomes(self, results: Sequence[VolumeRecord | Exception]) -> list[Outcome]:
        for one in results:
            if isinstance(one, LostLeadership):  # nobody's own
                raise one
        return [
            unpack_error(pack_error(one, self.path)) if isinstance(one, Exception) else one.slim() for one in results
        ]

    def forget(self, pv: str) -> None:
        """Drop a tombstone that every replica has acknowledged."""
        self.store.require(pv, states=(State.DELETED,))
        self.store.forget(pv)

    def follow(self, steps: list[standby.Step], seq: int) -> list[VolumeRecord | str]:
        """Steps of a standby towards its active's records."""
        results = standby.take_all(self.store, steps, seq)
        self._trash_waits.set()
        return [result.slim() if isinstance(result, VolumeRecord) else result for result in results]

    def expire_kept(self, retention: float) -> None:
        """Remove what passes kept longer than `retention` seconds ago, in the background."""
        self._retention = retention
        self._trash_waits.set()

    def _empty_trash(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)  # a thread's own, on Linux
        while True:
            self._trash_waits.wait()
            self._trash_waits.clear()
            for act in (self._expire_kept, lambda: self.store.empty_trash(self._must_stop)):
                try:  # what cannot be removed must not keep the other: on a full standby, that is the room there is
                    act()
                except (OSError, NfsProvisionerError) as error:
                    message = pack_error(error, self.path)[1]
                    print(f"emptying trash: {message}; tried again with the next deletion", file=sys.stderr, flush=True)

    def _expire_kept(self) -> None:
        if self._retention is not None:
            self.store.expire_kept(self._retention, self._must_stop)

    def _must_stop(self) -> bool:
        try:
            self.store.guard()
        except (LostLeadership, RetryLater):
            return True
        return False


def utc_now() -> str:
    """RFC 3339 with seconds, for records; decisions never compare it with another machine's."""
    return datetime.now(UTC).strftime(MOMENT)


def is_local(path: str) -> bool:
    """Whether the replica is a disk of this machine: calls are short, and cost processor time, not waiting."""
    try:
        fd = filesystem.open_root(path)
    except OSError:
        return False
    try:
        return filesystem.is_local(fd)
    finally:
        os.close(fd)


def serve(connection: Connection, worker: Worker, at_once: threading.Semaphore) -> None:
    """Answer the requests of one connection until the parent closes it or dies: then nothing more may be started."""
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        result, packed = None, None
        try:
            with at_once:
                result = worker.operations[name](*arguments)
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the parent must hear of it
            packed = pack_error(error, worker.path)
        try:
            connection.send((result, packed))
        except OSError:
            os._exit(0)
        if name in _LARGE:
            result = None
            memory.give_back()


def die_with_parent() -> None:
    """A child must not go on when nobody can stop it any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(make: Callable[[str, LeaseEnd], Worker] = Worker) -> None:
    """Entry point: worker.py SOCKET_FD,SOCKET_FD,... LEASE_FD PATH."""
    socket_fds, lease_fd, path = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3]
    die_with_parent()
    memory.one_arena()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.umask(0)
    worker = make(path, LeaseEnd(lease_fd))
    at_once = threading.Semaphore(_LOCAL_THREADS if is_local(path) else _THREADS)
    first, *others = [Connection(int(fd)) for fd in socket_fds]
    for connection in others:
        threading.Thread(target=serve, args=(connection, worker, at_once), daemon=True).start()
    serve(first, worker, at_once)


if __name__ == "__main__":
    main()
