"""Whatever is claimed, grown, written, cloned, deleted, restored and restarted: the books agree with a fresh count.

Judged by what anybody could count: the PVs in the API and the records on disk for what is promised, du for what is
used. The controller is the real one, on the embedded API server; each step is followed by the next at once, and only
now and then (and at the end) is it given the time to finish.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from nfs_provisioner.config import parse_quantity
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.kube.api import NFS_EXPORT, PVC
from nfs_provisioner.volumes.objects import EXPORT_LABEL, RESTORE_ARCHIVE
from tests.embedded.site import MI, Controller, Site, unhurried

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

Json = dict[str, Any]
T = TypeVar("T")

EXPORTS = ("web", "next")
CLASSES = {"both": "web,next", "narrow": "next", "kept": "web,next"}
RETAINED = {"kept"}  # classes with onDelete retain
SMALLEST = 60  # Mi
SIZES = st.sampled_from((10, 15, 20, 40))  # Mi: a handful of claims fills an export
PICKS = st.integers(0, 1000)
PATIENCE = 50.0  # seconds for what is woken; nobody is looked at again so soon whom nobody wakes
MOMENT = 0.2  # seconds in which a claim that fits is bound
MEASURE_EVERY = 0.3
RESTORABLE = (State.ARCHIVED, State.RETAINED)


class Books(RuleBasedStateMachine):
    """The rules are what users and administrators do; `agree` is what must be so in the end.

    No rule has a precondition: what there is to grow or to delete depends on how far the controller has come, and a
    history must be drawn the same when it is played again. A rule that finds nothing does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._patched = pytest.MonkeyPatch()
        unhurried(self._patched)
        self._scratch = tempfile.TemporaryDirectory()
        self._server = EmbeddedApiServer().__enter__()
        self.site = Site(self._server, Path(self._scratch.name))
        for export in EXPORTS:
            self.site.make_export(export, capacity=f"{SMALLEST}Mi")
        for name, exports in CLASSES.items():
            self.site.make_class(name, export=exports, onDelete="retain" if name in RETAINED else "archive")
        self.capacity = dict.fromkeys(EXPORTS, SMALLEST * MI)
        self.largest = dict(self.capacity)
        self.number = 0
        self.controller = self.started()

    def started(self) -> Controller:
        return Controller(self.site.kubeconfig, self.site.mount_root, measure_every=MEASURE_EVERY).start()

    def teardown(self) -> None:
        try:
            self.settle()
            self.restart()
            self.settle()
        finally:
            self.controller.stop()
            self.site.api.close()
            self._server.__exit__(None, None, None)
            self._scratch.cleanup()
            self._patched.undo()

    # -- what happens -------------------------------------------------------------------------------------------------

    def new_claim(self, size: int, storage_class: str, **more: Any) -> None:
        self.number += 1
        self.site.claim(f"claim-{self.number}", f"{size}Mi", storage_class, **more)

    @rule(size=SIZES, storage_class=st.sampled_from(sorted(CLASSES)), number=st.integers(1, 4))
    def claim(self, size: int, storage_class: str, number: int) -> None:
        for _ in range(number):
            self.new_claim(size, storage_class)

    @rule(pick=PICKS, more=SIZES)
    def grow(self, pick: int, more: int) -> None:
        for claim in self.one_of(self.bound(), pick):
            size = parse_quantity(claim["spec"]["resources"]["requests"]["storage"]) + more * MI
            self.site.grow(claim["metadata"]["name"], str(size))

    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        """One that is bound, or one that still waits."""
        for claim in self.one_of(self.claims(), pick):
            self.site.delete_claim(claim["metadata"]["name"])

    @rule(pick=PICKS, more=st.sampled_from((0, 0, 10)))
    def restore(self, pick: int, more: int) -> None:
        archives = self.archives()
        if archives:
            archive = archives[pick % len(archives)]
            self.new_claim(archive.requested // MI + more, "both", annotations={RESTORE_ARCHIVE: archive.directory})

    @rule(size=SIZES, storage_class=st.sampled_from(("both", "kept", "kept")), more=st.sampled_from((0, 0, 10)))
    def hand_on(self, size: int, storage_class: str, more: int) -> None:
        """Made, deleted as soon as it is bound, and restored as soon as that can be."""
        self.new_claim(size, storage_class)
        name = f"claim-{self.number}"
        if self.soon(lambda: [one for one in self.bound() if one["metadata"]["name"] == name]):
            self.site.delete_claim(name)
            for old in self.soon(lambda: [one for one in self.archives() if one.claim.name == name]):
                self.new_claim(size + more, "both", annotations={RESTORE_ARCHIVE: old.directory})

    @rule(pick=PICKS)
    def clone(self, pick: int) -> None:
        for source in self.one_of(self.bound(), pick):
            size = parse_quantity(source["spec"]["resources"]["requests"]["storage"])
            reference = {"kind": "PersistentVolumeClaim", "name": source["metadata"]["name"]}
            self.new_claim(size // MI, "both", dataSource=reference)

    @rule(pick=PICKS, size=st.integers(0, 300_000), name=st.sampled_from(("one", "two", "deep/er/three")))
    def write(self, pick: int, size: int, name: str) -> None:
        """A file, and a second name for it, as a tenant does."""
        for claim in self.one_of(self.bound(), pick):
            file = self.directory(claim["spec"]["volumeName"]) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as opened:
                opened.write(os.urandom(size))
                os.fsync(opened.fileno())
            link = file.with_suffix(".link")
            link.unlink(missing_ok=True)
            os.link(file, link)

    @rule(export=st.sampled_from(EXPORTS), size=st.sampled_from((SMALLEST, 80, 120)))
    def resize(self, export: str, size: int) -> None:
        self.site.api.patch(NFS_EXPORT, export, {"spec": {"capacity": f"{size}Mi"}})
        self.capacity[export] = size * MI
        self.largest[export] = max(self.largest[export], size * MI)

    @rule()
    def restart(self) -> None:
        self.controller.stop()
        self.controller = self.started()

    @rule()
    def settle(self) -> None:
        """Until nothing is left to be done; then everything must agree."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.agree()
                return
            except (AssertionError, FileNotFoundError):
                if time.monotonic() > end:
                    raise
            time.sleep(0.02)

    # -- what is there --------------------------------------------------------------------------------------------------

    def claims(self) -> list[Json]:
        return [c for c in self.site.api.list(PVC, "shop")[0] if "deletionTimestamp" not in c["metadata"]]

    def bound(self) -> list[Json]:
        return [claim for claim in self.claims() if claim["status"].get("phase") == "Bound"]

    def records(self) -> list[tuple[str, VolumeRecord]]:
        return [(export, record) for export in EXPORTS for record in self.site.records(export).values()]

    def archives(self) -> list[VolumeRecord]:
        """And retained volumes."""
        return sorted((r for _, r in self.records() if r.state in RESTORABLE), key=lambda r: r.pv)

    def directory(self, pv: str) -> Path:
        [(export, record)] = [one for one in self.records() if one[1].pv == pv]
        return self.site.mount_root / export / "a" / record.directory

    @staticmethod
    def soon(look: Callable[[], list[T]]) -> list[T]:
        """What there is in a moment, if anything is."""
        end = time.monotonic() + MOMENT
        while not (found := look()) and time.monotonic() < end:
            time.sleep(0.02)
        return found

    @staticmethod
    def one_of(found: list[Json], pick: int) -> list[Json]:
        """One of them in a list, or none if none was found."""
        ordered = sorted(found, key=lambda obj: str(obj["metadata"]["name"]))
        return ordered[pick % len(ordered) :][:1] if ordered else []

    # -- what must be so ------------------------------------------------------------------------------------------------

    def agree(self) -> None:
        """AssertionError while it is not."""
        volumes = self.site.volumes()
        promised = dict.fromkeys(EXPORTS, 0)
        for volume in volumes:
            assert volume["status"]["phase"] == "Bound", f"{volume['metadata']['name']} is on its way"
            promised[volume["metadata"]["labels"][EXPORT_LABEL]] += parse_quantity(
                volume["spec"]["capacity"]["storage"]
            )
        claims = self.claims()
        names = {volume["metadata"]["name"] for volume in volumes}
        assert {claim["spec"]["volumeName"] for claim in claims if claim["status"].get("phase") == "Bound"} == names
        for export, record in self.records():
            if record.state is State.RETAINED:  # its PV is gone and its directory stays
                promised[export] += record.requested
        registry = self.controller.daemon.registry
        assert registry is not None, "it does not lead yet"
        for export in EXPORTS:
            found = registry.get(export)
            assert found is not None and found.ready, f"{export} is not ready"
            on_disk = [r for r in self.site.records(export).values() if r.state in (State.LIVE, State.RETAINED)]
            counts = promised[export], found.catalog.reserved, sum(record.requested for record in on_disk)
            assert len(set(counts)) == 1, f"{export}: by PVs, in the controller, on disk: {counts}"
            assert promised[export] <= self.largest[export], f"{export} is promised {promised[export]}"
        for claim in claims:
            self.nothing_fits(claim, promised)
        self.used_is_what_du_says()

    def nothing_fits(self, claim: Json, promised: dict[str, int]) -> None:
        """Who waits, waits because there is no room."""
        wanted = parse_quantity(claim["spec"]["resources"]["requests"]["storage"])
        candidates = CLASSES[claim["spec"]["storageClassName"]].split(",")
        archive = claim["metadata"].get("annotations", {}).get(RESTORE_ARCHIVE)
        source = (claim["spec"].get("dataSource") or {}).get("name")
        if claim["status"].get("phase") == "Bound":
            wanted -= parse_quantity(claim["status"]["capacity"]["storage"])
            candidates = [e for e, record in self.records() if record.pv == claim["spec"]["volumeName"]]
            if wanted <= 0:
                return
        elif archive is not None:
            found = [(e, r) for e, r in self.records() if r.directory == archive and r.state in RESTORABLE]
            candidates = [export for export, _ in found]
            wanted -= sum(record.requested for _, record in found if record.state is State.RETAINED)
        elif source is not None:
            there = {c["metadata"]["uid"] for c in self.bound() if c["metadata"]["name"] == source}
            candidates = [e for e, r in self.records() if r.claim.uid in there and r.requested <= wanted]
        for export in candidates:
            assert wanted > 0, f"{claim['metadata']['name']} has its space already on {export}"
            assert promised[export] + wanted > self.capacity[export], f"{claim['metadata']['name']} fits on {export}"

    def used_is_what_du_says(self) -> None:
        """The usage that the controller knows of every volume and archive."""
        registry = self.controller.daemon.registry
        assert registry is not None
        for export, record in self.records():
            if record.state not in (State.LIVE, *RESTORABLE):
                continue
            found = registry.get(export)
            assert found is not None
            usage = found.usage.get(record.pv)
            counted = du(self.site.mount_root / export / "a" / record.directory)
            known = None if usage is None else (usage.bytes, usage.inodes)
            assert known == counted, f"{export}/{record.directory}: {known} is known, du says {counted}"


def du(top: Path) -> tuple[int, int]:
    """Bytes on disk and inodes, hard links once."""
    found = {}
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        found[status.st_ino] = status.st_blocks * 512
    return sum(found.values()), len(found)


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=35,
    stateful_step_count=15,
    deadline=None,
    # A history is short enough to be read as it is; to shorten it would take an hour of waiting.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
