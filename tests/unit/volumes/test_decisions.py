"""What is due, for every state of claim, PV and record that matters. One row a case; the id says what went wrong."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from nfs_provisioner.config import Reserve, parse_class
from nfs_provisioner.errors import Infeasible, InvalidInput, RetryLater
from nfs_provisioner.export.records import ClaimRef, Policy, State, VolumeRecord
from nfs_provisioner.volumes.decisions import Situation, decide, frozen_policy
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE, Claim, DataSource, Volume
from nfs_provisioner.volumes.room import choose_export
from tests.unit.volumes.situations import (
    GI,
    NAME,
    OURS,
    bound_claim,
    claim,
    record,
    room,
    situation,
    storage_class,
    volume,
)

OTHER = ClaimRef("shop", "heir", "uid-2")


def act(situation: Situation) -> str:
    decision = decide(situation)
    assert decision.why
    return decision.act


# -- there is no PV ---------------------------------------------------------------------------------------------------

WITHOUT_VOLUME: list[tuple[str, str, dict[str, Any]]] = [
    ("nothing is known", "idle", {}),
    ("a new claim", "provision", {"claim": claim()}),
    ("a claim that is going already", "idle", {"claim": claim(deleting=True)}),
    ("a claim for a PV that is to come from elsewhere", "idle", {"claim": claim(volume="theirs")}),
    ("H13 killed after the record", "provision", {"claim": claim(), "record": record(State.CREATING)}),
    ("H13 killed in a restore", "provision", {"claim": claim(), "record": record(State.RESTORING)}),
    ("H13 the PV vanished before it was bound", "provision", {"claim": claim(), "record": record(State.LIVE)}),
    ("H13 and was orphaned", "provision", {"claim": claim(), "record": record(State.ORPHANED)}),
    ("H13 the claim goes meanwhile", "undo", {"claim": claim(deleting=True), "record": record(State.CREATING)}),
    ("H13 the claim went meanwhile", "undo", {"record": record(State.CREATING)}),
    ("H13 the claim went during a restore", "undo", {"record": record(State.RESTORING)}),
    ("H13 the record is another claim's", "idle", {"claim": claim(), "record": record(claim=OTHER)}),
    ("a claim for what is archived", "idle", {"claim": claim(), "record": record(State.ARCHIVED)}),
    ("a claim for what is deleted", "idle", {"claim": claim(), "record": record(State.DELETED)}),
    ("a claim for what is retained", "idle", {"claim": claim(), "record": record(State.RETAINED)}),
    ("H15 killed while archiving", "give-up", {"record": record(State.ARCHIVING)}),
    ("H15 killed while deleting", "give-up", {"record": record(State.DELETING)}),
    ("H40 PV and claim are gone", "disown", {"record": record()}),
    ("H40 the PV is gone, the claim is going", "disown", {"claim": bound_claim(deleting=True), "record": record()}),
    ("H40 orphaned before", "idle", {"record": record(State.ORPHANED)}),
    ("H40 retained before", "idle", {"record": record(State.RETAINED)}),
    ("H40 an archive", "idle", {"record": record(State.ARCHIVED)}),
    ("H40 a tombstone", "idle", {"record": record(State.DELETED)}),
    ("H40 the record is missing", "idle", {"claim": bound_claim(phase="Lost")}),
    *(
        (f"H59 a Lost claim, {state}", "repost", {"claim": bound_claim(phase="Lost"), "record": record(state)})
        for state in (State.LIVE, State.ORPHANED, State.RETAINED, State.CREATING, State.RESTORING)
    ),
    *(
        (f"H59 a Lost claim, {state}", "idle", {"claim": bound_claim(phase="Lost"), "record": record(state)})
        for state in (State.ARCHIVED, State.DELETED)
    ),
    (
        "H59 a Lost claim of another uid",
        "idle",
        {"claim": bound_claim(phase="Lost", uid="uid-9"), "record": record()},
    ),
]


@pytest.mark.parametrize(("due", "parts"), [row[1:] for row in WITHOUT_VOLUME], ids=[row[0] for row in WITHOUT_VOLUME])
def test_without_a_pv(due: str, parts: dict[str, Any]) -> None:
    assert act(situation(**parts)) == due


def test_h40_a_pv_that_is_gone_leaves_retained_or_orphaned_by_its_last_policy() -> None:
    kept = decide(Situation(NAME, record=record(), export="web", last_policy="Retain"))
    unsaid = decide(Situation(NAME, record=record(), export="web", last_policy="Delete"))
    assert (kept.act, unsaid.act) == ("disown", "disown")
    assert "Retain" in kept.why and "nobody said" in unsaid.why


def test_h15_what_was_begun_is_finished_as_it_was_begun() -> None:
    """Even when the policy in the record says something else by now."""
    archiving = decide(situation(record=record(State.ARCHIVING, policy=Policy(on_delete="delete"))))
    deleting = decide(situation(record=record(State.DELETING, policy=Policy(on_delete="archive"))))
    assert (archiving.on_delete, deleting.on_delete) == ("archive", "delete")


# -- there is a PV ----------------------------------------------------------------------------------------------------

BOUND, RELEASED = volume(), volume(phase="Released")
GOING, RELEASED_GOING = volume(deleting=True), volume(phase="Released", deleting=True)
UNBOUND = volume(phase="Available", claim=None)
MINE, LIVE = bound_claim(), record()
MORE = bound_claim(requested=2 * GI)
ROWS: list[tuple[str, str, Claim | None, Volume, VolumeRecord | None]] = [
    ("all is well", "idle", MINE, BOUND, LIVE),
    ("killed after the PV", "make-live", claim(), BOUND, record(State.CREATING)),
    ("killed after a restore's PV", "make-live", None, BOUND, record(State.RESTORING)),
    ("an orphan's PV is back", "make-live", None, BOUND, record(State.ORPHANED)),
    ("a retained volume's PV is back", "make-live", None, BOUND, record(State.RETAINED)),
    ("recovered, not bound yet", "make-live", None, UNBOUND, record(State.ORPHANED)),
    ("the binder has not seen the PV", "idle", None, volume(phase="Pending"), LIVE),
    ("the PV failed", "idle", None, volume(phase="Failed"), LIVE),
    ("bound to what is being archived", "idle", MINE, BOUND, record(State.ARCHIVING)),
    ("bound to what is being deleted", "idle", MINE, BOUND, record(State.DELETING)),
    ("H40 bound, and the record is missing", "idle", MINE, BOUND, None),
    ("H58 deleted while its claim lives", "idle", MINE, GOING, LIVE),
    ("H58 and its claim is not in the cache", "idle", None, GOING, LIVE),
    ("H58 and its claim is going", "idle", bound_claim(deleting=True), GOING, LIVE),
    ("H58 deleted before the record was finished", "make-live", MINE, GOING, record(State.CREATING)),
    ("deleted before it was bound", "remake", claim(), volume(phase="Available", deleting=True), LIVE),
    ("and its claim is gone", "release", None, volume(phase="Available", deleting=True), LIVE),
    ("and its claim is going", "release", claim(deleting=True), volume(phase="Pending", deleting=True), None),
    ("and the claim is another", "release", claim(uid="uid-2"), volume(phase="Pending", deleting=True), None),
    ("H15 Released", "give-up", None, RELEASED, LIVE),
    ("H12 Released, deleted before", "give-up", None, RELEASED_GOING, LIVE),
    ("H15 Released, killed while archiving", "give-up", None, RELEASED_GOING, record(State.ARCHIVING)),
    ("H15 Released, killed while deleting", "give-up", None, RELEASED_GOING, record(State.DELETING)),
    ("H15 Released, archived, killed then", "release", None, RELEASED_GOING, record(State.ARCHIVED)),
    ("H15 Released, deleted, killed then", "release", None, RELEASED_GOING, record(State.DELETED)),
    ("H15 Released, retained, killed then", "release", None, RELEASED_GOING, record(State.RETAINED)),
    ("H15 Released before the record was finished", "make-live", None, RELEASED, record(State.CREATING)),
    ("H15 Released before a restore was finished", "make-live", None, RELEASED, record(State.RESTORING)),
    ("H12 Released, Retain", "release", None, volume(phase="Released", policy="Retain"), LIVE),
    ("H12 Released, Retain, let go", "idle", None, volume(phase="Released", policy="Retain", owned=False), LIVE),
    ("H12 deleted, Retain", "release", None, volume(phase="Released", policy="Retain", deleting=True), LIVE),
    ("H61 Released, made Delete afterwards", "hold", None, volume(phase="Released", owned=False), LIVE),
    ("H15 the caches do not agree yet", "idle", MINE, RELEASED, LIVE),
    ("H13 a new claim has the name", "give-up", claim(uid="uid-2"), RELEASED, LIVE),
    ("H40 Released, and the record is missing", "idle", None, RELEASED, None),
    ("H34 Released, recorded for another claim", "idle", None, RELEASED, record(claim=OTHER)),
    ("H59 Released without a claimRef", "idle", None, volume(phase="Released", claim=None), LIVE),
    ("H59 recovered without uid", "give-up", None, RELEASED, record(claim=ClaimRef("shop", "data", ""))),
    ("H59 the claimRef was cleared", "idle", None, UNBOUND, LIVE),
    ("H59 and it was bound anew", "follow", bound_claim(name="heir", uid="uid-2"), volume(claim=OTHER), LIVE),
    ("H59 promised to a name", "idle", None, volume(phase="Available", claim=ClaimRef("shop", "heir", "")), LIVE),
    ("made Retain", "release", MINE, volume(policy="Retain"), LIVE),
    ("made Delete", "hold", MINE, volume(owned=False), LIVE),
    ("the claim asks for more", "grow", MORE, BOUND, LIVE),
    ("the claim asks for less", "idle", bound_claim(requested=1), BOUND, LIVE),
    ("only the PV grew", "grow", MORE, volume(capacity=2 * GI), record(requested=2 * GI)),
    ("only the record did not grow", "grow", replace(MORE, capacity=2 * GI), volume(capacity=2 * GI), LIVE),
    ("a growth is marked as begun", "grow", bound_claim(resizing="ControllerResizeInProgress"), BOUND, LIVE),
    ("no growth for a claim that goes", "idle", replace(MORE, deleting=True), BOUND, LIVE),
    ("no growth while the PV goes", "idle", MORE, GOING, LIVE),
]


@pytest.mark.parametrize(("due", "its_claim", "pv", "its_record"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_with_a_pv(due: str, its_claim: Claim | None, pv: Volume, its_record: VolumeRecord | None) -> None:
    assert act(situation(claim=its_claim, volume=pv, record=its_record)) == due


@pytest.mark.parametrize("parts", [{}, {"record": record(claim=OTHER)}], ids=["no record", "another claim's"])
def test_h34_a_released_pv_that_cannot_be_given_up_says_so_on_the_pv(parts: dict[str, Any]) -> None:
    error = decide(situation(volume=RELEASED, **parts)).error
    assert error is not None and error.reason == "VolumeFailedDelete"
    assert NAME in error.message and "finalizer" in error.message


def test_h40_nothing_is_said_before_the_exports_were_looked_at() -> None:
    """A controller that has just started knows no record yet; that is no failure."""
    error = decide(Situation(NAME, volume=RELEASED, looking=True)).error
    assert isinstance(error, RetryLater) and error.reason == "Quiet" and error.after is not None


@pytest.mark.parametrize("on_delete", ["archive", "delete", "retain"])
def test_h10_the_record_decides_what_happens_to_the_directory(on_delete: str) -> None:
    released = situation(volume=RELEASED, record=record(policy=Policy(on_delete=on_delete)))
    assert decide(released).on_delete == on_delete


def test_h10_the_policy_is_frozen_out_of_the_class() -> None:
    parameters = storage_class(
        onDelete="delete", archiveOnDelete="true", archiveRetention="24h", directoryMode="2770", uid="7", gid="8"
    ).parameters
    assert frozen_policy(parameters) == Policy("delete", 86400.0, 0o2770, 7, 8, "none")


@pytest.mark.parametrize("value", ["archived", "Delete", "remove", "true", ""])
def test_h10_a_typo_in_on_delete_is_no_policy(value: str) -> None:
    with pytest.raises(InvalidInput, match="onDelete"):
        storage_class(onDelete=value)


@pytest.mark.parametrize(
    ("value", "means"), [("true", "archive"), ("false", "delete"), ("t", "archive"), ("0", "delete")]
)
def test_h10_archive_on_delete_as_the_incumbent_reads_it(value: str, means: str) -> None:
    assert storage_class(archiveOnDelete=value).parameters.on_delete == means


@pytest.mark.parametrize("value", ["yes", "no", "", "Archive"])
def test_h10_a_typo_in_archive_on_delete_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match="archiveOnDelete"):
        storage_class(archiveOnDelete=value)


UNSUPPORTED = [
    ({"volume_mode": "Block"}, "Block"),
    ({"attributes_class": "gold"}, "gold"),
    ({"data_source": DataSource("VolumeSnapshot", "nightly")}, "VolumeSnapshot nightly"),
    ({"data_source": DataSource("Thing", "other")}, RESTORE_ARCHIVE),
    ({"data_source": DataSource("PersistentVolumeClaim", "c", "example.com")}, "PersistentVolumeClaim.example.com c"),
    ({"data_source": DataSource("PersistentVolumeClaim", "c", namespace="bank")}, "bank/c"),
    ({"data_source": DataSource("PersistentVolumeClaim", "c"), "annotations": {RESTORE_ARCHIVE: "a"}}, "one of them"),
    ({"access_modes": ("ReadWriteMany", "ReadWriteSometimes")}, "ReadWriteSometimes"),
]


@pytest.mark.parametrize(("fields", "named"), UNSUPPORTED, ids=[named for _, named in UNSUPPORTED])
def test_h60_what_cannot_be_honoured_is_an_error_that_names_it(fields: dict[str, Any], named: str) -> None:
    decision = decide(situation(claim=claim(**fields)))
    assert isinstance(decision.error, Infeasible) and named in decision.error.message


def test_a_claim_of_the_same_namespace_may_be_cloned() -> None:
    asked = claim(data_source=DataSource("PersistentVolumeClaim", "other"))
    decision = decide(situation(claim=asked))
    assert decision.act == "provision" and decision.error is None


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"])
def test_h60_every_access_mode_of_kubernetes_is_honoured(mode: str) -> None:
    assert decide(situation(claim=claim(access_modes=(mode,)))).error is None


# -- volumes of another provisioner -----------------------------------------------------------------------------------


def test_a_bound_volume_of_a_provisioner_in_adopt_from_is_adopted() -> None:
    theirs = situation(claim=bound_claim(), volume=volume(provisioned_by="other/nfs", owned=False))
    assert decide(theirs, adopt_from=frozenset({"other/nfs"})).act == "adopt"


@pytest.mark.parametrize(
    "state", [{"phase": "Released"}, {"phase": "Available"}, {"deleting": True}, {"phase": "Failed"}]
)
def test_only_bound_volumes_are_adopted(state: dict[str, Any]) -> None:
    """What the incumbent is about to delete, or nobody uses, is the incumbent's."""
    theirs = situation(volume=volume(provisioned_by="other/nfs", **state))
    assert decide(theirs, adopt_from=frozenset({"other/nfs"})).act == "idle"


