"""Where a new volume goes when it is an archive that is restored, or a clone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nfs_provisioner.errors import Infeasible, RetryLater
from nfs_provisioner.export.records import ClaimRef, State
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE, DataSource, Volume
from nfs_provisioner.volumes.planner import Plan, Planner
from nfs_provisioner.volumes.registry import Registry
from tests.unit.volumes.exports import registry, tell
from tests.unit.volumes.situations import GI, NAME, OURS, claim, record, room, situation, volume


@pytest.fixture
def two() -> Iterator[Registry]:
    """web holds the archive archived-old, mail holds none."""
    with registry() as made:
        tell(made, "web", labels={"tier": "gold"})
        tell(made, "mail", labels={"tier": "lead"})
        archive(made, "web", "pv-old")
        yield made


def archive(of: Registry, export: str, pv: str) -> None:
    found = of.get(export)
    assert found is not None
    found.catalog.put(record(State.ARCHIVED, pv=pv, directory="archived-old"))


def restored(of: Registry, *, tier: str = "", **parameters: str) -> tuple[str, str | None]:
    """The export and the PV that the restored volume comes from."""
    raw: dict[str, Any] = {"metadata": {"name": "nfs"}, "provisioner": OURS, "parameters": parameters}
    asked = claim(
        annotations={RESTORE_ARCHIVE: "archived-old"},
        selector={"matchLabels": {"tier": tier}} if tier else None,
    )
    plan = Planner(of, lambda _name: raw, OURS).plan(situation(claim=asked))
    return plan.export.name, plan.restore_from


@pytest.mark.parametrize("asked", [{}, {"export": "web"}, {"export": "mail,web"}, {"tier": "gold"}])
def test_an_archive_is_restored_where_it_lies(two: Registry, asked: dict[str, str]) -> None:
    assert restored(two, **asked) == ("web", "pv-old")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"export": "mail"}, ["StorageClass nfs", "mail"]),
        ({"export": "mail,gone"}, ["StorageClass nfs", "mail, gone"]),
        ({"tier": "lead"}, ["selector", "tier=gold"]),
        ({"tier": "lead", "export": "web"}, ["selector", "tier=gold"]),
    ],
)
def test_an_archive_is_not_restored_on_an_export_that_the_claim_excludes(
    two: Registry, asked: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(Infeasible) as refusal:
        restored(two, **asked)
    for word in ("'archived-old'", "NFSExport web", *words):
        assert word in refusal.value.message
    web, mail = two.get("web"), two.get("mail")
    assert web is not None and mail is not None
    assert (len(web.catalog), len(mail.catalog)) == (1, 0), "nothing stays reserved"


@pytest.mark.parametrize("asked", [{"export": "mail"}, {"export": "mail,web", "tier": "lead"}])
def test_of_two_archives_of_one_name_the_one_that_is_admitted_is_restored(two: Registry, asked: dict[str, str]) -> None:
    archive(two, "mail", "pv-other")
    tell(two, "alpha", labels={"tier": "iron"})
    archive(two, "alpha", "pv-iron")
    assert restored(two, **asked) == ("mail", "pv-other")


# -- clones -----------------------------------------------------------------------------------------------------------

OLD = ClaimRef("shop", "old", "uid-old")


class Clones:
    """`plan` is asked for a clone of shop/old; exports have room unless they are told otherwise."""

    def __init__(self, of: Registry) -> None:
        self.registry = of
        self.volumes: dict[str, Volume] = {}

    def live(self, export: str, pv: str = "pv-old", owner: ClaimRef = OLD, **changes: Any) -> None:
        """A volume and its PV, Bound."""
        found = self.registry.get(export)
        assert found is not None
        phase = changes.pop("phase", "Bound")
        directory = changes.pop("directory", pv)
        found.catalog.put(record(changes.pop("state", State.LIVE), pv=pv, claim=owner, directory=directory, **changes))
        self.volumes[pv] = volume(name=pv, claim=owner, phase=phase)

    def plan(self, *, tier: str = "", requested: int = GI, **parameters: str) -> Plan:
        raw: dict[str, Any] = {"metadata": {"name": "nfs"}, "provisioner": OURS, "parameters": parameters}
        selector = {"matchLabels": {"tier": tier}} if tier else None
        source = DataSource("PersistentVolumeClaim", "old")
        asked = claim(data_source=source, selector=selector, requested=requested)
        planner = Planner(self.registry, lambda _name: raw, OURS, find_volume=self.volumes.get)
        return planner.plan(situation(claim=asked))

    def reserved(self) -> list[str]:
        return [r.pv for export in self.registry.all() for r in export.catalog.all() if r.state is State.CREATING]


@pytest.fixture
def clones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clones]:
    """Two exports; which of them has most space must not matter."""
    with registry() as made:
        for name, tier, free in (("web", "gold", 5), ("mail", "lead", 50)):
            tell(made, name, labels={"tier": tier})
            export = made.get(name)
            assert export is not None
            place = room(name, capacity=free * GI, labels={"tier": tier})
            monkeypatch.setattr(export, "room", lambda place=place: place)
            monkeypatch.setattr(type(export), "looking", False)
        yield Clones(made)


@pytest.mark.parametrize("asked", [{}, {"export": "web"}, {"export": "mail,web"}, {"tier": "gold"}])
def test_a_clone_is_made_where_its_source_lies(clones: Clones, asked: dict[str, Any]) -> None:
    clones.live("web")
    plan = clones.plan(**asked)
    assert (plan.export.name, plan.clone_from, plan.restore_from) == ("web", "pv-old", None)
    assert (plan.record.clone_of, plan.record.copied, plan.record.state) == ("pv-old", False, State.CREATING)
    assert plan.record.tree != "tree-1" and clones.reserved() == [NAME]


@pytest.mark.parametrize("asked", [{"export": "mail"}, {"tier": "lead"}])
def test_a_clone_is_not_made_where_its_claim_does_not_admit_it(clones: Clones, asked: dict[str, Any]) -> None:
    clones.live("web")
    with pytest.raises(Infeasible, match="shop/old lies on NFSExport web"):
        clones.plan(**asked)
    assert clones.reserved() == []


def test_a_clone_asks_for_as_much_as_its_source_at_least(clones: Clones) -> None:
    clones.live("web", requested=2 * GI)
    with pytest.raises(Infeasible, match=rf"promised {2 * GI} bytes, its clone asks for {GI}"):
        clones.plan()
    assert clones.plan(requested=2 * GI).record.requested == 2 * GI


def test_a_clone_needs_room(clones: Clones) -> None:
    clones.live("web")
    with pytest.raises(RetryLater, match="export web lacks"):
        clones.plan(requested=6 * GI)


def test_a_clone_of_a_shared_directory_is_made(clones: Clones) -> None:
    clones.live("web", shared=True)
    assert clones.plan().clone_from == "pv-old"


@pytest.mark.parametrize(
    "there",
    [
        {"owner": ClaimRef("bank", "old", "uid-old")},
        {"owner": ClaimRef("shop", "older", "uid-old")},
        {"state": State.ARCHIVED},
        {"state": State.CREATING},
        {"state": State.DELETED},
        {"phase": "Released"},
    ],
    ids=str,
)
def test_a_clone_waits_for_a_source_that_is_not_there(clones: Clones, there: dict[str, Any]) -> None:
    clones.live("web", **there)
    with pytest.raises(RetryLater, match="waits for claim shop/old") as waiting:
        clones.plan()
    assert waiting.value.after is not None
    assert NAME not in clones.reserved()
    clones.live("mail", "pv-other")
    assert clones.plan().clone_from == "pv-other", "it is there now"


def test_an_earlier_claim_of_that_name_is_not_cloned(clones: Clones) -> None:
    """Its volume was kept by the policy Retain, and the claim was made anew under the same name."""
    clones.live("mail", "pv-earlier", ClaimRef("shop", "old", "uid-earlier"), phase="Released")
    clones.live("web")
    assert clones.plan().clone_from == "pv-old"


def test_a_clone_that_was_begun_goes_on_although_its_source_is_gone(clones: Clones) -> None:
    begun = record(State.CREATING, clone_of="pv-old", inode=7)
    raw: dict[str, Any] = {"metadata": {"name": "nfs"}, "provisioner": OURS}
    planner = Planner(clones.registry, lambda _name: raw, OURS)
    asked = claim(data_source=DataSource("PersistentVolumeClaim", "old"))
    plan = planner.plan(situation(claim=asked, record=begun))
    assert (plan.record, plan.clone_from) == (begun, "pv-old")
