"""What is kept of objects, and the objects that are written."""

from __future__ import annotations

from typing import Any

import pytest

from nfs_provisioner.volumes.objects import (
    FINALIZER,
    claim_from,
    claim_manifest,
    endpoint_slice,
    event,
    finalizer_patch,
    persistent_volume,
    volume_from,
)
from tests.unit.volumes.situations import GI, OURS, claim

PROVISIONERS = frozenset({OURS})


def raw_claim(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "metadata": {
            "namespace": "shop",
            "name": "data",
            "uid": "uid-1",
            "resourceVersion": "7",
            "annotations": {"volume.kubernetes.io/storage-provisioner": OURS},
            "labels": {"app": "x"},
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "nfs",
            "resources": {"requests": {"storage": "1Gi"}},
        },
        "status": {"phase": "Pending"},
    }
    raw["metadata"] |= changes.pop("metadata", {})
    raw["spec"] |= changes.pop("spec", {})
    raw["status"] |= changes.pop("status", {})
    return raw


def test_a_claim_is_read() -> None:
    read = claim_from(raw_claim(), PROVISIONERS)
    assert read is not None
    assert (read.key, read.requested, read.phase, read.labels) == ("pvc-uid-1", GI, "Pending", {"app": "x"})


def test_a_size_beyond_all_bounds_does_not_hide_a_claim() -> None:
    """It is refused like any other that does not fit, with an Event; passed over, nobody would be told."""
    read = claim_from(raw_claim(spec={"resources": {"requests": {"storage": "9Ei"}}}), PROVISIONERS)
    assert read is not None and read.requested == 2**63 - 1


@pytest.mark.parametrize("annotations", [None, {}, {"volume.kubernetes.io/storage-provisioner": "other/nfs"}])
def test_a_claim_of_another_provisioner_is_nobodys_here(annotations: dict[str, str] | None) -> None:
    assert claim_from(raw_claim(metadata={"annotations": annotations}), PROVISIONERS) is None


def test_the_beta_annotation_counts_too() -> None:
    annotations = {"volume.beta.kubernetes.io/storage-provisioner": OURS}
    assert claim_from(raw_claim(metadata={"annotations": annotations}), PROVISIONERS) is not None


@pytest.mark.parametrize(
    ("annotation", "field", "wanted"),
    [("old", "nfs", "old"), ("old", None, "old"), ("", "nfs", ""), (None, "nfs", "nfs"), (None, None, "")],
)
@pytest.mark.parametrize("phase", ["Pending", "Bound"])
def test_the_annotation_that_classes_had_first_wins_over_the_field(
    annotation: str | None, field: str | None, wanted: str, phase: str
) -> None:
    """As GetPersistentVolumeClaimClass and GetPersistentVolumeClass have it: also when it is there and empty."""
    annotations = {} if annotation is None else {"volume.beta.kubernetes.io/storage-class": annotation}
    both = {"volume.kubernetes.io/storage-provisioner": OURS, "pv.kubernetes.io/provisioned-by": OURS} | annotations
    raw = raw_claim(metadata={"annotations": both}, status={"phase": phase}, spec={"volumeName": "pv"})
    made = persistent_volume("pv", claim(), provisioner=OURS, export="", server="s", path="/p", capacity=1, policy="")
    made["metadata"] |= {"uid": "u", "resourceVersion": "1", "annotations": both}
    for obj in (raw, made):
        obj["spec"]["storageClassName"] = field
    read, volume = claim_from(raw, PROVISIONERS), volume_from(made, PROVISIONERS)
    assert read is not None and volume is not None
    assert (read.storage_class, volume.storage_class) == (wanted, wanted)


def test_a_claims_manifest_names_the_class_once() -> None:
    annotations = {
        "volume.kubernetes.io/storage-provisioner": OURS,
        "volume.beta.kubernetes.io/storage-class": "old",
    }
    read = claim_from(raw_claim(metadata={"annotations": annotations}), PROVISIONERS)
    assert read is not None
    manifest = claim_manifest(read)
    assert manifest["spec"]["storageClassName"] == "old" and "annotations" not in manifest["metadata"]


def test_a_bound_claim_is_kept_slim() -> None:
    raw = raw_claim(spec={"volumeName": "pv-1", "selector": {"matchLabels": {}}}, status={"phase": "Bound"})
    read = claim_from(raw, PROVISIONERS)
    assert read is not None
    assert (read.key, read.labels, read.annotations, read.selector) == ("pv-1", {}, {}, None)


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ({}, "None"),
        ({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}, "VolumeSnapshot s"),
        ({"dataSource": {"kind": "VolumeSnapshot", "name": "s", "apiGroup": "x.io"}}, "VolumeSnapshot.x.io s"),
        ({"dataSourceRef": {"kind": "Thing", "name": "t", "namespace": "n"}}, "Thing n/t"),
        ({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "c"}}, "PersistentVolumeClaim c"),
    ],
)
def test_h60_every_data_source_is_noticed(spec: dict[str, Any], source: str) -> None:
    read = claim_from(raw_claim(spec=spec), PROVISIONERS)
    assert read is not None and str(read.data_source) == source


