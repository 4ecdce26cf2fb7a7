"""What becomes of the one when the other goes."""

from __future__ import annotations

import pytest

from tests.contract.client import Json
from tests.contract.world import PROVISIONED_BY, VOLUMES, World, phase, reference

FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
NOBODY = "11111111-1111-1111-1111-111111111111"


def test_a_volume_is_released_when_its_claim_goes(world: World) -> None:
    claim, _ = world.bound("a", world.storage_class())
    world.api.delete(world.claim_path("a")).ok()
    volume = world.api.eventually(world.volume_path("a"), phase("Released"))
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert "deletionTimestamp" not in volume["metadata"]
    world.api.get(world.claim_path("a")).refused(404, "NotFound")


def test_a_volume_is_released_when_its_claim_comes_back_with_another_uid(world: World) -> None:
    storage_class = world.storage_class()
    world.bound("a", storage_class)
    world.api.delete(world.claim_path("a")).ok()
    world.api.eventually_gone(world.claim_path("a"))
    world.claim("a", storage_class)
    world.api.eventually(world.volume_path("a"), phase("Released"))
    world.settle()
    assert world.api.get(world.claim_path("a")).ok()["status"] == {"phase": "Pending"}


def test_h13_a_volume_for_a_claim_that_has_gone_is_released(world: World) -> None:
    claim = world.claim("a", world.storage_class())
    world.api.delete(world.claim_path("a")).ok()
    world.api.eventually_gone(world.claim_path("a"))
    world.provisioned("a", claim)
    world.api.eventually(world.volume_path("a"), phase("Released"))


@pytest.mark.parametrize("annotations", [{}, {PROVISIONED_BY: ""}], ids=["absent", "empty"])
def test_policy_delete_without_a_provisioner_fails(world: World, annotations: dict[str, str]) -> None:
    """Without provisioned-by the controller believes the volume its own, and has no way to delete it."""
    claim = world.claim("a", world.storage_class())
    world.provisioned("a", claim, claimRef=reference(claim, uid=NOBODY), metadata={"annotations": annotations})
    failed = world.api.eventually(world.volume_path("a"), phase("Failed"))
    assert "no deletable volume plugin matched" in failed["status"]["message"]


def test_h58_a_volume_deleted_first_stays_bound_while_its_claim_lives(world: World) -> None:
    _, volume = world.bound("a", world.storage_class(), metadata={"finalizers": [FINALIZER]})
    deleted = world.api.delete(world.volume_path("a")).ok()
    assert deleted["metadata"]["deletionTimestamp"]
    world.settle()
    kept = world.api.get(world.volume_path("a")).ok()
    assert kept["status"]["phase"] == "Bound"
    assert "kubernetes.io/pv-protection" in kept["metadata"]["finalizers"]
    assert world.api.get(world.claim_path("a")).ok()["status"]["phase"] == "Bound"
    assert kept["metadata"]["uid"] == volume["metadata"]["uid"]


def test_h58_it_is_released_when_the_claim_goes_too(world: World) -> None:
    world.bound("a", world.storage_class(), metadata={"finalizers": [FINALIZER]})
    world.api.delete(world.volume_path("a")).ok()
    world.api.delete(world.claim_path("a")).ok()
    volume = world.api.eventually(world.volume_path("a"), lambda found: found["metadata"]["finalizers"] == [FINALIZER])
    assert volume["status"]["phase"] == "Released"
    world.free_volume("a")
    world.api.get(world.volume_path("a")).refused(404, "NotFound")


def test_a_volume_deleted_before_it_was_bound_never_binds(world: World) -> None:
    claim = world.claim("a", world.storage_class(), "2Gi")
    world.provisioned("a", claim, capacity={"storage": "1Gi"}, metadata={"finalizers": [FINALIZER]})
    world.api.delete(world.volume_path("a")).ok()
    world.api.patch(world.volume_path("a"), {"spec": {"capacity": {"storage": "2Gi"}}}).ok()
    # Its protection is another controller's work than the binding.
    world.api.eventually(world.volume_path("a"), lambda found: found["metadata"]["finalizers"] == [FINALIZER])
    world.settle()
    volume = world.api.get(world.volume_path("a")).ok()
    assert (volume["status"]["phase"], volume["metadata"]["finalizers"]) == ("Pending", [FINALIZER])
    assert world.api.get(world.claim_path("a")).ok()["status"] == {"phase": "Pending"}


