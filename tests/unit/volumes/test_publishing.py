"""What is published of NFSExports: by whom it may be overtaken, when it is first said, and which may be used at all."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nfs_provisioner.kube.api import NFS_EXPORT, Api
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.volumes import registry
from nfs_provisioner.volumes.objects import EXPORT_FINALIZER
from nfs_provisioner.volumes.registry import ExportObject, Registry, export_from
from nfs_provisioner.volumes.replicas import Replicas
from tests.unit.volumes.conftest import DEADLINE, Ground, eventually

Json = dict[str, Any]


class Cluster:
    """NFSExports in an API server, and one leader's registry that watches them."""

    def __init__(self, api: Api, ground: Ground) -> None:
        self.api = api
        self.ground = ground
        self.phases: dict[str, list[str]] = {}
        self._watch: Reflector[ExportObject] = Reflector(
            api, NFS_EXPORT, slim=export_from, on_change=lambda name, _old, new: self._changed(name, new)
        )
        self._watch.start()
        self.registry = self.lead()

    def lead(self) -> Registry:
        """The next leader."""
        self.registry = Registry(
            self.api,
            self.ground.services(publish=lambda name: self.registry.publish(name)),
            mount_root=str(self.ground.root),
            has_volumes=lambda _export: False,
            check=lambda: None,
        )
        assert self._watch.synced.wait(DEADLINE)
        self.registry.start(self._watch.items())
        return self.registry

    def _changed(self, name: str, new: ExportObject | None) -> None:
        phase = new.status.get("phase", "") if new is not None else "gone"
        if phase and (not self.phases.get(name) or self.phases[name][-1] != phase):
            self.phases.setdefault(name, []).append(phase)
        self.registry.changed(name, new)

    def make(self, name: str, *paths: str) -> None:
        replicas: list[Json] = []
        for replica, path in zip("ab", paths, strict=False):
            mount = self.ground.root / path
            mount.mkdir(parents=True, exist_ok=True)
            replicas.append({"name": replica, "server": "192.0.2.1", "path": f"/{path}", "mountPath": str(mount)})
        metadata = {"name": name}
        kind = {"apiVersion": "nfs-provisioner.io/v1alpha1", "kind": "NFSExport"}
        self.api.create(NFS_EXPORT, kind | {"metadata": metadata, "spec": {"replicas": replicas}})

    def status(self, name: str) -> Json:
        found: Json = self.api.get(NFS_EXPORT, name).get("status") or {}
        return found

    def is_in(self, name: str, phase: str) -> None:
        eventually(lambda: self.status(name).get("phase") == phase, f"{name} is not {phase}: {self.phases}")

    def stop(self) -> None:
        self._watch.stop()
        self.registry.stop()


@pytest.fixture
def cluster(api: Api, ground: Ground) -> Iterator[Cluster]:
    made = Cluster(api, ground)
    yield made
    made.stop()


