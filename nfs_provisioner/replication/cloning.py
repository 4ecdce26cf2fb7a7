"""The child process of one replica, as `export/worker.py` has it, that can also fill clones: copies of other volumes.

A clone is copied by passes of the engine, within one replica, in a thread of its own; the controller asks again and
again how far it is. Writes in the clone's directory and in work/sync-clone-<hash>/, and the clone's record. Keeps:
a source is only read; a clone counts as copied when a pass over all of it was clean and its source was still in place
after that; and its directory is not given up while a thread writes to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RetryLater
from nfs_provisioner.export import clones, kept
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.root import Facts
from nfs_provisioner.export.standing import CloneStanding
from nfs_provisioner.export.store import Store
from nfs_provisioner.export.worker import LeaseEnd, Worker

if TYPE_CHECKING:  # the engine is loaded when the first clone is asked for: most children never need it
    from nfs_provisioner.replication.tally import Counts, Result

PASSES = 5  # after which files that did not hold still are the user's to stop
PAUSE = 1.0  # seconds between them
AT_ONCE = 2  # clones that are copied at the same time; others wait for their turn
STOPPING = 5.0  # seconds that somebody waits for a copy to stop; less than a call may take
NAMED = 3  # files named in a message
_SHOWN = 100
_THREADS = 16  # over a network
NICE = 5  # claims come first


class CloningWorker(Worker):
    """The operations of a replica's child, and `clone`."""

    def __init__(self, path: str, lease: LeaseEnd, *, pause: float = PAUSE) -> None:
        super().__init__(path, lease)
        self._pause = pause
        self._copies: dict[str, Copy] = {}
        self._copies_lock = threading.Lock()
        self._turns = threading.Semaphore(AT_ONCE)
        self.operations |= {"clone": self.clone, "undo": self.undo}

    def clone(self, wanted: VolumeRecord) -> CloneStanding:
        """Begin, go on, or tell how far it is; the record says when it is done. Raises what the copying ended with."""
        with self._copies_lock:
            copy = self._copies.get(wanted.pv)
            if copy is None:
                record = clones.prepare(self.store, wanted)
                if record.state is not State.CREATING or record.copied:
                    return CloneStanding(record.slim(), running=False)
                copy = self._copies[wanted.pv] = Copy(self.store, record, self._turns, self._pause)
                copy.start()
            if not copy.running:
                del self._copies[wanted.pv]
        return copy.standing()

    def undo(self, pv: str) -> VolumeRecord | None:
        """As the store's, after a copy that is under way was stopped."""
        self._stop(pv)
        try:
            return self.store.undo(pv)
        finally:
            self._trash_waits.set()

    def inspect(self) -> Facts:
        """As ever; what is copied through the old descriptors ends first."""
        for pv in list(self._copies):
            self._stop(pv)
        return super().inspect()

    def _stop(self, pv: str) -> None:
        copy = self._copies.get(pv)
        if copy is not None:
            if not copy.stop(STOPPING):
                raise RetryLater(f"{self.path}: {pv} is still being copied to; it stops as soon as the server answers")
            with self._copies_lock:
                self._copies.pop(pv, None)


class Copy:
    """One clone being filled."""

    def __init__(self, store: Store, record: VolumeRecord, turns: threading.Semaphore, pause: float) -> None:
        self._store = store
        self._record = record
        self._turns = turns
        self._pause = pause
        self._stopping = threading.Event()
        self._counted = self._before = 0, 0  # files and bytes, and those of earlier passes
        self._compared = 0  # bytes that the pass under way has looked at
        self._skipped: tuple[tuple[str, str], ...] = ()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"clone-{record.pv}", daemon=True)

    def start(self) -> None:
        """Begin, when its turn comes."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """End at the next step; False when it has not ended after that time."""
        self._stopping.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether it is neither done nor failed."""
        return self._thread.is_alive()

    def standing(self) -> CloneStanding:
        """How far it is. Raises what it ended with."""
        running = self.running
        if not running and self._error is not None:
            raise self._error
        files, size = self._counted
        return CloneStanding(self._record.slim(), running, files, size, self._skipped)

    def _run(self) -> None:
        try:
            with in_turn(self._turns, self._guard):
                self._record, result = fill(
                    self._store, self._record, guard=self._guard, progress=self._progress, between=self._between
                )
                self._skipped = result.skipped[:_SHOWN]
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, who asks next must hear of it
            self._error = error

    def _guard(self) -> None:
        if self._stopping.is_set():
            raise RetryLater(f"{self._store.path}: {self._record.pv} is not wanted any more")
        self._store.guard()

    def _progress(self, counts: Counts) -> None:
        files, size = self._before
        self._counted = files + counts.copied_files, size + counts.copied_bytes
        self._compared = counts.bytes

    def _between(self) -> None:
        files, size = self._counted
        self._before = files, max(size, self._compared)  # with what an earlier process left
        self._stopping.wait(self._pause)