# -- where a volume goes ----------------------------------------------------------------------------------------------


def chosen(asked: Claim, *rooms: Any, **parameters: str) -> str:
    return choose_export(asked, storage_class(**parameters), rooms).spec.name


def test_the_most_unreserved_export_is_chosen_and_ties_go_by_name() -> None:
    assert chosen(claim(), room("a", reserved=5 * GI), room("b", reserved=4 * GI)) == "b"
    assert chosen(claim(), room("b"), room("a")) == "a"
    assert chosen(claim(), room("a", overcommit=Fraction(2)), room("b", capacity=15 * GI)) == "a"


def test_only_the_exports_that_the_class_names_are_candidates() -> None:
    assert chosen(claim(), room("a"), room("b", reserved=9 * GI), export="b") == "b"
    assert chosen(claim(), room("a"), export="a,missing") == "a"


def test_a_class_that_names_no_export_that_exists_is_infeasible() -> None:
    with pytest.raises(Infeasible, match="'missing', which does not exist; NFSExports: a"):
        chosen(claim(), room("a"), export="missing")
    with pytest.raises(Infeasible, match="no NFSExport"):
        chosen(claim())


def test_a_selector_is_matched_against_the_labels_of_exports() -> None:
    fast = claim(selector={"matchLabels": {"tier": "fast"}})
    rooms = room("a", labels={"tier": "slow"}), room("b", reserved=GI, labels={"tier": "fast"})
    assert chosen(fast, *rooms) == "b"
    with pytest.raises(Infeasible, match="tier=slow"):
        chosen(fast, rooms[0])


