"""Every operation of a Store, cut off at each of its changes, converges when it is repeated after a restart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nfs_provisioner.errors import NfsProvisionerError
from nfs_provisioner.export import moves, standby
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.store import Store
from nfs_provisioner.replication.levels import compare
from tests.crash.steps import Power, PowerCut
from tests.unit.export.world import MARKER, POOL, World, identity, volume

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

TIME = re.compile(r"-\d{8}T\d{6}Z$")
Outcome = dict[str, tuple[State, str]]


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes what is there before; `act` is what the controller asks for, again after each restart."""

    name: str
    prepare: Callable[[World, Store], None]
    act: Callable[[World, Store], None]
    outcome: Outcome
    trees: dict[str, str]  # PV -> the tree whose data it must have in the end


def nothing(_world: World, _store: Store) -> None:
    pass


def provision(directory: str) -> Callable[[World, Store], None]:
    def act(_world: World, store: Store) -> None:
        store.provision(volume("pv", directory))
        store.make_live("pv")
        store.volumes_sync.sync()

    return act


def live(directory: str, **changes: object) -> Callable[[World, Store], None]:
    return lambda world, store: void(world.make(store, "pv", directory, **changes))


def void(_result: object) -> None:
    """For lambdas whose result does not matter."""


def give_up(action: str) -> Callable[[World, Store], None]:
    return lambda world, store: void(
        moves.give_up(store, "pv", action, claim_uid="uid-pv", states=(State.LIVE, State.ORPHANED))
    )


def archived(directory: str) -> Callable[[World, Store], None]:
    def prepare(world: World, store: Store) -> None:
        world.make(store, "pv", directory)
        world.archive(store, "pv")

    return prepare


def with_the_name_taken(world: World, store: Store) -> None:
    """By an empty, private archive: what a plain rename would replace."""
    world.make(store, "pv", "app")
    store.provision(volume("other", "team/app", mode=0o700))
    store.make_live("other")
    world.archive(store, "other")


def left_by_another_provisioner(world: World, _store: Store) -> None:
    (world.root / "old/app").mkdir(parents=True)
    world.mark(volume("pv", "old/app"))


def restored(_world: World, store: Store) -> None:
    moves.restore(store, replace(volume("new", "team/new"), tree="unused"), "pv")
    store.make_live("new")
    store.volumes_sync.sync()


def restored_and_taken_back(_world: World, store: Store) -> None:
    if store.read("new") is None:  # the claim may go while its restore is half done
        moves.restore(store, replace(volume("new", "team/new"), tree="unused"), "pv")
    moves.give_up(store, "new", "archive", claim_uid="uid-new", states=(State.RESTORING,))


def deleted(world: World, store: Store) -> None:
    world.make(store, "pv", "app")
    give_up("delete")(world, store)


def being_created(_world: World, store: Store) -> None:
    store.provision(volume("pv", "team/app"))


def follow(*active: VolumeRecord) -> Callable[[World, Store], None]:
    """What the mirror does with its standby until there is nothing left to do."""

    def act(_world: World, store: Store) -> None:
        for seq in (1, 2, 3):
            loaded, _ = store.load(POOL)
            steps = list(compare(active, {record.pv: record for record in loaded}).steps)
            if not steps:
                return
            store.raise_seq(seq)
            problems = [result for result in standby.take_all(store, steps, seq) if isinstance(result, str)]
            assert problems == []
        loaded, _ = store.load(POOL)
        assert compare(active, {record.pv: record for record in loaded}).steps == ()

    return act


def of_active(pv: str, directory: str, state: State, rev: int, **changes: object) -> VolumeRecord:
    return replace(volume(pv, directory), state=state, rev=rev, inode=4711, **changes)  # type: ignore[arg-type]


ARCHIVED_A = of_active("pv", "archived-app", State.ARCHIVED, 9, former="app")
GONE_A = of_active("pv", "archived-app", State.DELETED, 10, successor="new")
NEW = of_active("new", "team/new", State.LIVE, 5, tree="tree-pv", origin="pv")
NEW_ARCHIVED = replace(NEW, state=State.ARCHIVED, rev=7, directory="archived-new")

