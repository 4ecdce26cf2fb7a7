"""Single histories that a standby missed: what is due, in which order, and that it works on real directories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfs_provisioner.export import standby
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.store import Store
from nfs_provisioner.replication.levels import compare
from tests.unit.export.world import MARKER, POOL, World, volume


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The standby."""
    made = World(tmp_path, replica="b")
    yield made
    made.stop()


def active(pv: str, directory: str, state: State = State.LIVE, **changes: object) -> VolumeRecord:
    return replace(volume(pv, directory), state=state, inode=4711, **{"rev": 9, **changes})  # type: ignore[arg-type]


def known(store: Store) -> dict[str, VolumeRecord]:
    loaded, unreadable = store.load(POOL)
    assert unreadable == []
    return {record.pv: record for record in loaded}


def follow(store: Store, *records: VolumeRecord) -> list[str]:
    """One comparison; what failed."""
    steps = list(compare(records, known(store)).steps)
    return [result for result in standby.take_all(store, steps, 1) if isinstance(result, str)]


def settled(world: World, store: Store, *records: VolumeRecord) -> None:
    """One comparison was enough to hold the same; the next one has tombstones to update at most, then all is quiet."""
    assert follow(store, *records) == []
    assert {step.kind for step in compare(records, known(store)).steps} <= {"update"}
    assert follow(store, *records) == []
    assert compare(records, known(store)).steps == ()
    assert world.broken_promises() == []
    for record in records:
        place = world.root / record.directory / MARKER
        if record.holds_directory and place.exists():
            assert place.read_text() == record.tree


