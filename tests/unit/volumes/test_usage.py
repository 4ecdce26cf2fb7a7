"""The figures of an export: what is kept, what is forgotten, when they are written, and who is told once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import Policy, State, VolumeRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.volumes.usage import SAME_FOR, SOON, WRITE_EVERY, Ledger
from tests.unit.export.world import Clock, volume

MI = 1 << 20


WALL = 1_800_000_000.0


@pytest.fixture
def ledger(catalog: Catalog, clock: Clock) -> Ledger:
    made = Ledger(catalog, clock=clock)
    made.fill({})
    return made


def live(pv: str, **changes: object) -> VolumeRecord:
    return replace(volume(pv, f"dir-{pv}"), state=State.LIVE, **changes)  # type: ignore[arg-type]


def soft(pv: str) -> VolumeRecord:
    return live(pv, requested=10 * MI, policy=Policy(quota="soft"))


def usage(size: int, at: float = 100.0, inodes: int = 1) -> Usage:
    return Usage(size, inodes, at)


def test_the_newest_figure_counts_and_an_older_one_never_replaces_it(catalog: Catalog, ledger: Ledger) -> None:
    catalog.put(live("pv"))
    assert ledger.get("pv") is None
    ledger.note("pv", usage(1, at=100))
    ledger.note("pv", usage(2, at=200))
    ledger.note("pv", usage(3, at=150))
    assert ledger.get("pv") == usage(2, at=200)


def test_h56_a_figure_out_of_the_future_holds_up_no_later_one(catalog: Catalog, clock: Clock) -> None:
    """A clock that was ahead for a while, or a new leader on a machine behind the one before."""
    catalog.put(soft("pv"))
    wall = WALL + 86_400
    ledger = Ledger(catalog, clock=clock, wall=lambda: wall)
    ledger.fill({})
    ledger.note("pv", usage(1, at=wall))
    wall = WALL
    assert ledger.note("pv", usage(11 * MI, at=WALL)) is not None, "nobody is told"
    assert ledger.get("pv") == usage(11 * MI, at=WALL)
    ledger.note("pv", usage(3, at=WALL - 1))
    assert ledger.get("pv") == usage(11 * MI, at=WALL), "an older one replaced it"


def test_h56_nor_does_one_that_was_written_down(catalog: Catalog, clock: Clock) -> None:
    for pv in ("pv", "known"):
        catalog.put(live(pv))
    ledger = Ledger(catalog, clock=clock, wall=lambda: WALL)
    ledger.fill({})
    ledger.note("known", usage(2, at=WALL))
    ledger.fill(dict.fromkeys(("pv", "known"), (1, 1, WALL + 86_400, False)))
    assert ledger.get("known") == usage(2, at=WALL)
    ledger.note("pv", usage(2, at=WALL))
    assert ledger.get("pv") == usage(2, at=WALL)


def test_what_no_record_names_is_not_kept(catalog: Catalog, ledger: Ledger) -> None:
    ledger.note("stranger", usage(1))
    assert ledger.get("stranger") is None
    catalog.put(live("pv"))
    catalog.put(live("gone"))
    for pv in ("pv", "gone"):
        ledger.note(pv, usage(1))
    catalog.drop("gone")
    ledger.tidy()
    assert (ledger.get("pv"), ledger.get("gone")) == (usage(1), None)
    catalog.put(replace(live("pv"), state=State.DELETED))
    ledger.tidy()
    assert ledger.get("pv") is None


def test_an_archive_keeps_its_figure_and_what_is_restored_from_it_takes_it_over(
    catalog: Catalog, ledger: Ledger
) -> None:
    catalog.put(live("old"))
    ledger.note("old", usage(7))
    catalog.put(replace(live("old"), state=State.ARCHIVED, directory="archived-old"))
    ledger.tidy()
    assert ledger.get("old") == usage(7)
    catalog.put(replace(live("old"), state=State.DELETED, successor="new"))
    catalog.put(live("new", origin="old"))
    assert ledger.get("new") == usage(7), "there is nothing for a moment"
    ledger.tidy()
    catalog.drop("old")
    ledger.tidy()
    assert (ledger.get("new"), ledger.get("old")) == (usage(7), None)
    ledger.note("new", usage(9, at=101))
    assert ledger.get("new") == usage(9, at=101)


def test_archives_are_added_up_as_far_as_they_are_known(catalog: Catalog, ledger: Ledger) -> None:
    assert ledger.archive_bytes() == 0
    for pv in ("one", "two", "three"):
        catalog.put(replace(live(pv), state=State.ARCHIVED))
    catalog.put(live("alive"))
    assert ledger.archive_bytes() is None
    for size, pv in enumerate(("one", "two", "alive"), start=1):
        ledger.note(pv, usage(size))
    assert ledger.archive_bytes() == 3


def test_writes_are_bounded(catalog: Catalog, ledger: Ledger, clock: Clock) -> None:
    catalog.put(live("pv"))
    assert ledger.due() is None
    ledger.note("pv", usage(1))
    assert ledger.due() == 0
    assert ledger.begin_write() == {"pv": (1, 1, 100.0, False)}
    assert ledger.due() is None
    for size in range(2, 60):
        clock.now += 1
        ledger.note("pv", usage(size, at=100 + size))
        assert ledger.due() == pytest.approx(WRITE_EVERY - size + 1)
    clock.now += WRITE_EVERY
    assert ledger.due() == 0


def test_the_same_figure_again_is_not_worth_a_write_until_it_is_old(catalog: Catalog, ledger: Ledger) -> None:
    catalog.put(live("pv"))
    ledger.note("pv", usage(1, at=100))
    ledger.begin_write()
    ledger.note("pv", usage(1, at=99 + SAME_FOR))
    assert ledger.due() is None
    ledger.note("pv", usage(1, at=100 + SAME_FOR))
    assert ledger.due() is not None


def test_what_could_not_be_written_is_due_again(catalog: Catalog, ledger: Ledger, clock: Clock) -> None:
    catalog.put(live("pv"))
    ledger.note("pv", usage(1))
    ledger.begin_write()
    ledger.not_written()
    assert ledger.due() == WRITE_EVERY
    clock.now += WRITE_EVERY
    assert ledger.begin_write() == {"pv": (1, 1, 100.0, False)}


def test_h25_a_restart_forgets_nothing_and_newer_figures_stay(catalog: Catalog, clock: Clock) -> None:
    catalog.put(live("pv"))
    catalog.put(live("other"))
    before = Ledger(catalog, clock=clock)
    before.fill({})
    before.note("pv", usage(5, at=50, inodes=3))
    before.note("other", usage(6, at=50))
    written = before.begin_write()
    after = Ledger(catalog, clock=clock)
    after.note("other", usage(8, at=60))  # by a pass that was quicker than the reading
    after.fill(written)
    assert (after.get("pv"), after.get("other")) == (usage(5, at=50, inodes=3), usage(8, at=60))
    assert after.begin_write()["other"] == (8, 1, 60.0, False)


def test_what_another_replica_remembers_replaces_nothing_newer(catalog: Catalog, ledger: Ledger) -> None:
    """After a failover, the file is the one that the new active side had when it was active last."""
    for pv in ("known", "older", "unknown"):
        catalog.put(live(pv))
    ledger.note("known", usage(2, at=200))
    ledger.note("older", usage(2, at=200))
    ledger.fill({"known": (1, 1, 100.0, False), "older": (3, 1, 300.0, False), "unknown": (4, 1, 50.0, False)})
    assert [ledger.get(pv) for pv in ("known", "older", "unknown")] == [usage(2, 200), usage(3, 300), usage(4, 50)]
    assert ledger.due() == 0, "the new side's file is not brought up to date"


def test_a_quota_is_told_once_a_crossing_and_a_restart_does_not_tell_it_again(
    catalog: Catalog, ledger: Ledger, clock: Clock
) -> None:
    record = soft("pv")
    catalog.put(record)
    told = [ledger.note("pv", usage(size * MI, at=size_at)) for size_at, size in enumerate((9, 10, 11, 12, 10, 11))]
    assert [one is not None for one in told] == [False, False, True, False, False, False]
    assert ledger.exceeded("pv")
    again = Ledger(catalog, clock=clock)
    early = again.note("pv", usage(12 * MI, at=20))  # before it knows what was told
    assert early is None and again.fill(ledger.begin_write()) == []
    assert again.get("pv") == usage(12 * MI, at=20) and again.exceeded("pv")
    assert again.note("pv", usage(9 * MI, at=21)) is None and not again.exceeded("pv")
    assert again.note("pv", usage(11 * MI, at=22)) is record


def test_going_over_what_was_grown_to_is_news_again(catalog: Catalog, ledger: Ledger) -> None:
    """That it is still near the new size says nothing of the old one."""
    record = soft("pv")
    catalog.put(record)
    assert ledger.note("pv", usage(20 * MI, at=1)) is record
    catalog.put(replace(record, requested=15 * MI))
    assert ledger.exceeded("pv"), "it still is"
    assert ledger.note("pv", usage(20 * MI, at=2)) is None, "it was told already"
    grown = replace(record, requested=21 * MI)
    catalog.put(grown)
    assert not ledger.exceeded("pv"), "it waits for the next look"
    assert ledger.begin_write()["pv"][3] is False
    assert ledger.note("pv", usage(20 * MI, at=3)) is None and not ledger.exceeded("pv")
    assert ledger.note("pv", usage(22 * MI, at=4)) is grown
    assert ledger.note("pv", usage(20 * MI, at=5)) is None and ledger.exceeded("pv"), "there is no hysteresis any more"
    assert ledger.note("pv", usage(22 * MI, at=6)) is None


def test_nor_does_a_growth_between_two_looks_hide_a_crossing(catalog: Catalog, ledger: Ledger) -> None:
    catalog.put(soft("pv"))
    assert ledger.note("pv", usage(11 * MI, at=1)) is not None
    catalog.put(replace(soft("pv"), requested=12 * MI))
    assert ledger.note("pv", usage(13 * MI, at=2)) is not None


def test_a_crossing_that_was_seen_before_the_file_was_read_is_told_then(catalog: Catalog, clock: Clock) -> None:
    catalog.put(soft("pv"))
    ledger = Ledger(catalog, clock=clock)
    assert ledger.note("pv", usage(11 * MI)) is None
    assert [record.pv for record in ledger.fill({"pv": (9 * MI, 1, 10.0, False)})] == ["pv"]


def test_what_was_told_is_written_soon(catalog: Catalog, ledger: Ledger, clock: Clock) -> None:
    catalog.put(soft("pv"))
    ledger.note("pv", usage(1))
    ledger.begin_write()
    clock.now += 1
    ledger.note("pv", usage(2, at=101))
    assert ledger.due() == WRITE_EVERY - 1
    ledger.note("pv", usage(11 * MI, at=102))
    assert ledger.due() == SOON - 1
    ledger.note("pv", usage(11 * MI, at=103))
    assert ledger.due() == SOON - 1


def test_without_a_quota_nothing_is_exceeded(catalog: Catalog, ledger: Ledger) -> None:
    catalog.put(live("pv", requested=1))
    assert ledger.note("pv", usage(100)) is None and not ledger.exceeded("pv")
