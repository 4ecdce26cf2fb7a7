"""An export in a temporary directory with some volumes on it, and the promises that must hold on it at any time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nfs_provisioner.export import moves
from nfs_provisioner.export.records import (
    CONTROL_DIRECTORY,
    MOVING,
    ClaimRef,
    Identity,
    Policy,
    State,
    VolumeRecord,
    decode_record,
)
from nfs_provisioner.export.store import Store
from nfs_provisioner.export.worker import utc_now

MARKER = "marker"
POOL = ThreadPoolExecutor(2)


def identity(replica: str = "a", **changes: object) -> Identity:
    """An identity of the pair that all tests share."""
    fields: dict[str, object] = {
        "pair": "pair",
        "cluster": "cluster",
        "export": "web",
        "replica": replica,
        "replica_id": f"id-{replica}",
        "root": "handle",
        "epoch": 1,
        "promotion": "promotion",
        "active": "a",
        "seq": 0,
        "members": {},
    }
    return Identity(**{**fields, **changes})  # type: ignore[arg-type]


def volume(pv: str, directory: str, *, mode: int = 0o777, **changes: object) -> VolumeRecord:
    """The record of a volume to be made. Its tree is called after its PV."""
    fields: dict[str, object] = {
        "pv": pv,
        "tree": f"tree-{pv}",
        "claim": ClaimRef("ns", pv, f"uid-{pv}"),
        "directory": directory,
        "state": State.CREATING,
        "requested": 1 << 20,
        "policy": Policy(directory_mode=mode),
        "manifests": {"pv": {"metadata": {"name": pv}}},
    }
    return VolumeRecord(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class World:
    """One replica's root on this machine."""

    root: Path
    replica: str = "a"
    guard: Callable[[], None] = lambda: None
    strangers: set[str] = field(default_factory=set)
    _stores: list[Store] = field(default_factory=list)

    @property
    def control(self) -> Path:
        return self.root / CONTROL_DIRECTORY

    def opened(self) -> Store:
        """A store that was not activated."""
        store = Store(str(self.root), guard=lambda: self.guard(), now=utc_now)
        self._stores.append(store)
        return store

    def start(self, *, sound: bool = True) -> Store:
        """What a new worker does first: look, activate with what it found, load, finish what was begun.

        Without `sound`, moves that have to wait for something else may be left unfinished.
        """
        store = self.opened()
        store.identity = store.facts().identity
        store.activate(store.identity or identity(self.replica), "term")
        loaded, unreadable = store.load(POOL)
        assert unreadable == []
        if any(record.state in MOVING for record in loaded) or os.listdir(store.work):
            _, problems = moves.recover(store, loaded)
            assert problems == [] or not sound
        return store

    def stop(self) -> None:
        """Give all descriptors back."""
        for store in self._stores:
            store.close()
        self._stores.clear()

    def make(self, store: Store, pv: str, directory: str, **changes: object) -> VolumeRecord:
        """A live volume with a marker in it."""
        record = volume(pv, directory, **changes)  # type: ignore[arg-type]
        store.provision(record)
        live = store.make_live(pv)
        self.mark(record)
        return live

    def mark(self, record: VolumeRecord) -> None:
        """A tenant writes something that tells this tree from all others."""
        place = self.root / record.directory
        (place / MARKER).write_text(record.tree)
        (place / "sub").mkdir()
        (place / "sub" / "file").write_text("data")

    def stranger(self, name: str) -> Path:
        """Something that no record names."""
        place = self.root / name
        place.mkdir()
        (place / MARKER).write_text("a stranger's")
        self.strangers.add(name)
        return place

    def archive(self, store: Store, pv: str) -> VolumeRecord:
        return moves.give_up(store, pv, "archive", claim_uid=None, states=(State.LIVE,))

    def records(self) -> dict[str, VolumeRecord]:
        """As they are on disk, by PV."""
        found = [decode_record(file.read_bytes(), source=str(file)) for file in (self.control / "volumes").iterdir()]
        return {record.pv: record for record in found}

    def states(self) -> dict[str, tuple[State, str]]:
        """PV -> state and directory."""
        return {pv: (record.state, record.directory) for pv, record in self.records().items()}

    def snapshot(self, pvs: Iterable[str]) -> dict[str, tuple[object, ...]]:
        """All that may not change about these volumes."""
        found: dict[str, tuple[object, ...]] = {}
        for pv in pvs:
            record = self.records()[pv]
            place = self.root / record.directory
            status = place.stat()
            owner = (status.st_ino, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
            found[pv] = (record, owner, sorted(entry.name for entry in place.iterdir()))
        return found

    def broken_promises(self) -> list[str]:
        """What is wrong on this export, whatever was done to it; records of moves under way are not looked at."""
        records = self.records()
        problems = [problem for record in records.values() for problem in self._problems_of(record)]
        names = {record.directory for record in records.values() if record.holds_directory}
        problems += [f"nobody owns {path}" for path in self._leaks("", names)]
        problems += [f"{name} vanished" for name in self.strangers if not (self.root / name / MARKER).exists()]
        terms = list((self.control / "work").iterdir())
        problems += [] if len(terms) == 1 else [f"{len(terms)} terms in work/"]
        problems += [f"{entry} was left in work/" for term in terms for entry in term.iterdir()]
        problems += [f"{entry} is in lost/" for entry in (self.control / "lost").iterdir()]
        problems += [f"{n} is no record" for n in os.listdir(self.control / "volumes") if not n.endswith(".json")]
        trees = [record.tree for record in records.values() if record.holds_directory]
        problems += [f"{tree} is held twice" for tree in set(trees) if trees.count(tree) > 1]
        return problems

    def _problems_of(self, record: VolumeRecord) -> list[str]:
        if not record.holds_directory:
            return []
        if record.target is not None or record.state in MOVING - {State.RESTORING}:
            return [f"{record.pv} is {record.state} on its way to {record.target}"]
        place = self.root / record.directory
        if not place.is_dir() or place.is_symlink():
            return [f"{record.pv} is {record.state}, but {record.directory} is not a directory"]
        problems = []
        if record.inode is not None and place.stat().st_ino != record.inode:
            problems.append(f"{record.directory} is not the directory of {record.pv}")
        marker = place / MARKER
        if marker.exists() and marker.read_text() != record.tree:
            problems.append(f"{record.directory} holds {marker.read_text()}, not {record.tree}")
        return problems

    def _leaks(self, below: str, names: set[str]) -> list[str]:
        found = []
        for entry in sorted((self.root / below).iterdir()):
            path = f"{below}{entry.name}"
            if path in names or path in self.strangers or path == CONTROL_DIRECTORY:
                continue
            if any(name.startswith(f"{path}/") for name in names):
                found += self._leaks(f"{path}/", names)
            else:
                found.append(path)
        return found


class Clock:
    """A clock that stands until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now
