"""Drives a pair: the mirror of its records, and the passes over its volumes. What an export knows as its partner.

One thread decides whose turn it is (`pair.py`), one more for each pass under way waits for the child process. Touches
no file. Invariant: no pass begins before the mirror has compared everything once, nor for a volume whose record the
standby does not hold alike; with `stop` nothing new begins, and the child is killed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from time import monotonic

from nfs_provisioner.config import ReplicationSpec
from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.paths import record_file_name
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.standing import PairStanding, VolumeStanding
from nfs_provisioner.export.syncrecord import SyncRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.metrics import Metrics
from nfs_provisioner.replication.explained import NAMED, explained, foreign, not_ours, stalled
from nfs_provisioner.replication.mirror import Mirror
from nfs_provisioner.replication.pair import Ended, Kept, Pair, Turn
from nfs_provisioner.replication.pairprocess import PairProcess
from nfs_provisioner.replication.pairtalk import (
    DOUBT,
    FOREIGN,
    ROLLED_BACK,
    UNWRITABLE,
    WHOLE,
    Expected,
    Found,
    Report,
    Request,
)
from nfs_provisioner.replication.stops import Stops
from nfs_provisioner.replication.volumes import PASSED, lies_still, outermost

log = logging.getLogger(__name__)

LOCAL_LANES = 2  # passes at once where both sides are disks of this machine
LANES = 4
FIRST_PAUSE = 1.0  # seconds before a child that failed is replaced; doubles
LONGEST_PAUSE = 30.0
CLOCK_EVERY = 10.0  # seconds for which the offset of a server's clock is believed
DOUBT_EVERY = 60.0  # seconds between two times that both sides are judged anew
EXPIRE_EVERY = 60.0  # seconds between looks for what was kept long enough


@dataclass(frozen=True, slots=True)
class Around:
    """What a pair is given: the process around it, its export's settings, and whom to tell."""

    lease: LeaseEnd
    term: Callable[[], str]
    metrics: Metrics
    settings: Callable[[], ReplicationSpec]
    unlimited: Callable[[str], bool] = lambda pv: False  # whether this volume lives by deleting
    busy: Callable[[], bool] = lambda: False
    on_event: Callable[[str, str, str, bool], None] = lambda *_: None  # export, reason, message, warning
    on_status: Callable[[str], None] = lambda export: None
    on_usage: Callable[[str, Usage], None] = lambda pv, usage: None  # what a pass saw that a volume takes


