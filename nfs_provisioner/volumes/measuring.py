"""Keeps the figures of one export up to date: whose turn it is to be measured, and when they are written down.

One thread, which acts on files only through the active replica's child, one volume at a time, and never while claims
wait. Passes of a pair measure on their way; what they report counts, and only what they leave out is measured here.
Invariant: the file is read before it is first written, and a volume is measured at most once an interval.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
import zlib
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.replica import CALL_DEADLINE
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.volumes.retention import moment
from nfs_provisioner.volumes.services import Partner, Services
from nfs_provisioner.volumes.usage import Ledger

log = logging.getLogger(__name__)

EVERY = 600.0  # seconds between two measurements of a volume
STILL_EVERY = 86_400.0  # and of an archive, which does not change by itself
SPREAD = 0.25  # share of the interval by which volumes' turns differ
PASSES_SKIPPED = 3  # intervals that a pair's passes are given to report a volume before it is measured here
LOOK_EVERY = 5.0  # seconds between two looks for volumes that are new
AFTER_CLAIMS = 0.5  # seconds before it is asked again whether claims wait
LOOKED_AT = 2000  # records that may be looked at in a second
FIRST_ASK, LONGEST_ASK = 0.01, 1.0  # seconds between two questions whether a walk is done
LONGEST_REST = 30.0  # seconds after a walk; otherwise as long as it took
LAST_WRITE = 1.0  # seconds that an end waits for the figures to be written
#: States in which a volume's directory lies where its record says.
MEASURED = frozenset({State.LIVE, State.ARCHIVED, State.RETAINED, State.ORPHANED})


class Measured(Protocol):
    """An export, as far as measuring it needs it."""

    catalog: Catalog
    usage: Ledger

    @property
    def name(self) -> str:
        """Of the NFSExport."""

    @property
    def ready(self) -> bool:
        """Whether the active replica may be acted on."""

    @property
    def partner(self) -> Partner | None:
        """What the standby follows with, while there is one."""

    def call(self, operation: str, *arguments: Any, deadline: float = ...) -> Any:
        """One operation on the active replica."""


def wait_for(record: VolumeRecord, usage: Usage | None, now: float, every: float, still_every: float) -> float:
    """Seconds until a volume whose last figure is `usage` is to be measured. `now` is Unix time."""
    if usage is None:
        return 0.0
    still = record.state is State.ARCHIVED
    if still and usage.at < moment(record.since) + 1.0:  # which is in whole seconds
        return 0.0
    age = now - usage.at
    return max(0.0, (still_every if still else every) - age) if age >= 0.0 else 0.0  # the clock went back


def hidden(usage: Usage) -> str:
    """For people: why there is more than is counted."""
    what = "a directory is" if usage.unreadable == 1 else f"{usage.unreadable} directories are"
    return (
        f"{what} closed to the controller, and what lies in there is not counted: "
        "its files take more than is told here (no_root_squash on the server lets it look)"
    )


class Rota:
    """Whose turn it is. Not thread-safe. Moments are of the monotonic clock, `wall` is Unix time."""

    def __init__(self, ledger: Ledger, *, every: float = EVERY, still_every: float = STILL_EVERY) -> None:
        self._ledger = ledger
        self._every = every
        self._still_every = still_every
        self._heap: list[tuple[float, str]] = []  # with turns that do not count any more
        self._turns: dict[str, float] = {}
        self._states: dict[str, State] = {}
        self._looked: dict[str, float] = {}

    def keep(self, records: list[VolumeRecord], now: float, wall: float, *, passed: bool) -> None:
        """These volumes are there. `passed`: passes measure them as well."""
        for record in records:
            if self._states.get(record.pv) is not record.state:
                self._states[record.pv] = record.state
                self._set(record.pv, self._moment(record, now, wall, passed=passed))
        if len(self._states) > len(records):
            there = {record.pv for record in records}
            for gone in [pv for pv in self._states if pv not in there]:
                for known in (self._states, self._turns, self._looked):
                    known.pop(gone, None)

    def next(self, get: Callable[[str], VolumeRecord | None], now: float, wall: float, *, passed: bool) -> str | None:
        """The volume whose turn it is, which counts as taken; None: nobody's."""
        while self._heap and self._heap[0][0] <= now:
            turn, pv = heapq.heappop(self._heap)
            record = get(pv)
            if self._turns.get(pv) != turn or record is None or record.state is not self._states[pv]:
                continue  # `keep` has given it another, or will
            turn = self._moment(record, now, wall, passed=passed)
            if turn <= now:
                self._looked[pv] = now
                self._set(pv, self._after(pv, now))
                return pv
            self._set(pv, turn)
        return None

    def wait(self, now: float) -> float:
        """Seconds until it may be somebody's turn."""
        return max(0.0, self._heap[0][0] - now) if self._heap else STILL_EVERY

    def _moment(self, record: VolumeRecord, now: float, wall: float, *, passed: bool) -> float:
        usage = self._ledger.get(record.pv)
        patience = self._every * (PASSES_SKIPPED if passed else 1)
        if passed and usage is None and record.pv not in self._turns:
            wait = patience  # its first pass is on its way
        else:
            wait = wait_for(record, usage, wall, patience, self._still_every)
        looked = self._looked.get(record.pv)
        return now + wait if looked is None else max(now + wait, self._after(record.pv, looked))

    def _after(self, pv: str, looked: float) -> float:
        """The earliest next turn: of volumes that had theirs together, not all together again."""
        return looked + self._every * (1.0 + SPREAD * zlib.crc32(pv.encode()) / 2**32)

    def _set(self, pv: str, turn: float) -> None:
        self._turns[pv] = turn
        heapq.heappush(self._heap, (turn, pv))


