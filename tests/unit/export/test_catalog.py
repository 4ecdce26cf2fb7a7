"""Names that owners hold, and names that were given up a moment ago."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from nfs_provisioner.errors import Infeasible, RetryLater
from nfs_provisioner.export.catalog import Catalog, Full
from nfs_provisioner.export.records import RESERVING, State, VolumeRecord
from tests.unit.export.world import Clock, volume


def live(pv: str, directory: str) -> VolumeRecord:
    return replace(volume(pv, directory), state=State.LIVE)


def archived(record: VolumeRecord) -> VolumeRecord:
    return replace(
        record, state=State.ARCHIVED, directory=f"archived-{record.directory}", former=record.directory, rev=9
    )


def test_h03_a_directory_has_one_owner(catalog: Catalog) -> None:
    catalog.reserve(volume("one", "a-b-c"))
    with pytest.raises(Infeasible, match="the volume of claim ns/one"):
        catalog.reserve(volume("two", "a-b-c"))
    catalog.reserve(volume("one", "a-b-c"))
    catalog.drop("one")
    catalog.reserve(volume("two", "a-b-c"))


@pytest.mark.parametrize("other", ["team/app/sub", "team", "team/app"])
def test_h04_a_volume_lies_neither_inside_nor_around_another(catalog: Catalog, other: str) -> None:
    catalog.reserve(volume("one", "team/app"))
    with pytest.raises(Infeasible):
        catalog.reserve(volume("two", other))
    catalog.reserve(volume("three", "team/app-2"))


def test_h04_the_target_of_a_move_is_owned_too(catalog: Catalog) -> None:
    catalog.put(replace(live("one", "app"), state=State.RESTORING, target="team/new"))
    with pytest.raises(Infeasible):
        catalog.reserve(volume("two", "team/new/sub"))


@pytest.mark.parametrize("after", [State.ARCHIVED, State.DELETED])
def test_h48_a_name_is_not_used_again_for_two_minutes(catalog: Catalog, clock: Clock, after: State) -> None:
    before = live("one", "app")
    catalog.put(before)
    catalog.put(archived(before) if after is State.ARCHIVED else replace(before, state=State.DELETED, former="app"))
    clock.now += 119
    with pytest.raises(RetryLater, match="given up a moment ago") as caught:
        catalog.reserve(volume("two", "app"))
    assert caught.value.after == pytest.approx(1.0)
    clock.now += 1
    catalog.reserve(volume("two", "app"))


@pytest.mark.parametrize("age", [0.0, 119.0, 120.0, -3600.0])
def test_h48_a_restart_does_not_forget_which_names_were_given_up(catalog: Catalog, age: float) -> None:
    catalog.fill([archived(live("one", "app"))], age=lambda record: age)
    if age >= 120:
        catalog.reserve(volume("two", "app"))
    else:
        with pytest.raises(RetryLater):
            catalog.reserve(volume("two", "app"))


def test_h48_a_restart_does_not_forget_names_of_archives_that_went(catalog: Catalog) -> None:
    """Restored or purged: the tombstone's own directory was given up as well as the one before."""
    tombstone = replace(archived(live("one", "app")), state=State.DELETED, successor="two")
    catalog.fill([tombstone], age=lambda record: 10.0)
    assert catalog.unavailable_names() == frozenset({"archived-app"})
    assert catalog.old_tombstones() == []


def test_h48_an_archive_does_not_get_a_name_that_another_one_just_had(catalog: Catalog, clock: Clock) -> None:
    archive = archived(live("one", "app"))
    catalog.put(archive)
    assert catalog.unavailable_names() == frozenset()
    catalog.put(replace(archive, state=State.DELETED))
    assert catalog.unavailable_names() == frozenset({"archived-app"})
    clock.now += 120
    assert catalog.unavailable_names() == frozenset()


def test_h52_a_tombstone_stays_while_its_names_may_not_be_used(catalog: Catalog, clock: Clock) -> None:
    before = live("one", "app")
    catalog.put(before)
    catalog.put(replace(before, state=State.DELETED, former="app"))
    assert catalog.old_tombstones() == []
    clock.now += 120
    assert [record.pv for record in catalog.old_tombstones()] == ["one"]


def test_h52_a_tombstone_stays_while_another_names_it_as_its_heir(catalog: Catalog, clock: Clock) -> None:
    """A standby that was away has the tree under the first name: without the heir's end nobody could tell that it went."""
    first = replace(live("one", "app"), state=State.DELETED, successor="two")
    catalog.put(first)
    catalog.put(replace(live("two", "app"), state=State.DELETED))
    clock.now += 120
    assert [record.pv for record in catalog.old_tombstones()] == ["one"]
    catalog.drop("one")
    assert [record.pv for record in catalog.old_tombstones()] == ["two"]


@pytest.mark.parametrize(("given_up", "wanted"), [("team/a", "Team/A"), ("team/a", "team/a/b")])
def test_h48_a_name_that_a_server_takes_for_one_given_up_is_not_used_at_once(
    catalog: Catalog, clock: Clock, given_up: str, wanted: str
) -> None:
    """On a file system without case, or because the directory is made again for what is to lie in it."""
    before = live("one", given_up)
    catalog.put(before)
    catalog.put(replace(before, state=State.DELETED, directory="gone", former=given_up))
    catalog.drop("one")
    with pytest.raises(RetryLater, match="given up"):
        catalog.reserve(volume("two", wanted))
    catalog.reserve(volume("three", "team/other"))
    clock.now += 120
    catalog.reserve(volume("two", wanted))


