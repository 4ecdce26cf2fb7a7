"""Creating and reading: what the server fills in, what it refuses, and how it says so."""

from __future__ import annotations

import re

import pytest

from tests.contract.client import Client, Json
from tests.contract.world import CLASSES, NAMESPACES, VOLUMES, World


def test_create_fills_in_what_the_server_decides(world: World) -> None:
    made = world.claim("a", "none", metadata={"uid": "mine", "creationTimestamp": "2020-01-01T00:00:00Z"})
    metadata = made["metadata"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", metadata["uid"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    assert not metadata["creationTimestamp"].startswith("2020-")
    assert int(metadata["resourceVersion"]) > 0
    assert (made["kind"], made["apiVersion"]) == ("PersistentVolumeClaim", "v1")
    assert made == world.api.get(world.claim_path("a")).ok()


def test_claims_and_volumes_have_no_generation(world: World) -> None:
    """Nothing may wait for observedGeneration on them."""
    claim, volume = world.claim("a", "none"), world.volume("a", "none")
    world.api.patch(world.volume_path("a"), {"spec": {"mountOptions": ["hard"]}}).ok()
    assert "generation" not in claim["metadata"]
    assert "generation" not in volume["metadata"]
    assert "generation" not in world.api.get(world.volume_path("a")).ok()["metadata"]


def test_new_claims_and_volumes_are_pending_and_protected(world: World) -> None:
    claim = world.make(world.claims, world.claim_body("a", "none") | {"status": {"phase": "Bound"}})
    volume = world.make(VOLUMES, world.volume_body("a", "none") | {"status": {"phase": "Bound"}})
    assert claim["status"] == {"phase": "Pending"}
    assert claim["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert claim["spec"]["volumeMode"] == "Filesystem"
    assert volume["status"]["phase"] == "Pending"
    assert volume["metadata"]["finalizers"] == ["kubernetes.io/pv-protection"]
    assert volume["spec"]["volumeMode"] == "Filesystem"
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


def test_resource_versions_rise_across_kinds(world: World) -> None:
    first = world.claim("a", "none")
    second = world.volume("a", "none")
    third = world.make(world.config_maps, {"metadata": {"name": "c"}})
    versions = [int(obj["metadata"]["resourceVersion"]) for obj in (first, second, third)]
    assert versions == sorted(set(versions))


def test_a_name_taken_is_already_exists(world: World) -> None:
    world.claim("a", "none")
    status = world.api.post(world.claims, world.claim_body("a", "none")).refused(409, "AlreadyExists", '"a"')
    assert status["details"] == {"name": "a", "kind": "persistentvolumeclaims"}
    world.volume("a", "none")
    body = world.volume_body("a", "none")
    world.api.post(VOLUMES, body).refused(409, "AlreadyExists")


def test_a_deleted_name_can_be_used_again_with_another_uid(world: World) -> None:
    first = world.make(world.config_maps, {"metadata": {"name": "c"}})
    world.api.delete(f"{world.config_maps}/c").ok()
    second = world.make(world.config_maps, {"metadata": {"name": "c"}})
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_generate_name(world: World) -> None:
    made = world.make(world.config_maps, {"metadata": {"generateName": "prefix-"}})
    assert re.fullmatch(r"prefix-[a-z0-9]{5}", made["metadata"]["name"])
    assert made["metadata"]["generateName"] == "prefix-"


@pytest.mark.parametrize("method", ["get", "delete"])
def test_what_is_not_there_is_not_found(world: World, method: str) -> None:
    answer = getattr(world.api, method)(world.claim_path("nope"))
    status = answer.refused(404, "NotFound", 'persistentvolumeclaims "nope" not found')
    assert status["details"] == {"name": "nope", "kind": "persistentvolumeclaims"}
    getattr(world.api, method)(f"{CLASSES}/nope").refused(
        404, "NotFound", 'storageclasses.storage.k8s.io "nope" not found'
    )


def test_patch_and_put_of_what_is_not_there_are_not_found(world: World) -> None:
    world.api.patch(world.claim_path("nope"), {}).refused(404, "NotFound")
    world.api.put(world.claim_path("nope"), world.claim_body("nope", "none")).refused(404, "NotFound")


def test_unknown_paths_and_methods(world: World) -> None:
    world.api.get("/api/v1/unheardofs").refused(404, "NotFound")
    world.api.get(f"{world.claim_path('a')}/unheardof").refused(404, "NotFound")
    world.api.get(f"{CLASSES}/a/status").refused(404, "NotFound")
    assert world.api.get("/apis/unheard.of/v1/things").code == 404
    world.api.request("POST", world.claim_path("a"), {}).refused(405, "MethodNotAllowed")
    world.api.request("PUT", world.claims, {}).refused(405, "MethodNotAllowed")


def test_a_namespace_has_to_exist(world: World) -> None:
    path = f"{NAMESPACES}/{world.name('absent')}/persistentvolumeclaims"
    world.api.post(path, world.claim_body("a", "none")).refused(404, "NotFound", "namespaces")
    assert world.api.get(path).ok()["items"] == []


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"metadata": {"name": "Upper_case"}}, "metadata.name", "Invalid value"),
        ({"metadata": {"name": ""}}, "metadata.name", "name or generateName is required"),
        ({"metadata": {"name": "n" * 254}}, "metadata.name", "Invalid value"),
        ({"metadata": {"name": "a", "labels": {"a b": "c"}}}, "metadata.labels", "Invalid value"),
        ({"metadata": {"name": "a", "labels": {"a": "-c"}}}, "metadata.labels", "Invalid value"),
        ({"metadata": {"name": "a", "labels": {"a": "x" * 64}}}, "metadata.labels", "Invalid value"),
        ({"metadata": {"name": "a", "annotations": {"x/y/z": "1"}}}, "metadata.annotations", "Invalid value"),
        ({"metadata": {"name": "a", "annotations": {"a": "x" * 270_000}}}, "metadata.annotations", "Too long"),
        ({"metadata": {"name": "a", "finalizers": ["a b"]}}, "metadata.finalizers", "Invalid value"),
        ({"spec": {}}, "spec.accessModes", "Required value"),
    ],
)
def test_invalid_objects_are_refused_with_the_field(world: World, change: Json, field: str, words: str) -> None:
    status = world.api.post(world.claims, world.claim_body("a", "none") | change).refused(422, "Invalid", words)
    assert status["details"]["kind"] == "PersistentVolumeClaim"
    assert field in [cause["field"] for cause in status["details"]["causes"]]


