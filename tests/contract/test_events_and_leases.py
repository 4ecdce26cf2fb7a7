"""Events and Leases: the two kinds a controller writes about itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import STRATEGIC, Json
from tests.contract.world import NAMESPACES, World


def event(world: World, name: str = "e", **fields: Any) -> Json:
    involved = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": world.namespace, "name": "a"}
    return {
        "metadata": {"name": name},
        "involvedObject": involved | {"uid": "u-1"},
        "reason": "ProvisioningSucceeded",
        "message": "done",
        "type": "Normal",
        "source": {"component": "nfs-provisioner"},
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    } | fields


@pytest.fixture
def events(world: World) -> str:
    return f"{NAMESPACES}/{world.namespace}/events"


@pytest.fixture
def leases(world: World) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases"


def test_an_event_is_written_and_counted_up(world: World, events: str) -> None:
    made = world.make(events, event(world))
    assert (made["eventTime"], made["reportingComponent"]) == (None, "")
    change = {"count": 2, "lastTimestamp": "2026-01-01T00:00:05Z"}
    counted = world.api.patch(f"{events}/e", change, STRATEGIC).ok()
    assert (counted["count"], counted["firstTimestamp"]) == (2, "2026-01-01T00:00:00Z")


def test_an_event_is_in_the_namespace_of_its_object(world: World, events: str) -> None:
    volume = {"kind": "PersistentVolume", "apiVersion": "v1", "name": "v"}
    words = "does not match event.namespace"
    world.api.post(events, event(world, involvedObject=volume)).refused(422, "Invalid", words)
    elsewhere = f"{NAMESPACES}/kube-system/events"
    world.api.post(elsewhere, event(world, involvedObject=volume)).refused(422, "Invalid", words)
    # About a cluster-scoped object: in "default".
    world.make(f"{NAMESPACES}/default/events", event(world, world.name("e"), involvedObject=volume))


def test_events_can_be_selected_by_their_object(world: World, events: str) -> None:
    world.make(events, event(world, "one"))
    world.make(events, event(world, "two", reason="ProvisioningFailed", type="Warning"))

    def names(selector: str) -> list[str]:
        return [item["metadata"]["name"] for item in world.api.get(events, fieldSelector=selector).ok()["items"]]

    assert names("involvedObject.uid=u-1,type=Warning") == ["two"]
    assert names("involvedObject.kind=PersistentVolumeClaim,involvedObject.name=a") == ["one", "two"]
    assert names("reason!=ProvisioningFailed") == ["one"]
    assert names("source=nfs-provisioner") == ["one", "two"]


def test_an_event_with_eventtime_has_to_say_more(world: World, events: str) -> None:
    moment = {"eventTime": "2026-01-01T00:00:00.000000Z"}
    world.api.post(events, event(world, **moment)).refused(422, "Invalid", "reportingComponent: Required value")
    more = {"reportingComponent": "nfs-provisioner.io/nfs", "reportingInstance": "pod-1", "action": "Provision"}
    base = {key: value for key, value in event(world).items() if key not in ("source", "count")}
    stamps = {"firstTimestamp": None, "lastTimestamp": None}
    world.make(events, base | moment | more | stamps)


def test_a_long_message_is_accepted_of_old_events(world: World, events: str) -> None:
    made = world.make(events, event(world, message="m" * 2000))
    assert len(made["message"]) == 2000


LEASE = {
    "holderIdentity": "one",
    "leaseDurationSeconds": 15,
    "acquireTime": "2026-01-01T00:00:00.000000Z",
    "renewTime": "2026-01-01T00:00:00.123456Z",
    "leaseTransitions": 0,
}


def test_a_lease_is_taken_and_renewed_by_compare_and_swap(world: World, leases: str) -> None:
    made = world.make(leases, {"metadata": {"name": "l"}, "spec": LEASE})
    assert made["spec"] == LEASE
    assert "generation" not in made["metadata"]
    renewed = made | {"spec": LEASE | {"renewTime": "2026-01-01T00:00:02.000000Z"}}
    world.api.put(f"{leases}/l", renewed).ok()
    world.api.put(f"{leases}/l", made | {"spec": LEASE | {"holderIdentity": "two"}}).refused(409, "Conflict")
    assert world.api.get(f"{leases}/l").ok()["spec"]["holderIdentity"] == "one"


def test_a_lease_cannot_be_put_without_a_version(world: World, leases: str) -> None:
    world.make(leases, {"metadata": {"name": "l"}, "spec": LEASE})
    words = "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    world.api.put(f"{leases}/l", {"metadata": {"name": "l"}, "spec": LEASE}).refused(422, "Invalid", words)


def test_a_put_makes_a_lease_that_is_not_there(world: World, leases: str) -> None:
    for name, version in (("l", {}), ("m", {"resourceVersion": "5"})):
        answer = world.api.put(f"{leases}/{name}", {"metadata": {"name": name} | version, "spec": LEASE})
        assert answer.code == 201


def test_a_lease_taken_by_two_at_once_is_taken_by_one(world: World, leases: str) -> None:
    body = {"metadata": {"name": "l"}, "spec": LEASE}
    world.make(leases, body)
    world.api.post(leases, body).refused(409, "AlreadyExists")


@pytest.mark.parametrize("fraction", ["", ".123", ".12345", ".1234567", ".123456789"])
def test_times_need_exactly_six_digits(world: World, leases: str, fraction: str) -> None:
    moment = f"2026-01-01T00:00:00{fraction}Z"
    body = {"metadata": {"name": "l"}, "spec": LEASE | {"renewTime": moment}}
    world.api.post(leases, body).refused(400, "BadRequest", "parsing time")
    world.make(leases, {"metadata": {"name": "l"}, "spec": LEASE})
    world.api.patch(f"{leases}/l", {"spec": {"renewTime": moment}}).refused(422, "Invalid", "parsing time")


def test_times_are_answered_in_utc(world: World, leases: str) -> None:
    spec = LEASE | {"renewTime": "2026-01-01T02:00:00.123456+02:00"}
    assert world.make(leases, {"metadata": {"name": "l"}, "spec": spec})["spec"] == LEASE


@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        ({"leaseDurationSeconds": 0}, 422, "Invalid"),
        ({"leaseDurationSeconds": -1}, 422, "Invalid"),
        ({"leaseTransitions": -1}, 422, "Invalid"),
        ({"leaseDurationSeconds": 1.5}, 400, "BadRequest"),
        ({"leaseDurationSeconds": "15"}, 400, "BadRequest"),
    ],
)
def test_leases_that_are_refused(world: World, leases: str, spec: Json, code: int, reason: str) -> None:
    world.api.post(leases, {"metadata": {"name": "l"}, "spec": LEASE | spec}).refused(code, reason)


def test_a_holder_may_step_down(world: World, leases: str) -> None:
    world.make(leases, {"metadata": {"name": "l"}, "spec": LEASE})
    given_up = world.api.patch(f"{leases}/l", {"spec": {"holderIdentity": ""}}).ok()
    assert given_up["spec"]["holderIdentity"] == ""
    cleared = world.api.patch(f"{leases}/l", {"spec": {"holderIdentity": None}}).ok()
    assert "holderIdentity" not in cleared["spec"]