def test_a_full_export_is_refused_for_now_and_told_by_how_much() -> None:
    with pytest.raises(RetryLater, match="lacks"):
        chosen(claim(), room("a", reserved=10 * GI))
    assert chosen(claim(), room("a", reserved=9 * GI)) == "a"


def test_the_reserve_is_kept_really_free() -> None:
    kept = Reserve(share=Fraction(5, 100))
    with pytest.raises(RetryLater, match="reserve"):
        chosen(claim(), room("a", available=GI // 4, reserve=kept))
    assert chosen(claim(), room("a", available=GI, reserve=kept)) == "a"


def test_a_sick_export_is_passed_over_and_named_when_there_is_no_other() -> None:
    sick = room("a", problem="Degraded: replica a: no answer")
    assert chosen(claim(), sick, room("b", reserved=9 * GI)) == "b"
    with pytest.raises(RetryLater, match="export a: Degraded: replica a: no answer"):
        chosen(claim(), sick)


def test_nothing_is_said_while_the_exports_are_being_looked_at() -> None:
    with pytest.raises(RetryLater) as caught:
        chosen(claim(), room("a", problem="Initializing", looking=True))
    assert caught.value.reason == "Quiet" and caught.value.after is not None


def test_a_class_of_another_provisioner_is_still_read() -> None:
    assert parse_class({"metadata": {"name": "x"}, "provisioner": OURS}).parameters.on_delete == "archive"
