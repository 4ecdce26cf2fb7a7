"""What the parts of one pass share: the job, the threads, the tally, and the directories whose times come last.

Used by the thread that walks only. Keeps: the descriptor that syncfs is asked through was opened before the first
write, so that no error of writing is missed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from nfs_provisioner.errors import RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.replication import tree
from nfs_provisioner.replication.copier import Copier, Done
from nfs_provisioner.replication.entries import Rules
from nfs_provisioner.replication.foreign import Foreign
from nfs_provisioner.replication.inspection import Inspector
from nfs_provisioner.replication.job import LOCAL_THREADS, Job
from nfs_provisioner.replication.links import Links
from nfs_provisioner.replication.tally import Counts, Tally
from nfs_provisioner.replication.trash import Trash
from nfs_provisioner.replication.workers import Workers

_T = TypeVar("_T")

PATIENCE = 20.0
"""Seconds for which calls may hang before progress stops being told."""

SYNC_PATIENCE = 600.0
"""The same for a syncfs: a slow disk takes its time to write what is staged."""


class Course:
    """One pass under way. `began` and `synced`: its start, and the target's descriptor for syncfs."""

    def __init__(self, job: Job, began: int, synced: int) -> None:
        self.job, self.began, self.synced = job, began, synced
        device, cached = os.fstat(job.source).st_dev, not fs.is_local(job.source)
        self.rules = Rules(job.holds, job.base, job.one_clock, job.checksum, device, cached)
        self.distant = job.threads > LOCAL_THREADS
        self.chunk = 16 if self.distant else 64
        self.tally = Tally()
        trash = Trash(job.trash, job.staging)
        self.copier = Copier(job.target, job.staging, trash, self.rules, self.guard, self.pulse, dry_run=job.dry_run)
        self.inspector = Inspector(job.target, self.copier, self.rules, self.guard, self.pulse)
        self.links = Links(job.source, job.target, self.rules, self.copier, self.inspector, self.guard)
        self.workers = Workers(job.threads if self.distant else max(1, job.threads - 1), self.tick, self.pulse)
        self.touched: dict[str, os.stat_result | None] = {}
        """Directories of the target whose times are to be set at the end, to the source's (None: look again)."""
        self.foreign: Foreign | None = None
        if job.wrote is not None or job.foreign:
            self.foreign = Foreign(job.wrote, job.foreign, job.staging, job.forgiven)
        self.full = False
        self.wrote = False
        """Whether anything was written, or was about to be."""
        self._told = 0.0
        self._alive = time.monotonic()
        self._patience = PATIENCE

    def counts(self) -> Counts:
        """What was counted so far."""
        return self.tally.counts()

    def guard(self) -> None:
        """Before each write."""
        self.wrote = True
        self.job.guard()
        if self.foreign is not None:
            self.foreign.begin()

    def pulse(self) -> None:
        """From any thread: something went on."""
        self._alive = time.monotonic()

    def beat(self) -> None:
        """Between parts of a long task, in whichever thread does it: the walking one tells the counts as well."""
        self.pulse()
        if not self.distant:
            self.tick()

    def tick(self) -> None:
        """Tell the counts, at most ten times a second; not while every call hangs, so that this shows."""
        now = time.monotonic()
        if now - self._told >= 0.1 and now - self._alive < self._patience:
            self._told = now
            self.job.progress(self.counts())

    def done(self, path: str, done: Done) -> None:
        """Note what became of entries of the directory `path`."""
        self.tally.done(path, done)
        self.full = self.full or done.full

    def sync(self, fd: int, side: str) -> None:
        """syncfs, with the counts told meanwhile. RetryLater when anything written was lost."""
        self.workers.run(self.syncing(fd, side))

    def syncing(self, fd: int, side: str) -> Callable[[], None]:
        """The same as a task."""

        def sync() -> None:
            self._patience = SYNC_PATIENCE
            try:
                tree.sync_filesystem(fd)
            except OSError as error:
                raise RetryLater(f"writing to the {side}'s disk failed (syncfs: {error.strerror})") from error
            finally:
                self._patience = PATIENCE
                self.pulse()

        return sync

    def each(self, tasks: Sequence[Callable[[], _T]], then: Callable[[_T], None]) -> None:
        """All of the tasks: by the workers where each call waits for a network, else here."""
        for task in tasks:
            if self.distant:
                self.workers.submit(task, then)
                self.workers.wait(self.workers.threads * 4)
            else:
                then(task())
                self.tick()
        if self.distant:
            self.workers.wait()

    def portions(self, items: Sequence[_T]) -> Iterator[Sequence[_T]]:
        """In slices for one task each."""
        return (items[start : start + self.chunk] for start in range(0, len(items), self.chunk))
