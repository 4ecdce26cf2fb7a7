"""A standby that follows now and then, misses the rest and is cut off in between ends with what its active has."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from nfs_provisioner.export import moves, standby
from nfs_provisioner.export.records import SETTLED, State, VolumeRecord
from nfs_provisioner.export.store import Store
from nfs_provisioner.replication.levels import compare
from tests.crash.steps import Power, PowerCut
from tests.unit.export.world import MARKER, POOL, World, volume

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

DIRECTORIES = ("x", "y", "team/x")
NUMBERS = st.integers(0, 5)
ACTIONS = st.one_of(
    st.tuples(st.just("create"), st.integers(0, 2)),
    st.tuples(st.sampled_from(["archive", "delete", "retain", "orphan", "revive", "purge", "change"]), NUMBERS),
    st.tuples(st.just("restore"), NUMBERS),
    st.tuples(st.just("follow"), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 60)),
    st.tuples(st.just("forget"), st.just(0)),
)


class Pair:
    """An active replica and its standby, both real directories."""

    def __init__(self, root: Path, power: Power) -> None:
        self.power = power
        self.active_world, self.standby_world = World(root / "a"), World(root / "b", replica="b")
        self.active_world.root.mkdir()
        self.standby_world.root.mkdir()
        self.active, self.standby = self.active_world.start(), self.standby_world.start()
        self.made = 0
        self.filled: set[str] = set()  # trees whose contents were copied to the standby

    def stop(self) -> None:
        self.active_world.stop()
        self.standby_world.stop()

    # -- what happens on the active -------------------------------------------------------------------------------

    def do(self, action: str, number: int) -> None:
        getattr(self, action)(number)

    def _pick(self, number: int, *states: State) -> VolumeRecord | None:
        found = sorted((r for r in self.active_world.records().values() if r.state in states), key=lambda r: r.pv)
        return found[number % len(found)] if found else None

    def _new(self, number: int) -> VolumeRecord | None:
        directory = DIRECTORIES[number % len(DIRECTORIES)]
        if any(r.holds_directory and r.directory == directory for r in self.active_world.records().values()):
            return None
        self.made += 1
        return volume(f"pv{self.made:02}", directory, mode=0o700)

    def create(self, number: int) -> None:
        record = self._new(number)
        if record is not None:
            self.active.provision(record)
            self._live(record.pv)

    def _live(self, pv: str) -> None:
        self.active.make_live(pv)
        self.active.volumes_sync.sync()

    def _give_up(self, action: str, number: int, *states: State) -> None:
        record = self._pick(number, *states)
        if record is not None:
            moves.give_up(self.active, record.pv, action, claim_uid=None, states=states)

    def archive(self, number: int) -> None:
        self._give_up("archive", number, State.LIVE, State.ORPHANED)

    def delete(self, number: int) -> None:
        self._give_up("delete", number, State.LIVE, State.ORPHANED)

    def retain(self, number: int) -> None:
        self._give_up("retain", number, State.LIVE, State.ORPHANED)

    def purge(self, number: int) -> None:
        self._give_up("delete", number, State.ARCHIVED)

    def orphan(self, number: int) -> None:
        self._update(number, {"state": State.ORPHANED}, State.LIVE)

    def change(self, number: int) -> None:
        self._update(number, {"requested": 5 << 30}, State.LIVE)

    def _update(self, number: int, changes: dict[str, Any], *states: State) -> None:
        record = self._pick(number, *states)
        if record is not None:
            self.active.update(record.pv, changes, states=states)

    def revive(self, number: int) -> None:
        record = self._pick(number, State.ORPHANED, State.RETAINED)
        if record is not None:
            self._live(record.pv)

    def restore(self, number: int) -> None:
        archive = self._pick(number, State.ARCHIVED, State.RETAINED)
        wanted = self._new(number)
        if archive is not None and wanted is not None:
            moves.restore(self.active, replace(wanted, tree="unused"), archive.pv)
            self._live(wanted.pv)

    def forget(self, _number: int) -> None:
        """As the controller does: only tombstones that the standby has acknowledged."""
        known = self.standby_world.records()
        for record in self.active_world.records().values():
            theirs = known.get(record.pv)
            if record.state is State.DELETED and (theirs is None or not theirs.holds_directory):
                self.active.forget(record.pv)

    # -- what the standby does --------------------------------------------------------------------------------------

    def follow(self, _number: int) -> list[str]:
        """One comparison and its steps, then what a pass of the contents would do. Returns what failed."""
        active = self.active_world.records()
        steps = list(compare(active.values(), records(self.standby)).steps)
        results = standby.take_all(self.standby, steps, self.active.raise_seq())
        self.fill()
        return [result for result in results if isinstance(result, str)]

    def cut(self, at: int) -> None:
        """The same, cut off at a change; the worker starts again later."""
        active = self.active_world.records()
        steps = list(compare(active.values(), records(self.standby)).steps)
        seq = self.active.raise_seq()
        self.power.cut(at)
        with contextlib.suppress(PowerCut):
            standby.take_all(self.standby, steps, seq)
        self.power.restore()
        self.standby_world.stop()
        self.standby = self.standby_world.start(sound=False)

    def fill(self) -> None:
        """Copy contents: a marker in each directory that the standby holds for a record of the active."""
        theirs = self.standby_world.records()
        for record in self.active_world.records().values():
            mine = theirs.get(record.pv)
            if record.holds_directory and mine is not None and (mine.rev, mine.state) == (record.rev, record.state):
                marker = self.standby_world.root / mine.directory / MARKER
                if record.tree in self.filled:
                    assert marker.exists(), f"the standby had the contents of {record.pv}, and lost them"
                marker.write_text(record.tree)
                self.filled.add(record.tree)

    def check(self) -> None:
        """Both sides hold the same, and nothing is left to do."""
        for _ in range(6):
            if self.follow(0) == [] and not self.steps():
                break
        assert self.follow(0) == []
        assert self.steps() == ()
        assert compare(self.active_world.records().values(), records(self.standby)).strangers == ()
        assert held(self.standby_world.records()) == held(self.active_world.records())
        assert self.active_world.broken_promises() == []
        assert self.standby_world.broken_promises() == []
        for record in self.active_world.records().values():
            if record.holds_directory:
                assert (self.standby_world.root / record.directory / MARKER).read_text() == record.tree

    def steps(self) -> tuple[standby.Step, ...]:
        return compare(self.active_world.records().values(), records(self.standby)).steps


def records(store: Store) -> dict[str, VolumeRecord]:
    loaded, unreadable = store.load(POOL)
    assert unreadable == []
    return {record.pv: record for record in loaded}


def held(known: Mapping[str, VolumeRecord]) -> dict[str, VolumeRecord]:
    """What both sides must agree on."""
    return {pv: replace(record, inode=None) for pv, record in known.items() if record.holds_directory}


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as place, Power().supply() as power:
        made = Pair(Path(place), power)
        try:
            yield made
        finally:
            power.restore()
            made.stop()


MISSED = [("create", 0), ("follow", 0), ("archive", 0), ("follow", 0), ("restore", 1), ("purge", 0)]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, min_size=12, max_size=30))
@example([*MISSED, ("archive", 0), ("create", 0), ("archive", 1), ("restore", 0)])
@example([("create", 0), ("archive", 0), ("follow", 0), ("purge", 0), ("create", 0), ("archive", 0)])
def test_h32_a_standby_ends_with_what_its_active_has_whatever_it_missed(history: list[tuple[str, int]]) -> None:
    with pair() as made:
        for action, number in history:
            made.do(action, number)
        made.check()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, min_size=6, max_size=15), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_a_standby_that_is_cut_off_again_and_again_loses_nothing(
    history: list[tuple[str, int]], cuts: list[int]
) -> None:
    with pair() as made:
        for action, number in history:
            made.do(action, number)
        for at in cuts:
            made.cut(at)
        made.check()


RECORDS = st.lists(
    st.builds(
        lambda pv, directory, state, rev, tree, shared: replace(
            volume(f"pv{pv}", directory), state=state, rev=rev, tree=f"tree{tree}", inode=1, shared=shared
        ),
        st.integers(0, 4), st.sampled_from(["team", "team/x/y", *DIRECTORIES]), st.sampled_from(list(State)),
        st.integers(1, 4), st.integers(0, 3), st.booleans(),
    ),
    unique_by=lambda record: record.pv,
)  # fmt: skip


@given(RECORDS, RECORDS)
def test_absence_is_never_a_deletion(active: list[VolumeRecord], mine: list[VolumeRecord]) -> None:
    """Whatever the two sides say: nothing is removed without the active's own tombstone (H40)."""
    tombstones = {record.pv for record in active if record.state is State.DELETED}
    known = {record.pv: record for record in mine}
    difference = compare(active, known)
    for step in difference.steps:
        if step.kind == "remove":
            assert step.record.pv in tombstones
        if step.kind == "forget":
            assert known[step.record.pv].state is State.DELETED
            assert step.record.pv not in {record.pv for record in active}
    untouched = {pv for pv in known if pv not in {record.pv for record in active}}
    assert set(difference.strangers) == {pv for pv in untouched if known[pv].state is not State.DELETED}


