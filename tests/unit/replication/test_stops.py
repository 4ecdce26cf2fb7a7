"""What keeps a pair from following, and when that goes."""

from __future__ import annotations

from dataclasses import replace

from nfs_provisioner.replication.explained import explained
from nfs_provisioner.replication.pairtalk import Report
from nfs_provisioner.replication.stops import Stops


def test_a_volume_that_waits_for_a_person_stops_the_others() -> None:
    stops = Stops()
    assert stops.refuse("one", "look") and not stops.refuse("one", "look again")
    assert stops.elsewhere("one") == ""
    assert stops.elsewhere("two") == "the pair is stopped: look again"
    assert not stops.relent("two")
    assert stops.refused == "look again"
    assert stops.relent("one") and stops.elsewhere("two") == "" and stops.refused == ""


def test_a_standby_that_is_full_stays_so_until_the_volume_that_found_it_can_write() -> None:
    stops = Stops()
    stops.trouble("one", "full")
    assert not stops.relent("two")
    stops.opened()
    assert (stops.troubled, stops.elsewhere("two")) == ("full", "")
    assert stops.relent("one") and stops.troubled == ""


def test_doubt_about_the_pair_goes_with_any_pass_that_ends_well() -> None:
    stops = Stops()
    stops.refuse("", "who are you")
    assert stops.elsewhere("one") == ""
    assert stops.relent("one") and stops.refused == ""


def test_what_a_volume_that_went_had_is_forgotten() -> None:
    stops = Stops()
    stops.refuse("one", "look")
    stops.trouble("two", "full")
    stops.trouble("", "closed")
    stops.keep({"three"})
    assert (stops.refused, stops.troubled) == ("", "closed")


def test_what_keeps_a_pass_from_being_clean_is_always_told() -> None:
    report = Report(clean=False, began=0)
    unclean = (
        {"different": ("file",)}, {"foreign": ("file",)}, {"errors": (("file", "why"),)}, {"deferred": 1},
        {"unstable": ("file",), "unstable_count": 1}, {"waiting": 1},
    )  # fmt: skip
    assert all(explained(replace(report, **why)) for why in unclean)
