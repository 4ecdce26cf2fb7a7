"""What the controller remembers of one replica's records: owners of directories, what is promised and given up.

A copy in memory, to decide with; the records on the export have the last word. Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from nfs_provisioner.config import rough_size
from nfs_provisioner.errors import Infeasible, RetryLater
from nfs_provisioner.export.paths import ARCHIVE_PREFIX, OwnedDirectories, conflict_key
from nfs_provisioner.export.records import RESERVING, State, VolumeRecord

#: Seconds for which servers may still cache the handle of a directory that was renamed away (H48; ganesha: 60 s).
REUSE_PAUSE = 120.0


class Full(RetryLater):
    """More would be promised than may be."""


class Catalog:
    """Records of one replica by PV name, with the directories they own."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, on_freed: Callable[[], None] = lambda: None
    ) -> None:
        """`on_freed` is called, without any lock of the catalog's, after less is promised than before."""
        self._clock = clock
        self._on_freed = on_freed
        self._lock = threading.RLock()
        self._records: dict[str, VolumeRecord] = {}
        self._owned = OwnedDirectories()
        self._given_up: dict[str, float] = {}  # conflict_key -> moment from which the name may be used again
        self._given_up_archives: set[str] = set()
        # PV -> PVs of volumes that reserve and are to have, or got, its directory
        self._heirs: dict[str, set[str]] = {}
        self._given_up_kept = 1000  # how many were left after the last time the old ones were dropped
        self._reserved = 0
        self.filled = False  # once at least: before that, nothing in here tells what there is

    def fill(self, records: Iterable[VolumeRecord], *, age: Callable[[VolumeRecord], float]) -> None:
        """Replace everything by what was loaded, but for reservations that are not on disk yet.

        `age` tells how many seconds ago a record changed its state.
        """
        with self._changing():
            before = {pv: record for pv, record in self._records.items() if record.state is State.CREATING}
            self.filled = True
            self._records.clear()
            self._heirs.clear()
            self._owned = OwnedDirectories()
            self._reserved = 0
            for record in records:
                self._insert(record)
                before.pop(record.pv, None)
                left = REUSE_PAUSE - max(0.0, age(record))  # a clock that went back: the whole pause
                for directory in _given_up_by(record):
                    if left > 0:
                        self._give_up(directory, min(left, REUSE_PAUSE))
            for record in before.values():  # their plans go on, or are dropped, as if nothing had happened
                if self._owned.conflict(record.directory) is None:
                    self._insert(record)

    def put(self, record: VolumeRecord) -> None:
        """A record was written."""
        with self._changing():
            old = self._records.get(record.pv)
            self._remove(record.pv)
            self._insert(record)
            if (
                old is not None
                and old.holds_directory
                and (old.directory != record.directory or not record.holds_directory)
            ):
                self._give_up(old.directory, REUSE_PAUSE)

    def drop(self, pv: str) -> None:
        """A record was removed, or a reservation came to nothing."""
        with self._changing():
            self._remove(pv)

    def get(self, pv: str) -> VolumeRecord | None:
        """The record of `pv`, without manifests."""
        with self._lock:
            return self._records.get(pv)

    def all(self) -> list[VolumeRecord]:
        """A snapshot."""
        with self._lock:
            return list(self._records.values())

    def in_state(self, state: State) -> list[VolumeRecord]:
        """All records in one state."""
        with self._lock:
            return [record for record in self._records.values() if record.state is state]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def reserved(self) -> int:
        """Bytes promised to volumes."""
        return self._reserved

    def reserved_for(self, pv: str) -> int:
        """What of them is promised to `pv`: nothing for a retained volume whose directory another is about to have."""
        with self._lock:
            return self._share(self._records.get(pv))

    def owner(self, directory: str, *, besides: str | None = None) -> str | None:
        """The PV that owns `directory`, one around it or one inside it."""
        with self._lock:
            return self._owned.conflict(directory, besides=besides)

    def reserve(self, record: VolumeRecord, *, limit: int | None = None) -> None:
        """Take a directory name (and the space) for a volume about to be made; two callers cannot both get it.

        Infeasible when another volume owns the directory, one around it or one inside it (H03, H04); RetryLater while
        the name was given up too recently; Full when more than `limit` bytes would be promised. `drop` gives it back.
        """
        with self._lock:
            owner = self._owned.conflict(record.directory, besides=record.pv)
            if owner is not None:
                raise Infeasible(self._taken(record.directory, self._records[owner]))
            wait = max(map(self._free_from, _and_above(record.directory))) - self._clock()
            if wait > 0:
                raise RetryLater(
                    f"the directory {record.directory!r} was given up a moment ago; file servers may still know it. "
                    f"It can be used again in {wait:.0f} s",
                    after=wait,
                    reason="Provisioning",
                )
            self._promise(record, limit)

    def promise(self, record: VolumeRecord, *, limit: int) -> None:
        """Count a volume with the size it grows to from now on; two callers cannot both get the last space.

        Full when more than `limit` bytes would be promised. `put` of what the record still says takes it back.
        """
        with self._lock:
            self._promise(record, limit)

    def _promise(self, record: VolumeRecord, limit: int | None) -> None:
        others = self._reserved - self._share(self._records.get(record.pv))
        if record.origin is not None:  # what is kept for a retained volume goes to the one that gets its directory
            others -= self._share(self._records.get(record.origin))
        wanted = others + record.requested
        if limit is not None and limit < wanted > self._reserved:
            promised = f"{rough_size(others)} of {rough_size(limit)} are promised to others"
            raise Full(f"{promised} and {rough_size(record.requested)} are wanted")
        self._remove(record.pv)
        self._insert(record)

    def archive_named(self, name: str) -> VolumeRecord | None:
        """The archive (or retained volume) with this directory or PV name."""
        with self._lock:
            named = [r for r in self._records.values() if name in (r.directory, r.pv)]
        return next((r for r in named if r.state in (State.ARCHIVED, State.RETAINED)), None)

    def live_of(self, namespace: str, name: str) -> list[VolumeRecord]:
        """Live volumes recorded for a claim of that name; one that was kept by its policy may be an earlier claim's."""
        return [r for r in self.in_state(State.LIVE) if (r.claim.namespace, r.claim.name) == (namespace, name)]

    def old_tombstones(self) -> list[VolumeRecord]:
        """Tombstones whose directory names may be used again, but for those that another one names as its heir: a
        standby that was away may still have the tree under the first name, and has to be told of both."""
        with self._lock:
            now = self._clock()
            heirs = {record.successor for record in self._records.values() if record.state is State.DELETED}
            return [
                record
                for record in self._records.values()
                if record.state is State.DELETED
                and record.pv not in heirs
                and all(self._free_from(name) <= now for name in (*_given_up_by(record), record.directory))
            ]

    def unavailable_names(self) -> frozenset[str]:
        """Names of archives that went a moment ago and must not become another archive's now."""
        with self._lock:
            now = self._clock()
            archives = [name for name in self._given_up_archives if self._free_from(name) > now]
            self._given_up_archives = set(archives)
            return frozenset(archives)

    def root_names(self) -> frozenset[str]:
        """First components of all directories that records name."""
        with self._lock:
            return frozenset(
                path.split("/", 1)[0]
                for record in self._records.values()
                for path in (record.directory, record.target or record.directory)
                if record.holds_directory
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            before = self._reserved
            yield
            freed = self._reserved < before
        if freed:
            self._on_freed()

    def _insert(self, record: VolumeRecord) -> None:
        if record.state in RESERVING and record.origin is not None:
            before = self._share(self._records.get(record.origin))
            self._heirs.setdefault(record.origin, set()).add(record.pv)
            self._reserved += self._share(self._records.get(record.origin)) - before
        self._records[record.pv] = record
        if record.holds_directory:
            self._owned.add(record.directory, record.pv)
            if record.target is not None:
                self._owned.add(record.target, record.pv)
        self._reserved += self._share(record)

    def _remove(self, pv: str) -> None:
        record = self._records.get(pv)
        if record is None:
            return
        self._reserved -= self._share(record)
        del self._records[pv]
        self._owned.discard(record.directory, pv)
        if record.target is not None:
            self._owned.discard(record.target, pv)
        origin = record.origin or ""
        if origin in self._heirs:
            before = self._share(self._records.get(origin))
            self._heirs[origin].discard(pv)
            if not self._heirs[origin]:
                del self._heirs[origin]
            self._reserved += self._share(self._records.get(origin)) - before

    def _share(self, record: VolumeRecord | None) -> int:
        """With how much a record that is in here counts."""
        if record is None or record.state not in RESERVING:
            return 0
        inherited = record.state is State.RETAINED and record.pv in self._heirs
        return 0 if inherited else record.requested

    def _give_up(self, directory: str, seconds: float) -> None:
        now = self._clock()
        self._given_up[conflict_key(directory)] = now + seconds
        if directory.startswith(ARCHIVE_PREFIX):
            self._given_up_archives.add(directory)
        if len(self._given_up) > 2 * self._given_up_kept:
            self._given_up = {name: until for name, until in self._given_up.items() if until > now}
            self._given_up_kept = max(1000, len(self._given_up))

    def _free_from(self, directory: str) -> float:
        return self._given_up.get(conflict_key(directory), 0.0)

    def _taken(self, directory: str, other: VolumeRecord) -> str:
        what = {
            State.ARCHIVED: "the archive of",
            State.RETAINED: "the retained volume of",
            State.ORPHANED: "the orphaned volume of",
        }.get(other.state, "the volume of")
        where = "is" if other.directory == directory else f"lies inside or around {other.directory!r},"
        remedy = "choose a pathPattern that gives every claim its own directory"
        if other.state in (State.RETAINED, State.ARCHIVED):
            remedy = f"to use its data, annotate the claim with nfs-provisioner.io/restore-archive: {other.directory}"
        return f"the directory {directory!r} {where} {what} claim {other.claim} ({other.pv}); {remedy}"


def _and_above(directory: str) -> Iterator[str]:
    """A directory, and those around it, which would be made again for it."""
    while directory:
        yield directory
        directory = directory.rpartition("/")[0]


def _given_up_by(record: VolumeRecord) -> Iterable[str]:
    """Directories whose names a record's last change of state set free, as far as the record tells."""
    if record.former is not None:
        yield record.former
    if record.state is State.DELETED:
        yield record.directory
