"""What growing a claim writes to the API: seen by caches that are behind, and beside other controllers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from nfs_provisioner.errors import RetryLater
from nfs_provisioner.kube.api import EVENT, PV, PVC, STORAGE_CLASS, Api, Conflict
from nfs_provisioner.kube.events import EventWriter
from nfs_provisioner.metrics import Metrics
from nfs_provisioner.volumes import growth
from nfs_provisioner.volumes.announcer import Announcer
from nfs_provisioner.volumes.growth import grow
from nfs_provisioner.volumes.objects import Claim, Volume, claim_from, volume_from
from tests.unit.volumes import situations
from tests.unit.volumes.conftest import DEADLINE, Ground, eventually

Json = dict[str, Any]
FOREIGN = {"type": "ModifyingVolume", "status": "True", "reason": "theirs", "message": "not ours"}
SMALL, BIG = "1Gi", "2Gi"


class Case:
    """A claim of 1Gi, bound, that asks for 2Gi; its record says so already, as after a crash in between."""

    def __init__(self, api: Api, ground: Ground) -> None:
        self.api = api
        self.events = EventWriter(api, busy=lambda: False)
        self.events.start()
        self._announcer = Announcer(self.events, Metrics(CollectorRegistry()), "test")
        self.export = ground.export(ground.spec())
        storage_class = {"metadata": {"name": "nfs"}, "provisioner": situations.OURS, "allowVolumeExpansion": True}
        api.create(STORAGE_CLASS, storage_class)
        spec: Json = {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs", "volumeName": situations.NAME}
        size = {"resources": {"requests": {"storage": SMALL}}}
        made = api.create(PVC, {"metadata": {"name": "data", "namespace": "default"}, "spec": spec | size})
        uid = made["metadata"]["uid"]
        ref = {"kind": "PersistentVolumeClaim", "namespace": "default", "name": "data", "uid": uid}
        annotations = {"pv.kubernetes.io/provisioned-by": situations.OURS}
        pv: Json = {"capacity": {"storage": SMALL}, "accessModes": ["ReadWriteMany"], "claimRef": ref}
        pv |= {"nfs": {"server": "192.0.2.1", "path": "/srv/nfs/data"}, "storageClassName": "nfs"}
        api.create(PV, {"metadata": {"name": situations.NAME, "annotations": annotations}, "spec": pv})
        eventually(lambda: self.claim()["status"].get("phase") == "Bound", "the claim is not Bound")
        api.patch(PVC, "data", {"spec": {"resources": {"requests": {"storage": BIG}}}}, namespace="default")
        self.record = situations.record(requested=2 << 30)

    def claim(self) -> Json:
        return self.api.get(PVC, "data", "default")

    def seen(self) -> tuple[Claim, Volume]:
        """As the caches show it now."""
        ours = frozenset({situations.OURS})
        claim, volume = claim_from(self.claim(), ours), volume_from(self.api.get(PV, situations.NAME), ours)
        assert claim is not None and volume is not None
        return claim, volume

    def grow(self, seen: tuple[Claim, Volume]) -> None:
        grow(self.api, self.export, *seen, self.record, self._announcer, lambda: None)

    def status(self, **fields: Any) -> None:
        self.api.patch(PVC, "data", {"status": fields}, namespace="default", subresource="status")

    def told(self) -> list[str]:
        """Reasons of all Events, one for each time it was told."""
        self.events.stop(DEADLINE)
        found = self.api.list(EVENT, "default")[0]
        return sorted(event["reason"] for event in found for _ in range(event.get("count", 1)))


@pytest.fixture
def case(api: Api, ground: Ground) -> Case:
    return Case(api, ground)


def test_a_growth_is_told_once_though_the_caches_are_behind(case: Case) -> None:
    before = case.seen()
    case.grow(before)
    grown = case.claim()
    case.grow(before)  # what the watch brings wakes it once more, with one of the two caches still behind
    assert case.claim() == grown, "what was done was done again"
    assert case.told() == ["Resizing", "VolumeResizeSuccessful"]
    assert grown["status"]["capacity"]["storage"] == BIG
    assert case.api.get(PV, situations.NAME)["spec"]["capacity"]["storage"] == BIG


def test_the_conditions_of_other_controllers_stay(case: Case) -> None:
    ours = [{"type": kind, "status": "True"} for kind in ("ControllerResizeError", "Resizing")]
    case.status(conditions=[FOREIGN, *ours])
    case.grow(case.seen())
    (left,) = case.claim()["status"]["conditions"]
    assert left["type"] == FOREIGN["type"] and left["message"] == FOREIGN["message"]


def test_a_growth_that_does_not_fit_says_so_beside_the_conditions_of_others(case: Case) -> None:
    case.status(conditions=[FOREIGN, {"type": "ControllerResizeError", "status": "True", "message": "of before"}])
    case.record = replace(case.record, requested=1 << 30)
    root = case.export.spec.replicas[0]
    case.export.spec = replace(case.export.spec, capacity=3 << 29)
    case.export.start()
    eventually(lambda: case.export.ready, f"{root.mount_path} is not attached")
    with pytest.raises(RetryLater):
        case.grow(case.seen())
    found = {condition["type"]: condition for condition in case.claim()["status"]["conditions"]}
    assert set(found) == {FOREIGN["type"], "ControllerResizeError"}
    assert "web" in found["ControllerResizeError"]["message"]


def test_a_growth_that_does_not_fit_is_told_with_the_size_that_is_asked_for_now(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.record = replace(case.record, requested=1 << 30)
    case.export.spec = replace(case.export.spec, capacity=3 << 29)
    case.export.start()
    eventually(lambda: case.export.ready, "it is not attached")
    case.export.catalog.put(case.record)
    monkeypatch.setattr(growth, "FIGURES_FOR", timedelta(hours=1))

    def refused(asked: str) -> tuple[str, str]:
        case.api.patch(PVC, "data", {"spec": {"resources": {"requests": {"storage": asked}}}}, namespace="default")
        with pytest.raises(RetryLater):
            case.grow(case.seen())
        status = case.claim()["status"]
        (condition,) = status["conditions"]
        return status["allocatedResources"]["storage"], condition["message"].partition(":")[0]

    assert refused("2Gi") == ("2Gi", "export web lacks 512Mi")
    assert refused("5Gi") == ("5Gi", "export web lacks 3.5Gi")
    assert refused("3Gi") == ("3Gi", "export web lacks 1.5Gi")
    before = case.claim()
    case.export.spec = replace(case.export.spec, capacity=2 << 30)
    assert refused("3Gi") == ("3Gi", "export web lacks 1.5Gi")
    assert case.claim() == before, "each change of others' figures writes, which brings the claim back, and so on"
    monkeypatch.setattr(growth, "FIGURES_FOR", timedelta(0))
    assert refused("3Gi") == ("3Gi", "export web lacks 1Gi")


def test_a_condition_written_meanwhile_is_not_lost(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.status(conditions=[{"type": "ControllerResizeError", "status": "True"}])
    case.grow(case.seen())
    case.status(conditions=[{"type": "ControllerResizeError", "status": "True"}], allocatedResourceStatuses={})
    seen, get = case.seen(), case.api.get

    def overtaken(*arguments: Any, **options: Any) -> Json:
        found = get(*arguments, **options)
        monkeypatch.undo()
        case.status(conditions=[*found["status"]["conditions"], FOREIGN])
        return found

    monkeypatch.setattr(case.api, "get", overtaken)
    with pytest.raises(Conflict):
        case.grow((replace(seen[0], resizing="ControllerResizeInfeasible"), seen[1]))
    assert FOREIGN["type"] in [condition["type"] for condition in case.claim()["status"]["conditions"]]


def test_a_mark_that_is_taken_off_is_no_growth(case: Case) -> None:
    """A request that was taken back after it did not fit (KEP-1790): nothing has grown, and nobody is told so."""
    case.grow(case.seen())
    case.status(allocatedResourceStatuses={"storage": "ControllerResizeInfeasible"})
    case.grow(case.seen())
    assert "storage" not in (case.claim()["status"].get("allocatedResourceStatuses") or {})
    assert case.told() == ["Resizing", "VolumeResizeSuccessful"]
