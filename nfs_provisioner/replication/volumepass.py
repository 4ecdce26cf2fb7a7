"""One pass over one volume of a pair: its records on the standby, and what comes before its first write.

Runs in the child process, on descriptors that `pairwork.py` opened. Writes through the engine, and in sync/ by the
worker. Invariant: the note of a pass that may have left the copy between two states goes only when a pass over the
whole volume ended clean; and while something on the standby is known to be somebody else's, nothing is written there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nfs_provisioner.errors import RefusedForSafety
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export import kept, syncrecord
from nfs_provisioner.export.paths import record_file_name
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.syncrecord import Base, SyncRecord, UnderWay
from nfs_provisioner.replication import tree
from nfs_provisioner.replication.breaker import may_delete
from nfs_provisioner.replication.entries import DirectoryId
from nfs_provisioner.replication.job import LOCAL_THREADS
from nfs_provisioner.replication.pairtalk import ROLLED_BACK, SHOWN, Report, Request
from nfs_provisioner.replication.passes import Job, Result, run_pass

if TYPE_CHECKING:
    from nfs_provisioner.replication.pairwork import PairWorker

_THREADS = 32


@dataclass(slots=True)
class Workplace:
    """Where a pass stages, and where it keeps what it replaces. `kept_as`: what that is called, once it wrote."""

    staging: int
    keeping: int
    spare: str
    kept_as: str = ""


class VolumePass:
    """`make` is called once."""

    def __init__(
        self,
        worker: PairWorker,
        request: Request,
        records: tuple[VolumeRecord, VolumeRecord],
        workplace: Workplace,
        slot: int,
        raise_seq: Callable[[], int],
    ) -> None:
        self._worker, self._request, self._records, self._workplace = worker, request, records, workplace
        self._raise_seq = raise_seq
        self._slot = slot
        self._stem = record_file_name(request.pv).removesuffix(".json")
        self._before = syncrecord.decode_sync(fs.read_file(worker.sync, f"{self._stem}.json"))
        self._between = self._before.under_way  # the note of a pass before this one
        base = self._before.base
        self._base = base if base is not None and base.promotion == worker.promotion else None
        self._seq = worker.prove(records)
        if self._base is not None and self._before.seq > self._seq:
            raise RefusedForSafety(
                f"the standby's copy of {request.pv} has seen seq {self._before.seq} of the active side, which says "
                f"{self._seq}: it was rolled back (restored from a backup or a snapshot?); nothing is copied from it",
                reason=ROLLED_BACK,
            )
        self._wrote = self._before.wrote or 0
        self._walking = False
        self._written = False
        self._lock = threading.Lock()

    def make(self, source: int, target: int) -> Report:
        """Compare and copy; then say how far the copy is."""
        at, base = time.time(), self._base
        directories: dict[str, DirectoryId] = {}
        if base is not None:
            directories = syncrecord.decode_directories(
                fs.read_file(self._worker.sync, f"{self._stem}.dirs.json", limit=1 << 30), base.as_of
            )
        job = self._job(source, target, directories)
        if job.foreign:
            seen = run_pass(replace(job, only=None, dry_run=True, guard=self._worker.guard))
            self._worker.beat.bump(self._slot)
            if seen.foreign:
                self._note(replace(self._before, foreign=seen.foreign))
                counts = replace(seen.counts, copied_files=0, copied_bytes=0, deleted=0)  # it only looked
                return self._report(replace(seen, clean=False, counts=counts), at, whole=True)
            self._walking = False  # they are gone
            job = replace(job, foreign=frozenset())
        result = run_pass(job)
        self._worker.beat.bump(self._slot)
        self._finish(result, directories)
        return self._report(result, at, whole=job.only is None)

    def _job(self, source: int, target: int, directories: dict[str, DirectoryId]) -> Job:
        request, worker, found = self._request, self._worker, frozenset(self._before.foreign)
        trusted = self._base is not None and self._base.as_of <= self._now()
        return Job(
            source=source,
            target=target,
            staging=self._workplace.staging,
            trash=self._workplace.keeping,
            base=self._base.as_of if self._base is not None and trusted else None,
            holds=worker.holds,
            missed=frozenset(self._before.missed),
            directories=directories,
            only=request.only,
            delete_limit=self._may_delete,
            threads=LOCAL_THREADS if worker.local else _THREADS,
            guard=self._guard,
            prove=self._prove,
            clock=None if request.clock is None else self._source_time,
            one_clock=worker.local and (self._base is None or trusted),
            wrote=self._before.wrote,
            foreign=frozenset() if request.allowed else found,
            forgiven=found if request.allowed else frozenset(),
            deleted=lambda entries: worker.note_deleted(request.pv, entries),
            progress=lambda _counts: worker.beat.bump(self._slot),
        )

    def _now(self) -> int:
        """By the source's clock. A base that is ahead of it is of a clock that was set back since: what changed then
        looks older than the base for as long as that lasts."""
        return tree.moment() if self._request.clock is None else self._source_time()

    def _may_delete(self, deletions: int, entries: int) -> bool:
        request = self._request
        before = request.deleted + self._worker.deleted(request.pv)
        of = max(entries, request.entries)
        limit = request.delete_limit
        return limit is None or may_delete(deletions, of, limit, request.allowed, before)

    def _source_time(self) -> int:
        assert self._request.clock is not None
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._request.clock

    def _prove(self) -> None:
        """At the beginning, and again before the first deletion."""
        self._worker.beat.bump(self._slot)
        self._worker.prove(self._records)
        self._walking = True

    def _guard(self) -> None:
        """Before each step. Once the engine walks, it asks for the first time when it is about to write."""
        self._worker.guard()
        if self._walking and not self._written:
            with self._lock:
                if not self._written:
                    self._begin_to_write()
                    self._written = True

    def _begin_to_write(self) -> None:
        worker = self._worker
        worker.beat.bump(self._slot)
        worker.prove(self._records)
        os.utime(self._workplace.staging)  # a standby that is read-only says so before the active's seq is raised
        self._seq = self._raise_seq()
        worker.beat.bump(self._slot)
        self._note(replace(self._before, under_way=UnderWay(self._seq, time.time_ns()), wrote=None))
        name = kept.kept_name(self._request.pv, time.time())
        if fs.exists(worker.staging, name) or fs.exists(worker.trash, name):
            name = f"{name}~{os.urandom(4).hex()}"
        os.rename(self._workplace.spare, name, src_dir_fd=worker.staging, dst_dir_fd=worker.staging)
        self._workplace.kept_as = name

    def _note(self, record: SyncRecord) -> None:
        if record != self._before:
            self._worker.write(f"{self._stem}.json", syncrecord.encode_sync(record))
            self._before = record

    def _finish(self, result: Result, directories: dict[str, DirectoryId]) -> None:
        base = self._before.base
        whole = result.clean and self._request.only is None
        if whole and (self._written or self._outdated(result)):
            base = Base(self._worker.promotion, self._seq, result.began, self._request.rev)
            index = dict(result.directories)
            if index or directories:
                data = syncrecord.encode_directories(result.began, index)
                self._worker.write(f"{self._stem}.dirs.json", data)
        self._note(
            SyncRecord(
                base=base,
                under_way=None if whole else self._between if result.clean else self._before.under_way,
                missed=tuple(sorted(result.deferred)),
                unstable=tuple(result.unstable),
                waiting=result.waiting,
                wrote=self._last_write(result),
                foreign=result.foreign,
            )
        )

    def _last_write(self, result: Result) -> int | None:
        """When we last wrote in the copy, by the standby's clock; it never goes back, though that clock may."""
        if not self._written and (self._before.wrote is not None or not result.clean):
            return self._before.wrote
        os.utime(self._workplace.staging)
        return max(self._wrote, os.fstat(self._workplace.staging).st_ctime_ns)

    def _outdated(self, result: Result) -> bool:
        """Whether what stands there is worth a write although nothing was copied."""
        base = self._base
        if base is None or base.rev != self._request.rev or self._before.under_way is not None:
            return True
        return not 0 <= result.began - base.as_of <= self._request.refresh * 1e9

    def _report(self, result: Result, at: float, *, whole: bool) -> Report:
        usage = self._worker.usage.look(self._request.pv, result.usage, at, whole=whole, complete=result.measured)
        return Report(
            clean=result.clean,
            began=result.began,
            copied_files=result.counts.copied_files,
            copied_bytes=result.counts.copied_bytes,
            deleted=result.counts.deleted,
            deleted_entries=self._worker.deleted(self._request.pv, told=True),
            entries=result.counts.entries,
            usage=usage,
            unstable=tuple(result.unstable[:SHOWN]),
            skipped=tuple(result.skipped[:SHOWN]),
            errors=tuple(result.errors[:SHOWN]),
            different=tuple(result.different[:SHOWN]),
            unstable_count=len(result.unstable),
            skipped_count=len(result.skipped),
            deferred=len(result.deferred),
            waiting=result.waiting,
            foreign=tuple(result.foreign[:SHOWN]),
            foreign_count=len(result.foreign),
        )