SCENARIOS = [
    Scenario("provision", nothing, provision("app"), {"pv": (State.LIVE, "app")}, {}),
    Scenario("provision nested", nothing, provision("team/x/app"), {"pv": (State.LIVE, "team/x/app")}, {}),
    Scenario(
        "archive", live("app"), give_up("archive"), {"pv": (State.ARCHIVED, "archived-app")}, {"pv": "tree-pv"}
    ),
    Scenario(
        "archive of a private volume", live("app", mode=0o700), give_up("archive"),
        {"pv": (State.ARCHIVED, "archived-app")}, {"pv": "tree-pv"},
    ),
    Scenario(
        "archive nested", live("team/x/app"), give_up("archive"), {"pv": (State.ARCHIVED, "archived-app")},
        {"pv": "tree-pv"},
    ),
    Scenario(
        "archive under a name that is taken", with_the_name_taken, give_up("archive"),
        {"pv": (State.ARCHIVED, "archived-app-TIME"), "other": (State.ARCHIVED, "archived-app")}, {"pv": "tree-pv"},
    ),
    Scenario("delete", live("team/app"), give_up("delete"), {"pv": (State.DELETED, "team/app")}, {}),
    Scenario("retain", live("app"), give_up("retain"), {"pv": (State.RETAINED, "app")}, {"pv": "tree-pv"}),
    Scenario(
        "purge", archived("app"),
        lambda world, store: void(moves.give_up(store, "pv", "delete", claim_uid=None, states=(State.ARCHIVED,))),
        {"pv": (State.DELETED, "archived-app")}, {},
    ),
    Scenario(
        "restore", archived("app"), restored,
        {"pv": (State.DELETED, "archived-app"), "new": (State.LIVE, "team/new")}, {"new": "tree-pv"},
    ),
    Scenario(
        "restore that is taken back", archived("app"), restored_and_taken_back,
        {"pv": (State.DELETED, "archived-app"), "new": (State.ARCHIVED, "archived-new")}, {"new": "tree-pv"},
    ),
    Scenario("undo", being_created, lambda world, store: void(store.undo("pv")), {}, {}),
    Scenario(
        "adopt", left_by_another_provisioner, lambda world, store: void(store.adopt(volume("pv", "old/app"))),
        {"pv": (State.LIVE, "old/app")}, {"pv": "tree-pv"},
    ),
    Scenario(
        "forget", deleted, lambda world, store: store.forget("pv"), {}, {},
    ),
    Scenario(
        "standby makes", nothing,
        follow(of_active("pv", "app", State.LIVE, 4), of_active("q", "app-2/in", State.LIVE, 2)),
        {"pv": (State.LIVE, "app"), "q": (State.LIVE, "app-2/in")}, {},
    ),
    Scenario(
        "standby makes an archive", nothing, follow(ARCHIVED_A), {"pv": (State.ARCHIVED, "archived-app")}, {}
    ),
    Scenario(
        "standby archives", live("app"), follow(ARCHIVED_A), {"pv": (State.ARCHIVED, "archived-app")},
        {"pv": "tree-pv"},
    ),
    Scenario(
        "standby restores", archived("app"), follow(GONE_A, NEW),
        {"pv": (State.DELETED, "archived-app"), "new": (State.LIVE, "team/new")}, {"new": "tree-pv"},
    ),
    Scenario(
        "standby missed a whole life", live("app"), follow(GONE_A, NEW_ARCHIVED),
        {"pv": (State.DELETED, "archived-app"), "new": (State.ARCHIVED, "archived-new")}, {"new": "tree-pv"},
    ),
    Scenario(
        "standby removes", live("team/app"), follow(replace(GONE_A, successor=None)),
        {"pv": (State.DELETED, "archived-app")}, {},
    ),
    Scenario(
        "standby updates", live("app"), follow(of_active("pv", "app", State.RETAINED, 8)),
        {"pv": (State.RETAINED, "app")}, {"pv": "tree-pv"},
    ),
]  # fmt: skip

BYSTANDERS: Outcome = {
    "live": (State.LIVE, "bystander"),
    "old": (State.ARCHIVED, "archived-gone"),
    "empty": (State.ARCHIVED, "archived-empty"),
}


class Case:
    """One scenario in a directory of its own, with bystanders; the power can be cut while it runs."""

    def __init__(self, scenario: Scenario, root: Path, power: Power) -> None:
        root.mkdir()
        self.scenario, self.power = scenario, power
        self.world = World(root)
        self.store = self.world.start()
        self.world.make(self.store, "live", "bystander")
        self.world.make(self.store, "old", "gone")
        self.world.archive(self.store, "old")
        self.store.provision(volume("empty", "empty", mode=0o700))
        self.store.make_live("empty")
        self.world.archive(self.store, "empty")
        self.world.stranger("stranger")
        scenario.prepare(self.world, self.store)
        self.before = self.world.snapshot(BYSTANDERS)

    def run(self) -> None:
        self.scenario.act(self.world, self.store)

    def cut_off(self, at: int) -> bool:
        """Run until change number `at`; False when the operation is over before."""
        self.power.cut(at)
        try:
            self.run()
        except PowerCut:
            return True
        finally:
            self.power.restore()
        return False

    def restart(self) -> None:
        self.world.stop()
        self.store = self.world.start()

    def check(self, moment: str) -> None:
        world, scenario = self.world, self.scenario
        assert world.broken_promises() == [], moment
        states = {
            pv: (state, TIME.sub("-TIME", directory))
            for pv, (state, directory) in world.states().items()
            if pv not in BYSTANDERS
        }
        assert states == scenario.outcome, moment
        assert world.snapshot(BYSTANDERS) == self.before, moment
        for pv, tree in scenario.trees.items():
            place = world.root / world.records()[pv].directory
            assert (place / MARKER).read_text() == tree, moment
            assert (place / "sub" / "file").read_text() == "data", moment
        assert self.store.empty_trash(lambda: False)
        assert list((world.control / "trash").iterdir()) == [], moment


