"""Two replicas of a pair in temporary directories, a the active one, and the child's work on them within this process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nfs_provisioner.export import standby
from nfs_provisioner.export.records import Identity, VolumeRecord
from nfs_provisioner.export.standby import Step
from nfs_provisioner.export.store import Store
from nfs_provisioner.export.syncrecord import SyncRecord, decode_sync, encode_sync
from nfs_provisioner.export.worker import LeaseEnd, utc_now
from nfs_provisioner.replication.pairtalk import Beat, Expected, Found, Report, Request
from nfs_provisioner.replication.pairwork import PairWorker
from tests.unit.export.world import identity, volume


def boot_offset(ahead: int) -> int:
    """Of a source whose clock is so many ns ahead of this machine's."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + ahead


@dataclass
class Twins:
    """`stores` are the replicas' own workers, as far as a pair needs them."""

    base: Path
    lease: LeaseEnd = field(default_factory=LeaseEnd)
    beat: Beat = field(default_factory=Beat)
    stores: dict[str, Store] = field(default_factory=dict)
    raised: list[int] = field(default_factory=list)
    workers: list[PairWorker] = field(default_factory=list)
    clock: int | None = None  # what passes are told of the source's clock

    def __post_init__(self) -> None:
        self.lease.set(math.inf)
        for name in "ab":
            self.root(name).mkdir(parents=True)
            self.restart(name)

    def restart(self, name: str) -> Store:
        """A new worker of this replica."""
        store = Store(str(self.root(name)), guard=lambda: None, now=utc_now)
        store.identity = store.facts().identity
        if name in self.stores:
            self.stores[name].close()
        store.activate(store.identity or identity(name, root=store.facts().handle), "term")
        self.stores[name] = store
        return store

    def root(self, name: str) -> Path:
        return self.base / name

    def control(self, name: str) -> Path:
        return self.root(name) / ".nfs-provisioner"

    @property
    def expected(self) -> Expected:
        return Expected(*(found for store in self.stores.values() if (found := store.facts().identity) is not None))

    def make(self, pv: str, directory: str = "") -> VolumeRecord:
        """A live volume on both sides."""
        self.stores["a"].provision(volume(pv, directory or pv))
        record = self.stores["a"].make_live(pv)
        standby.take(self.stores["b"], Step("make", record))
        return record

    def change(self, pv: str, **changes: object) -> None:
        """The record changes, on both sides."""
        for store in self.stores.values():
            record = store.read(pv)
            assert record is not None
            store.write(replace(record.advanced(), **changes))  # type: ignore[arg-type]

    def raise_seq(self) -> int:
        seq = self.stores["a"].raise_seq()
        self.raised.append(seq)
        return seq

    def worker(self) -> PairWorker:
        """Not opened yet."""
        self.workers.append(PairWorker(str(self.root("a")), str(self.root("b")), self.lease, self.beat))
        return self.workers[-1]

    def stop(self) -> None:
        """Give all descriptors back."""
        for store in self.stores.values():
            store.close()
        for worker in self.workers:
            worker.close()
        os.close(self.lease.fd)
        self.beat.close()

    def opened(self) -> tuple[PairWorker, Found]:
        worker = self.worker()
        return worker, worker.open(self.expected, "00000001", 0)

    def run(
        self, worker: PairWorker, pv: str, *, raise_seq: Callable[[], int] | None = None, **options: object
    ) -> Report:
        """One pass."""
        record = self.stores["a"].read(pv)
        assert record is not None
        request = Request(pv, record.rev, **({"clock": self.clock} | options))  # type: ignore[arg-type]
        return worker.run(request, 0, raise_seq or self.raise_seq)

    def noted(self, pv: str) -> SyncRecord:
        """What the standby says of its copy."""
        path = self.control("b") / "sync" / f"{pv}.json"
        return decode_sync(path.read_bytes() if path.exists() else None)

    def later(self) -> None:
        """Until the clock that stamps files has moved: what is written now is later than all before."""
        place = self.control("b") / "trash"
        os.utime(place)
        at = place.stat().st_ctime_ns
        while place.stat().st_ctime_ns == at:
            os.utime(place)

    def settled(self, pv: str) -> None:
        """As if the last clean pass had come long after the last change: what is younger is compared deeply. The
        source's clock goes on from there."""
        noted = self.noted(pv)
        assert noted.base is not None
        base = replace(noted.base, as_of=noted.base.as_of + 10**10)
        (self.control("b") / "sync" / f"{pv}.json").write_bytes(encode_sync(replace(noted, base=base)))
        self.clock = boot_offset(base.as_of - time.time_ns() + 10**10)

    def side(self, name: str) -> Identity:
        found = self.stores[name].facts().identity
        assert found is not None
        return found

    def rewrite(self, name: str, **changes: object) -> None:
        """Somebody writes another export.json."""
        self.stores[name].write_identity(replace(self.side(name), **changes))  # type: ignore[arg-type]

    def kept(self) -> list[Path]:
        """What passes kept on the standby."""
        return sorted((self.control("b") / "trash").glob("kept~*"))

    def everything(self, name: str) -> dict[str, tuple[int, int]]:
        """Every path with what shows that it was written."""
        found = {}
        for place, directories, files in os.walk(self.root(name)):
            for entry in (*directories, *files):
                status = os.stat(os.path.join(place, entry), follow_symlinks=False)
                found[os.path.join(place, entry)] = (status.st_ino, status.st_ctime_ns)
        return found