def test_h32_an_archive_is_renamed_not_made_again(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    settled(world, store, active("pv", "archived-app", State.ARCHIVED))
    assert (world.root / "archived-app" / MARKER).read_text() == "tree-pv"


def test_h32_the_name_of_an_archive_that_went_is_free_for_the_next_one(world: World) -> None:
    """Away while the first archive was purged and the next volume archived under its name."""
    store = world.start()
    world.make(store, "old", "app")
    world.archive(store, "old")
    world.make(store, "pv", "app")
    settled(
        world, store,
        active("pv", "archived-app", State.ARCHIVED), active("old", "archived-app", State.DELETED),
    )  # fmt: skip
    assert (world.root / "archived-app" / MARKER).read_text() == "tree-pv"


def test_h32_two_volumes_that_changed_places_do(world: World) -> None:
    """The archive was restored to the directory of the volume that was archived under its name."""
    store = world.start()
    world.make(store, "old", "app")
    world.archive(store, "old")
    world.make(store, "pv", "app")
    settled(
        world, store,
        active("pv", "archived-app", State.ARCHIVED), active("old", "archived-app", State.DELETED, successor="new"),
        active("new", "app", tree="tree-old", origin="old"),
    )  # fmt: skip
    assert (world.root / "app" / MARKER).read_text() == "tree-old"


def test_h32_a_directory_that_was_made_again_is_another_one(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    settled(world, store, active("pv", "app", State.DELETED), active("next", "app"))
    assert not (world.root / "app" / MARKER).exists()


def test_h32_a_whole_life_that_was_missed(world: World) -> None:
    """Archived, restored, archived again, restored again: the tree is one and the same."""
    store = world.start()
    world.make(store, "pv", "app")
    settled(
        world, store,
        active("pv", "archived-app", State.DELETED, successor="two"),
        active("two", "archived-two", State.DELETED, tree="tree-pv", origin="pv", successor="three"),
        active("three", "app", tree="tree-pv", origin="two"),
    )  # fmt: skip
    assert (world.root / "app" / MARKER).read_text() == "tree-pv"


def test_h32_what_frees_a_name_comes_before_what_takes_it(world: World) -> None:
    """Steps are sent in batches: one that has to wait for the next batch is reported as a failure meanwhile."""
    store = world.start()
    for pv in ("gone", "moved", "changed"):
        world.make(store, pv, pv)
    steps = compare(
        [
            active("new", "a/b"),
            active("outer", "a", shared=True),
            active("changed", "changed"),
            active("moved", "archived-moved", State.ARCHIVED),
            active("gone", "gone", State.DELETED),
        ],
        known(store),
    ).steps
    assert [step.record.pv for step in steps] == ["gone", "moved", "outer", "new", "changed"]


def test_a_move_in_progress_on_the_active_is_waited_for(world: World) -> None:
    store = world.start()
    before = world.make(store, "pv", "app")
    for state in (State.ARCHIVING, State.DELETING, State.RESTORING, State.CREATING):
        assert compare([active("pv", "app", state, target="archived-app")], known(store)).steps == ()
    assert store.read("pv") == before


@pytest.mark.parametrize("then", ["archived-app", "elsewhere", "gone"])
def test_a_directory_whose_way_was_blocked_goes_on_to_where_it_belongs_now(world: World, then: str) -> None:
    """It waits in work/; what stands in its place is nobody's and is kept."""
    store = world.start()
    world.make(store, "pv", "app")
    world.stranger("archived-app")
    assert "exists already" in follow(store, active("pv", "archived-app", State.ARCHIVED))[0]
    if then == "archived-app":
        (world.root / "archived-app").rename(world.root.parent / f"{world.root.name}-moved")
        world.strangers.clear()
        settled(world, store, active("pv", "archived-app", State.ARCHIVED))
    elif then == "elsewhere":
        settled(world, store, active("pv", "elsewhere", State.ARCHIVED, rev=11))
        assert (world.root / "elsewhere" / MARKER).read_text() == "tree-pv"
    else:
        settled(world, store, active("pv", "archived-app", State.DELETED, rev=11))


def test_a_volume_that_was_never_finished_here_goes_when_the_active_has_deleted_it(world: World) -> None:
    store = world.start()
    store.provision(volume("pv", "team/app"))
    settled(world, store, active("pv", "archived-app", State.DELETED))
    assert not (world.root / "team").exists()


def test_a_volume_that_was_never_finished_here_follows_to_where_it_is_now(world: World) -> None:
    store = world.start()
    store.provision(volume("pv", "app"))
    settled(world, store, active("pv", "archived-app", State.ARCHIVED))
    assert not (world.root / "app").exists()


@pytest.mark.parametrize("first", ["same", "inner", "outer"])
def test_adopted_volumes_that_share_directories_are_made_once(world: World, first: str) -> None:
    store = world.start()
    records = {
        "outer": active("pv1", "team", shared=True),
        "same": active("pv2", "team", shared=True),
        "inner": active("pv3", "team/app", shared=True),
    }
    settled(world, store, records[first])
    assert follow(store, *records.values()) == []
    assert compare(records.values(), known(store)).steps == ()
    assert {pv: state for pv, (state, _) in world.states().items()} == dict.fromkeys(("pv1", "pv2", "pv3"), State.LIVE)


def test_h40_what_only_the_standby_knows_is_kept_and_named(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    difference = compare([], known(store))
    assert (difference.steps, difference.strangers) == ((), ("pv",))


def test_h52_a_tombstone_is_forgotten_only_after_the_actives(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    gone = active("pv", "app", State.DELETED)
    settled(world, store, gone)
    assert "pv" in known(store)
    assert follow(store) == []
    assert known(store) == {}


def test_h40_a_tree_whose_heir_the_active_cannot_name_is_kept_where_the_standby_has_it(world: World) -> None:
    """The heir's record may be damaged: what its archive's tombstone alone says would remove the volume's copy."""
    store = world.start()
    settled(world, store, active("old", "app", rev=3))
    gone = active("old", "archived-app", State.DELETED, rev=6, successor="new")
    difference = compare([gone], known(store))
    assert (difference.steps, difference.strangers) == ((), ("old",))
    heir = active("new", "again", tree="tree-old", origin="old", rev=2)
    assert [step.kind for step in compare([gone, heir], known(store)).steps] == ["move"]
