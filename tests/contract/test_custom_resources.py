"""Custom resources: generations, the status subresource, and what a schema does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.client import LASTING, STRATEGIC, Client, Credentials, Json
from tests.contract.world import World

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

REPLICA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "maxLength": 10}, "role": {"type": "string", "default": "standby"}},
}
SPEC = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "pattern": "^/[^/]+$", "default": "/srv"},
        "count": {"type": "integer", "minimum": 1, "maximum": 5},
        "mode": {"type": "string", "enum": ["fast", "safe"]},
        "replicas": {
            "type": "array",
            "maxItems": 2,
            "items": REPLICA,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
        "replication": {
            "type": "object",
            "default": {},
            "properties": {"interval": {"type": "string", "default": "30s"}},
        },
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
STATUS = {"type": "object", "properties": {"phase": {"type": "string"}, "text": {"type": "string"}}}
SCHEMA = {"type": "object", "required": ["spec"], "properties": {"spec": SPEC, "status": STATUS}}


def define(api: Client, group: str) -> str:
    """Makes the kind, in a group of its own, and waits until it is served; returns the definition's path."""
    names = {"kind": "Thing", "plural": "things", "shortNames": ["th"]}
    version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}}
    versions = [version | {"schema": {"openAPIV3Schema": SCHEMA}}]
    spec = {"group": group, "names": names, "scope": "Cluster", "versions": versions}
    path = f"{DEFINITIONS}/things.{group}"
    api.post(DEFINITIONS, {"metadata": {"name": f"things.{group}"}, "spec": spec}).ok()
    api.eventually(path, _established)
    # Of any version, so that it comes from the cache: without one a watch is not answered yet.
    api.eventually(f"/apis/{group}/v1/things?resourceVersion=0", lambda _: True)
    return path


def _established(definition: Json) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


class Things:
    """One object of the kind, which is the test's own."""

    def __init__(self, world: World, group: str) -> None:
        self.world = world
        self.group = group
        self.path = f"/apis/{group}/v1/things"
        self.own = f"{self.path}/{world.name('t')}"

    def body(self, spec: Any = None, **fields: Any) -> Json:
        metadata = {"name": self.world.name("t"), "labels": {"test": self.world.suffix}}
        head = {"apiVersion": f"{self.group}/v1", "kind": "Thing", "metadata": metadata}
        return head | {"spec": {} if spec is None else spec} | fields

    def make(self, spec: Any = None, **fields: Any) -> Json:
        return self.world.make(self.path, self.body(spec, **fields))

    def patch(self, change: Json, subresource: str = "") -> Json:
        return self.world.api.patch(f"{self.own}{subresource}", change).ok()


@pytest.fixture(scope="module")
def group(credentials: Credentials) -> Iterator[str]:
    """The kind is made once: a real server takes two seconds to serve it."""
    api = Client(credentials)
    name = f"g{uuid.uuid4().hex[:8]}.example.com"
    definition = define(api, name)
    yield name
    api.delete(definition)
    api.close()


@pytest.fixture
def things(world: World, group: str) -> Things:
    return Things(world, group)


def test_a_new_object_gets_defaults_and_loses_what_the_schema_does_not_know(things: Things) -> None:
    spec = {"unknown": 1, "count": None, "free": {"a": None, "b": [1]}, "replicas": [{"name": "a"}]}
    made = things.make(spec, status={"phase": "Ready"}, nonsense=True)
    assert made["spec"] == {
        "path": "/srv",
        "free": {"a": None, "b": [1]},
        "replicas": [{"name": "a", "role": "standby"}],
        "replication": {"interval": "30s"},
    }
    assert made["metadata"]["generation"] == 1
    assert set(made) == {"apiVersion", "kind", "metadata", "spec"}


def test_kind_and_version_have_to_be_said(things: Things) -> None:
    for change in ({"kind": None}, {"apiVersion": "other/v1"}):
        body = {key: value for key, value in (things.body() | change).items() if value is not None}
        things.world.api.post(things.path, body).refused(400, "BadRequest")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"path": 1}, "spec.path in body must be of type string"),
        ({"path": "relative"}, "spec.path in body should match"),
        ({"count": 0}, "spec.count in body should be greater than or equal to 1"),
        ({"count": 6}, "spec.count in body should be less than or equal to 5"),
        ({"mode": "slow"}, "spec.mode: Unsupported value"),
        ({"replicas": [{"name": "a"}, {"name": "a"}]}, "spec.replicas[1]: Duplicate value"),
        ({"replicas": [{}]}, "spec.replicas[0].name: Required value"),
        ({"replicas": [{"name": "a" * 11}]}, "spec.replicas[0].name: Too long"),
        ({"replicas": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}, "spec.replicas: Too many"),
        ({"labels": {"a": 1}}, "spec.labels.a in body must be of type string"),
    ],
)
def test_the_schema_refuses(things: Things, spec: Json, words: str) -> None:
    things.world.api.post(things.path, things.body(spec)).refused(422, "Invalid", words)
    things.make()
    things.world.api.patch(things.own, {"spec": spec}).refused(422, "Invalid", words)


def test_a_required_field(things: Things) -> None:
    body = {key: value for key, value in things.body().items() if key != "spec"}
    things.world.api.post(things.path, body).refused(422, "Invalid", "spec: Required value")