@pytest.mark.parametrize(
    ("source", "cloned"),
    [
        ({"kind": "PersistentVolumeClaim", "name": "c"}, "c"),
        ({"kind": "PersistentVolumeClaim", "name": "c", "apiGroup": None}, "c"),
        ({"kind": "PersistentVolumeClaim", "name": "c", "apiGroup": ""}, "c"),
        ({"kind": "PersistentVolumeClaim", "name": "c", "namespace": "shop"}, "c"),
        ({"kind": "PersistentVolumeClaim", "name": "c", "namespace": "bank"}, ""),
        ({"kind": "PersistentVolumeClaim", "name": "c", "apiGroup": "example.com"}, ""),
        ({"kind": "VolumeSnapshot", "name": "c", "apiGroup": "snapshot.storage.k8s.io"}, ""),
        ({"kind": "PersistentVolume", "name": "c"}, ""),
    ],
)
@pytest.mark.parametrize("field", ["dataSource", "dataSourceRef"])
def test_h60_only_a_claim_of_the_same_namespace_is_cloned(field: str, source: dict[str, Any], cloned: str) -> None:
    read = claim_from(raw_claim(spec={field: source}), PROVISIONERS)
    assert read is not None and read.clone_from == cloned


def test_a_volume_of_ours_is_read_and_anybody_elses_is_not() -> None:
    made = persistent_volume(
        "pvc-uid-1", claim(), provisioner=OURS, export="web", server="s", path="/p/d", capacity=GI, policy="Delete"
    )
    made["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    read = volume_from(made, PROVISIONERS)
    assert read is not None
    assert (read.phase, read.owned, read.export, read.capacity) == ("Pending", True, "web", GI)
    assert read.claim == claim().ref
    assert volume_from(made, frozenset({"other/nfs"})) is None
    del made["spec"]["nfs"]
    assert volume_from(made, PROVISIONERS) is None


@pytest.mark.parametrize(("policy", "finalizers"), [("Delete", [FINALIZER]), ("Retain", [])])
def test_the_finalizer_is_there_while_the_policy_is_delete(policy: str, finalizers: list[str]) -> None:
    made = persistent_volume(
        "pv", claim(), provisioner=OURS, export="web", server="s", path="/p/d", capacity=1, policy=policy
    )
    assert made["metadata"].get("finalizers", []) == finalizers


def test_a_finalizer_patch_names_the_very_pv() -> None:
    assert finalizer_patch("u", add=True) == {"metadata": {"uid": "u", "finalizers": [FINALIZER]}}
    assert finalizer_patch("u", add=False) == {
        "metadata": {"uid": "u", "$deleteFromPrimitiveList/finalizers": [FINALIZER]}
    }


def test_a_claims_manifest_leaves_out_what_others_wrote_on_it() -> None:
    noted = claim(
        labels={"app": "x"},
        annotations={
            "mine": "1",
            "pv.kubernetes.io/bind-completed": "yes",
            "volume.kubernetes.io/selected-node": "n",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        },
    )
    metadata = claim_manifest(noted)["metadata"]
    assert metadata == {"namespace": "shop", "name": "data", "labels": {"app": "x"}, "annotations": {"mine": "1"}}


def an_event(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "kind": "PersistentVolumeClaim", "api_version": "v1", "name": "data", "namespace": "shop", "uid": "u",
        "reason": "ProvisioningFailed", "message": "m", "warning": True, "component": OURS, "moment": "T",
    }  # fmt: skip
    return event(**(fields | changes))


def test_h19_an_event_fits_its_limits() -> None:
    made = an_event(name="n" * 253, message="ä" * 5000)
    assert len(made["metadata"]["name"]) <= 253
    assert len(made["message"]) == 1024


def test_events_about_cluster_scoped_objects_live_in_default() -> None:
    made = an_event(kind="PersistentVolume", namespace="")
    assert made["metadata"]["namespace"] == "default" and "namespace" not in made["involvedObject"]
    assert an_event()["metadata"]["namespace"] == "shop"


def test_two_events_never_have_one_name() -> None:
    names = {an_event(message=message, moment=moment)["metadata"]["name"] for message in "ab" for moment in "TU"}
    assert len(names) == 4


@pytest.mark.parametrize(("address", "kind"), [("192.0.2.1", "IPv4"), ("2001:db8::1", "IPv6")])
def test_an_endpoint_slice_has_the_type_of_its_address(address: str, kind: str) -> None:
    made = endpoint_slice("storage", "web-nfs", address, "a")
    assert made["addressType"] == kind
    assert made["endpoints"] == [{"addresses": [address], "conditions": {"ready": True}}]
    assert made["metadata"]["labels"]["kubernetes.io/service-name"] == "web-nfs"
