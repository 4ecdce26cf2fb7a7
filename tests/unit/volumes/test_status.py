"""The status of an NFSExport: what it says, and which changes are worth a write at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfs_provisioner.config import parse_quantity
from nfs_provisioner.export.standing import PairStanding
from nfs_provisioner.volumes.status import ExportStatus, ReplicaStatus, rounded, status_object, urgent

MI = 1 << 20
READY = ExportStatus(
    generation=4,
    phase="Ready",
    message="",
    usable=True,
    active="a",
    epoch=2,
    promotion="p",
    capacity=100 * MI,
    available=60 * MI + 1,
    used=39 * MI + 5,
    reserved=10 * MI,
    volumes=3,
    archives=1,
    unmanaged=0,
    replicas=(ReplicaStatus("a", "active", True), ReplicaStatus("b", "standby", False, "no answer")),
)


def written(status: ExportStatus, before: dict[str, Any] | None = None, now: str = "T1") -> dict[str, Any]:
    return status_object(status, before or {}, now)


def test_everything_a_person_needs_is_in_it() -> None:
    made = written(READY)
    assert made["observedGeneration"] == 4
    assert (made["phase"], made["active"], made["epoch"], made["promotion"]) == ("Ready", "a", 2, "p")
    assert (made["capacity"], made["used"], made["available"], made["reserved"]) == ("100Mi", "39Mi", "60Mi", "10Mi")
    assert (made["volumes"], made["archives"], made["unmanaged"]) == (3, 1, 0)
    assert made["replicas"] == [
        {"name": "a", "role": "active", "reachable": True},
        {"name": "b", "role": "standby", "reachable": False, "message": "no answer"},
    ]


def test_what_is_not_known_is_left_out_and_never_null() -> None:
    """An explicit null fails the schema, and a zero would be a lie."""
    made = written(ExportStatus(1, "Initializing", "looking at the replicas", usable=False))
    assert {
        "capacity",
        "used",
        "available",
        "active",
        "epoch",
        "promotion",
        "unmanaged",
        "lastHandledRequest",
        "reserved",
        "volumes",
        "archives",
    }.isdisjoint(made)
    assert None not in made.values()


def test_what_was_promised_and_decided_stays_while_it_is_not_known_and_what_is_free_does_not() -> None:
    """Who was promoted last must not be forgotten because of a controller that could not look."""
    known = written(replace(READY, handled={"request": "accept", "result": "Done"}))
    made = written(ExportStatus(5, "Halted", "not a quantity", usable=False), known)
    stays = ("reserved", "volumes", "archives", "active", "epoch", "promotion", "lastHandledRequest")
    assert {key: made[key] for key in stays} == {key: known[key] for key in stays}
    assert {"capacity", "used", "available", "unmanaged"}.isdisjoint(made)
    assert written(READY, known)["reserved"] == "10Mi"


def test_a_condition_keeps_the_moment_it_changed() -> None:
    first = written(READY, now="T1")
    same = written(replace(READY, message="a word"), first, now="T2")
    broken = written(replace(READY, usable=False, phase="Degraded"), same, now="T3")
    assert [made["conditions"][0]["lastTransitionTime"] for made in (first, same, broken)] == ["T1", "T1", "T3"]
    assert broken["conditions"][0]["status"] == "False"
    assert broken["conditions"][0]["reason"] == "ReplicaAway"


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "Degraded"},
        {"message": "a replica is away"},
        {"active": "b"},
        {"epoch": 3},
        {"generation": 5},
        {"usable": False},
        {"replicas": (ReplicaStatus("a", "active", False),)},
        {"handled": {"request": "x", "result": "Done"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_people_wait_for_is_urgent(change: dict[str, Any]) -> None:
    before = written(READY)
    assert urgent(before, written(replace(READY, **change), before))


@pytest.mark.parametrize(
    "change",
    [{"available": 7 * MI}, {"capacity": 7}, {"reserved": 7}, {"volumes": 7}, {"archives": 7}, {"unmanaged": 7}],
    ids=lambda change: next(iter(change)),
)
def test_counts_are_not(change: dict[str, Any]) -> None:
    """Each new volume changes them: a write for each would double the requests."""
    before = written(READY)
    after = written(replace(READY, **change), before)
    assert after != before and not urgent(before, after)


@given(st.integers(0, 1 << 60))
def test_sizes_are_rounded_down_to_whole_mebibytes(size: int) -> None:
    shown = parse_quantity(rounded(size))
    assert shown <= size < shown + MI
    assert shown % MI == 0 or size < MI


def test_that_its_space_is_promised_twice_is_a_condition_that_goes_with_its_cause() -> None:
    shared = replace(READY, shared="also used by NFSExport mail")
    before = written(READY)
    made = written(shared, before, "T2")
    (condition,) = (c for c in made["conditions"] if c["type"] == "CapacityShared")
    assert (condition["status"], condition["message"]) == ("True", "also used by NFSExport mail")
    assert condition["lastTransitionTime"] == "T2"
    assert urgent(before, made) and made["phase"] == "Ready"
    assert written(READY, made, "T3") == before


def test_how_far_the_standby_is_stands_beside_it_and_may_wait_for_the_next_write() -> None:
    synced = replace(READY, standing=PairStanding(lag=3.0, last_clean=1_700_000_000.0))
    made = written(synced)
    assert [r.get("lastCleanPass") for r in made["replicas"]] == [None, "2023-11-14T22:13:20Z"]
    assert [(c["type"], c["status"]) for c in made["conditions"]] == [("Ready", "True"), ("SyncStalled", "False")]
    later = written(replace(READY, standing=PairStanding(lag=3.0, last_clean=1_700_000_060.0)), made)
    assert later != made and not urgent(made, later)
    assert urgent(written(replace(READY, standing=PairStanding())), made), "the first clean pass is told at once"


def test_deletions_that_wait_are_a_condition_that_names_the_volumes() -> None:
    made = written(replace(READY, standing=PairStanding(waiting=(("pvc-1", 5000),))))
    (condition,) = [c for c in made["conditions"] if c["type"] == "SyncStalled"]
    assert (condition["status"], condition["reason"]) == ("True", "DeleteLimit")
    assert "pvc-1 (5000)" in condition["message"]
