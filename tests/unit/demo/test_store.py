"""The store's promise to watchers and to pages: nothing is missed, nothing comes twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nfs_provisioner.demo.resources import CONFIG_MAPS
from nfs_provisioner.demo.store import Change, Key, Store

STEPS = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from("xyz"), st.integers(0, 3)), max_size=40)


def apply(store: Store, step: tuple[str, str, int]) -> None:
    """Writes the value, or removes the object for 0."""
    namespace, name, value = step
    key = (namespace, name)
    entry = store.get(CONFIG_MAPS, key)
    if value:
        store.put(CONFIG_MAPS, key, {"metadata": {"name": name}, "data": value})
    elif entry is not None:
        store.remove(CONFIG_MAPS, key, entry.load())


def contents(store: Store, namespace: str = "") -> dict[Key, bytes]:
    return {key: entry.body for key, entry in store.scan(CONFIG_MAPS, namespace)}


def follow(known: dict[Key, bytes], changes: list[Change]) -> dict[Key, bytes]:
    known = dict(known)
    for change in changes:
        assert (change.old.body if change.old else None) == known.get(change.key)
        if change.new is None:
            del known[change.key]
        else:
            known[change.key] = change.new.body
    return known


@given(STEPS, STEPS)
def test_a_list_and_the_changes_since_give_the_present(
    before: list[tuple[str, str, int]], after: list[tuple[str, str, int]]
) -> None:
    store = Store(watch_cache=1000)
    for step in before:
        apply(store, step)
    known, revision = contents(store), store.revision
    seen: list[Change] = []
    store.watch(CONFIG_MAPS, seen.append)
    for step in after:
        apply(store, step)
    later = store.changes_since(CONFIG_MAPS, revision)
    assert later == seen
    assert [change.revision for change in later] == sorted({change.revision for change in later})
    assert follow(known, later) == contents(store)


@given(STEPS, STEPS, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "x", "y"]))
def test_a_snapshot_is_the_list_of_then(
    before: list[tuple[str, str, int]], after: list[tuple[str, str, int]], namespace: str, name: str
) -> None:
    store = Store(watch_cache=1000)
    for step in before:
        apply(store, step)
    start = ("a", name)
    expected = list(store.scan(CONFIG_MAPS, namespace, start))
    revision = store.revision
    for step in after:
        apply(store, step)
    assert store.snapshot(CONFIG_MAPS, revision, namespace, start) == expected


@given(STEPS, st.integers(1, 5))
def test_forgotten_history_is_never_passed_off_as_complete(steps: list[tuple[str, str, int]], size: int) -> None:
    store = Store(watch_cache=size)
    complete = Store(watch_cache=1000)
    start = store.revision
    for step in steps:
        apply(store, step)
        apply(complete, step)
    for revision in range(start, store.revision + 1):
        later = store.changes_since(CONFIG_MAPS, revision)
        expected = complete.changes_since(CONFIG_MAPS, revision)
        assert later is None or later == expected
        if expected is not None and len(expected) <= size:
            assert later == expected


def test_a_namespace_that_is_the_prefix_of_another() -> None:
    store = Store(watch_cache=10)
    for namespace in ("a", "a-b", "ab"):
        store.put(CONFIG_MAPS, (namespace, "x"), {"metadata": {"name": "x"}})
    assert [key for key, _ in store.scan(CONFIG_MAPS, "a")] == [("a", "x")]
    assert [key for key, _ in store.scan(CONFIG_MAPS, "a-b")] == [("a-b", "x")]


def test_the_same_content_is_no_change_whatever_the_order_of_its_keys() -> None:
    store = Store(watch_cache=10)
    first = store.put(CONFIG_MAPS, ("a", "x"), {"metadata": {"name": "x", "uid": "1"}, "data": {"a": "1", "b": "2"}})
    again = store.put(CONFIG_MAPS, ("a", "x"), {"data": {"b": "2", "a": "1"}, "metadata": {"uid": "1", "name": "x"}})
    assert again is first
