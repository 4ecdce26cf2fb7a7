"""Exports with their real children on directories of the test, and an API server of its own."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from nfs_provisioner.config import ExportSpec, ReplicaSpec, ReplicationSpec
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.replica import Replica
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.kube.api import Api, load
from nfs_provisioner.metrics import Metrics
from nfs_provisioner.replication.driver import Around, Driver
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.services import Seen, Services

DEADLINE = 120.0


def eventually(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Waits until `condition` holds; fails, saying what was waited for."""
    pause = threading.Event()
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} after {deadline:g} s"
        pause.wait(0.01)


@dataclass
class Ground:
    """Makes exports and remembers what they said."""

    root: Path
    lease: LeaseEnd
    clock: Callable[[], float] = lambda: 1000.0  # it stands: no status is told because of the time that a look takes
    statuses: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    events: list[tuple[str, str, str, bool]] = field(default_factory=list)
    made: list[Export] = field(default_factory=list)
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry(auto_describe=True)))

    def services(self, publish: Callable[[str], None] | None = None) -> Services:
        return Services(
            cluster="cluster",
            lease=self.lease,
            term=lambda: "00000001",
            partner=self._partner,
            on_ready=self.ready.append,
            on_status=publish or self.statuses.append,
            on_event=lambda *event: self.events.append(event),
            clock=self.clock,
            poll=0.1,
        )

    def _partner(
        self,
        export: str,
        catalog: Catalog,
        active: Attachment,
        standby: Attachment,
        records: list[VolumeRecord],
        settings: Callable[[], ReplicationSpec],
    ) -> Driver:
        around = Around(lease=self.lease, term=lambda: "00000001", metrics=self.metrics, settings=settings)
        return Driver(export, catalog, active, standby, records, around)

    def spec(self, name: str = "web", replicas: str = "a", server: str = "192.0.2.1", **fields: Any) -> ExportSpec:
        """With a directory of its own for each replica."""
        made = []
        for replica in replicas:
            path = self.root / name / replica
            path.mkdir(parents=True, exist_ok=True)
            made.append(ReplicaSpec(replica, server, "/srv/nfs", str(path)))
        return ExportSpec(name=name, replicas=tuple(made), **fields)

    def export(self, spec: ExportSpec, **options: Any) -> Export:
        """Not started yet."""
        made = Export(spec, options.pop("seen", Seen()), self.services(), **options)
        self.made.append(made)
        return made


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that do not answer for ten seconds are given up; here, that is a disk that stalls."""
    for call in (Replica.call, Replica.call_all, Export.call):
        monkeypatch.setattr(call, "__kwdefaults__", (call.__kwdefaults__ or {}) | {"deadline": DEADLINE})


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    lease = LeaseEnd()
    lease.set(math.inf)
    made = Ground(tmp_path / "exports", lease)
    yield made
    for export in made.made:
        export.stop()
    os.close(lease.fd)


@pytest.fixture
def api(embedded_api: EmbeddedApiServer, embedded_kubeconfig: Path) -> Iterator[Api]:
    loaded = load(str(embedded_kubeconfig))
    yield loaded
    loaded.close()
