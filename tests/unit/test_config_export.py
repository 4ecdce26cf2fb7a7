"""NFSExport objects: what they give, and what is refused (the schema's cases are in tests/cluster/nfsexport_cases)."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from typing import Any

import pytest

from nfs_provisioner.config import ExportSpec, ReplicaSpec, ReplicationSpec, Reserve, ServiceRef, parse_export
from nfs_provisioner.errors import InvalidInput

A = {"name": "a", "server": "10.0.0.11", "path": "/srv/nfs/web", "mountPath": "/exports/web/a"}
B = {"name": "b", "server": "10.0.0.12", "path": "/srv/nfs/web", "mountPath": "/exports/web/b"}


def export(*replicas: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "web"}, "spec": {"replicas": [dict(r) for r in replicas], **spec}}


def parse(obj: dict[str, Any]) -> ExportSpec:
    return parse_export(obj, mount_root="/exports")


def problem(obj: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(obj)
    return caught.value.message


def test_the_least_an_export_says() -> None:
    assert parse(export(A)) == ExportSpec(
        name="web",
        labels={},
        generation=0,
        uid="",
        replicas=(ReplicaSpec("a", "10.0.0.11", "/srv/nfs/web", "/exports/web/a"),),
        service=None,
        address=None,
        capacity=None,
        overcommit=Fraction(1),
        reserve=Reserve(share=Fraction(1, 20)),
        replication=ReplicationSpec(interval=30.0, max_lag=300.0, delete_limit=0.2, trash_retention=86400.0),
        failover_recycle_pods=False,
    )


def test_all_an_export_can_say() -> None:
    obj: dict[str, Any] = {
        "apiVersion": "nfs-provisioner.io/v1alpha1",
        "kind": "NFSExport",
        "metadata": {
            "name": "web",
            "labels": {"tier": "standard"},
            "generation": 3,
            "uid": "8f1c",
            "managedFields": [{}],
        },
        "spec": {
            "replicas": [A, B],
            "service": {"namespace": "storage", "name": "web-nfs"},
            "capacity": "500Gi",
            "overcommit": "1.5",
            "reserve": "50Gi",
            "replication": {"interval": "10s", "maxLag": "1m", "deleteLimit": "5%", "trashRetention": "7d"},
            "failover": {"recyclePods": True},
        },
        "status": {"anything": 1},
    }
    before = copy.deepcopy(obj)
    spec = parse(obj)
    assert obj == before
    assert (spec.labels, spec.generation, spec.uid) == ({"tier": "standard"}, 3, "8f1c")
    assert spec.service == ServiceRef("storage", "web-nfs")
    assert (spec.capacity, spec.overcommit) == (500 * 1024**3, Fraction(3, 2))
    assert spec.reserve == Reserve(size=50 * 1024**3)
    assert spec.replication == ReplicationSpec(10.0, 60.0, 0.05, 604800.0)
    assert spec.failover_recycle_pods
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert (spec.replica("b"), spec.other("b")) == (spec.replicas[1], spec.replicas[0])
    assert (spec.replica("c"), parse(export(A)).other("a")) == (None, None)


@pytest.mark.parametrize(
    ("obj", "mirror"),
    [
        (export(A), False),
        (export(A, B), True),
        (export(A, B, address="nfs.example.net"), False),
        (export(A, B, service={"namespace": "n", "name": "s"}), False),
    ],
)
def test_only_a_pair_without_an_address_is_a_mirror(obj: dict[str, Any], mirror: bool) -> None:
    assert parse(obj).is_mirror is mirror


def test_what_a_reserve_keeps_free() -> None:
    assert parse(export(A)).reserve.bytes_of(1001) == 51  # 50.05, and never less than asked for
    assert parse(export(A, reserve="0%")).reserve.bytes_of(1001) == 0
    assert parse(export(A, reserve="10Ki")).reserve.bytes_of(1) == 10240
    assert parse(export(A, reserve="100%")).reserve.bytes_of(7) == 7


def test_a_name_may_be_one_long_label() -> None:
    assert parse({"metadata": {"name": "x" * 63}, "spec": {"replicas": [A]}}).name == "x" * 63


def test_an_explicit_null_is_a_default() -> None:
    nulls = dict.fromkeys(["service", "address", "capacity", "overcommit", "reserve", "replication", "failover"])
    assert parse(export(A, **nulls)) == parse(export(A))


def test_paths_of_one_export_may_be_its_servers_root() -> None:
    assert parse(export({**A, "path": "/"})).replicas[0].path == "/"


@pytest.mark.parametrize(
    ("obj", "key", "says"),
    [
        (export(), "spec.replicas", "there are 0 replicas; write one or two"),
        (export(A, B, {**B, "name": "c"}), "spec.replicas", "there are 3 replicas"),
        (export(A, {**B, "name": "a"}), "spec.replicas[1].name", "the first replica's name too"),
        (export({**A, "name": "A"}), "spec.replicas[0].name", "'A' is not a name"),
        (export({**A, "name": "x" * 64}), "spec.replicas[0].name", "at most 63"),
        (export({**A, "server": "10.0.0.300"}), "spec.replicas[0].server", "is not an IP address"),
        (export({**A, "server": "[fd00::1]"}), "spec.replicas[0].server", "is not a host"),
        (export({**A, "server": "fe80::1%eth0"}), "spec.replicas[0].server", "is not a host"),
        (export({**A, "server": "nfs:2049"}), "spec.replicas[0].server", "is not a host"),
        (export({**A, "server": 5}), "spec.replicas[0].server", "5 is not a host"),
        (export({**A, "path": "/srv/"}), "spec.replicas[0].path", "not a clean absolute path"),
        (export({**A, "path": "/srv/\x00"}), "spec.replicas[0].path", "control characters"),
        (export({**A, "mountPath": "/"}), "spec.replicas[0].mountPath", "not a clean absolute path"),
        (export({**A, "mountPath": "/exports"}), "spec.replicas[0].mountPath", "write /exports/web/a, for example"),
        (export({**A, "mountPath": "/exports-2/a"}), "spec.replicas[0].mountPath", "not below mountRoot (/exports)"),
        (export({**A, "mountpath": "/x"}), "spec.replicas[0].mountpath", "did you mean mountPath?"),
        (export(A, {**B, "mountPath": "/exports/web/a"}), "spec.replicas[1].mountPath", "write separate ones"),
        (export(A, {**B, "mountPath": "/exports/web/a/b"}), "spec.replicas[1].mountPath", "write separate ones"),
        (export(A, {**B, "mountPath": "/exports/web"}), "spec.replicas[1].mountPath", "write separate ones"),
        (export(A, {**B, "server": "10.0.0.11"}), "spec.replicas[1].path", "two separate directories"),
        (
            export({**A, "server": "NFS.example.net"}, {**B, "server": "nfs.example.net."}),
            "spec.replicas[1].path",
            "two separate directories",
        ),
        (
            export({**A, "server": "fd00::1"}, {**B, "server": "fd00:0::1", "path": "/srv/nfs"}),
            "spec.replicas[1].path",
            "two separate directories",
        ),
        (export({**A, "path": "/"}, {**B, "server": "10.0.0.11"}), "spec.replicas[1].path", "two separate directories"),
        (export(A, {**B, "path": "/b"}, address="h"), "spec.replicas[1].path", "differs from the first replica's"),
        (export(A, address="h", service={"namespace": "n", "name": "s"}), "spec.address", "write one of them"),
        (export(A, address="h/x"), "spec.address", "is not a host"),
        (export(A, service={"name": "s"}), "spec.service", "namespace is missing"),
        (export(A, service={"namespace": "n", "name": "s", "port": 1}), "spec.service.port", "unknown key"),
        (export(A, service="s"), "spec.service", "is not a mapping"),
        (
            export({**A, "server": "nfs-1"}, service={"namespace": "n", "name": "s"}),
            "spec.replicas[0].server",
            "goes into an EndpointSlice",
        ),
        (
            export({**A, "server": "127.0.0.1"}, service={"namespace": "n", "name": "s"}),
            "spec.replicas[0].server",
            "cannot be reached from other machines",
        ),
        (
            export(A, {**B, "server": "fd00::1"}, service={"namespace": "n", "name": "s"}),
            "spec.replicas[1].server",
            "one kind",
        ),
        (export(A, capacity="0"), "spec.capacity", "leaves no room"),
        (export(A, capacity=5), "spec.capacity", "in quotes"),  # the API server refuses a number, too
        (export(A, reserve=5), "spec.reserve", "in quotes"),
        (export(A, capacity="lots"), "spec.capacity", "'lots' is not a quantity"),
        (export(A, overcommit="0.0"), "spec.overcommit", "a number above zero"),
        (export(A, overcommit=1.5), "spec.overcommit", "in quotes"),
        (export(A, overcommit="1e3"), "spec.overcommit", "'1e3' is not a factor"),
        (export(A, reserve="101%"), "spec.reserve", "'101%' is not a percentage"),
        (export(A, reserve="-1Gi"), "spec.reserve", "'-1Gi' is not a quantity"),
        (export(A, replication={"interval": "0s"}), "spec.replication.interval", "no time at all"),
        (export(A, replication={"maxLag": "29s"}), "spec.replication.maxLag", "shorter than interval (30s)"),
        (export(A, replication={"maxlag": "1m"}), "spec.replication.maxlag", "did you mean maxLag?"),
        (export(A, replication={"deleteLimit": "0.2"}), "spec.replication.deleteLimit", "not a percentage"),
        (export(A, failover={"recyclePods": "yes"}), "spec.failover.recyclePods", "without quotes"),
        (export(A, overcomit="1"), "spec.overcomit", "did you mean overcommit?"),
        ({"metadata": {"name": "x" * 64}, "spec": {"replicas": [A]}}, "metadata.name", "at most 63"),
        ({"metadata": {"name": "Web"}, "spec": {"replicas": [A]}}, "metadata.name", "is not an object's name"),
        ({"metadata": {}, "spec": {"replicas": [A]}}, "metadata", "name is missing"),
        ({"metadata": {"name": "web"}}, "spec.replicas", "there are 0 replicas"),
        ({**export(A), "kind": "StorageClass"}, "kind", "write NFSExport"),
        ({**export(A), "apiVersion": "v1"}, "apiVersion", "write nfs-provisioner.io/v1alpha1"),
        ({**export(A), "sepc": {}}, "sepc", "did you mean spec?"),
    ],
)
def test_nonsense_is_refused_by_key(obj: dict[str, Any], key: str, says: str) -> None:
    message = problem(obj)
    assert f": {key}: " in message
    assert says in message
    assert len(message.splitlines()) == 1


def test_messages_name_the_object_or_the_source_that_was_given() -> None:
    assert problem(export(A, capacity="x")).startswith("NFSExport web: spec.capacity: ")
    with pytest.raises(InvalidInput, match=r"^web.yaml: spec.capacity"):
        parse_export(export(A, capacity="x"), mount_root="/exports", source="web.yaml")


def test_all_problems_are_told_at_once() -> None:
    wrong = export(A, {**B, "mountPath": "/exports/web/a", "name": "a"}, capacity="x", reserve="y")
    assert len(problem(wrong).splitlines()) == 4


@pytest.mark.parametrize(
    "obj", [None, [], "x", {}, {"spec": []}, {"metadata": 5, "spec": {}}, {"spec": {"replicas": {}}}]
)
def test_what_is_not_an_object_is_refused_and_nothing_else_happens(obj: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_export(obj, mount_root="/exports")