@pytest.fixture
def power() -> Iterator[Power]:
    with Power().supply() as power:
        yield power


@pytest.fixture(params=SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def scenario(request: pytest.FixtureRequest) -> Scenario:
    found: Scenario = request.param
    return found


def length(scenario: Scenario, root: Path, power: Power) -> int:
    """How many changes the operation makes when nothing happens."""
    case = Case(scenario, root, power)
    power.restore()
    case.run()
    changes = len(power.changes)
    case.check("undisturbed")
    power.restore()
    case.run()
    case.check("repeated")
    case.world.stop()
    return changes


def test_a_power_cut_at_any_step_leaves_nothing_half_done(scenario: Scenario, tmp_path: Path, power: Power) -> None:
    changes = length(scenario, tmp_path / "undisturbed", power)
    assert changes >= 2
    for at in range(changes):
        case = Case(scenario, tmp_path / f"{at}", power)
        assert case.cut_off(at), f"the operation is {changes} changes long, but was over before change {at}"
        case.restart()
        case.run()
        case.check(f"cut at change {at} of {changes}")
        case.world.stop()


def test_a_second_power_cut_during_recovery_changes_nothing(scenario: Scenario, tmp_path: Path, power: Power) -> None:
    changes = length(scenario, tmp_path / "undisturbed", power)
    for at in range(0, changes, 3):
        for again in range(0, 60, 7):
            case = Case(scenario, tmp_path / f"{at}-{again}", power)
            assert case.cut_off(at)
            case.world.stop()
            power.cut(again + at % 7)
            try:
                case.store = case.world.start()
                case.run()
            except PowerCut:
                power.restore()
                case.restart()
                case.run()
                case.check(f"cut at change {at}, then at change {again + at % 7} of what followed")
                case.world.stop()
            else:
                power.restore()
                case.world.stop()
                break


@pytest.mark.parametrize("before", ["an empty root", "a term that was cut off"])
def test_a_power_cut_while_a_worker_starts_leaves_nothing_behind(before: str, tmp_path: Path, power: Power) -> None:
    at, over = 0, False
    while not over:
        root = tmp_path / f"{at}"
        root.mkdir()
        world = World(root)
        if before != "an empty root":
            store = world.start()
            world.make(store, "live", "app")
            power.cut(12)
            with pytest.raises(PowerCut):
                give_up("archive")(world, (store, world.make(store, "pv", "other"))[0])
            power.restore()
            world.stop()
        power.cut(at)
        try:
            world.start()
        except PowerCut:
            pass
        else:
            over = True
        power.restore()
        world.stop()
        store = world.start()
        assert world.broken_promises() == [], at
        assert store.facts().identity == identity()
        world.stop()
        at += 1
    assert at > 15


@pytest.mark.parametrize("change", ["seq", "members"])
def test_a_power_cut_while_the_identity_is_written_leaves_the_old_or_the_new_one(
    change: str, tmp_path: Path, power: Power
) -> None:
    seen = set()
    for at in range(6):
        root = tmp_path / f"{at}"
        root.mkdir()
        world = World(root)
        store = world.start()
        power.cut(at)
        with contextlib.suppress(PowerCut):
            if change == "seq":
                store.raise_seq()
            else:
                store.set_members({"a": "id-a", "b": "id-b"})
        power.restore()
        world.stop()
        found = world.start().facts().identity
        assert found in (identity(), identity(seq=1), identity(members={"a": "id-a", "b": "id-b"}))
        seen.add(found == identity())
        assert world.broken_promises() == []
        world.stop()
    assert seen == {True, False}


def test_an_error_at_any_step_is_made_good_by_trying_again(scenario: Scenario, tmp_path: Path, power: Power) -> None:
    """Without a restart: the server said EIO once."""
    changes = length(scenario, tmp_path / "undisturbed", power)
    for at in range(changes):
        case = Case(scenario, tmp_path / f"{at}", power)
        power.fail(at)
        with contextlib.suppress(OSError, NfsProvisionerError):
            case.run()
        power.restore()
        case.run()
        case.check(f"change {at} of {changes} failed")
        case.world.stop()
