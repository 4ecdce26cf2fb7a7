"""What the volumes of one export take: the figures that were measured last, by PV, and what of them is on disk.

Measures nothing and writes nothing; thread-safe. Invariant: a figure is never replaced by an older one (of which one
out of the future, by the clock as it is now, is the oldest), and it is forgotten only when no record names its volume
any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.usagefile import Figures
from nfs_provisioner.volumes import quota

WRITE_EVERY = 60.0  # seconds between two writes of figures that changed
SOON = 5.0  # seconds after the last write, when something changed that must not be told twice after a restart
SAME_FOR = 600.0  # seconds for which a figure that was measured again and is the same is not worth a write


@dataclass(frozen=True, slots=True)
class Figure:
    """What is kept of one volume."""

    usage: Usage
    exceeded: bool = False  # counts as over its quota, which was told
    requested: int = 0  # what it was compared with


class Ledger:
    """The figures of one export. `catalog` says which volumes there are."""

    def __init__(
        self, catalog: Catalog, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._catalog = catalog
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._figures: dict[str, Figure] = {}
        self._saved: dict[str, Figure] = {}
        self._write_at: float | None = None  # moment from which there is something to write
        self._wrote = clock() - WRITE_EVERY
        self._early: dict[str, Usage] | None = {}  # measured before the file was read, which tells what was told

    def get(self, pv: str) -> Usage | None:
        """What was measured last; of a volume that was just restored, what its archive took."""
        with self._lock:
            figure = self._figure(pv)
        return None if figure is None else figure.usage

    def exceeded(self, pv: str) -> bool:
        """Whether the volume counts as over its quota."""
        record = self._catalog.get(pv)
        with self._lock:
            return _exceeds(self._figures.get(pv), record)

    def note(self, pv: str, usage: Usage) -> VolumeRecord | None:
        """A measurement. The record of a volume that went over its quota with it, which is to be told; else None."""
        record = self._catalog.get(pv)
        if record is None or not record.holds_directory:
            return None  # it went while somebody looked
        with self._lock:
            if self._early is not None:
                self._early[pv] = usage
                return None
            before = self._figures.get(pv)
            if before is not None and usage.at < before.usage.at <= self._wall():
                return None  # what was measured in the future was not, and holds up nothing
            was = _exceeds(before, record)
            over = quota.applies(record) and quota.exceeded(usage.bytes, record.requested, was)
            self._figures[pv] = Figure(usage, over, record.requested)
            self._changed(pv, soon=over != was)
        return record if over and not was else None

    def forget(self, pv: str) -> None:
        """The volume is gone."""
        with self._lock:
            if self._figures.pop(pv, None) is not None:
                self._changed(pv)

    def archive_bytes(self) -> int | None:
        """What all archives take, as far as it was measured; None while there are some and none of them was."""
        archives = self._catalog.in_state(State.ARCHIVED)
        with self._lock:
            known = [figure.usage.bytes for r in archives if (figure := self._figures.get(r.pv)) is not None]
        return sum(known) if known or not archives else None

    # -- what is on disk --------------------------------------------------------------------------------------------

    def fill(self, read: Figures) -> list[VolumeRecord]:
        """What the active replica's file says; figures that are newer stay. Returns what is to be told, as `note`."""
        loaded: dict[str, Figure] = {}
        for pv, (size, inodes, at, exceeded) in read.items():
            record = self._catalog.get(pv)
            loaded[pv] = Figure(Usage(size, inodes, at), exceeded, record.requested if record is not None else 0)
        now = self._wall()
        with self._lock:
            self._saved = loaded
            for pv, figure in loaded.items():
                known = self._figures.get(pv)
                if known is None:
                    self._figures[pv] = figure
                elif known.usage.at < figure.usage.at <= now:
                    self._figures[pv] = replace(known, usage=figure.usage)
            for pv in self._figures:
                self._changed(pv)
            early, self._early = self._early or {}, None
        return [record for pv, usage in early.items() if (record := self.note(pv, usage)) is not None]

    def tidy(self) -> None:
        """Restored volumes take over what is known of their archives; then what no record names is forgotten."""
        named = [record for record in self._catalog.all() if record.holds_directory]
        with self._lock:
            kept: dict[str, Figure] = {}
            for record in named:
                figure = self._figures.get(record.pv)
                if figure is None and record.origin is not None and record.origin in self._figures:
                    figure = Figure(self._figures[record.origin].usage)
                if figure is not None:
                    kept[record.pv] = figure
            changed = kept.keys() ^ self._figures.keys()
            self._figures = kept
            for pv in changed:
                self._changed(pv)

    def due(self) -> float | None:
        """Seconds until there is something to write; None: nothing has changed."""
        with self._lock:
            return None if self._write_at is None else max(0.0, self._write_at - self._clock())

    def begin_write(self) -> Figures:
        """What is to be written now; `wrote` or `not_written` tells how that went."""
        with self._lock:
            self._write_at = None
            self._wrote = self._clock()
            self._saved = dict(self._figures)
            figures = self._saved.items()
        get = self._catalog.get
        return {pv: (f.usage.bytes, f.usage.inodes, f.usage.at, _exceeds(f, get(pv))) for pv, f in figures}

    def not_written(self) -> None:
        """The write failed: it is due again as if something had changed now."""
        with self._lock:
            self._saved = {}
            self._write_at = self._wrote + WRITE_EVERY

    def _figure(self, pv: str) -> Figure | None:
        figure = self._figures.get(pv)
        if figure is None:
            record = self._catalog.get(pv)
            if record is not None and record.origin is not None:
                return self._figures.get(record.origin)
        return figure

    def _changed(self, pv: str, *, soon: bool = False) -> None:
        now, saved = self._figures.get(pv), self._saved.get(pv)
        if not soon and _alike(now, saved):
            return
        at = self._wrote + (SOON if soon else WRITE_EVERY)
        self._write_at = at if self._write_at is None else min(at, self._write_at)


def _exceeds(figure: Figure | None, record: VolumeRecord | None) -> bool:
    """Whether it counts as over what is requested now: of a claim that grew, nothing is left of what was before."""
    if figure is None or record is None or not figure.exceeded:
        return False
    return quota.exceeded(figure.usage.bytes, record.requested, figure.requested == record.requested)


def _alike(one: Figure | None, other: Figure | None) -> bool:
    if one is None or other is None:
        return one is other
    same = (one.usage.bytes, one.usage.inodes, one.exceeded) == (other.usage.bytes, other.usage.inodes, other.exceeded)
    return same and abs(one.usage.at - other.usage.at) < SAME_FOR