def meanwhile(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let somebody act just before our next patch of the finalizers arrives."""
    patch = cluster.api.patch

    def overtaken(*arguments: Any, **options: Any) -> Json:
        if "finalizers" in (arguments[2].get("metadata") or {}):
            monkeypatch.undo()
            act()
        return patch(*arguments, **options)

    monkeypatch.setattr(cluster.api, "patch", overtaken)


def test_a_write_that_somebody_overtook_is_repeated_without_a_warning(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "nfs_provisioner")
    label = {"metadata": {"labels": {"written": "meanwhile"}}}
    meanwhile(cluster, monkeypatch, lambda: (cluster.api.patch(NFS_EXPORT, "web", label), None)[1])
    cluster.make("web", "web")
    cluster.is_in("web", "Ready")
    metadata = cluster.api.get(NFS_EXPORT, "web")["metadata"]
    assert EXPORT_FINALIZER in metadata["finalizers"] and metadata["labels"] == {"written": "meanwhile"}
    conflicts = [record for record in caplog.records if "409 Conflict" in record.getMessage()]
    assert conflicts and {record.levelno for record in conflicts} == {logging.DEBUG}


def test_a_leader_change_does_not_show_a_pair_as_degraded(cluster: Cluster) -> None:
    cluster.make("web", "web-a", "web-b")
    cluster.is_in("web", "Ready")
    for _ in range(3):
        cluster.registry.stop()
        leader = cluster.lead()
        eventually(lambda leader=leader: leader.all()[0].settled, "nothing is known of the pair")  # type: ignore[misc]
        cluster.registry.publish("web")
    cluster.is_in("web", "Ready")
    eventually(lambda: cluster.phases["web"][-1:] == ["Ready"], "the watch tells something else")
    assert "Degraded" not in cluster.phases["web"]


def test_a_count_that_nobody_called_for_is_told_at_the_next_write(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when passes go on for hours and nothing else happens: the lag that kubectl shows would grow all the time."""
    monkeypatch.setattr(registry, "COUNTS_EVERY", 1.0)
    cluster.make("web", "web")
    cluster.is_in("web", "Ready")
    export = cluster.registry.get("web")
    assert export is not None
    known = export.status
    monkeypatch.setattr(export, "_services", dataclasses.replace(export._services, on_status=lambda _name: None))
    monkeypatch.setattr(export, "status", lambda: dataclasses.replace(known(), unmanaged=7))
    eventually(lambda: cluster.status("web").get("unmanaged") == 7, "the count stays as it was")


def test_an_export_in_which_nothing_changes_is_looked_at_once_a_minute_and_not_all_the_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "COUNTS_EVERY", 0.5)
    cluster.make("web", "web")
    cluster.is_in("web", "Ready")
    export = cluster.registry.get("web")
    assert export is not None
    known = export.status()
    monkeypatch.setattr(export, "status", lambda: known)  # whatever becomes of the disk
    moments = cluster.registry._written
    eventually(lambda: time.monotonic() - moments["web"][1] > 1.0, "it is written again and again")
    monkeypatch.setattr(registry, "COUNTS_EVERY", 1.5)  # the last write is longer ago, or soon will be
    eventually(lambda: time.monotonic() - moments["web"][1] > 2.0, "it is written again and again")
    pauses: list[float] = []
    publish = cluster.registry.publish

    def noted(name: str, *, after: float = 0.0) -> None:
        pauses.append(after)
        publish(name, after=after)

    monkeypatch.setattr(cluster.registry, "publish", noted)
    cluster.registry.publish("web")
    eventually(lambda: max(pauses) > 1.2, "it is looked at too soon")


def test_the_younger_of_two_exports_in_one_directory_is_refused_until_the_older_goes(cluster: Cluster) -> None:
    cluster.make("first", "one")
    cluster.make("second", "one/inside")
    cluster.is_in("first", "Ready")
    cluster.is_in("second", "Halted")
    (condition,) = cluster.status("second")["conditions"]
    assert condition["status"] == "False"
    for part in ("NFSExport first", "spec.replicas[0].mountPath", "one/inside"):
        assert part in condition["message"]
    assert not list((cluster.ground.root / "one" / "inside").iterdir()), "something was written for it"
    second = cluster.registry.get("second")
    assert second is not None and not second.attachments()
    cluster.api.delete(NFS_EXPORT, "first")
    cluster.is_in("second", "Ready")
    eventually(lambda: cluster.phases["second"] == ["Halted", "Ready"], "the watch tells something else")


def test_an_export_whose_directory_is_taken_by_an_older_one_lets_go_of_it(cluster: Cluster) -> None:
    cluster.make("first", "one")
    cluster.make("second", "two")
    cluster.is_in("first", "Ready")
    cluster.is_in("second", "Ready")
    replica = cluster.api.get(NFS_EXPORT, "first")["spec"]["replicas"][0]
    moved = replica | {"mountPath": str(cluster.ground.root / "two" / "inside")}
    cluster.api.patch(NFS_EXPORT, "first", {"spec": {"replicas": [moved]}})
    cluster.is_in("second", "Halted")


def test_a_new_leader_attaches_the_older_whatever_it_hears_of_first(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.make("b-older", "one")
    cluster.is_in("b-older", "Ready")
    cluster.registry.stop()
    watched = cluster._watch.items()[0]
    younger = export_from(
        {
            **watched.raw,
            "metadata": {"name": "a-younger", "uid": "u", "resourceVersion": "1", "creationTimestamp": "9999"},
            "spec": watched.raw["spec"],
        }
    )
    other = Registry(
        cluster.api,
        cluster.ground.services(),
        mount_root=str(cluster.ground.root),
        has_volumes=lambda _export: False,
        check=lambda: None,
    )
    begun: list[str] = []
    monkeypatch.setattr(Replicas, "begin", lambda _self, spec: begun.append(spec.name))
    other.start([younger, watched])
    try:
        found = other.get("a-younger")
        assert found is not None and "b-older" in found.refused and not found.attachments()
        older = other.get("b-older")
        assert older is not None and not older.refused
        assert begun == ["b-older"]
    finally:
        other.stop()
