"""A registry of exports whose replicas nobody can reach: what is recorded there is what the test says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.volumes.exports import Export, Services
from nfs_provisioner.volumes.registry import Registry, export_from
from nfs_provisioner.volumes.room import Room

ROOT = "/nowhere"


@contextmanager
def registry() -> Iterator[Registry]:
    """It publishes nothing: it was not started, and its API is never asked."""
    services = Services(
        cluster="cluster",
        lease=LeaseEnd(),
        term=lambda: "00000001",
        partner=lambda *_: cast(Any, None),
        on_ready=lambda *_: None,
        on_status=lambda *_: None,
        on_event=lambda *_: None,
    )
    made = Registry(cast(Any, None), services, mount_root=ROOT, has_volumes=lambda _export: False, check=lambda: None)
    try:
        yield made
    finally:
        made.stop()


def with_room(monkeypatch: pytest.MonkeyPatch, **free: int) -> None:
    """Every export is as good as attached: as large as its spec says, and really free but for what `free` says."""

    def room(export: Export) -> Room:
        size = export.spec.capacity or 0
        available = free.get(export.name, size)
        return Room(export.spec, size, available, export.catalog.reserved, held=export.copies.held())

    monkeypatch.setattr(Export, "room", room)


def tell(to: Registry, name: str, generation: int = 1, **changes: Any) -> None:
    """The NFSExport appeared or changed."""
    spec: dict[str, Any] = {
        "replicas": [{"name": "a", "server": "192.0.2.1", "path": "/srv", "mountPath": f"{ROOT}/{name}/a"}],
        "capacity": "10Gi",
    }
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": generation}
    metadata["labels"] = changes.pop("labels", {})
    raw = {"apiVersion": "nfs-provisioner.io/v1alpha1", "kind": "NFSExport", "metadata": metadata}
    to.changed(name, export_from(raw | {"spec": spec | changes}))