def test_the_generation_counts_changes_of_the_specification(things: Things) -> None:
    things.make()
    generations = [
        things.patch(change, subresource)["metadata"]["generation"]
        for change, subresource in (
            ({"spec": {"path": "/a"}}, ""),
            ({"spec": {"path": "/a"}}, ""),
            ({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}}, ""),
            ({"status": {"phase": "Ready"}}, "/status"),
            ({"spec": {"path": None}}, ""),
            ({"spec": {"path": None}}, ""),
            ({"metadata": {"finalizers": ["example.com/x"]}}, ""),
        )
    ]
    assert generations == [2, 2, 2, 2, 3, 3, 3]
    deleted = things.world.api.delete(things.own).ok()
    assert deleted["metadata"]["generation"] == 4


def test_status_and_specification_are_written_apart(things: Things) -> None:
    things.make()
    change = {"status": {"phase": "Ready"}, "spec": {"path": "/b"}, "metadata": {"labels": {"a": "b"}}}
    main = things.patch(change)
    assert "status" not in main
    assert (main["spec"]["path"], main["metadata"]["labels"]["a"]) == ("/b", "b")
    change = {"status": {"phase": "Ready"}, "spec": {"path": "/c"}, "metadata": {"annotations": {"a": "b"}}}
    status = things.patch(change, "/status")
    assert status["status"] == {"phase": "Ready"}
    assert status["spec"]["path"] == "/b"
    # Of custom kinds, metadata does not go along with a status write.
    assert "annotations" not in status["metadata"]


def test_status_is_pruned_and_checked_too(things: Things) -> None:
    things.make()
    assert things.patch({"status": {"phase": "Ready", "unknown": 1}}, "/status")["status"] == {"phase": "Ready"}
    words = "phase in body must be of type string"
    things.world.api.patch(f"{things.own}/status", {"status": {"phase": 1}}).refused(422, "Invalid", words)


def test_a_put_needs_the_version(things: Things) -> None:
    made = things.make()
    path = things.own
    world = things.world
    changed = world.api.put(path, made | {"spec": {"path": "/a"}}).ok()
    world.api.put(path, made).refused(409, "Conflict")
    del changed["metadata"]["resourceVersion"]
    world.api.put(path, changed).refused(422, "Invalid", "metadata.resourceVersion")


def test_there_is_no_strategic_merge(things: Things) -> None:
    things.make()
    answer = things.world.api.patch(things.own, {"spec": {}}, STRATEGIC)
    answer.refused(415, "UnsupportedMediaType")


def test_a_finalizer_holds_a_custom_object(things: Things) -> None:
    things.make()
    things.patch({"metadata": {"finalizers": ["example.com/x"]}})
    path = things.own
    things.world.api.delete(path).ok()
    assert things.patch({"status": {"phase": "Leaving"}}, "/status")["status"] == {"phase": "Leaving"}
    things.patch({"metadata": {"finalizers": None}})
    things.world.api.get(path).refused(404, "NotFound")


def test_deleting_answers_with_a_status(things: Things) -> None:
    uid = things.make()["metadata"]["uid"]
    answer = things.world.api.delete(things.own).ok()
    assert (answer["kind"], answer["status"], answer["details"]["uid"]) == ("Status", "Success", uid)


def test_items_of_custom_lists_carry_their_kind(things: Things) -> None:
    things.make()
    body = things.world.api.get(things.path, labelSelector=f"test={things.world.suffix}").ok()
    assert body["kind"] == "ThingList"
    assert [(item["kind"], item["apiVersion"]) for item in body["items"]] == [("Thing", f"{things.group}/v1")]


def test_a_watch_of_a_custom_kind(things: Things) -> None:
    start = things.world.api.get(things.path).ok()["metadata"]["resourceVersion"]
    things.make()
    things.patch({"status": {"phase": "Ready"}}, "/status")
    query = {"labelSelector": f"test={things.world.suffix}", **LASTING}
    with things.world.api.watch(things.path, resourceVersion=start, **query) as running:
        types = [running.next()["type"], running.next()["type"]]
    assert types == ["ADDED", "MODIFIED"]


def test_h18_a_watch_from_too_long_ago_is_an_error_event(things: Things) -> None:
    """HTTP says 200; the 410 comes as an event, and the stream ends. (The cache of a new kind has a short memory.)"""
    with things.world.api.watch(things.path, resourceVersion="1", **LASTING) as running:
        assert running.response.status == 200
        events = list(running)
    assert [event["type"] for event in events] == ["ERROR"]
    status = events[0]["object"]
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")
    assert "too old resource version" in status["message"]


def test_a_status_that_etcd_does_not_take(things: Things) -> None:
    things.make()
    assert things.patch({"status": {"text": "x" * 1_390_000}}, "/status")
    path = f"{things.own}/status"
    answer = things.world.api.patch(path, {"status": {"text": "x" * 1_760_000}})
    assert (answer.code, answer.body["message"]) == (500, "etcdserver: request is too large")


def test_a_kind_goes_with_its_definition(world: World) -> None:
    group = f"g{world.suffix}.example.com"
    definition = define(world.api, group)
    things = Things(world, group)
    things.make()
    world.api.delete(definition).ok()
    world.api.eventually_gone(definition)
    world.api.eventually_gone(things.own)
