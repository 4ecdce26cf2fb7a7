"""PUT and PATCH: conflicts, the three patch formats, and the wall between specification and status."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import JSON_PATCH, MERGE, STRATEGIC, Json
from tests.contract.world import World


@pytest.fixture
def config_map(world: World) -> str:
    """The path of an object that no controller touches."""
    metadata = {"name": "c", "labels": {"a": "1"}, "finalizers": ["example.com/one", "example.com/two"]}
    world.make(world.config_maps, {"metadata": metadata, "data": {"x": "1", "y": "2"}})
    return f"{world.config_maps}/c"


def revision(obj: Json) -> int:
    return int(obj["metadata"]["resourceVersion"])


def test_put_with_a_stale_version_is_a_conflict(world: World, config_map: str) -> None:
    read = world.api.get(config_map).ok()
    written = world.api.put(config_map, read | {"data": {"x": "new"}}).ok()
    assert revision(written) > revision(read)
    status = world.api.put(config_map, read).refused(409, "Conflict", "the object has been modified")
    assert status["details"]["name"] == "c"


def test_put_without_a_version_replaces_unconditionally(world: World, config_map: str) -> None:
    written = world.api.put(config_map, {"metadata": {"name": "c"}, "data": {"z": "3"}}).ok()
    assert written["data"] == {"z": "3"}
    assert "labels" not in written["metadata"]
    assert "finalizers" not in written["metadata"]


def test_put_with_another_uid_is_a_conflict(world: World, config_map: str) -> None:
    world.api.put(config_map, {"metadata": {"name": "c", "uid": "other"}}).refused(409, "Conflict", "UID")


def test_put_with_a_uid_of_what_is_not_there_makes_nothing(world: World) -> None:
    """A precondition that fails, where a PUT would make the object; elsewhere it is just not there."""
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases"
    metadata = {"name": "gone", "uid": "u-1", "resourceVersion": "5"}
    lease = {"metadata": metadata, "spec": {"holderIdentity": "one"}}
    world.api.put(f"{leases}/gone", lease).refused(409, "Conflict", "Precondition failed: UID in precondition: u-1")
    world.api.get(f"{leases}/gone").refused(404, "NotFound")
    for path, body in (
        (f"{world.config_maps}/gone", {"metadata": metadata}),
        (world.claim_path("gone"), world.claim_body("gone", "none", metadata=metadata)),
        (f"{world.claim_path('gone')}/status", world.claim_body("gone", "none", metadata=metadata)),
    ):
        world.api.put(path, body).refused(404, "NotFound")
        world.api.get(path).refused(404, "NotFound")


def test_put_under_another_name_is_a_bad_request(world: World, config_map: str) -> None:
    world.api.put(config_map, {"metadata": {"name": "d"}}).refused(400, "BadRequest")
    world.api.put(config_map, {"metadata": {"name": "c", "namespace": "other"}}).refused(400, "BadRequest")


def test_patch_with_a_version_is_compare_and_swap(world: World, config_map: str) -> None:
    read = world.api.get(config_map).ok()
    version = {"resourceVersion": read["metadata"]["resourceVersion"]}
    world.api.patch(config_map, {"metadata": version, "data": {"x": "2"}}).ok()
    world.api.patch(config_map, {"metadata": version, "data": {"x": "3"}}).refused(409, "Conflict")
    assert world.api.get(config_map).ok()["data"]["x"] == "2"


def test_a_write_that_changes_nothing_is_not_a_write(world: World, config_map: str) -> None:
    read = world.api.get(config_map).ok()
    for body, content_type in (({"data": {"x": "1"}}, MERGE), ({}, STRATEGIC), ([], JSON_PATCH)):
        assert revision(world.api.patch(config_map, body, content_type).ok()) == revision(read)
    assert revision(world.api.put(config_map, read).ok()) == revision(read)


@pytest.mark.parametrize("field", ["uid", "deletionTimestamp"])
def test_patch_cannot_change_the_identity(world: World, config_map: str, field: str) -> None:
    value = "2020-01-01T00:00:00Z" if field == "deletionTimestamp" else "other"
    world.api.patch(config_map, {"metadata": {field: value}}).refused(422, "Invalid", f"metadata.{field}")


def test_patch_quietly_keeps_the_creation_time(world: World, config_map: str) -> None:
    before = world.api.get(config_map).ok()["metadata"]["creationTimestamp"]
    after = world.api.patch(config_map, {"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}}).ok()
    assert after["metadata"]["creationTimestamp"] == before


def test_merge_patch(world: World, config_map: str) -> None:
    patched = world.api.patch(config_map, {"metadata": {"labels": {"a": None, "b": "2"}}, "data": {"y": None}}).ok()
    assert patched["metadata"]["labels"] == {"b": "2"}
    assert patched["data"] == {"x": "1"}
    patched = world.api.patch(config_map, {"metadata": {"finalizers": ["example.com/three"], "labels": None}}).ok()
    assert patched["metadata"]["finalizers"] == ["example.com/three"]
    assert "labels" not in patched["metadata"]


@pytest.mark.parametrize(
    ("change", "finalizers"),
    [
        ({"finalizers": ["example.com/new"]}, ["example.com/new", "example.com/one", "example.com/two"]),
        ({"finalizers": ["example.com/two"]}, ["example.com/one", "example.com/two"]),
        ({"$deleteFromPrimitiveList/finalizers": ["example.com/one", "example.com/no"]}, ["example.com/two"]),
        (
            {"$setElementOrder/finalizers": ["example.com/two"], "finalizers": ["example.com/two"]},
            ["example.com/one", "example.com/two"],
        ),
        ({"finalizers": None}, None),
    ],
)
def test_strategic_merge_treats_finalizers_as_a_set(
    world: World, config_map: str, change: Json, finalizers: list[str] | None
) -> None:
    patched = world.api.patch(config_map, {"metadata": change}, STRATEGIC).ok()
    assert patched["metadata"].get("finalizers") == finalizers


def test_strategic_merge_replaces_and_deletes_maps(world: World, config_map: str) -> None:
    patched = world.api.patch(config_map, {"data": {"$patch": "replace", "only": "this"}}, STRATEGIC).ok()
    assert patched["data"] == {"only": "this"}


@pytest.mark.parametrize(
    ("operations", "data"),
    [
        ([{"op": "test", "path": "/data/x", "value": "1"}, {"op": "remove", "path": "/data/x"}], {"y": "2"}),
        ([{"op": "replace", "path": "/data/x", "value": "9"}], {"x": "9", "y": "2"}),
        ([{"op": "replace", "path": "/data/new", "value": "9"}], {"x": "1", "y": "2", "new": "9"}),
        ([{"op": "move", "from": "/data/x", "path": "/data/z"}], {"y": "2", "z": "1"}),
        ([{"op": "copy", "from": "/data/x", "path": "/data/z"}], {"x": "1", "y": "2", "z": "1"}),
        ([{"op": "add", "path": "/data", "value": {"k": "v"}}], {"k": "v"}),
    ],
)
def test_json_patch(world: World, config_map: str, operations: list[Json], data: Json) -> None:
    assert world.api.patch(config_map, operations, JSON_PATCH).ok()["data"] == data


def test_json_patch_escapes_and_appends(world: World, config_map: str) -> None:
    operations = [
        {"op": "add", "path": "/metadata/labels/example.com~1x", "value": "1"},
        {"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/last"},
    ]
    patched = world.api.patch(config_map, operations, JSON_PATCH).ok()["metadata"]
    assert patched["labels"]["example.com/x"] == "1"
    assert patched["finalizers"][-1] == "example.com/last"


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/x", "value": "other"},
        {"op": "remove", "path": "/data/absent"},
        {"op": "replace", "path": "/absent/x", "value": "1"},
        {"op": "unheard-of", "path": "/data/x"},
    ],
)
def test_a_json_patch_that_does_not_apply_changes_nothing(world: World, config_map: str, operation: Json) -> None:
    operations = [{"op": "replace", "path": "/data/y", "value": "changed"}, operation]
    world.api.patch(config_map, operations, JSON_PATCH).refused(422, "Invalid")
    assert world.api.get(config_map).ok()["data"] == {"x": "1", "y": "2"}


@pytest.mark.parametrize(
    ("body", "content_type"), [([], MERGE), ("{nope", MERGE), ({"op": "add"}, JSON_PATCH), ("{nope", JSON_PATCH)]
)
def test_a_patch_that_is_none_is_a_bad_request(world: World, config_map: str, body: Any, content_type: str) -> None:
    world.api.patch(config_map, body, content_type).refused(400, "BadRequest")


def test_a_patch_to_a_wrong_type_is_invalid(world: World, config_map: str) -> None:
    world.api.patch(config_map, {"data": {"x": 1}}).refused(422, "Invalid")


def test_an_unknown_patch_format_is_refused(world: World, config_map: str) -> None:
    world.api.patch(config_map, {}, "application/json").refused(415, "UnsupportedMediaType")


def test_the_main_path_does_not_write_status(world: World) -> None:
    """And the status path does not write the specification."""
    world.volume("v", "none")
    path = world.volume_path("v")
    world.settle()
    world.api.patch(path, {"status": {"phase": "Failed"}, "spec": {"mountOptions": ["hard"]}}).ok()
    read = world.api.get(path).ok()
    assert read["status"]["phase"] == "Available"
    assert read["spec"]["mountOptions"] == ["hard"]
    read["status"]["phase"] = "Failed"
    assert world.api.put(path, read).ok()["status"]["phase"] == "Available"


def test_the_status_path_does_not_write_the_specification(world: World) -> None:
    world.claim("a", "none")
    path = world.claim_path("a")
    change = {
        "status": {"conditions": [{"type": "Resizing", "status": "True"}]},
        "spec": {"volumeName": "other"},
        "metadata": {"annotations": {"example.com/by": "status"}},
    }
    patched = world.api.patch(f"{path}/status", change).ok()
    assert "volumeName" not in patched["spec"]
    assert patched["status"]["conditions"][0]["type"] == "Resizing"
    # Of built-in kinds, metadata goes along with a status write.
    assert patched["metadata"]["annotations"] == {"example.com/by": "status"}
    read = world.api.get(f"{path}/status").ok()
    assert read == patched
    read["spec"]["volumeName"] = "other"
    del read["status"]["conditions"]
    written = world.api.put(f"{path}/status", read).ok()
    assert "volumeName" not in written["spec"]
    assert written["status"] == {"phase": "Pending"}


def test_strategic_merge_knows_conditions_by_type(world: World) -> None:
    world.claim("a", "none")
    path = f"{world.claim_path('a')}/status"

    def patched(*conditions: Json) -> dict[str, str]:
        status = world.api.patch(path, {"status": {"conditions": list(conditions)}}, STRATEGIC).ok()["status"]
        return {condition["type"]: condition["status"] for condition in status.get("conditions", [])}

    assert patched({"type": "A", "status": "True"}) == {"A": "True"}
    assert patched({"type": "B", "status": "True"}) == {"A": "True", "B": "True"}
    assert patched({"type": "A", "status": "False"}) == {"A": "False", "B": "True"}
    assert patched({"type": "A", "$patch": "delete"}) == {"B": "True"}
