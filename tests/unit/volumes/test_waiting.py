"""Whoever waits for room is looked at again when there is some: the oldest first, and as many as fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from nfs_provisioner.export.records import State
from nfs_provisioner.kube.workqueue import WorkQueue
from nfs_provisioner.volumes.registry import Registry
from nfs_provisioner.volumes.room import Need, NoRoom
from nfs_provisioner.volumes.waiting import AGAIN, SECOND_LOOK, Waiting
from tests.unit.volumes.exports import registry, tell, with_room
from tests.unit.volumes.situations import GI, record


@dataclass
class Case:
    """Exports web and mail of 10Gi each; `woken` are those that were looked at, in order."""

    registry: Registry
    now: float = 0.0
    woken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue: WorkQueue[str] = WorkQueue(clock=lambda: self.now)
        self.waiting = Waiting(self.registry, self.queue, self.woken.append)
        for export in self.registry.all():
            export.catalog.put(record(State.LIVE, pv="all", directory="all", requested=10 * GI))

    def refuse(self, *names: str, size: int = GI, exports: tuple[str, ...] = ("web",), written: int | None = 0) -> None:
        for name in names:
            self.waiting.add(name, NoRoom("full", Need(size, written), exports))

    def leave(self, export: str, size: int) -> None:
        """So much is not promised any more."""
        found = self.registry.get(export)
        assert found is not None
        found.catalog.put(record(State.LIVE, pv="all", directory="all", requested=10 * GI - size))

    def turn(self) -> list[str]:
        """What is queued now, taken; who was woken by it."""
        self.woken.clear()
        while (key := self.queue.try_get()) is not None:
            if not self.waiting.process(key):
                self.woken.append(key)
            self.queue.done(key)
        return list(self.woken)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    with_room(monkeypatch)
    with registry() as made:
        for name in ("web", "mail"):
            tell(made, name)
        yield Case(made)


def test_as_many_are_woken_as_fit_and_the_oldest_first(case: Case) -> None:
    case.refuse("c", "a", "b", "d")
    case.leave("web", 2 * GI)
    case.waiting.appeared("web")
    assert case.turn() == ["c", "a"]


def test_one_that_is_refused_again_keeps_its_place(case: Case) -> None:
    case.refuse("first", "second", "first")
    case.leave("web", GI)
    case.waiting.appeared("web")
    assert case.turn() == ["first"]


def test_a_small_one_passes_a_large_one_that_does_not_fit(case: Case) -> None:
    case.refuse("large", size=3 * GI)
    case.refuse("small", "other")
    case.leave("web", GI)
    case.waiting.appeared("web")
    assert case.turn() == ["small"]


def test_nobody_is_woken_where_nothing_fits_and_no_work_is_made_where_nobody_waits(case: Case) -> None:
    case.refuse("one")
    case.waiting.appeared("web")
    assert case.turn() == []
    case.leave("mail", GI)
    case.waiting.appeared("mail")
    assert case.queue.depth().get("", 0) == 0


def test_many_words_of_space_are_one_look(case: Case) -> None:
    case.refuse("one")
    case.leave("web", GI)
    for _ in range(1000):
        case.waiting.appeared("web")
    assert case.queue.depth()[""] == 1


def test_space_that_is_too_little_for_anybody_is_no_work(case: Case) -> None:
    """A controller that never rests would never get to its Events."""
    case.refuse("small", size=2 * GI, written=GI)
    case.refuse("large", size=3 * GI, written=None)
    case.leave("web", 2 * GI - 1)
    case.waiting.appeared("web")
    assert case.queue.depth().get("", 0) == 0
    case.waiting.forget("small")
    case.now += SECOND_LOOK
    assert case.turn() == []
    case.leave("web", 2 * GI)  # enough for the one that left
    case.waiting.appeared("web")
    assert case.queue.depth().get("", 0) == 0


def test_one_that_waits_for_several_exports_is_woken_by_each_and_forgotten_on_all(case: Case) -> None:
    case.refuse("one", exports=("web", "mail"))
    case.leave("mail", GI)
    case.waiting.appeared("mail")
    assert case.turn() == ["one"]
    case.waiting.forget("one")
    assert "one" not in case.waiting and len(case.waiting) == 0
    case.leave("web", GI)
    for export in ("web", "mail"):
        case.waiting.appeared(export)
    assert case.turn() == []


def test_one_that_wants_another_export_now_waits_no_more_for_the_first(case: Case) -> None:
    case.refuse("one")
    case.refuse("one", exports=("mail",))
    case.leave("web", GI)
    case.waiting.appeared("web")
    assert case.turn() == []


def test_the_files_of_several_copies_must_fit_together(case: Case) -> None:
    case.refuse("one", "two", written=6 * GI)
    case.refuse("three", written=None)
    case.leave("web", 5 * GI)
    case.waiting.appeared("web")
    assert case.turn() == ["one", "three"]


def test_space_that_appears_between_a_refusal_and_its_entry_is_found_in_a_second(case: Case) -> None:
    case.leave("web", GI)
    case.waiting.appeared("web")  # nobody waits yet
    case.refuse("one")
    assert case.turn() == []
    case.now += SECOND_LOOK
    assert case.turn() == ["one"]


def test_everybody_is_looked_at_now_and_then_whatever_nobody_said(case: Case) -> None:
    case.refuse("one", "two")
    case.now += AGAIN
    assert sorted(case.turn()) == ["one", "two"]


def test_an_export_that_went_or_cannot_be_used_wakes_nobody(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.refuse("one", exports=("web", "gone"))
    case.waiting.appeared("gone")
    case.leave("web", GI)
    monkeypatch.undo()  # its replica is not attached
    case.waiting.appeared("web")
    assert case.turn() == []
