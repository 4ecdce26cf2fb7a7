"""Whatever two replicas show: nothing is attached that contradicts the status or its partner."""

from __future__ import annotations

import itertools
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings

from nfs_provisioner.export.identity import Remembered, View, judge
from nfs_provisioner.export.records import Identity
from nfs_provisioner.export.root import Facts
from tests.unit.export.replicas import CLUSTER, EXPORT

NAMES = ("a", "b")
IDENTITIES = st.builds(
    Identity,
    pair=st.sampled_from(["P", "Q"]),
    cluster=st.sampled_from([CLUSTER, CLUSTER, "another"]),
    export=st.sampled_from([EXPORT, EXPORT, "another"]),
    replica=st.sampled_from(NAMES),
    replica_id=st.sampled_from(["id-a", "id-b"]),
    root=st.sampled_from(["root-a", "root-b"]),
    epoch=st.integers(1, 3),
    promotion=st.sampled_from(["p1", "p2"]),
    active=st.sampled_from(NAMES),
    seq=st.integers(0, 3),
    members=st.sampled_from([{}, {"a": "id-a"}, {"b": "id-b"}, {"a": "id-a", "b": "id-b"}]),
)


def views(name: str) -> st.SearchStrategy[View]:
    found = st.builds(
        Facts,
        identity=st.none() | IDENTITIES,
        empty=st.booleans(),
        handle=st.sampled_from([f"root-{name}", f"root-{name}", "root-a"]),
        filesystem=st.just("ext4"),
        place=st.sampled_from([f"{name}:2", f"{name}:2", "a:2"]),
        unmounted=st.sampled_from([False, False, False, True]),
    )
    return st.builds(View, st.just(name), st.none() | found, st.just("why"))


STATUS = st.just(Remembered()) | st.builds(
    Remembered, st.sampled_from(NAMES), st.integers(1, 3), st.sampled_from(["p1", "p2"])
)


@settings(max_examples=1000, deadline=None)
@given(STATUS, views("a"), views("b"), st.none() | st.sampled_from(NAMES))
def test_only_what_was_proven_is_attached(status: Remembered, a: View, b: View, accepted: str | None) -> None:
    numbers = itertools.count()
    found = judge(EXPORT, CLUSTER, status, (a, b), accepted=accepted, new_id=lambda: f"new{next(numbers)}")
    numbers = itertools.count()
    again = judge(EXPORT, CLUSTER, status, (a, b), accepted=accepted, new_id=lambda: f"new{next(numbers)}")
    assert again == found, "the same facts give the same verdict"
    seen = {view.name: view.facts for view in (a, b)}

    assert (found.active is None) == (not found.attach)
    for name, identity in found.attach.items():
        there = seen[name]
        assert there is not None and not there.unmounted
        assert name not in found.problems
        assert (identity.replica, identity.cluster, identity.export) == (name, CLUSTER, EXPORT)
        assert identity.root == there.handle
        assert identity.active == found.active
        if name != accepted and there.identity is not None:
            # Nobody vouched for it: it is left what it was (but for what it knows of its partner). Only when both come
            # from one lost cluster, and agree in all else, it goes with the one that somebody vouched for.
            chosen = seen[accepted].identity if accepted is not None and seen[accepted] is not None else None  # type: ignore[union-attr]
            came_along = chosen is not None and chosen.cluster == there.identity.cluster and accepted == found.active
            before_it = replace(there.identity, cluster=CLUSTER) if came_along else there.identity
            assert replace(identity, members={}) == replace(before_it, members={})
        if name != accepted and there.identity is None:
            assert there.empty or (name == found.active and not status.promotion), "somebody's data became a standby"
    if found.active is not None:
        assert found.active in found.attach
        mine, before = found.attach[found.active], seen[found.active]
        assert before is not None
        if found.active != accepted and status.promotion:
            assert (mine.active, mine.epoch, mine.promotion) == (status.active, status.epoch, status.promotion)
        if status.promotion:
            assert found.active == status.active, "a switch is not decided here"
        # One that was left out, and may have newer data of this pair, stops everything that nobody vouched for.
        for name, facts in seen.items():
            other = None if facts is None else facts.identity
            if name == found.active or other is None or (other.pair, other.cluster, other.export) != (
                mine.pair, CLUSTER, EXPORT,
            ):  # fmt: skip
                continue
            assert found.active == accepted or other.epoch <= mine.epoch
            assert mine.epoch > other.epoch or other.promotion == mine.promotion
            if other.promotion == mine.promotion and other.epoch == mine.epoch:
                assert other.seq <= mine.seq
    if len(found.attach) == 2:
        one, two = found.attach["a"], found.attach["b"]
        assert (one.pair, one.epoch, one.promotion, one.active) == (two.pair, two.epoch, two.promotion, two.active)
        assert one.replica_id != two.replica_id
        standby = found.attach["b" if found.active == "a" else "a"]
        assert standby.seq <= found.attach[found.active or ""].seq
        assert standby.members == {"a": one.replica_id, "b": two.replica_id}