@given(RECORDS)
def test_equal_sides_have_nothing_to_do(active: list[VolumeRecord]) -> None:
    assert compare(active, {record.pv: replace(record, inode=2) for record in active}).steps == ()


@given(RECORDS, RECORDS)
def test_a_shared_directory_is_made_beside_what_is_the_same_or_inside(
    active: list[VolumeRecord], mine: list[VolumeRecord]
) -> None:
    """What the standby holds counts first, then those of the same directory that are made before; the least PV."""
    here = [record for record in mine if record.state in SETTLED and record.state is not State.DELETED]
    for step in compare(active, {record.pv: record for record in mine}).steps:
        if step.kind == "make":
            wanted = step.record
            inside = [r.pv for r in here if f"{r.directory}/".startswith(f"{wanted.directory}/")]
            same = [r.pv for r in active if r.shared and r.directory == wanted.directory and r.pv < wanted.pv]
            beside = [pv for pv in sorted(inside) + sorted(same) if pv != wanted.pv]
            assert step.donor == (beside[0] if wanted.shared and beside else None)


def test_errors_of_one_step_do_not_stop_the_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    store = world.start()
    world.stranger("x")
    wanted = [replace(volume(f"pv{n}", name), state=State.LIVE, rev=3) for n, name in enumerate(("x", "y"))]
    results = standby.take_all(store, [standby.Step("make", record) for record in wanted], 7)
    assert isinstance(results[0], str) and "exists already" in results[0]
    assert isinstance(results[1], VolumeRecord)
    assert store.identity is not None and store.identity.seq == 7
    assert world.states() == {"pv1": (State.LIVE, "y")}
    world.stop()