def test_h35_space_is_not_promised_twice(catalog: Catalog) -> None:
    record = volume("one", "one")
    catalog.reserve(record, limit=record.requested)
    with pytest.raises(RetryLater):
        catalog.reserve(volume("two", "two"), limit=2 * record.requested - 1)
    catalog.reserve(record, limit=record.requested)  # the same volume again
    assert catalog.reserved == record.requested
    catalog.put(replace(record, state=State.DELETED))
    assert catalog.reserved == 0


def test_h35_a_retained_volume_and_the_one_that_gets_its_directory_count_once(catalog: Catalog) -> None:
    kept = replace(live("old", "old"), state=State.RETAINED)
    size = kept.requested
    heir = replace(volume("heir", "heir"), origin="old", requested=size + 1)
    rival = replace(heir, pv="rival", directory="rival")
    catalog.put(kept)
    with pytest.raises(Full):
        catalog.reserve(heir, limit=size)
    assert (catalog.reserved, catalog.reserved_for("old")) == (size, size)
    catalog.reserve(heir, limit=size + 1)
    assert (catalog.reserved, catalog.reserved_for("old")) == (size + 1, 0)
    with pytest.raises(Full):
        catalog.reserve(rival, limit=2 * size + 1)
    catalog.drop("heir")
    assert (catalog.reserved, catalog.reserved_for("old")) == (size, size), "it was given up"
    catalog.reserve(rival, limit=size + 1)
    catalog.put(replace(rival, state=State.LIVE))
    catalog.put(replace(kept, state=State.DELETED))
    assert catalog.reserved == size + 1
    catalog.drop("rival")
    assert catalog.reserved == 0


@pytest.mark.parametrize("state", [State.LIVE, State.ORPHANED, State.ARCHIVED, State.RETAINED])
def test_h35_a_volume_that_is_in_use_again_while_it_was_to_be_inherited_counts_once(
    catalog: Catalog, state: State
) -> None:
    """Whatever the origin is when its heir comes or goes, what is reserved is a fresh count."""
    kept = replace(live("old", "old"), state=State.RETAINED)
    heir = replace(volume("heir", "heir"), origin="old")
    for first, then in ((kept, replace(kept, state=state)), (replace(kept, state=state), kept)):
        catalog.put(first)
        catalog.put(heir)
        catalog.put(then)
        catalog.drop("heir")
        assert catalog.reserved == (then.requested if then.state in RESERVING else 0)
        catalog.drop("old")
        assert catalog.reserved == 0


@pytest.mark.parametrize("heir_first", [False, True])
def test_h35_what_was_read_from_disk_counts_once_in_whatever_order(catalog: Catalog, heir_first: bool) -> None:
    kept = replace(live("old", "old"), state=State.RETAINED)
    heir = replace(live("heir", "old"), state=State.RESTORING, target="heir", origin="old")
    catalog.fill([heir, kept] if heir_first else [kept, heir], age=lambda record: 0.0)
    assert catalog.reserved == heir.requested


def test_h35_of_many_threads_as_many_get_space_as_there_is() -> None:
    """Each round, all of them ask at one moment for what only half of them can have."""
    switching, threads, rounds = sys.getswitchinterval(), 8, 150
    sys.setswitchinterval(1e-6)  # so that they overtake each other in the middle of every step
    try:
        for _ in range(rounds):
            catalog, start = Catalog(), threading.Barrier(threads)

            def ask(number: int, catalog: Catalog = catalog, start: threading.Barrier = start) -> bool:
                record = volume(f"pv-{number}", f"directory-{number}")
                start.wait()
                try:
                    catalog.reserve(record, limit=threads // 2 * record.requested)
                except Full:
                    return False
                return True

            with ThreadPoolExecutor(threads) as pool:
                assert sum(pool.map(ask, range(threads))) == threads // 2
            assert catalog.reserved == sum(record.requested for record in catalog.all())
    finally:
        sys.setswitchinterval(switching)


@pytest.mark.parametrize("after", list(State))
def test_it_says_when_less_is_promised_than_before_and_not_otherwise(after: State) -> None:
    freed: list[int] = []
    books = Catalog(on_freed=lambda: freed.append(books.reserved))
    before = live("one", "app")
    books.put(before)
    books.put(replace(before, requested=2 * before.requested))
    books.promise(replace(before, requested=3 * before.requested), limit=3 * before.requested)
    assert freed == []
    books.put(replace(before, state=after, requested=3 * before.requested))
    assert freed == ([] if after in RESERVING else [0])


def test_it_says_that_a_plan_was_dropped_a_growth_taken_back_and_a_catalog_read_anew() -> None:
    freed: list[int] = []
    books = Catalog(on_freed=lambda: freed.append(books.reserved))
    one, size = volume("one", "one"), volume("one", "one").requested
    books.reserve(one)
    books.drop("one")
    books.put(live("two", "two"))
    books.promise(replace(live("two", "two"), requested=2 * size), limit=2 * size)
    books.put(live("two", "two"))
    books.fill([], age=lambda record: 0.0)
    assert freed == [0, size, 0]
