"""Deleting: preconditions, finalizers, and what is left meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import MERGE, STRATEGIC, Json
from tests.contract.world import CLASSES, VOLUMES, World

FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"


@pytest.fixture
def held(world: World) -> Json:
    """A volume that nobody claims and our finalizer holds."""
    return world.volume("v", "none", metadata={"finalizers": [FINALIZER]})


@pytest.fixture
def terminating(world: World, held: Json) -> Json:
    """The same, deleted; the protection finalizer has gone already."""
    path = f"{VOLUMES}/{held['metadata']['name']}"
    world.api.delete(path).ok()
    return world.api.eventually(path, lambda volume: volume["metadata"]["finalizers"] == [FINALIZER])


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
def test_preconditions_that_do_not_hold_are_a_conflict(world: World, field: str) -> None:
    path = world.volume_path("v")
    world.api.delete(path, {"preconditions": {field: "1"}}).refused(409, "Conflict", "precondition")
    assert "deletionTimestamp" not in world.api.get(path).ok()["metadata"]


@pytest.mark.usefixtures("held")
def test_preconditions_that_hold(world: World) -> None:
    world.settle()  # the volume has become Available: one more version
    read = world.api.get(world.volume_path("v")).ok()["metadata"]
    options = {"preconditions": {"uid": read["uid"], "resourceVersion": read["resourceVersion"]}}
    deleted = world.api.delete(world.volume_path("v"), options).ok()
    assert deleted["kind"] == "PersistentVolume"
    assert deleted["metadata"]["deletionTimestamp"]
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 0


def test_a_finalizer_holds_until_it_is_removed(world: World, terminating: Json) -> None:
    path = world.volume_path("v")
    change = {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}
    last = world.api.patch(path, change, STRATEGIC).ok()
    assert last["metadata"]["deletionTimestamp"] == terminating["metadata"]["deletionTimestamp"]
    assert "finalizers" not in last["metadata"]
    world.api.get(path).refused(404, "NotFound")


def test_deleting_again_changes_nothing(world: World, terminating: Json) -> None:
    """But for its status, which the real binder may be writing at that moment."""
    again = world.api.delete(world.volume_path("v")).ok()
    for now in (again, world.api.get(world.volume_path("v")).ok()):
        for field in ("uid", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers"):
            assert now["metadata"].get(field) == terminating["metadata"].get(field)
        assert now["spec"] == terminating["spec"]


@pytest.mark.usefixtures("terminating")
def test_a_terminating_object_takes_no_new_finalizers(world: World) -> None:
    words = "no new finalizers can be added if the object is being deleted"
    for body, content_type in (
        ({"metadata": {"finalizers": ["example.com/new"]}}, STRATEGIC),
        ({"metadata": {"finalizers": [FINALIZER, "example.com/new"]}}, MERGE),
    ):
        world.api.patch(world.volume_path("v"), body, content_type).refused(422, "Invalid", words)


def test_a_terminating_object_can_be_changed_otherwise(world: World, terminating: Json) -> None:
    change = {"spec": {"mountOptions": ["hard"]}, "metadata": {"deletionTimestamp": None}}
    changed = world.api.patch(world.volume_path("v"), change).ok()
    assert changed["spec"]["mountOptions"] == ["hard"]
    assert changed["metadata"]["deletionTimestamp"] == terminating["metadata"]["deletionTimestamp"]


@pytest.mark.usefixtures("terminating")
def test_the_name_stays_taken_while_terminating(world: World) -> None:
    world.api.post(VOLUMES, world.volume_body("v", "none")).refused(409, "AlreadyExists")


def test_an_unused_volume_and_claim_go_at_once(world: World) -> None:
    """pv-protection and pvc-protection are removed by their controllers, not by the client."""
    world.volume("free", "none")
    world.claim("free", "another")
    for path in (world.volume_path("free"), world.claim_path("free")):
        world.api.delete(path).ok()
        world.api.eventually_gone(path)


def test_protection_comes_back_when_somebody_removes_it(world: World) -> None:
    world.claim("a", "none")
    world.api.patch(world.claim_path("a"), {"metadata": {"finalizers": None}}).ok()
    world.api.eventually(world.claim_path("a"), lambda claim: "finalizers" in claim["metadata"])


@pytest.mark.parametrize(
    ("collection", "body", "kind"),
    [
        (CLASSES, {"provisioner": "example.com/x"}, "StorageClass"),
        ("config_maps", {"data": {}}, "Status"),
        ("/apis/coordination.k8s.io/v1/namespaces/{}/leases", {"spec": {}}, "Status"),
        ("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", {"addressType": "IPv4"}, "Status"),
    ],
)
def test_what_a_delete_answers(world: World, collection: str, body: dict[str, Any], kind: str) -> None:
    """Some kinds answer with their last state, others with a Status: a client may not count on either."""
    path = world.config_maps if collection == "config_maps" else collection.format(world.namespace)
    made = world.make(path, body | {"metadata": {"name": world.name("x")}})
    answer = world.api.delete(f"{path}/{world.name('x')}").ok()
    assert answer["kind"] == kind
    if kind == "Status":
        assert answer["status"] == "Success"
        assert answer["details"]["uid"] == made["metadata"]["uid"]


def test_deleting_a_collection_by_selector(world: World) -> None:
    for name, labels in (("a", {"x": "1"}), ("b", {"x": "2"}), ("c", {})):
        world.make(world.config_maps, {"metadata": {"name": name, "labels": labels}})
    world.api.delete(world.config_maps, labelSelector="x").ok()
    left = {item["metadata"]["name"] for item in world.api.get(world.config_maps).ok()["items"]}
    assert left - {"kube-root-ca.crt"} == {"c"}
