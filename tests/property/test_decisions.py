"""The decision for any claim, PV and record: total, deterministic, and never a deletion that nobody asked for."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from nfs_provisioner.config import Reserve
from nfs_provisioner.errors import Infeasible, RetryLater
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import ClaimRef, Policy, State, VolumeRecord
from nfs_provisioner.volumes.decisions import Situation, decide
from nfs_provisioner.volumes.objects import Claim, DataSource, Volume
from nfs_provisioner.volumes.room import Room, choose_export
from tests.unit.volumes.situations import GI, NAME, OURS, claim, record, room, storage_class, volume

THEIRS = "other.example/nfs"
ADOPT = frozenset({THEIRS})
UIDS = st.sampled_from(["uid-1", "uid-2", ""])
SIZES = st.sampled_from([0, 1, GI, 2 * GI])

refs = st.builds(ClaimRef, st.just("shop"), st.sampled_from(["data", "heir"]), UIDS)
claims: st.SearchStrategy[Claim] = st.builds(
    claim,
    uid=UIDS.filter(bool),
    volume=st.sampled_from(["", NAME, "another"]),
    phase=st.sampled_from(["Pending", "Bound", "Lost"]),
    deleting=st.booleans(),
    requested=SIZES,
    capacity=st.none() | SIZES,
    resizing=st.sampled_from(["", "ControllerResizeInProgress", "ControllerResizeInfeasible"]),
    volume_mode=st.sampled_from(["Filesystem", "Block"]),
    data_source=st.sampled_from(
        [None, DataSource("VolumeSnapshot", "s"), DataSource("PersistentVolumeClaim", "other")]
    ),
)
volumes: st.SearchStrategy[Volume] = st.builds(
    volume,
    phase=st.sampled_from(["Pending", "Available", "Bound", "Bound", "Released", "Released", "Failed", "New"]),
    deleting=st.booleans(),
    policy=st.sampled_from(["Delete", "Delete", "Retain", "Recycle"]),
    provisioned_by=st.sampled_from([OURS, OURS, OURS, THEIRS]),
    capacity=SIZES,
    claim=st.none() | refs,
    owned=st.booleans(),
)
records: st.SearchStrategy[VolumeRecord] = st.builds(
    record,
    st.sampled_from(State),
    claim=refs,
    requested=SIZES,
    policy=st.sampled_from([Policy(on_delete=way) for way in ("archive", "delete", "retain")]),
    shared=st.booleans(),
)
situations = st.builds(
    Situation,
    st.just(NAME),
    st.none() | claims,
    st.none() | volumes,
    st.none() | records,
    st.just("web"),
    st.sampled_from(["", "Delete", "Retain"]),
)


@settings(max_examples=400)
@given(situations)
def test_every_situation_has_one_decision_and_it_says_why(s: Situation) -> None:
    decision = decide(s, adopt_from=ADOPT)
    assert decision == decide(s, adopt_from=ADOPT) or decision.error is not None
    assert decision.act == decide(s, adopt_from=ADOPT).act
    assert decision.why


@settings(max_examples=400)
@given(situations)
def test_h40_data_is_given_up_only_on_a_released_pv_of_the_right_claim_or_where_it_was_begun(s: Situation) -> None:
    decision = decide(s, adopt_from=ADOPT)
    if decision.act != "give-up":
        assert decision.on_delete == ""
        return
    assert s.record is not None
    if s.volume is None:
        begun = {State.ARCHIVING: "archive", State.DELETING: "delete"}
        assert decision.on_delete == begun[s.record.state]
        return
    assert (s.volume.phase, s.volume.policy, s.volume.provisioned_by) == ("Released", "Delete", OURS)
    assert s.volume.claim is not None and s.record.claim.uid in ("", s.volume.claim.uid)
    assert s.claim is None or s.claim.uid != s.volume.claim.uid
    assert decision.on_delete == s.record.policy.on_delete


released = st.builds(
    Situation,
    st.just(NAME),
    st.none() | claims,
    st.builds(volume, phase=st.just("Released"), deleting=st.booleans(), claim=st.none() | refs, owned=st.booleans()),
    st.none() | st.builds(record, st.sampled_from([State.LIVE, State.ORPHANED, State.RETAINED]), claim=refs),
    st.just("web"),
)


@settings(max_examples=400)
@given(released)
def test_h34_a_released_pv_takes_no_data_with_it_that_is_recorded_for_another_claim(s: Situation) -> None:
    decision = decide(s)
    if decision.act == "give-up":
        assert s.volume is not None and s.volume.claim is not None and s.record is not None
        assert s.record.claim.uid in ("", s.volume.claim.uid)
        assert s.claim is None or s.claim.uid != s.volume.claim.uid
        assert s.volume.owned or s.volume.deleting, "cut off after the DELETE, nobody would know that it was meant"


@settings(max_examples=400)
@given(situations)
def test_h13_nothing_is_made_for_a_claim_that_goes_or_has_a_volume(s: Situation) -> None:
    if decide(s, adopt_from=ADOPT).act == "provision":
        assert s.claim is not None and not s.claim.deleting and not s.claim.volume and s.volume is None
        assert s.record is None or s.record.claim.uid == s.claim.uid


@settings(max_examples=400)
@given(situations)
def test_h58_what_is_bound_keeps_its_finalizer_and_its_data(s: Situation) -> None:
    """But for a policy that became Retain: then it is the finalizer alone that goes."""
    if s.volume is None or s.volume.phase != "Bound" or s.volume.provisioned_by != OURS:
        return
    decision = decide(s, adopt_from=ADOPT)
    assert decision.act in ("idle", "make-live", "hold", "release", "follow", "grow")
    assert decision.act != "release" or s.volume.policy != "Delete"


@settings(max_examples=400)
@given(situations)
def test_h59_a_pv_is_given_back_only_to_the_claim_it_is_recorded_for(s: Situation) -> None:
    if decide(s, adopt_from=ADOPT).act == "repost":
        assert s.claim is not None and s.record is not None and s.volume is None
        assert s.claim.phase == "Lost" and s.claim.uid == s.record.claim.uid
        assert s.record.state not in (State.ARCHIVED, State.DELETED, State.ARCHIVING, State.DELETING)


rooms: st.SearchStrategy[Room] = st.builds(
    lambda name, capacity, available, reserved, overcommit, share, problem: room(
        name,
        capacity=capacity,
        available=available,
        reserved=reserved,
        overcommit=overcommit,
        reserve=Reserve(share=share),
        problem=problem,
    ),
    st.sampled_from(["a", "b", "c", "aa", "d"]),
    st.integers(0, 20 * GI),
    st.integers(0, 20 * GI),
    st.integers(0, 20 * GI),
    st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(3)]),
    st.sampled_from([Fraction(0), Fraction(1, 20), Fraction(1)]),
    st.sampled_from(["", "", "", "Degraded"]),
)


@settings(max_examples=400)
@given(st.lists(rooms, unique_by=lambda room: room.spec.name), st.integers(1, 10 * GI))
def test_a_choice_never_promises_too_much_and_takes_the_most_unreserved(places: list[Room], size: int) -> None:
    wanted = claim(requested=size)
    fitting = [
        room
        for room in places
        if not room.problem
        and room.reserved + size <= room.limit
        and room.available >= room.spec.reserve.bytes_of(room.capacity)
    ]
    try:
        chosen = choose_export(wanted, storage_class(), places)
    except (Infeasible, RetryLater):
        assert not fitting
        return
    assert chosen in fitting
    assert all(chosen.unreserved >= room.unreserved for room in fitting)
    assert choose_export(wanted, storage_class(), list(reversed(places))) == chosen


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a/b", "c"]), st.integers(1, 5)), max_size=8), st.integers(1, 12))
def test_claims_decided_at_one_moment_share_neither_directory_nor_the_last_space(
    wanted: list[tuple[str, int]], limit: int
) -> None:
    """All of them looked at the export before any of them reserved."""
    catalog = Catalog()
    taken: list[tuple[str, int]] = []
    for number, (directory, size) in enumerate(wanted):
        try:
            catalog.reserve(record(State.CREATING, pv=f"pv-{number}", directory=directory, requested=size), limit=limit)
        except (Infeasible, RetryLater):
            continue
        taken.append((directory, size))
    assert catalog.reserved == sum(size for _, size in taken) <= limit
    names = [f"{directory}/" for directory, _ in taken]
    assert not any(i != j and one.startswith(other) for i, one in enumerate(names) for j, other in enumerate(names))
