"""How a claim and a volume find each other, who writes what on the way, and when they do not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import LASTING, Json
from tests.contract.world import PROVISIONER, VOLUMES, World, has_provisioner, phase, reference

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
NOBODY = "11111111-1111-1111-1111-111111111111"


def annotations_of(obj: Json) -> dict[str, str]:
    found: dict[str, str] = obj["metadata"].get("annotations", {})
    return found


def test_an_immediate_claim_names_its_provisioner(world: World) -> None:
    world.claim("a", world.storage_class())
    claim = world.api.eventually(world.claim_path("a"), has_provisioner)
    assert annotations_of(claim) == {
        "volume.kubernetes.io/storage-provisioner": PROVISIONER,
        "volume.beta.kubernetes.io/storage-provisioner": PROVISIONER,
    }
    assert claim["status"] == {"phase": "Pending"}


def test_a_claim_that_waits_names_it_only_with_a_node(world: World) -> None:
    world.claim("a", world.storage_class(volumeBindingMode="WaitForFirstConsumer"))
    world.settle()
    assert not has_provisioner(world.api.get(world.claim_path("a")).ok())
    world.api.patch(world.claim_path("a"), {"metadata": {"annotations": {SELECTED_NODE: "node-1"}}}).ok()
    claim = world.api.eventually(world.claim_path("a"), has_provisioner)
    assert annotations_of(claim)[SELECTED_NODE] == "node-1"


@pytest.mark.parametrize("provisioner", ["kubernetes.io/no-provisioner", None])
def test_without_a_provisioner_none_is_named(world: World, provisioner: str | None) -> None:
    name = world.storage_class(provisioner=provisioner) if provisioner else world.name("absent")
    world.claim("a", name)
    world.settle()
    assert not annotations_of(world.api.get(world.claim_path("a")).ok())


def test_a_volume_made_for_a_claim_binds(world: World) -> None:
    claim = world.claim("a", world.storage_class())
    made = world.provisioned("a", claim)
    claim = world.api.eventually(world.claim_path("a"), phase("Bound"))
    volume = world.api.eventually(world.volume_path("a"), phase("Bound"))
    assert claim["spec"]["volumeName"] == made["metadata"]["name"]
    assert annotations_of(claim)[BIND_COMPLETED] == "yes"
    assert annotations_of(claim)[BOUND_BY_CONTROLLER] == "yes"
    assert claim["status"] == {
        "phase": "Bound",
        "accessModes": ["ReadWriteMany"],
        "capacity": {"storage": "1Gi"},
    }
    assert BOUND_BY_CONTROLLER not in annotations_of(volume)
    assert volume["spec"]["claimRef"] == reference(claim)


def test_what_is_written_on_the_way_to_bound(world: World) -> None:
    """One write of the volume, two of the claim: a watcher sees each of them."""
    storage_class = world.storage_class()
    claim = world.claim("a", storage_class)
    world.api.eventually(world.claim_path("a"), has_provisioner)
    start = world.api.get(world.claims).ok()["metadata"]["resourceVersion"]
    volume = world.provisioned("a", claim)
    with world.api.watch(world.claims, resourceVersion=start, **LASTING) as running:
        first, second = running.next()["object"], running.next()["object"]
    assert (first["spec"]["volumeName"], first["status"]["phase"]) == (volume["metadata"]["name"], "Pending")
    assert second["status"]["phase"] == "Bound"
    query = {"resourceVersion": volume["metadata"]["resourceVersion"], **LASTING}
    with world.api.watch(VOLUMES, fieldSelector=f"metadata.name={volume['metadata']['name']}", **query) as running:
        assert running.next()["object"]["status"]["phase"] == "Bound"


@pytest.mark.parametrize(
    ("claim", "volume"),
    [
        ({"size": "2Gi"}, {"capacity": {"storage": "1Gi"}}),
        ({"accessModes": ["ReadWriteMany", "ReadOnlyMany"]}, {}),
        ({"volumeMode": "Block"}, {}),
    ],
    ids=["too small", "access mode", "volume mode"],
)
def test_a_volume_that_does_not_suffice_waits_without_a_word(world: World, claim: Any, volume: Any) -> None:
    """Although it was made for the claim: both stay Pending."""
    made = world.claim("a", world.storage_class(), **claim)
    world.provisioned("a", made, **volume)
    world.settle()
    assert world.api.get(world.claim_path("a")).ok()["status"] == {"phase": "Pending"}
    assert world.api.get(world.volume_path("a")).ok()["status"]["phase"] == "Pending"


def test_a_volume_made_for_a_claim_binds_whatever_its_class(world: World) -> None:
    claim = world.claim("a", world.storage_class())
    world.provisioned("a", claim, storageClassName="another")
    world.api.eventually(world.claim_path("a"), phase("Bound"))


def test_a_volume_made_for_a_claim_binds_whatever_its_selector(world: World) -> None:
    claim = world.claim("a", world.storage_class(), selector={"matchLabels": {"tier": "gold"}})
    world.provisioned("a", claim)
    world.api.eventually(world.claim_path("a"), phase("Bound"))


def test_a_larger_volume_is_what_the_claim_gets(world: World) -> None:
    world.provisioned("a", world.claim("a", world.storage_class()), capacity={"storage": "3Gi"})
    claim = world.api.eventually(world.claim_path("a"), phase("Bound"))
    assert claim["status"]["capacity"] == {"storage": "3Gi"}
    assert claim["spec"]["resources"]["requests"] == {"storage": "1Gi"}


def test_a_claim_being_deleted_still_binds(world: World) -> None:
    """So nobody may provision for it."""
    world.claim("a", world.storage_class(), metadata={"finalizers": ["example.com/x"]})
    claim = world.api.delete(world.claim_path("a")).ok()
    world.provisioned("a", claim)
    bound = world.api.eventually(world.claim_path("a"), phase("Bound"))
    assert bound["metadata"]["deletionTimestamp"]


def test_recovery_volume_first_without_uid(world: World) -> None:
    """`recover` prints volumes without uid, then claims with volumeName."""
    storage_class = world.storage_class()
    owner = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": world.namespace, "name": "a"}
    volume = world.volume("a", storage_class, claimRef=owner)
    world.api.eventually(world.volume_path("a"), phase("Available"))
    world.claim("a", storage_class, volumeName=volume["metadata"]["name"])
    claim = world.api.eventually(world.claim_path("a"), phase("Bound"))
    bound = world.api.eventually(world.volume_path("a"), phase("Bound"))
    assert bound["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert bound["spec"]["claimRef"]["resourceVersion"]
    assert BOUND_BY_CONTROLLER not in annotations_of(bound)
    assert BOUND_BY_CONTROLLER not in annotations_of(claim)
    assert BIND_COMPLETED in annotations_of(claim)


def test_recovery_claim_first(world: World) -> None:
    storage_class = world.storage_class()
    world.claim("a", storage_class, volumeName=world.name("a"))
    owner = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": world.namespace, "name": "a"}
    world.volume("a", storage_class, claimRef=owner)
    world.api.eventually(world.claim_path("a"), phase("Bound"))


def test_a_claimref_without_uid_does_not_need_the_name_of_the_volume(world: World) -> None:
    storage_class = world.storage_class()
    owner = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": world.namespace, "name": "a"}
    world.volume("a", storage_class, claimRef=owner)
    world.claim("a", storage_class)
    claim = world.api.eventually(world.claim_path("a"), phase("Bound"))
    assert claim["spec"]["volumeName"] == world.name("a")


def test_h59_a_volume_with_a_dead_claims_uid_is_released_at_once(world: World) -> None:
    storage_class = world.storage_class()
    claim = world.claim("a", storage_class, volumeName=world.name("a"))
    world.provisioned("a", claim, claimRef=reference(claim, uid=NOBODY))
    world.api.eventually(world.volume_path("a"), phase("Released"))
    world.settle()
    assert world.api.get(world.claim_path("a")).ok()["status"] == {"phase": "Pending"}


def test_of_the_free_volumes_the_smallest_that_fits_is_taken(world: World) -> None:
    storage_class = world.storage_class(provisioner="kubernetes.io/no-provisioner")
    for name, size in (("large", "5Gi"), ("fitting", "2Gi"), ("small", "500Mi")):
        world.volume(name, storage_class, size)
        world.api.eventually(world.volume_path(name), phase("Available"))
    world.settle()
    world.claim("a", storage_class)
    claim = world.api.eventually(world.claim_path("a"), phase("Bound"))
    volume = world.api.eventually(world.volume_path("fitting"), phase("Bound"))
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert claim["status"]["capacity"] == {"storage": "2Gi"}
    assert annotations_of(volume) == {BOUND_BY_CONTROLLER: "yes"}
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert world.api.get(world.volume_path("large")).ok()["status"]["phase"] == "Available"


@pytest.mark.parametrize(
    "volume",
    [
        {"storageClassName": "another"},
        {"accessModes": ["ReadOnlyMany"]},
        {"volumeMode": "Block"},
        {"capacity": {"storage": "1023Mi"}},
        {"metadata": {"labels": {"tier": "lead"}}},
    ],
    ids=lambda volume: str(next(iter(volume))),
)
def test_a_free_volume_that_does_not_match_is_not_taken(world: World, volume: Any) -> None:
    storage_class = world.storage_class(provisioner="kubernetes.io/no-provisioner")
    world.volume("v", storage_class, **({"metadata": {"labels": {"tier": "gold"}}} | volume))
    world.api.eventually(world.volume_path("v"), phase("Available"))
    world.claim("a", storage_class, selector={"matchLabels": {"tier": "gold"}})
    world.settle()
    assert world.api.get(world.claim_path("a")).ok()["status"] == {"phase": "Pending"}
    assert world.api.get(world.volume_path("v")).ok()["status"]["phase"] == "Available"


def test_a_claim_that_waits_for_a_consumer_takes_no_free_volume(world: World) -> None:
    storage_class = world.storage_class(volumeBindingMode="WaitForFirstConsumer")
    world.volume("v", storage_class)
    world.api.eventually(world.volume_path("v"), phase("Available"))
    world.claim("a", storage_class)
    world.settle()
    assert world.api.get(world.claim_path("a")).ok()["status"] == {"phase": "Pending"}


def test_two_volumes_for_one_claim(world: World) -> None:
    """The second is Released: a provisioner that made it by mistake deletes it. With Retain it becomes Available."""
    claim, _ = world.bound("first", world.storage_class())
    world.provisioned("second", claim)
    world.api.eventually(world.volume_path("second"), phase("Released"))
    world.provisioned("third", claim, persistentVolumeReclaimPolicy="Retain")
    third = world.api.eventually(world.volume_path("third"), phase("Available"))
    assert "uid" not in third["spec"]["claimRef"]


def test_the_annotation_that_classes_had_first_wins_over_the_field(world: World) -> None:
    """Of claims and of volumes; also when a claim's is there and empty."""
    beta = "volume.beta.kubernetes.io/storage-class"
    annotated = {"annotations": {beta: world.name("old")}}
    world.volume("a", "", metadata=annotated)
    world.claim("a", world.name("field"), metadata=annotated)
    claim = world.api.eventually(world.claim_path("a"), phase("Bound"))
    assert claim["spec"]["volumeName"] == world.name("a")
    world.volume("b", world.name("field"))
    world.api.eventually(world.volume_path("b"), phase("Available"))
    world.claim("b", world.name("field"), metadata={"annotations": {beta: ""}})
    world.settle()
    assert world.api.get(world.claim_path("b")).ok()["status"] == {"phase": "Pending"}
