"""What may be in a claim, a volume and a class, and what may change later."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import Json
from tests.contract.world import CLASSES, PROVISIONER, VOLUMES, World

CLAIM_IMMUTABLE = "spec is immutable after creation except resources.requests"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"accessModes": []}, "spec.accessModes: Required value"),
        ({"accessModes": ["Sometimes"]}, "spec.accessModes: Unsupported value"),
        (
            {"accessModes": ["ReadWriteOnce", "ReadWriteOncePod"]},
            "may not use ReadWriteOncePod with other access",
        ),
        ({"resources": {}}, "spec.resources[storage]: Required value"),
        ({"resources": {"requests": {"storage": "0"}}}, "must be greater than zero"),
        ({"volumeMode": "Bucket"}, "spec.volumeMode: Unsupported value"),
        ({"storageClassName": "Not_valid"}, "spec.storageClassName: Invalid value"),
        (
            {"dataSourceRef": {"kind": "Pod", "name": "x"}},
            "must be 'PersistentVolumeClaim' when referencing",
        ),
    ],
)
def test_claims_that_are_refused(world: World, spec: Json, words: str) -> None:
    world.api.post(world.claims, world.claim_body("a", "none", **spec)).refused(422, "Invalid", words)


@pytest.mark.parametrize(
    "spec",
    [
        {"volumeMode": "Block"},
        {"volumeAttributesClassName": "gold"},
        {"accessModes": ["ReadWriteOncePod"]},
        {"dataSourceRef": {"apiGroup": "example.com", "kind": "Backup", "name": "x"}},
        {"selector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["gold"]}]}},
    ],
    ids=lambda spec: str(next(iter(spec))),
)
def test_claims_that_the_server_accepts_whatever_we_think_of_them(world: World, spec: Json) -> None:
    """Refusing them is the provisioner's work."""
    made = world.claim("a", "none", **spec)
    assert spec.items() <= made["spec"].items()


def test_a_data_source_is_said_twice(world: World) -> None:
    """dataSource and dataSourceRef mirror each other, and dataSource takes only claims and snapshots."""
    claim = {"kind": "PersistentVolumeClaim", "name": "x"}
    backup = {"apiGroup": "example.com", "kind": "Backup", "name": "x"}
    first = world.claim("a", "none", dataSource=claim)["spec"]
    assert first["dataSource"] == first["dataSourceRef"] == claim | {"apiGroup": None}
    second = world.claim("b", "none", dataSourceRef=backup)["spec"]
    assert second["dataSource"] == second["dataSourceRef"] == backup
    third = world.claim("c", "none", dataSource=backup)["spec"]
    assert "dataSource" not in third
    assert "dataSourceRef" not in third


@pytest.mark.parametrize(
    "spec",
    [
        {"accessModes": ["ReadOnlyMany"]},
        {"storageClassName": "another"},
        {"selector": {"matchLabels": {"a": "b"}}},
        {"volumeMode": "Block"},
        {"volumeAttributesClassName": "gold"},
    ],
    ids=lambda spec: str(next(iter(spec))),
)
def test_a_claims_specification_does_not_change(world: World, spec: Json) -> None:
    world.claim("a", "none")
    world.api.patch(world.claim_path("a"), {"spec": spec}).refused(422, "Invalid", CLAIM_IMMUTABLE)


def test_the_volume_of_a_claim_is_named_once(world: World) -> None:
    world.claim("a", "none")
    path = world.claim_path("a")
    assert world.api.patch(path, {"spec": {"volumeName": "x"}}).ok()["spec"]["volumeName"] == "x"
    world.api.patch(path, {"spec": {"volumeName": "y"}}).refused(422, "Invalid", CLAIM_IMMUTABLE)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"accessModes": []}, "spec.accessModes: Required value"),
        ({"capacity": {}}, "spec.capacity: Required value"),
        ({"capacity": {"storage": "0"}}, "must be greater than zero"),
        ({"capacity": {"storage": "1Gi", "cpu": "1"}}, "spec.capacity: Unsupported value"),
        ({"nfs": None}, "spec: Required value: must specify a volume type"),
        ({"nfs": {"server": "", "path": "/x"}}, "spec.nfs.server: Required value"),
        ({"nfs": {"server": "a", "path": ""}}, "spec.nfs.path: Required value"),
        ({"nfs": {"server": "a", "path": "relative"}}, "must be an absolute path"),
        ({"hostPath": {"path": "/x"}}, "may not specify more than 1 volume type"),
        ({"persistentVolumeReclaimPolicy": "Never"}, "Unsupported value"),
        ({"volumeMode": "Bucket"}, "spec.volumeMode: Unsupported value"),
        ({"storageClassName": "Not_valid"}, "spec.storageClassName: Invalid value"),
    ],
)
def test_volumes_that_are_refused(world: World, spec: Json, words: str) -> None:
    world.api.post(VOLUMES, world.volume_body("v", "none", **spec)).refused(422, "Invalid", words)