@contextlib.contextmanager
def in_turn(turns: threading.Semaphore, guard: Callable[[], None]) -> Iterator[None]:
    """Wait for one of the turns, in a thread of its own, which gives way to claims; `guard` raises to wait no more."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # a thread's own, on Linux
    while not turns.acquire(timeout=0.5):
        guard()
    try:
        yield
    finally:
        turns.release()


def fill(
    store: Store,
    clone: VolumeRecord,
    *,
    guard: Callable[[], None],
    progress: Callable[[Counts], None] = lambda counts: None,
    between: Callable[[], None] = lambda: None,
) -> tuple[VolumeRecord, Result]:
    """Passes from the source to the clone until one is clean; then the record says that it is copied."""
    missed: frozenset[str] = frozenset()
    for number in range(PASSES):
        if number:
            between()
        guard()
        source = clones.source_of(store, clone)
        try:
            result = _pass(store, source, clone, missed, guard, progress)
        except RetryLater as error:
            guard()  # that it was stopped, or that somebody else took over, is no news about the copy
            raise RetryLater(f"copying claim {source.claim}: {error.message}") from error
        progress(result.counts)
        if result.clean:
            _still_there(store, source, clone)
            guard()
            return clones.finish(store, clone), result
        missed = result.deferred
    raise _not_clean(source, result)


def _pass(
    store: Store,
    source: VolumeRecord,
    clone: VolumeRecord,
    missed: frozenset[str],
    guard: Callable[[], None],
    progress: Callable[[Counts], None],
) -> Result:
    from nfs_provisioner.replication.job import LOCAL_THREADS
    from nfs_provisioner.replication.passes import Job, run_pass

    local = fs.is_local(store.root)
    with (
        clones.opened(store, source) as ours,
        clones.opened(store, clone) as theirs,
        _staging(store, clone.pv) as staging,
    ):
        job = Job(
            source=ours,
            target=theirs,
            staging=staging,
            trash=None,
            base=None,
            missed=missed,
            guard=guard,
            prove=lambda: _still_there(store, source, clone),
            progress=progress,
            threads=LOCAL_THREADS if local else _THREADS,
            one_clock=True,
        )
        return run_pass(job)


def _still_there(store: Store, source: VolumeRecord, clone: VolumeRecord) -> None:
    """What was opened is still what the records name: else files that vanish would look like files that never were."""
    now = clones.source_of(store, clone)
    if (now.directory, now.inode) != (source.directory, source.inode):
        raise RetryLater(f"{store.path}: {source.pv} was moved meanwhile; the copy goes on from where it is now")
    for record in (now, clone):
        with clones.opened(store, record):
            pass


@contextlib.contextmanager
def _staging(store: Store, pv: str) -> Iterator[int]:
    """A directory of its own in work/; a new worker of this replica sweeps it if this one cannot."""
    name = f"{kept.STAGING}clone-{hashlib.sha256(pv.encode()).hexdigest()[:32]}"
    store.guard()
    fs.remove_tree(store.works, name)  # of a pass after which it could not be removed
    os.mkdir(name, 0o700, dir_fd=store.works)
    try:
        with fs.opened(store.works, name) as fd:
            yield fd
    finally:
        with contextlib.suppress(LostLeadership, RetryLater):  # then it is not ours to remove any more
            store.guard()
            fs.remove_tree(store.works, name)


def _not_clean(source: VolumeRecord, result: Result) -> NfsProvisionerError:
    if result.errors:
        said = "; ".join(f"{path}: {why}" for path, why in result.errors[:NAMED])
        return RetryLater(f"copying claim {source.claim}: {said}")
    names = ", ".join([*result.unstable, *result.different, *sorted(result.deferred)][:NAMED]) or "its directories"
    return RetryLater(
        f"copying claim {source.claim}: files keep changing, after {PASSES} passes still {names}. Stop what writes to "
        "that claim (scale its pods to zero) until this one is Bound; what is copied stays, and it is tried again"
    )
