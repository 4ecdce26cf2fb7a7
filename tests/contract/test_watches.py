"""Watches: every change once, in order, as far as the selectors see it; bookmarks; and what is too old."""

from __future__ import annotations

from collections.abc import Iterable

from tests.contract.client import DEADLINE, LASTING, Json, Watch
from tests.contract.world import VOLUMES, World


def version(body: Json) -> str:
    return str(body["metadata"]["resourceVersion"])


def summary(events: Iterable[Json]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"].get("data", {}).get("k", "")) for event in events]


def watch(world: World, start: str | None = None, timeout: int = int(DEADLINE), **query: object) -> Watch:
    start = version(world.api.get(world.config_maps).ok()) if start is None else start
    return world.api.watch(world.config_maps, resourceVersion=start, timeoutSeconds=timeout, **query)


def put(world: World, name: str, value: str, **labels: str) -> None:
    """Writes a config map, new or changed, with exactly these labels."""
    path, body = f"{world.config_maps}/{name}", {"metadata": {"name": name, "labels": labels}, "data": {"k": value}}
    if world.api.put(path, body).code == 404:
        world.api.post(world.config_maps, body).ok()


def marked(world: World) -> None:
    put(world, "end", "end", watched="yes")


def until_end(running: Watch) -> list[Json]:
    """All events before the one that `marked` causes."""
    running.until(lambda event: bool(event["object"]["metadata"].get("name") == "end"))
    return [event for event in running.seen[:-1] if event["object"]["metadata"].get("name") != "kube-root-ca.crt"]


def test_a_watch_continues_a_list(world: World) -> None:
    put(world, "before", "0")
    with watch(world) as running:
        put(world, "a", "1")
        put(world, "a", "2")
        world.api.delete(f"{world.config_maps}/a").ok()
        put(world, "a", "3")
        marked(world)
        events = until_end(running)
    assert summary(events) == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2"), ("ADDED", "3")]
    versions = [int(version(event["object"])) for event in events]
    assert versions == sorted(set(versions))
    assert all(event["object"]["kind"] == "ConfigMap" for event in events)


def test_a_watch_can_start_from_any_recent_version(world: World) -> None:
    start = version(world.api.get(world.config_maps).ok())
    put(world, "a", "1")
    put(world, "a", "2")
    middle = version(world.api.get(f"{world.config_maps}/a").ok())
    put(world, "a", "3")
    marked(world)
    with watch(world, start) as running:
        assert summary(until_end(running)) == [("ADDED", "1"), ("MODIFIED", "2"), ("MODIFIED", "3")]
    with watch(world, middle) as running:
        assert summary(until_end(running)) == [("MODIFIED", "3")]


def test_without_a_version_the_present_objects_come_first(world: World) -> None:
    put(world, "a", "1", watched="yes")
    for start in ("", "0"):
        with watch(world, start, labelSelector="watched") as running:
            assert summary([running.next()]) == [("ADDED", "1")]


def test_label_selectors_turn_changes_into_arrivals_and_departures(world: World) -> None:
    with watch(world, labelSelector="watched=yes") as running:
        put(world, "a", "1", watched="no")
        put(world, "a", "2", watched="yes")
        put(world, "a", "3", watched="yes")
        put(world, "a", "4", watched="no")
        put(world, "a", "5", watched="no")
        put(world, "a", "6", watched="yes")
        world.api.delete(f"{world.config_maps}/a").ok()
        marked(world)
        events = until_end(running)
    assert summary(events) == [("ADDED", "2"), ("MODIFIED", "3"), ("DELETED", "3"), ("ADDED", "6"), ("DELETED", "6")]
    versions = [int(version(event["object"])) for event in events]
    assert versions == sorted(set(versions))


def test_field_selectors_on_a_watch(world: World) -> None:
    with watch(world, fieldSelector="metadata.name=a") as running:
        put(world, "b", "1")
        put(world, "a", "2")
        put(world, "b", "3")
        put(world, "a", "4")
        assert summary([running.next(), running.next()]) == [("ADDED", "2"), ("MODIFIED", "4")]


def test_a_watch_of_all_namespaces(world: World) -> None:
    start = version(world.api.get("/api/v1/configmaps").ok())
    put(world, "a", "1", watch=world.suffix)
    query = {"resourceVersion": start, "labelSelector": f"watch={world.suffix}", **LASTING}
    with world.api.watch("/api/v1/configmaps", **query) as running:
        assert running.next()["object"]["metadata"]["namespace"] == world.namespace


def test_a_removal_by_the_last_finalizer_is_a_deletion(world: World) -> None:
    name = world.volume("v", "none", metadata={"finalizers": ["example.com/x"]})["metadata"]["name"]
    query = {"fieldSelector": f"metadata.name={name}", **LASTING}
    world.settle()  # it has become Available, which would be one change more
    with world.api.watch(VOLUMES, resourceVersion=version(world.api.get(VOLUMES).ok()), **query) as running:
        world.api.delete(world.volume_path("v")).ok()
        running.until(lambda event: event["object"]["metadata"].get("finalizers") == ["example.com/x"])
        world.free_volume("v")
        last = running.next()
    assert last["type"] == "DELETED"
    assert last["object"]["metadata"]["deletionTimestamp"]
    assert all(event["type"] == "MODIFIED" for event in running.seen[:-1])


def test_a_watch_ends_in_order_after_its_timeout(world: World) -> None:
    running = watch(world, timeout=1, labelSelector="none=such")
    assert list(running) == []
    assert running.response.isclosed()


def test_the_stream_is_chunked_json(world: World) -> None:
    running = watch(world, timeout=1)
    assert running.response.status == 200
    assert running.response.getheader("transfer-encoding") == "chunked"
    assert (running.response.getheader("content-type") or "").startswith("application/json")


def test_a_bookmark_tells_the_version_before_the_timeout(world: World) -> None:
    """Also to a watcher whose selector matched nothing: its version moves on all the same."""
    start = version(world.api.get(world.config_maps).ok())
    put(world, "a", "1")  # before the watch: the real server's bookmark comes two seconds before the end, late or not
    last = version(world.api.get(f"{world.config_maps}/a").ok())
    with watch(world, start, timeout=4, allowWatchBookmarks="true", labelSelector="none=such") as running:
        bookmarks = [event for event in running if event["type"] == "BOOKMARK"]
    assert bookmarks
    assert int(version(bookmarks[-1]["object"])) >= int(last) > int(start)
    assert bookmarks[-1]["object"]["kind"] == "ConfigMap"
    assert "name" not in bookmarks[-1]["object"]["metadata"]


def test_without_asking_no_bookmarks_come(world: World) -> None:
    with watch(world, timeout=4, labelSelector="none=such") as running:
        put(world, "a", "1")
        assert list(running) == []


def test_a_version_from_the_future_waits(world: World) -> None:
    running = watch(world, "999999999999", timeout=1)
    put(world, "a", "1")
    assert list(running) == []