def lose(world: World, claim: Json) -> Json:
    """Deletes the claim's volume for good; returns what to post to get it back."""
    name = claim["metadata"]["name"]
    world.api.delete(world.volume_path(name)).ok()
    world.free_volume(name)
    world.api.eventually_gone(world.volume_path(name))
    return world.api.eventually(world.claim_path(name), phase("Lost"))


def test_h59_a_claim_without_its_volume_is_lost_and_found_again(world: World) -> None:
    claim, volume = world.bound("a", world.storage_class())
    lost = lose(world, claim)
    assert lost["status"] == {"phase": "Lost"}
    assert lost["spec"]["volumeName"] == volume["metadata"]["name"]
    metadata = {key: volume["metadata"][key] for key in ("name", "annotations")}
    world.make(VOLUMES, {"metadata": metadata, "spec": volume["spec"]})
    found = world.api.eventually(world.claim_path("a"), phase("Bound"))
    assert found["status"] == claim["status"]
    world.api.eventually(world.volume_path("a"), phase("Bound"))


def test_h59_a_lost_claim_does_not_take_a_volume_of_another_uid(world: World) -> None:
    claim, volume = world.bound("a", world.storage_class())
    lose(world, claim)
    metadata = {key: volume["metadata"][key] for key in ("name", "annotations")}
    spec = volume["spec"] | {"claimRef": reference(claim, uid=NOBODY)}
    world.make(VOLUMES, {"metadata": metadata, "spec": spec})
    world.api.eventually(world.volume_path("a"), phase("Released"))
    assert world.api.get(world.claim_path("a")).ok()["status"]["phase"] == "Lost"


def test_h59_a_cleared_claimref_makes_the_volume_available_again(world: World) -> None:
    storage_class = world.storage_class()
    world.bound("a", storage_class)
    world.api.delete(world.claim_path("a")).ok()
    world.api.eventually(world.volume_path("a"), phase("Released"))
    world.api.patch(world.volume_path("a"), {"spec": {"claimRef": None}}).ok()
    world.api.eventually(world.volume_path("a"), phase("Available"))
    world.claim("b", storage_class, volumeName=world.name("a"))
    claim = world.api.eventually(world.claim_path("b"), phase("Bound"))
    volume = world.api.eventually(world.volume_path("a"), phase("Bound"))
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert volume["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"] == "yes"


def test_h59_a_claimref_cleared_under_a_living_claim_is_written_again(world: World) -> None:
    claim, _ = world.bound("a", world.storage_class())
    world.api.patch(world.volume_path("a"), {"spec": {"claimRef": None}}).ok()
    volume = world.api.eventually(world.volume_path("a"), lambda found: found["spec"].get("claimRef"))
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]


def test_h59_a_claim_whose_volume_belongs_to_another_is_lost(world: World) -> None:
    claim, _ = world.bound("a", world.storage_class())
    world.api.patch(world.volume_path("a"), {"spec": {"claimRef": reference(claim, uid=NOBODY)}}).ok()
    world.api.eventually(world.claim_path("a"), phase("Lost"))
    world.api.eventually(world.volume_path("a"), phase("Released"))


def test_the_controller_corrects_a_phase_that_somebody_else_wrote(world: World) -> None:
    world.bound("a", world.storage_class())
    change = {"status": {"phase": "Failed", "message": "mine", "reason": "Mine"}}
    world.api.patch(f"{world.volume_path('a')}/status", change).ok()
    volume = world.api.eventually(world.volume_path("a"), phase("Bound"))
    assert "message" not in volume["status"]


def test_a_claim_in_use_waits_for_its_pod(world: World) -> None:
    world.bound("a", world.storage_class())
    pods = f"/api/v1/namespaces/{world.namespace}/pods"
    accounts = f"/api/v1/namespaces/{world.namespace}/serviceaccounts"
    if world.api.get(f"{accounts}/default").code == 404:
        world.api.post(accounts, {"metadata": {"name": "default"}})
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "a"}}]
    containers = [{"name": "main", "image": "registry.example.com/none"}]
    spec = {"nodeName": "node-1", "containers": containers, "volumes": volumes, "automountServiceAccountToken": False}
    world.make(pods, {"metadata": {"name": "user"}, "spec": spec})
    world.settle()
    world.api.delete(world.claim_path("a")).ok()
    world.settle()
    assert world.api.get(world.claim_path("a")).ok()["metadata"]["deletionTimestamp"]
    assert world.api.get(world.volume_path("a")).ok()["status"]["phase"] == "Bound"
    world.api.delete(f"{pods}/user", {"gracePeriodSeconds": 0}).ok()
    world.api.eventually_gone(world.claim_path("a"))