def test_a_path_that_climbs_is_accepted(world: World) -> None:
    """H02: the server does not look into it."""
    made = world.volume("v", "none", nfs={"server": "a", "path": "/srv/../etc"})
    assert made["spec"]["nfs"]["path"] == "/srv/../etc"


def test_the_source_and_mode_of_a_volume_do_not_change(world: World) -> None:
    world.volume("v", "none")
    path = world.volume_path("v")
    for change in ({"nfs": {"server": "other"}}, {"nfs": {"path": "/other"}}, {"nfs": {"readOnly": True}}):
        world.api.patch(path, {"spec": change}).refused(422, "Invalid", "persistentvolumesource is immutable")
    world.api.patch(path, {"spec": {"volumeMode": "Block"}}).refused(422, "Invalid", "volumeMode")


def test_what_may_change_of_a_volume(world: World) -> None:
    world.volume("v", "none")
    changes: Json = {
        "persistentVolumeReclaimPolicy": "Delete",
        "mountOptions": ["hard"],
        "storageClassName": "another",
        "accessModes": ["ReadOnlyMany"],
        "capacity": {"storage": "2Gi"},
    }
    changed = world.api.patch(world.volume_path("v"), {"spec": changes}).ok()
    assert changes.items() <= changed["spec"].items()


def test_class_defaults(world: World) -> None:
    name = world.storage_class()
    made = world.api.get(f"{CLASSES}/{name}").ok()
    assert (made["reclaimPolicy"], made["volumeBindingMode"]) == ("Delete", "Immediate")
    assert "allowVolumeExpansion" not in made


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"provisioner": ""}, "provisioner: Required value"),
        ({"provisioner": "not valid"}, "provisioner: Invalid value"),
        ({"reclaimPolicy": "Recycle"}, "reclaimPolicy: Unsupported value"),
        ({"volumeBindingMode": "Later"}, "volumeBindingMode: Unsupported value"),
        ({"parameters": {"": "x"}}, "parameters: Invalid value"),
    ],
)
def test_classes_that_are_refused(world: World, fields: Json, words: str) -> None:
    body = {"metadata": {"name": world.name("sc")}, "provisioner": PROVISIONER} | fields
    world.api.post(CLASSES, body).refused(422, "Invalid", words)


@pytest.mark.parametrize(
    "change",
    [
        {"provisioner": "example.com/other"},
        {"parameters": {"onDelete": "delete"}},
        {"parameters": None},
        {"reclaimPolicy": "Retain"},
        {"volumeBindingMode": "WaitForFirstConsumer"},
    ],
    ids=str,
)
def test_what_may_not_change_of_a_class(world: World, change: Any) -> None:
    path = f"{CLASSES}/{world.storage_class(parameters={'onDelete': 'archive'})}"
    field = next(iter(change))
    world.api.patch(path, change).refused(422, "Invalid", f"{field}: Invalid value", "field is immutable")


def test_what_may_change_of_a_class(world: World) -> None:
    path = f"{CLASSES}/{world.storage_class()}"
    changed = world.api.patch(path, {"allowVolumeExpansion": True, "mountOptions": ["hard"]}).ok()
    assert (changed["allowVolumeExpansion"], changed["mountOptions"]) == (True, ["hard"])


def test_the_default_class(world: World) -> None:
    """A claim that says nothing gets it; one that says "" does not."""
    annotation = {"storageclass.kubernetes.io/is-default-class": "true"}
    name = world.storage_class(metadata={"name": world.name("default"), "annotations": annotation})
    silent = world.claim_body("unseen", "x")
    del silent["spec"]["storageClassName"]

    def given(_: Json) -> bool:
        """The admission plugin reads a cache, which may be a moment behind."""
        answer = world.api.post(world.claims, silent, dryRun="All").ok()
        return bool(answer["spec"].get("storageClassName") == name)

    world.api.eventually(f"{CLASSES}/{name}", given)
    assert "storageClassName" not in world.api.post(world.claims, silent | _beta(silent), dryRun="All").ok()["spec"]
    assert world.claim("empty", "")["spec"]["storageClassName"] == ""


def _beta(body: Json) -> Json:
    annotations = {"volume.beta.kubernetes.io/storage-class": "by-annotation"}
    return {"metadata": body["metadata"] | {"annotations": annotations}}