class Driver:
    """One pair, from the standby's attachment to its end."""

    def __init__(
        self,
        export: str,
        catalog: Catalog,
        active: Attachment,
        standby: Attachment,
        standby_records: list[VolumeRecord],
        around: Around,
    ) -> None:
        self._export = export
        self._catalog = catalog
        self._active = active
        self._standby = standby
        self._around = around
        self._mirror = Mirror(
            export, catalog, active, standby, standby_records, busy=around.busy, on_compared=self._compared
        )
        self._lock = threading.Lock()
        self._pair = Pair(around.settings().interval)
        self._within: dict[str, str] = {}
        self._process: PairProcess | None = None
        self._lanes = LOCAL_LANES if _is_local(active) and _is_local(standby) else LANES
        self._running = 0
        self._follows = False  # the mirror has compared once
        self._changed = False  # the volumes may be others now
        self._known = False  # the standby was asked how far it is
        self._stops = Stops()
        self._doubted = -math.inf
        self._measured = -math.inf, 0  # when, and the source's clock less CLOCK_BOOTTIME in ns
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pair-{export}", daemon=True)

    # -- what an export asks ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with the mirror's comparison."""
        self._mirror.start()
        self._thread.start()

    def stop(self) -> None:
        """End; waits for nobody."""
        self._stopped.set()
        self._mirror.stop()
        self._wake.set()
        process = self._process
        if process is not None:
            process.close()

    def wake(self) -> None:
        """A record of the active changed."""
        self._mirror.wake()

    def acknowledged(self, pv: str) -> bool:
        """Whether the standby holds nothing under this name any more."""
        return self._mirror.acknowledged(pv)

    def dirty(self, pv: str, directories: Iterable[str] | None) -> None:
        """Something changed in these directories of a volume (None: somewhere): a hint, to look there soon."""
        with self._lock:
            self._pair.dirty(self._within.get(pv, pv), directories if pv not in self._within else None, monotonic())
        self._wake.set()

    def confirm(self, pv: str) -> int:
        """A person wants the deletions that wait there, once; how many, 0 when none do."""
        with self._lock:
            confirmed = self._pair.confirm(self._within.get(pv, pv), monotonic())
        self._wake.set()
        return confirmed

    def standing(self) -> PairStanding:
        """How far the standby is."""
        with self._lock:
            known = self._pair.standing(monotonic()) if self._known else PairStanding()
        return replace(known, stopped=self._stops.refused)

    def volume(self, pv: str) -> VolumeStanding | None:
        """How far one volume's copy is."""
        with self._lock:
            return self._pair.volume(self._within.get(pv, pv), monotonic())

    @property
    def halted(self) -> str:
        """What does not go on by itself, or not for now: the standby does not follow."""
        return self._halted(self.standing())

    def _halted(self, standing: PairStanding) -> str:
        longest = self._around.settings().max_lag
        late = f"the standby lags by more than maxLag ({longest:g} s)" if standing.behind > longest else ""
        stopped = standing.stopped or self._stops.troubled
        return "; ".join(part for part in (self._mirror.message, stopped, late) if part)

    @property
    def message(self) -> str:
        """What a person should know; empty when all is well."""
        standing = self.standing()
        waits = [stalled(self._export, pv, count) for pv, count in standing.waiting[:NAMED]]
        return "; ".join(part for part in (self._halted(standing), *waits) if part)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _compared(self) -> None:
        with self._lock:
            self._follows, self._changed = True, True
        self._wake.set()

    def _run(self) -> None:
        pause, again, expire = FIRST_PAUSE, 0.0, 0.0
        try:
            while not self._stopped.is_set():
                self._wake.wait(self._idle(again, expire))
                self._wake.clear()
                if self._stopped.is_set() or not self._follows:
                    continue
                try:
                    if monotonic() >= again:
                        self._open_if_needed()
                        pause, again = FIRST_PAUSE, 0.0
                    if monotonic() >= expire:
                        expire = monotonic() + EXPIRE_EVERY
                        self._standby.replica.call("expire_kept", self._around.settings().trash_retention)
                    self._begin_due()
                except LostLeadership:
                    return
                except NfsProvisionerError as error:
                    self._tell_trouble(error)
                    again, pause = monotonic() + pause, min(2 * pause, LONGEST_PAUSE)
                except Exception as error:  # the last resort: a thread that ended would leave the standby behind
                    log.exception("pair %s: unexpected error; going on", self._export)
                    self._tell_trouble(RefusedForSafety(f"unexpected {type(error).__name__}: {error}"))
                    again, pause = monotonic() + LONGEST_PAUSE, LONGEST_PAUSE
        finally:
            if self._process is not None:
                self._process.stop()

    def _idle(self, again: float, expire: float) -> float:
        """Seconds until there may be something to do."""
        if not self._follows:
            return LONGEST_PAUSE
        now = monotonic()
        with self._lock:
            due = self._pair.wait(now) if self._running < self._lanes and self._is_up() else LONGEST_PAUSE
        broken = max(0.0, again - now) if not self._is_up() else LONGEST_PAUSE
        return min(due, broken, max(0.0, expire - now), LONGEST_PAUSE)

    def _is_up(self) -> bool:
        return self._process is not None and self._process.up

    def _open_if_needed(self) -> None:
        """A child with both roots open; and, from the first, what the standby says of its copies."""
        if self._is_up():
            return
        active, standby = self._active, self._standby
        mine, theirs = active.attached, standby.attached
        if mine is None or theirs is None:
            raise RefusedForSafety("a side is not attached any more")  # this pair ends in a moment
        if self._process is None:
            process = PairProcess(
                self._export, active.replica.path, standby.replica.path, self._around.lease, self._raise_seq,
                lanes=self._lanes, on_dirty=self.dirty,
            )  # fmt: skip
            self._process = process
            if self._stopped.is_set():
                return
        self._process.start()
        found: Found = self._process.call("open", Expected(mine, theirs), self._around.term())
        if found.lacks and not self._known:
            lacks = ", ".join(found.lacks)
            log.warning("export %s: the standby %s cannot hold: %s", self._export, standby.name, lacks)
        server_now, now = float(active.replica.call("server_time")), monotonic()
        with self._lock:
            self._refresh(now)
            for record in self._catalog.all():
                copy = found.records.get(record_file_name(record.pv))
                if copy is not None and self._pair.volume(record.pv, now) is not None:
                    self._learned(record.pv, copy, found.promotion, server_now, now)
            self._known = True
        self._stops.opened()
        self._around.on_status(self._export)

    def _learned(self, pv: str, copy: SyncRecord, promotion: str, server_now: float, now: float) -> None:
        """What the standby says of one copy. Under the lock."""
        count = len(copy.foreign)
        if count:
            ended = Ended(clean=False, foreign=count, message=not_ours(copy.foreign))
            self._stops.refuse(pv, foreign(self._export, pv, ended))
        if copy.base is not None and copy.base.promotion == promotion:
            age, doubtful = server_now - copy.base.as_of / 1e9, copy.under_way is not None
            self._pair.learned(pv, age, copy.base.rev, now, time.time(), doubtful=doubtful, foreign=count)

    def _refresh(self, now: float) -> None:
        """Which volumes there are."""
        self._changed = False
        records = {record.pv: record for record in self._catalog.all() if record.state in PASSED}
        self._within = outermost(records)
        kept = {
            pv: Kept(record.rev, lies_still(record), self._mirror.follows(record))
            for pv, record in records.items()
            if pv not in self._within
        }
        self._pair.keep(kept, now)
        self._stops.keep(kept)
        if self._process is not None and _is_local(self._active):
            self._process.watch(pv for pv, record in records.items() if pv in kept and not lies_still(record))

    def _begin_due(self) -> None:
        if not self._is_up():
            return
        while self._running < self._lanes:
            now = monotonic()
            with self._lock:
                self._pair.interval = self._around.settings().interval
                if self._changed:
                    self._refresh(now)
                turn = self._pair.next(now)
                if turn is None:
                    return
                self._running += 1
            threading.Thread(target=self._pass, args=(turn,), name=f"pass-{self._export}", daemon=True).start()

    def _raise_seq(self) -> int:
        """The active's seq, before the standby is written: an active that was rolled back is behind its standby."""
        seq = int(self._active.replica.call("raise_seq"))
        self._active.note_seq(seq)
        try:
            self._standby.replica.call("follow", [], seq)
        except RetryLater as error:
            raise RetryLater(f"the standby {self._standby.name}: {error.message}", reason=UNWRITABLE) from error
        self._standby.note_seq(seq)
        return seq

    # -- one pass -----------------------------------------------------------------------------------------------------

    def _pass(self, turn: Turn) -> None:
        began = monotonic()
        try:
            ended = self._make(turn)
        except LostLeadership:
            self._stopped.set()
            ended = Ended(clean=False, failed=True)
        except NfsProvisionerError as error:
            level = logging.WARNING if isinstance(error, RefusedForSafety) else logging.INFO
            log.log(level, "export %s: volume %s: the pass ended: %s", self._export, turn.pv, error.message)
            if error.reason in WHOLE:
                self._tell_trouble(error, turn.pv)
            ended = Ended(clean=False, failed=True, message=error.message)
        except Exception as error:  # the last resort: a volume whose pass never ended would have no other
            log.exception("export %s: volume %s: unexpected error", self._export, turn.pv)
            ended = Ended(clean=False, failed=True, message=f"unexpected {type(error).__name__}: {error}")
        if not self._stopped.is_set():
            result = "clean" if ended.clean else "failed" if ended.failed else "unclean"
            self._around.metrics.replication_passes_total.labels(self._export, result).inc()
            self._around.metrics.replication_pass_duration_seconds.labels(self._export).observe(monotonic() - began)
        self._note(turn, ended)

    def _make(self, turn: Turn) -> Ended:
        assert self._process is not None
        if elsewhere := self._stops.elsewhere(turn.pv):
            raise RetryLater(elsewhere)
        settings = self._around.settings()
        limit = None if self._around.unlimited(turn.pv) else settings.delete_limit
        request = Request(
            turn.pv, turn.rev, turn.only, limit, turn.allowed, turn.deleted, turn.entries,
            refresh=settings.max_lag / 4, clock=self._clock(),
        )  # fmt: skip
        report: Report = self._process.call("pass", request)
        if report.usage is not None and not self._stopped.is_set():
            self._around.on_usage(turn.pv, report.usage)
        metrics = self._around.metrics
        metrics.replication_copied_files_total.labels(self._export).inc(report.copied_files)
        metrics.replication_copied_bytes_total.labels(self._export).inc(report.copied_bytes)
        metrics.replication_deleted_files_total.labels(self._export).inc(report.deleted)
        return Ended(
            clean=report.clean,
            waiting=report.waiting,
            unstable=report.unstable_count,
            skipped=report.skipped_count,
            foreign=report.foreign_count,
            deleted=report.deleted_entries,
            entries=report.entries,
            message=explained(report),
        )

    def _clock(self) -> int | None:
        """What makes CLOCK_BOOTTIME the active server's clock, rather behind than ahead of it; None on a local disk."""
        if _is_local(self._active):
            return None
        measured, offset = self._measured
        if monotonic() - measured >= CLOCK_EVERY:
            server = float(self._active.replica.call("server_time"))
            offset = int(server * 1e9) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._measured = monotonic(), offset
        return offset

    def _note(self, turn: Turn, ended: Ended) -> None:
        now = monotonic()
        with self._lock:
            self._running -= 1
            before, complete = self._pair.volume(turn.pv, now), self._pair.complete
            self._pair.ended(turn, ended, now, time.time())
            after, completed = self._pair.volume(turn.pv, now), self._pair.complete and not complete
        self._wake.set()
        if self._stopped.is_set():
            return
        if ended.foreign:
            self._tell_trouble(RefusedForSafety(foreign(self._export, turn.pv, ended), reason=FOREIGN), turn.pv)
        elif not ended.failed and self._stops.relent(turn.pv):
            self._around.on_status(self._export)
        waited, waits = before.waiting if before else 0, after.waiting if after else 0
        if waits and not waited:
            self._around.on_event(self._export, "SyncStalled", stalled(self._export, turn.pv, waits), True)
        if completed or bool(waits) != bool(waited):
            self._around.on_status(self._export)

    def _tell_trouble(self, error: NfsProvisionerError, pv: str = "") -> None:
        before = self.halted
        if error.reason not in (DOUBT, ROLLED_BACK, FOREIGN):
            self._stops.trouble(pv, error.message)
        else:
            new = self._stops.refuse("" if error.reason == DOUBT else pv, error.message)
            if new and error.reason != DOUBT:
                self._around.on_event(self._export, "SyncStalled", error.message, True)
            if error.reason == DOUBT and monotonic() - self._doubted >= DOUBT_EVERY:
                self._doubted = monotonic()
                self._standby.doubt()
                self._active.doubt()
        if self.halted != before and not self._stopped.is_set():
            log.warning("export %s: the standby does not follow now: %s", self._export, error.message)
            self._around.on_status(self._export)


def _is_local(attachment: Attachment) -> bool:
    facts = attachment.view().facts
    return facts is not None and facts.local
