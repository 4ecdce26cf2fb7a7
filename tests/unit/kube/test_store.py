"""Versions overtake each other; the subscriber hears of every state all the same, and never of an older one."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from nfs_provisioner.kube.api import JsonObject
from nfs_provisioner.kube.store import Store, key_of


def obj(name: str, version: int, color: str = "red", namespace: str | None = None) -> JsonObject:
    metadata = {"name": name, "resourceVersion": str(version)}
    if namespace:
        metadata["namespace"] = namespace
    return {"metadata": metadata, "color": color}


def slim(full: JsonObject) -> str | None:
    """The colour; white things are of no interest."""
    return None if full["color"] == "white" else str(full["color"])


def store() -> Store[str]:
    return Store(slim, index=lambda color: [color])


def test_keys() -> None:
    assert key_of(obj("a", 1)) == "a"
    assert key_of(obj("a", 1, namespace="n")) == "n/a"


def test_events_change_the_store_the_index_and_tell_old_and_new() -> None:
    s = store()
    assert s.apply(obj("a", 1)) == ("a", None, "red")
    assert s.apply(obj("b", 2)) == ("b", None, "red")
    assert s.apply(obj("c", 3)) == ("c", None, "red")
    assert sorted(s.by_index("red")) == ["red"] * 3
    assert s.apply(obj("a", 4, "blue")) == ("a", "red", "blue")
    assert s.apply(obj("b", 5, "blue"), deleted=True) == ("b", "red", None)
    assert (s.by_index("red"), s.by_index("blue"), s.by_index("green")) == (["red"], ["blue"], [])
    assert (s.get("a"), s.get("b"), len(s), s.version) == ("blue", None, 2, 5)
    assert s.apply(obj("c", 6, "white")) == ("c", "red", None)
    assert s.apply(obj("c", 7, "white"), deleted=True) is None
    assert s._keys_by_value == {"blue": "a"}


def test_a_change_of_fields_that_nobody_uses_is_not_told() -> None:
    s = store()
    s.apply(obj("a", 1))
    assert s.apply(obj("a", 2)) is None
    s.put(obj("a", 3, "blue"))
    assert s.apply(obj("a", 3, "blue")) == ("a", "red", "blue")


def test_an_own_write_is_read_at_once_and_told_when_the_watch_brings_it() -> None:
    s = store()
    s.apply(obj("a", 1))
    s.put(obj("a", 5, "blue"))
    assert s.get("a") == "blue"
    assert s.by_index("blue") == ["blue"]
    assert s.apply(obj("a", 5, "blue")) == ("a", "red", "blue")
    s.put(obj("a", 4, "green"))
    assert s.get("a") == "blue"


def test_a_foreign_change_that_an_own_write_overtook_is_told_with_the_newest_state() -> None:
    s = store()
    s.apply(obj("a", 1))
    s.put(obj("a", 5, "blue"))
    assert s.apply(obj("a", 3, "green")) == ("a", "red", "blue"), "the foreign change would never be acted on"
    assert s.get("a") == "blue"
    assert s.apply(obj("a", 5, "blue")) is None, "told already"
    assert s.apply(obj("a", 6, "green")) == ("a", "blue", "green")


def test_an_own_write_does_not_bring_back_what_was_deleted_meanwhile() -> None:
    s = store()
    s.apply(obj("a", 1))
    s.apply(obj("a", 7), deleted=True)
    s.put(obj("a", 5, "blue"))
    assert s.get("a") is None
    s.put(obj("b", 6))
    assert s.get("b") is None
    s.put(obj("b", 9))
    assert s.get("b") == "red"


def test_deleted_and_made_again_by_us_before_the_watch_told() -> None:
    s = store()
    s.apply(obj("a", 1))
    s.put(obj("a", 8, "blue"))
    assert s.apply(obj("a", 6), deleted=True) == ("a", "red", None)
    assert s.get("a") == "blue"
    assert s.apply(obj("a", 8, "blue")) == ("a", None, "blue")


def test_an_own_write_that_makes_an_object_uninteresting() -> None:
    s = store()
    s.apply(obj("a", 1))
    s.put(obj("a", 5, "white"))
    assert s.get("a") is None
    assert s.apply(obj("a", 5, "white")) == ("a", "red", None)


def test_h18_an_own_write_that_nobody_heard_of_and_a_deletion_that_nobody_saw() -> None:
    s = store()
    s.apply(obj("a", 1))
    s.put(obj("a", 5, "white"))
    assert s.finish_list(9, set()) == [("a", "red", None)]


def test_h18_a_relist_tells_what_was_deleted_and_keeps_what_is_newer_than_it() -> None:
    s = store()
    for name, version in (("gone", 1), ("same", 2), ("changed", 3), ("ours", 4)):
        s.apply(obj(name, version))
    s.put(obj("new", 20))
    s.put(obj("ours", 21, "blue"))
    told = [s.apply_listed(o) for o in (obj("same", 2), obj("changed", 9, "blue"), obj("ours", 4), obj("found", 8))]
    assert told == [None, ("changed", "red", "blue"), ("ours", "red", "blue"), ("found", None, "red")]
    assert s.finish_list(15, {"same", "changed", "ours", "found"}) == [("gone", "red", None)]
    assert sorted(s.items()) == ["blue", "blue", "red", "red", "red"]
    assert s.version == 15
    assert s.apply(obj("new", 20)) == ("new", None, "red")


def test_a_history_that_went_back_is_believed() -> None:
    s = store()
    s.apply(obj("a", 100, "blue"))
    s.put(obj("b", 120))
    assert s.newest == 120
    s.forget_versions()
    assert s.apply_listed(obj("a", 7)) == ("a", "blue", "red")
    assert s.finish_list(9, {"a"}) == [], "b was never told of"
    assert (s.get("a"), s.get("b"), s.newest) == ("red", None, 9)


def test_10000_items_with_an_index_cost_little() -> None:
    s: Store[tuple[int]] = Store(lambda full: (int(full["color"]),), index=lambda item: [item[0]])
    for i in range(10_000):
        s.apply(obj(f"pvc-{i:036}", i + 1, str(i)))
    assert not any(isinstance(keys, set) for keys in s._keys_by_value.values())
    assert sys.getsizeof(s._items) + sys.getsizeof(s._keys_by_value) < 1_000_000


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from(["red", "blue", "white", None]),
        st.sampled_from(["nobody", "put", "relist"]),
    ),
    max_size=25,
)


@given(steps=STEPS, lag=st.integers(0, 6))
def test_whatever_overtakes_what_the_store_and_the_subscriber_end_up_with_the_truth(
    steps: list[tuple[str, str | None, str]], lag: int
) -> None:
    """Each step changes an object on the server; the watch brings it `lag` steps later, `put` at once. Before every
    step what was told is a state that the store had, and old always is what was told last."""
    s = store()
    truth: dict[str, JsonObject] = {}
    told: dict[str, str] = {}
    stream: list[tuple[JsonObject, bool]] = []

    def tell(change: tuple[str, str | None, str | None] | None) -> None:
        if change is None:
            return
        key, old, new = change
        assert told.get(key) == old
        assert old != new
        told.pop(key, None)
        if new is not None:
            told[key] = new

    def bring(upto: int) -> None:
        while len(stream) > upto:
            event, deleted = stream.pop(0)
            tell(s.apply(event, deleted=deleted))

    for version, (name, color, how) in enumerate(steps, start=1):
        if color is None and name not in truth:
            continue
        if color is None:
            stream.append((obj(name, version, truth.pop(name)["color"]), True))
        else:
            truth[name] = obj(name, version, color)
            stream.append((truth[name], False))
            if how == "put":
                s.put(truth[name])
                assert s.get(name) == slim(truth[name])
        if how == "relist":
            stream.clear()
            for full in truth.values():
                tell(s.apply_listed(full))
            for change in s.finish_list(version, set(truth)):
                tell(change)
        bring(lag)
    bring(0)
    want = {name: color for name, full in truth.items() if (color := slim(full)) is not None}
    assert {name: item for name in ("a", "b") if (item := s.get(name)) is not None} == want
    assert told == want
    assert sorted(s.items()) == sorted(want.values())
    assert sorted(s.by_index("red")) == sorted(color for color in want.values() if color == "red")
