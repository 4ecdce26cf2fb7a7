"""Who may be attached: every pair of replicas that can be met, against an empty and a known status.

A cell is the phase's letter (Initializing, Ready, Degraded, Halted, diVerged), the active replica or -, and the
standby that is attached with it. Rows are what a shows, columns what b shows, in the order of KINDS.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nfs_provisioner.export.identity import Remembered, Verdict, View, judge
from tests.unit.export.replicas import CLUSTER, EMPTY, EXPORT, KINDS, KNOWN, facts, right, view

PHASES = {"Initializing": "I", "Ready": "R", "Degraded": "D", "Halted": "H", "Diverged": "V"}
TABLES: dict[tuple[Remembered, str | None], str] = {
    (EMPTY, None): """
        unreachable   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-
        unmounted     H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        empty         I-   H-   Rab  Rba  H-   H-   H-   H-   H-   H-   H-   H-   H-
        foreign       I-   H-   Rab  H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        right         I-   H-   H-   H-   Rab  H-   H-   H-   H-   H-   H-   V-   H-
        other-cluster H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-export  H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        swapped       H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        copied        H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-pair    I-   H-   H-   H-   H-   H-   H-   H-   H-   Rab  H-   H-   H-
        older         I-   H-   H-   H-   H-   H-   H-   H-   H-   H-   Rab  H-   H-
        newer-seq     I-   H-   H-   H-   Rab  H-   H-   H-   H-   H-   H-   Rab  H-
        promoted      I-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
    """,
    (KNOWN, None): """
        unreachable   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-
        unmounted     H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        empty         H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        foreign       H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        right         Da   Da   Da   Da   Rab  Da   Da   Da   Da   Da   Da   V-   V-
        other-cluster H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-export  H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        swapped       H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        copied        H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-pair    H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        older         H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        newer-seq     Da   Da   Da   Da   Rab  Da   Da   Da   Da   Da   Da   Rab  V-
        promoted      H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
    """,
    (EMPTY, "a"): """
        unreachable   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-
        unmounted     H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        empty         I-   H-   Rab  Rba  H-   H-   H-   H-   H-   H-   H-   H-   Rba
        foreign       I-   H-   Rab  Da   Da   H-   H-   H-   H-   Da   Da   Da   Da
        right         I-   H-   Da   Da   Rab  Rab  H-   H-   H-   Da   Da   Da   Da
        other-cluster I-   H-   Da   Da   Rab  Rab  H-   H-   H-   Da   Da   Da   Da
        other-export  I-   H-   Da   Da   Da   H-   H-   H-   H-   Da   Da   Da   Da
        swapped       I-   H-   Da   Da   Da   H-   H-   H-   H-   Da   Da   Da   Da
        copied        I-   H-   Da   Da   Da   H-   H-   H-   H-   Da   Da   Da   Da
        other-pair    I-   H-   Da   Da   Da   H-   H-   H-   H-   Rab  Da   Da   Da
        older         I-   H-   Da   Da   Da   H-   H-   H-   H-   Da   Rab  Da   Da
        newer-seq     I-   H-   Da   Da   Rab  Rab  H-   H-   H-   Da   Da   Rab  Da
        promoted      I-   H-   Da   Da   Da   H-   H-   H-   H-   Da   Da   Da   Da
    """,
    (KNOWN, "a"): """
        unreachable   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-
        unmounted     H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        empty         H-   H-   Rab  Da   H-   Da   Da   H-   H-   H-   H-   H-   H-
        foreign       Da   Da   Rab  Da   Da   Da   Da   Da   Da   Da   Da   Da   Da
        right         Da   Da   Da   Da   Rab  Rab  Da   Da   Da   Da   Da   Da   Da
        other-cluster Da   Da   Da   Da   Rab  Rab  Da   Da   Da   Da   Da   Da   Da
        other-export  Da   Da   Da   Da   Rab  Da   Da   Da   Da   Da   Da   Da   Da
        swapped       Da   Da   Da   Da   Rab  Da   Da   Da   Da   Da   Da   Da   Da
        copied        Da   Da   Da   Da   Rab  Da   Da   Da   Da   Da   Da   Da   Da
        other-pair    Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da
        older         Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da
        newer-seq     Da   Da   Da   Da   Rab  Rab  Da   Da   Da   Da   Da   Rab  Da
        promoted      Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da   Da
    """,
    (EMPTY, "b"): """
        unreachable   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-   I-
        unmounted     H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        empty         I-   H-   Rba  Rba  Db   Db   Db   Db   Db   Db   Db   Db   Db
        foreign       I-   H-   Rab  Db   Db   Db   Db   Db   Db   Db   Db   Db   Db
        right         I-   H-   Rab  Db   Db   Db   Db   Db   Db   Db   Db   Db   Db
        other-cluster H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-export  H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        swapped       H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        copied        H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-pair    I-   H-   Rab  Db   Db   Db   Db   Db   Db   Db   Db   Db   Db
        older         I-   H-   Rab  Db   Db   Db   Db   Db   Db   Db   Db   Db   Db
        newer-seq     I-   H-   Rab  Db   Db   Db   Db   Db   Db   Db   Db   Db   Db
        promoted      I-   H-   Rab  Db   Db   Db   Db   Db   Db   Db   Db   Db   Db
    """,
    (KNOWN, "b"): """
        unreachable   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-   D-
        unmounted     H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        empty         H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        foreign       H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        right         Da   Da   Rab  Da   Rab  Rab  Rab  Rab  Rab  Da   Da   V-   V-
        other-cluster H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-export  H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        swapped       H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        copied        H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        other-pair    H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        older         H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
        newer-seq     Da   Da   Rab  Da   Rab  Rab  Rab  Rab  Rab  Da   Da   Rab  V-
        promoted      H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-   H-
    """,
}


def verdict(status: Remembered, *views: View, accepted: str | None = None) -> Verdict:
    numbers = itertools.count(1)
    return judge(EXPORT, CLUSTER, status, views, accepted=accepted, new_id=lambda: f"new{next(numbers)}")


def cell(found: Verdict) -> str:
    return PHASES[found.phase] + (found.active or "-") + "".join(sorted(set(found.attach) - {found.active}))


@pytest.mark.parametrize(("status", "accepted"), TABLES)
def test_what_every_pair_of_replicas_leads_to(status: Remembered, accepted: str | None) -> None:
    rows = [line.split() for line in TABLES[status, accepted].strip().splitlines()]
    assert [row[0] for row in rows] == list(KINDS)
    expected = {(row[0], kind): wanted for row in rows for kind, wanted in zip(KINDS, row[1:], strict=True)}
    found = {(a, b): cell(verdict(status, view("a", a), view("b", b), accepted=accepted)) for a in KINDS for b in KINDS}
    assert found == expected


def test_every_refusal_says_what_was_found() -> None:
    for status, accepted in TABLES:
        for a, b in itertools.product(KINDS, KINDS):
            found = verdict(status, view("a", a), view("b", b), accepted=accepted)
            assert bool(found.message) == (found.phase != "Ready")
            assert not set(found.attach) & set(found.problems)


def test_the_spelling_of_a_first_identity() -> None:
    blank = (view("a", "empty"), view("b", "empty"))
    found = verdict(EMPTY, *blank).attach
    a, b = found["a"], found["b"]
    assert (a.replica, a.active, a.epoch, a.seq, a.root, a.cluster, a.export) == (
        "a",
        "a",
        1,
        0,
        "root-a",
        CLUSTER,
        EXPORT,
    )
    assert (b.replica, b.active, b.epoch, b.seq, b.root) == ("b", "a", 1, 0, "root-b")
    assert (a.pair, a.promotion) == (b.pair, b.promotion)
    assert a.replica_id != b.replica_id
    assert b.members == {"a": a.replica_id, "b": b.replica_id}
    assert a.members == {"a": a.replica_id}, "a learns of b when b has its identity on disk"


def test_h07_a_repointed_export_is_not_the_old_one() -> None:
    """The path leads to another server now: nothing there is ours, and nothing is made there."""
    for kind in ("empty", "foreign", "other-pair", "other-cluster", "other-export", "copied", "swapped"):
        found = verdict(KNOWN, view("a", kind))
        assert (found.phase, found.attach) == ("Halted", {}), kind
        assert "accept web --replica a" in found.message


def test_h21_two_mounts_that_were_swapped_are_not_written_to() -> None:
    found = verdict(KNOWN, view("a", "swapped"), view("b", "swapped"))
    assert (found.phase, found.attach) == ("Halted", {})
    assert "swapped" in found.message


def test_h37_an_active_that_was_rolled_back_is_not_mirrored() -> None:
    found = verdict(KNOWN, view("a", "right"), view("b", "newer-seq"))
    assert (found.phase, found.attach) == ("Diverged", {})
    assert "seq 9" in found.message and "says 5" in found.message


def test_h37_an_accepted_active_is_newer_than_its_partner_also_after_the_next_restart() -> None:
    """The person's word is on disk, and the partner's newer content is not overwritten."""
    found = verdict(KNOWN, view("a", "right"), view("b", "newer-seq"), accepted="a")
    kept = found.attach["a"]
    assert set(found.attach) == {"a"}
    assert kept.epoch == 3 and kept.promotion != "p2"
    assert kept.parents[-1] == {"epoch": 2, "promotion": "p2", "seq": 5}
    again = verdict(Remembered("a", kept.epoch, kept.promotion), View("a", facts("a", kept)), view("b", "newer-seq"))
    assert cell(again) == "Da"


def test_h46_an_identity_is_not_created_on_an_unmounted_directory() -> None:
    for status in (EMPTY, KNOWN):
        for accepted in (None, "a"):
            assert verdict(status, view("a", "unmounted"), accepted=accepted).attach == {}
        assert "b" not in verdict(status, view("a", "right"), view("b", "unmounted"), accepted="b").attach


def test_h46_the_old_side_alone_does_not_become_active_when_the_status_is_empty() -> None:
    for b in ("unreachable", "unmounted", "empty", "foreign"):
        found = verdict(EMPTY, view("a", "right"), view("b", b))
        assert found.attach == {}, b
    alone = verdict(EMPTY, view("a", "right"))
    assert (alone.phase, alone.attach) == ("Halted", {}), "the other replica was taken out of the spec"
    assert "b belongs to this pair" in alone.message


def test_h46_export_json_that_was_copied_to_the_other_side_is_noticed() -> None:
    copied = View("b", facts("b", replace(right("a"), root="root-a")))
    for status in (EMPTY, KNOWN):
        assert "b" not in verdict(status, view("a", "right"), copied).attach


def test_h38_one_directory_mounted_twice_is_not_a_pair_whoever_vouches_for_it() -> None:
    twice = facts("a", right("a"))
    same_place = verdict(KNOWN, View("a", twice), View("b", twice))
    assert (same_place.phase, same_place.attach) == ("Halted", {})
    over_nfs = replace(twice, place="other-device:2")
    assert set(verdict(KNOWN, View("a", twice), View("b", over_nfs)).attach) == {"a"}
    for accepted in ("a", "b"):
        assert verdict(KNOWN, View("a", twice), View("b", over_nfs), accepted=accepted).attach == {}


def test_h40_a_status_restored_from_a_backup_does_not_undo_a_failover() -> None:
    """etcd says a, epoch 2; b was promoted to epoch 3 since."""
    found = verdict(KNOWN, view("a", "right"), view("b", "promoted"))
    assert (found.phase, found.attach) == ("Diverged", {})
    assert "epoch 3" in found.message


def test_two_sides_promoted_alone_are_not_joined() -> None:
    both = View("b", facts("b", replace(right("b"), promotion="p2b", active="b")))
    for status in (EMPTY, KNOWN):
        assert verdict(status, view("a", "right"), both).attach == {}


def test_a_newcomer_is_known_only_when_it_has_its_identity() -> None:
    """Cut off after a's identity and before b's: b is empty still, and still welcome."""
    single = replace(right("a"), members={"a": "id-a"})
    found = verdict(KNOWN, View("a", facts("a", single)), view("b", "empty"))
    assert cell(found) == "Rab"
    assert found.attach["a"] == single
    assert found.attach["b"].seq == 0


def test_a_vouched_replica_that_went_out_of_the_spec_is_forgotten() -> None:
    assert cell(verdict(EMPTY, view("a", "empty"), accepted="c")) == "Ra"
    assert verdict(EMPTY, view("a", "foreign"), view("b", "foreign"), accepted="c").attach == {}


def test_accepting_an_empty_disk_never_makes_it_the_source() -> None:
    """'accept b' means: its disk was replaced. a has the data."""
    for a in ("right", "foreign", "older"):
        found = verdict(EMPTY, view("a", a), view("b", "empty"), accepted="b")
        assert cell(found) == "Rab", a
    found = verdict(KNOWN, view("a", "empty"), view("b", "right"), accepted="a")
    assert "b" in found.message and "spec.replicas" in found.message, "how to go on, with the data and without"
    assert cell(verdict(KNOWN, view("a", "empty"), accepted="a")) == "Ra", "nobody else has it"


def test_an_active_that_is_no_replica_any_more_is_said_so() -> None:
    found = verdict(Remembered("gone", 2, "p2"), view("a", "right"), view("b", "right"))
    assert (found.phase, found.attach) == ("Halted", {})
    assert "'gone'" in found.message


def test_h46_vouching_for_one_replica_does_not_let_an_unmounted_partner_in() -> None:
    """b was a member and shows an empty directory: nobody said that its disk was replaced."""
    for status, a in itertools.product((EMPTY, KNOWN), ("right", "copied", "other-cluster", "older", "promoted")):
        found = verdict(status, view("a", a), view("b", "empty"), accepted="a")
        assert cell(found) == "Da", (status, a)
        assert "b" in found.attach["a"].members


def test_h40_one_request_takes_a_whole_pair_over_from_a_lost_cluster() -> None:
    """And changes nothing else about it: the standby need not be filled again."""
    lost = (view("a", "other-cluster"), view("b", "other-cluster"))
    assert verdict(EMPTY, *lost).attach == {}
    found = verdict(EMPTY, *lost, accepted="a")
    assert found.attach == {"a": right("a"), "b": right("b")}
    behind = (view("a", "other-cluster"), View("b", facts("b", replace(right("b"), cluster="another", seq=9))))
    assert set(verdict(EMPTY, *behind, accepted="a").attach) == {"a"}, "vouched for, but b has seen more: left as it is"
