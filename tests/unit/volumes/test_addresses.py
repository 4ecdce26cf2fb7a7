"""The EndpointSlice of a Service: where it points, and what becomes of it when the export changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nfs_provisioner.config import ServiceRef
from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.kube.api import ENDPOINT_SLICE, SERVICE, Api
from nfs_provisioner.volumes import addresses as addresses_module
from nfs_provisioner.volumes.addresses import Addresses
from nfs_provisioner.volumes.objects import endpoint_slice
from tests.unit.volumes.conftest import DEADLINE, Ground, eventually

Json = dict[str, Any]
NAMESPACE = "default"
WEB = ServiceRef(NAMESPACE, "web-nfs")


class Case:
    """An attached export with a Service, and what is called for it each time that it is published."""

    def __init__(self, api: Api, ground: Ground) -> None:
        self.api = api
        self.may_act = True
        self.addresses = Addresses(api, check=self._check, on_ready=ground.ready.append, on_change=lambda: None)
        self.make_service("web-nfs", "10.96.0.7")
        self.export = ground.export(ground.spec(service=WEB))
        self.export.start()
        eventually(lambda: self.export.ready, "the export is not attached")
        self.direct()

    def _check(self) -> None:
        if not self.may_act:
            raise LostLeadership("lost")

    def make_service(self, name: str, address: str, namespace: str = NAMESPACE) -> None:
        spec = {"clusterIP": address, "ports": [{"name": "nfs", "port": 2049}]}
        self.api.create(SERVICE, {"metadata": {"name": name}, "spec": spec}, namespace)

    def direct(self) -> None:
        eventually(lambda: self.addresses.direct(self.export), "the slices are not as they should be")

    def change(self, **spec: Any) -> None:
        self.export.update(replace(self.export.spec, **spec), self.export.seen)

    def slices(self, namespace: str = NAMESPACE) -> dict[str, Json]:
        return {found["metadata"]["name"]: found for found in self.api.list(ENDPOINT_SLICE, namespace)[0]}


@pytest.fixture
def case(api: Api, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    monkeypatch.setattr(addresses_module, "SYNC", DEADLINE)
    made = Case(api, ground)
    yield made
    made.addresses.stop()


def addresses(found: Json) -> list[str]:
    (endpoint,) = found["endpoints"]
    return list(endpoint["addresses"])


def test_a_slice_changes_from_ipv4_to_ipv6(case: Case) -> None:
    before = case.slices()["web-nfs-nfs-provisioner"]
    assert (before["addressType"], addresses(before)) == ("IPv4", ["192.0.2.1"])
    case.change(replicas=(replace(case.export.spec.replicas[0], server="2001:db8::1"),))
    case.direct()
    after = case.slices()["web-nfs-nfs-provisioner"]
    assert (after["addressType"], addresses(after)) == ("IPv6", ["2001:db8::1"])
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.mark.parametrize("namespace", [NAMESPACE, "kube-public"])
def test_the_slice_of_a_service_that_is_not_named_any_more_goes(case: Case, namespace: str) -> None:
    case.make_service("other", "10.96.0.8", namespace)
    case.change(service=ServiceRef(namespace, "other"))
    case.direct()
    assert "web-nfs-nfs-provisioner" not in case.slices()
    assert list(case.slices(namespace)) == ["other-nfs-provisioner"]


def test_the_slice_goes_when_no_service_is_named_any_more(case: Case) -> None:
    case.change(service=None, address="nfs.example.net")
    case.direct()
    assert not case.slices()
    assert not case.addresses._slices, "nobody needs to watch the namespace any more"


def test_the_slice_of_an_earlier_service_goes_though_the_controller_was_down_when_it_changed(
    case: Case, ground: Ground
) -> None:
    case.addresses.stop()
    case.make_service("other", "10.96.0.8")
    case.change(service=ServiceRef(NAMESPACE, "other"))
    case.addresses = Addresses(case.api, check=lambda: None, on_ready=ground.ready.append, on_change=lambda: None)
    case.direct()
    assert list(case.slices()) == ["other-nfs-provisioner"]


def test_slices_of_others_stay(case: Case) -> None:
    """Somebody else's on the same Service, another export's, and one of ours that names no export."""
    for name, labels in {
        "theirs": {"endpointslice.kubernetes.io/managed-by": "somebody"},
        "another": {"nfs-provisioner.io/export": "another"},
        "unknown": {},
    }.items():
        made = endpoint_slice(NAMESPACE, "web-nfs", "192.0.2.9", "a")
        made["metadata"] |= {"name": name, "labels": made["metadata"]["labels"] | labels}
        case.api.create(ENDPOINT_SLICE, made)
    eventually(lambda: len(case.addresses._slices[NAMESPACE].items()) == 3, "the watch does not see them")
    case.change(service=None, address="nfs.example.net")
    case.direct()
    assert sorted(case.slices()) == ["another", "theirs", "unknown"]


def test_labels_that_others_put_on_the_slice_cost_no_write(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "web-nfs-nfs-provisioner"
    labelled = case.api.patch(ENDPOINT_SLICE, name, {"metadata": {"labels": {"x": "y"}}}, namespace=NAMESPACE)
    case.addresses._slices[NAMESPACE].put(labelled)
    monkeypatch.delattr(case.api.__class__, "patch")
    case.direct()


def test_h16_without_the_lease_no_slice_is_removed(case: Case) -> None:
    case.may_act = False
    case.change(service=None, address="nfs.example.net")
    with pytest.raises(LostLeadership):
        case.addresses.direct(case.export)
    assert list(case.slices()) == ["web-nfs-nfs-provisioner"]


def test_a_new_service_s_address_is_learned_though_the_old_slices_cannot_be_seen(case: Case) -> None:
    """No role in the old namespace any more, for example."""
    case.addresses._slices[NAMESPACE].synced.clear()
    case.make_service("other", "10.96.0.8", "kube-public")
    case.change(service=ServiceRef("kube-public", "other"))
    assert not case.addresses.direct(case.export)
    assert list(case.slices("kube-public")) == ["other-nfs-provisioner"]
    assert case.export.client_address == "10.96.0.8"