class Measuring:
    """Of one export. `wake` and `begin_anew` are called by others, the rest happens on its own thread."""

    def __init__(self, export: Measured, services: Services) -> None:
        self._export = export
        self._ledger = export.usage
        self._services = services
        self._look_every = min(LOOK_EVERY, services.measure_every)
        self._rota = Rota(export.usage, every=services.measure_every)
        self._read = threading.Event()  # cleared: the active replica's file is still to be read
        self._troubles: dict[str, str] = {}  # by PV: what is wrong with its figure
        self._unanswered: set[str] = set()  # PVs whose last look failed in a way that may pass
        self._unwritten = False  # the last write failed, which was told
        self._look_at = 0.0
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def begin_anew(self) -> None:
        """The catalog was filled, perhaps from another replica."""
        self._read.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"measuring-{self._export.name}", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """The export is ready now, or something on it changed."""
        self._wake.set()

    def note(self, pv: str, usage: Usage) -> None:
        """A volume was measured, by whomever."""
        record = self._ledger.note(pv, usage)
        if usage.unreadable:
            self._trouble(pv, hidden(usage))
        else:
            self._troubles.pop(pv, None)
        if record is not None:
            self._tell(record)

    def trouble(self, pv: str) -> str:
        """What is wrong with its figure: too small, or old, or missing; empty when nothing is."""
        return self._troubles.get(pv, "")

    def _trouble(self, pv: str, why: str) -> None:
        """Remember it, and say it once."""
        if pv not in self._troubles:
            log.warning("export %s: %s: %s", self._export.name, pv, why)
        self._troubles[pv] = why

    def stop(self) -> None:
        """Begin to end: what is not written yet is written as the last thing."""
        self._stopped.set()
        self._wake.set()

    def join(self, deadline: float) -> None:
        """Wait until that is done, `deadline` seconds at the most."""
        if self._thread is not None:
            self._thread.join(deadline)

    def _tell(self, record: VolumeRecord) -> None:
        usage = self._ledger.get(record.pv)
        if usage is not None:
            self._services.on_exceeded(record, usage)
        self._wake.set()  # that it was told is written soon

    # -- its own thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            wait = self._look_every
            try:
                if self._export.ready:
                    wait = min(wait, self._turn())
            except LostLeadership:
                return
            except NfsProvisionerError as error:
                log.debug("export %s: measuring waits: %s", self._export.name, error.message)
            except Exception:  # the last resort: a thread that ended would leave every figure as it is
                log.exception("export %s: unexpected error while measuring; going on", self._export.name)
            self._wake.wait(wait)
            self._wake.clear()
        with contextlib.suppress(NfsProvisionerError):  # what is lost is measured again
            if self._read.is_set() and self._export.ready and self._ledger.due() is not None:
                self._write(deadline=LAST_WRITE)

    def _turn(self) -> float:
        """Measure one volume at the most; seconds until the next turn."""
        if not self._read.is_set():
            self._read.set()  # before: another replica may become the active one meanwhile
            try:
                crossed = self._ledger.fill(self._export.call("read_usage"))
            except NfsProvisionerError:
                self._read.clear()
                raise
            for record in crossed:
                self._tell(record)
        due = self._ledger.due()
        if due == 0.0:
            self._write()
        if self._services.busy():
            return min(AFTER_CLAIMS, self._look_every)
        self._look()
        now, passed = monotonic(), self._export.partner is not None
        pv = self._rota.next(self._export.catalog.get, now, time.time(), passed=passed)
        if pv is None:
            return min(self._rota.wait(now), self._ledger.due() or self._look_every)
        self._measure(pv)
        return min(monotonic() - now, LONGEST_REST)

    def _look(self) -> None:
        """Which volumes there are: often where they are few."""
        now = monotonic()
        if now < self._look_at:
            return
        self._ledger.tidy()
        records = [record for record in self._export.catalog.all() if record.state in MEASURED]
        self._rota.keep(records, now, time.time(), passed=self._export.partner is not None)
        for gone in [pv for pv in (*tuple(self._troubles), *self._unanswered) if self._export.catalog.get(pv) is None]:
            self._troubles.pop(gone, None)
            self._unanswered.discard(gone)
        self._look_at = now + max(self._look_every, len(records) / LOOKED_AT)

    def _measure(self, pv: str) -> None:
        pause = FIRST_ASK
        while not self._stopped.is_set():
            try:
                usage: Usage | None = self._export.call("usage", pv)
            except RefusedForSafety as error:  # that of one volume must not hold up the others
                self._trouble(pv, f"what it takes cannot be measured: {error.message}")
                return
            except RetryLater as error:
                if pv in self._unanswered:
                    self._trouble(pv, f"what it takes cannot be measured: {error.message}")
                self._unanswered.add(pv)
                raise
            if usage is not None:
                self._unanswered.discard(pv)
                self.note(pv, usage)
                return
            self._stopped.wait(pause)
            pause = min(2 * pause, LONGEST_ASK)

    def _write(self, deadline: float = CALL_DEADLINE) -> None:
        figures = self._ledger.begin_write()
        try:
            self._export.call("write_usage", figures, deadline=deadline)
        except NfsProvisionerError as error:
            self._ledger.not_written()
            if not self._unwritten and not isinstance(error, LostLeadership):
                log.warning("export %s: what was measured cannot be written down: %s", self._export.name, error.message)
            self._unwritten = True
            raise
        self._unwritten = False
