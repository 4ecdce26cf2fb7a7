"""Lists: selectors, pages, and the version that a watch starts from."""

from __future__ import annotations

import pytest

from tests.contract.client import Json
from tests.contract.world import NAMESPACES, VOLUMES, World

LABELS: dict[str, dict[str, str]] = {"a": {"x": "1"}, "b": {"x": "2", "y": ""}, "c": {}, "d": {"x": "1", "z": "q"}}


@pytest.fixture
def listed(world: World) -> str:
    """A collection with the objects of LABELS. (The controllers may add kube-root-ca.crt to it.)"""
    for name, labels in LABELS.items():
        world.make(world.config_maps, {"metadata": {"name": name, "labels": labels}, "data": {"k": name}})
    return world.config_maps


def names(body: Json) -> str:
    return "".join(item["metadata"]["name"] for item in body["items"] if item["metadata"]["name"] in LABELS)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("x=1", "ad"),
        ("x==1", "ad"),
        ("x!=1", "bc"),
        ("x in (1,2)", "abd"),
        ("x in (2)", "b"),
        ("x notin (1)", "bc"),
        ("x", "abd"),
        ("!x", "c"),
        ("x=1,z=q", "d"),
        ("y=", "b"),
        ("x in (1, 2), z", "d"),
        ("x,!z", "ab"),
        ("x notin (1,2),!y", "c"),
        (" x = 1 ", "ad"),
        ("", "abcd"),
    ],
)
def test_label_selectors(world: World, listed: str, selector: str, expected: str) -> None:
    assert names(world.api.get(listed, labelSelector=selector).ok()) == expected


@pytest.mark.parametrize(
    ("selector", "expected"),
    [("metadata.name=b", "b"), ("metadata.name!=b", "acd"), ("metadata.name=a,metadata.name=b", ""), ("", "abcd")],
)
def test_field_selectors(world: World, listed: str, selector: str, expected: str) -> None:
    assert names(world.api.get(listed, fieldSelector=selector).ok()) == expected


@pytest.mark.usefixtures("listed")
def test_field_selectors_across_namespaces(world: World) -> None:
    selector = f"metadata.namespace={world.namespace},metadata.name=c"
    assert names(world.api.get("/api/v1/configmaps", fieldSelector=selector).ok()) == "c"


@pytest.mark.parametrize(
    "query", [{"labelSelector": "a in b"}, {"labelSelector": "a=b c"}, {"fieldSelector": "nonsense"}, {"limit": "x"}]
)
def test_queries_that_make_no_sense_are_bad_requests(world: World, query: dict[str, str]) -> None:
    world.api.get(world.claims, **query).refused(400, "BadRequest")


def test_claims_cannot_be_selected_by_what_the_server_does_not_index(world: World) -> None:
    world.api.get(world.claims, fieldSelector="spec.volumeName=x").refused(400, "BadRequest")


def test_items_of_built_in_kinds_carry_no_kind(world: World, listed: str) -> None:
    body = world.api.get(listed).ok()
    assert (body["kind"], body["apiVersion"]) == ("ConfigMapList", "v1")
    assert not any("kind" in item or "apiVersion" in item for item in body["items"])


def test_a_list_of_one_namespace_and_of_all(world: World, listed: str) -> None:
    other = world.make(NAMESPACES, {"metadata": {"name": world.name("other")}})["metadata"]["name"]
    world.make(f"{NAMESPACES}/{other}/configmaps", {"metadata": {"name": "a", "labels": {"list": world.suffix}}})
    world.api.patch(f"{listed}/b", {"metadata": {"labels": {"list": world.suffix}}}).ok()
    selector = f"list={world.suffix}"
    assert names(world.api.get(listed, labelSelector=selector).ok()) == "b"
    assert names(world.api.get("/api/v1/configmaps", labelSelector=selector).ok()) == "ba"


def test_pages_are_one_consistent_list(world: World) -> None:
    """A page shows what was there when the first page was read, whatever happened since."""
    for index in range(7):
        world.volume(f"p{index}", "none", metadata={"labels": {"page": world.suffix}})
    query = {"labelSelector": f"page={world.suffix}", "limit": 3}
    first = world.api.get(VOLUMES, **query).ok()
    version = first["metadata"]["resourceVersion"]
    assert len(first["items"]) == 3
    gone = world.volume_path("p6")
    world.api.delete(gone).ok()
    world.api.eventually_gone(gone)
    world.volume("p7", "none", metadata={"labels": {"page": world.suffix}})
    seen, token = list(first["items"]), first["metadata"]["continue"]
    while token:
        page = world.api.get(VOLUMES, **query, **{"continue": token}).ok()
        assert page["metadata"]["resourceVersion"] == version
        seen += page["items"]
        token = page["metadata"].get("continue", "")
    assert [item["metadata"]["name"] for item in seen] == [world.name(f"p{index}") for index in range(7)]


def test_remaining_item_count(world: World) -> None:
    for index in range(4):
        world.claim(f"c{index}", "none")
    metadata = world.api.get(world.claims, limit=3).ok()["metadata"]
    assert metadata["remainingItemCount"] == 1
    assert "remainingItemCount" not in world.api.get(world.claims, limit=4).ok()["metadata"]


def test_a_continue_token_that_is_none(world: World) -> None:
    world.api.get(world.claims, **{"continue": "nonsense"}).refused(400, "BadRequest", "continue")


def test_a_version_from_the_future_is_refused(world: World) -> None:
    """That is how a cache notices that the server was restored from a backup."""
    status = world.api.get(world.claims, resourceVersion="999999999999").refused(504, "Timeout", "resource version")
    assert status["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


def test_a_version_that_is_none_is_refused(world: World) -> None:
    world.api.get(world.claims, resourceVersion="abc").refused(400, "BadRequest")
