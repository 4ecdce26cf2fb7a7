"""Services without selector and the EndpointSlice behind one: what goes into volumes, and what follows the replica."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import MERGE, STRATEGIC, Json
from tests.contract.world import NAMESPACES, World

PORTS = [{"name": "nfs", "port": 2049}]


@pytest.fixture
def services(world: World) -> str:
    return f"{NAMESPACES}/{world.namespace}/services"


@pytest.fixture
def slices(world: World) -> str:
    return f"/apis/discovery.k8s.io/v1/namespaces/{world.namespace}/endpointslices"


def slice_body(*addresses: str, **fields: Any) -> Json:
    labels = {"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "nfs-provisioner.io"}
    return {
        "metadata": {"name": "web-nfs", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": list(addresses), "conditions": {"ready": True}}],
        "ports": [{"name": "nfs", "port": 2049, "protocol": "TCP"}],
    } | fields


def test_a_service_gets_an_address_that_stays(world: World, services: str) -> None:
    made = world.make(services, {"metadata": {"name": "web"}, "spec": {"ports": PORTS}})
    address = made["spec"]["clusterIP"]
    assert made["spec"]["clusterIPs"] == [address]
    assert made["spec"]["type"] == "ClusterIP"
    assert made["spec"]["ports"] == [{"name": "nfs", "port": 2049, "protocol": "TCP", "targetPort": 2049}]
    other = world.make(services, {"metadata": {"name": "other"}, "spec": {"ports": PORTS}})
    assert other["spec"]["clusterIP"] != address
    change = {"clusterIP": "10.96.250.1", "clusterIPs": ["10.96.250.1"]}
    world.api.patch(f"{services}/web", {"spec": change}).refused(422, "Invalid", "spec.clusterIPs[0]")
    put = made | {"spec": {"ports": PORTS}}
    assert world.api.put(f"{services}/web", put).ok()["spec"]["clusterIP"] == address


def test_an_address_can_be_asked_for_again(world: World, services: str) -> None:
    """A Service made anew keeps its volumes alive only with its old address."""
    made = world.make(services, {"metadata": {"name": "web"}, "spec": {"ports": PORTS}})
    address = made["spec"]["clusterIP"]
    taken = {"metadata": {"name": "thief"}, "spec": {"clusterIP": address, "ports": PORTS}}
    world.api.post(services, taken).refused(422, "Invalid", "provided IP is already allocated")
    world.api.delete(f"{services}/web").ok()
    again = world.make(services, {"metadata": {"name": "web"}, "spec": {"clusterIP": address, "ports": PORTS}})
    assert again["spec"]["clusterIP"] == address


def test_services_that_are_refused(world: World, services: str) -> None:
    world.api.post(services, {"metadata": {"name": "web"}, "spec": {}}).refused(422, "Invalid", "spec.ports")
    outside = {"clusterIP": "192.0.2.7", "ports": PORTS}
    world.api.post(services, {"metadata": {"name": "web"}, "spec": outside}).refused(422, "Invalid", "spec.clusterIPs")


def test_a_headless_service_has_no_address(world: World, services: str) -> None:
    made = world.make(services, {"metadata": {"name": "web"}, "spec": {"clusterIP": "None"}})
    assert made["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("content_type", [MERGE, STRATEGIC])
def test_an_endpoint_is_swapped_by_one_patch(world: World, slices: str, content_type: str) -> None:
    made = world.make(slices, slice_body("192.0.2.1"))
    assert made["metadata"]["generation"] == 1
    change = {"endpoints": [{"addresses": ["192.0.2.2"], "conditions": {"ready": True}}]}
    swapped = world.api.patch(f"{slices}/web-nfs", change, content_type).ok()
    assert [endpoint["addresses"] for endpoint in swapped["endpoints"]] == [["192.0.2.2"]]
    assert swapped["metadata"]["generation"] == 2


def test_the_generation_of_a_slice_counts_labels_but_not_annotations(world: World, slices: str) -> None:
    world.make(slices, slice_body("192.0.2.1"))
    path = f"{slices}/web-nfs"
    noted = world.api.patch(path, {"metadata": {"annotations": {"a": "b"}}}).ok()
    labelled = world.api.patch(path, {"metadata": {"labels": {"a": "b"}}}).ok()
    assert (noted["metadata"]["generation"], labelled["metadata"]["generation"]) == (1, 2)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "nfs.example.net", "::1", "2001:db8::1", ""]
)
def test_addresses_that_no_endpoint_may_have(world: World, slices: str, address: str) -> None:
    body = slice_body(*([address] if address else []))
    world.api.post(slices, body).refused(422, "Invalid", "endpoints[0].addresses")


def test_the_address_type_is_chosen_once(world: World, slices: str) -> None:
    world.api.post(slices, slice_body("192.0.2.1", addressType="")).refused(422, "Invalid", "addressType")
    world.api.post(slices, slice_body("192.0.2.1", addressType="IPv5")).refused(422, "Invalid", "addressType")
    world.make(slices, slice_body("192.0.2.1"))
    path = f"{slices}/web-nfs"
    world.api.patch(path, {"addressType": "IPv6"}).refused(422, "Invalid", "addressType", "field is immutable")


def test_a_slice_without_endpoints(world: World, slices: str) -> None:
    made = world.make(slices, {"metadata": {"name": "web-nfs"}, "addressType": "IPv4"})
    assert (made["endpoints"], made["ports"]) == (None, None)


def test_the_proxy_needs_a_service_with_endpoints(world: World, services: str) -> None:
    world.api.get(f"{services}/web/proxy/api/status").refused(404, "NotFound", 'services "web" not found')
    world.make(services, {"metadata": {"name": "web"}, "spec": {"ports": PORTS}})
    world.api.get(f"{services}/web/proxy/api/status").refused(404, "NotFound")