def test_the_longest_names_are_accepted(world: World) -> None:
    made = world.claim("n" * 253, "none")
    assert len(made["metadata"]["name"]) == 253


@pytest.mark.parametrize(
    "body",
    [
        "{nope",
        "[]",
        {"metadata": {"name": "a"}, "spec": "text"},
        {"metadata": {"name": "a", "labels": {"a": 1}}, "spec": {}},
        {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}},
        {"kind": "PersistentVolumeClaim", "apiVersion": "v2", "metadata": {"name": "a"}},
        {"metadata": {"name": "a", "namespace": "another"}, "spec": {}},
        {"metadata": {"name": "a"}, "spec": {"resources": {"requests": {"storage": "1Gx"}}}},
    ],
)
def test_what_cannot_be_decoded_is_a_bad_request(world: World, body: object) -> None:
    world.api.post(world.claims, body).refused(400, "BadRequest")


def test_an_unknown_format_is_refused(world: World) -> None:
    body = world.claim_body("a", "none")
    answer = world.api.request("POST", world.claims, body, content_type="text/plain")
    answer.refused(415, "UnsupportedMediaType")


def test_unknown_fields_and_nulls_are_dropped(world: World) -> None:
    body = world.claim_body("a", "none", selector=None, spelled_wrong=1, metadata={"labels": {}, "annotations": {}})
    made = world.make(world.claims, body | {"nonsense": True})
    assert set(made["spec"]) == {"accessModes", "resources", "storageClassName", "volumeMode"}
    assert "nonsense" not in made
    assert not {"labels", "annotations"} & set(made["metadata"])


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ("1024Mi", "1Gi"),
        ("0.5Gi", "512Mi"),
        ("1000M", "1G"),
        ("1e9", "1e9"),
        (1073741824, "1073741824"),
        ("1500m", "1500m"),
        ("1.5Gi", "1536Mi"),
        ("0.5", "500m"),
        ("100Gi", "100Gi"),
        ("1Ki", "1Ki"),
        ("12e6", "12e6"),
        ("1.5e3", "1500"),
    ],
)
def test_quantities_are_answered_in_canonical_form(world: World, sent: object, answered: str) -> None:
    """Comparing sizes as text would see changes where there are none."""
    body = world.claim_body("a", "none") | {"metadata": {"name": "a"}}
    body["spec"]["resources"]["requests"]["storage"] = sent
    made = world.api.post(world.claims, body, dryRun="All").ok()
    assert made["spec"]["resources"]["requests"]["storage"] == answered


def test_dry_run_stores_nothing(world: World) -> None:
    world.api.post(world.claims, world.claim_body("a", "none"), dryRun="All").ok()
    world.api.get(world.claim_path("a")).refused(404, "NotFound")
    world.claim("b", "none")
    patched = world.api.patch(world.claim_path("b"), {"metadata": {"labels": {"a": "b"}}}, dryRun="All").ok()
    assert patched["metadata"]["labels"] == {"a": "b"}
    assert "labels" not in world.api.get(world.claim_path("b")).ok()["metadata"]
    world.api.delete(world.claim_path("b"), dryRun="All").ok()
    assert "deletionTimestamp" not in world.api.get(world.claim_path("b")).ok()["metadata"]


def test_a_wrong_token_is_unauthorized(api: Client) -> None:
    api.request("GET", VOLUMES, token="wrong").refused(401, "Unauthorized")


def test_a_body_of_more_than_three_megabytes_is_refused(world: World) -> None:
    body = {"metadata": {"name": "a"}, "data": {"a": "x" * 3_200_000}}
    world.api.post(world.config_maps, body).refused(413, "RequestEntityTooLarge", "limit is 3145728")


def test_health_version_and_discovery(api: Client) -> None:
    assert (api.get("/healthz").text, api.get("/readyz").text, api.get("/livez").text) == ("ok", "ok", "ok")
    assert api.get("/version").ok()["major"] == "1"
    assert api.get("/api").ok()["versions"] == ["v1"]
    groups = {group["name"] for group in api.get("/apis").ok()["groups"]}
    assert groups >= {"storage.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "apiextensions.k8s.io"}
    listed = {resource["name"]: resource for resource in api.get("/api/v1").ok()["resources"]}
    assert listed["persistentvolumes"]["namespaced"] is False
    assert listed["persistentvolumeclaims"]["kind"] == "PersistentVolumeClaim"
    assert listed["persistentvolumeclaims"]["shortNames"] == ["pvc"]
    assert "persistentvolumeclaims/status" in listed


def test_the_first_namespaces_are_there(api: Client) -> None:
    assert api.get(f"{NAMESPACES}/kube-system").ok()["metadata"]["uid"]
    assert api.get(f"{NAMESPACES}/default").ok()["status"]["phase"] == "Active"
