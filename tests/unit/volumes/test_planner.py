"""Where a new volume goes when it is an archive that is restored, or a clone."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nfs_provisioner.errors import Infeasible, RetryLater
from nfs_provisioner.export.records import ClaimRef, State
from nfs_provisioner.volumes.decisions import Situation
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE, DataSource, Volume
from nfs_provisioner.volumes.planner import Plan, Planner
from nfs_provisioner.volumes.registry import Registry
from nfs_provisioner.volumes.room import NoRoom, Room
from tests.unit.volumes.conftest import DEADLINE
from tests.unit.volumes.exports import registry, tell, with_room
from tests.unit.volumes.situations import GI, NAME, OURS, claim, record, situation, volume


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """web holds the archive archived-old, mail holds none."""
    with_room(monkeypatch)
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
    with_room(monkeypatch)
    with registry() as made:
        for name, tier, size in (("web", "gold", "5Gi"), ("mail", "lead", "50Gi")):
            tell(made, name, labels={"tier": tier}, capacity=size)
        monkeypatch.setattr(Export, "looking", False)
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


def test_a_clone_needs_the_space_that_its_source_takes(clones: Clones, monkeypatch: pytest.MonkeyPatch) -> None:
    clones.live("web")
    web = clones.registry.get("web")
    assert web is not None
    web.usage.fill({"pv-old": (3 * GI, 7, 1.0, False)})
    with_room(monkeypatch, web=2 * GI)
    with pytest.raises(
        NoRoom, match=r"export web lacks .* of really free space: 2Gi are free.* the copied files take 3Gi"
    ):
        clones.plan()
    with_room(monkeypatch, web=4 * GI)
    assert clones.plan().clone_from == "pv-old"


def test_h35_clones_that_are_decided_at_one_moment_are_not_given_the_same_free_space(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them have read the figures before any of them is counted, if that can be."""
    clones.live("mail", requested=GI)
    mail = clones.registry.get("mail")
    assert mail is not None
    mail.usage.fill({"pv-old": (3 * GI, 7, 1.0, False)})
    with_room(monkeypatch, mail=9 * GI)
    inner, start = Export.room, threading.Barrier(5)

    def room(export: Export) -> Room:
        found = inner(export)
        with contextlib.suppress(threading.BrokenBarrierError):
            start.wait(0.2)
        return found

    monkeypatch.setattr(Export, "room", room)
    raw: dict[str, Any] = {"metadata": {"name": "nfs"}, "provisioner": OURS}
    planner = Planner(clones.registry, lambda _name: raw, OURS, find_volume=clones.volumes.get)

    def ask(number: int) -> str:
        asked = claim(uid=f"uid-{number}", name=f"c{number}", data_source=DataSource("PersistentVolumeClaim", "old"))
        try:
            return planner.plan(Situation(asked.key, asked)).export.name
        except NoRoom as refusal:
            return refusal.message

    with ThreadPoolExecutor(5) as pool:
        answers = sorted(pool.map(ask, range(5)))
    assert answers[3:] == ["mail", "mail"]
    words = r"lacks 2.5Gi of really free space: 9Gi are free, 6Gi of them are for clones that are being copied, "
    assert all(re.search(words, answer) for answer in answers[:3]), answers
    for number in range(5):
        planner.drop(f"pvc-uid-{number}")
    assert mail.copies.held() == 0


# -- room -------------------------------------------------------------------------------------------------------------


def plain(of: Registry, uid: str, size: int, **annotations: str) -> str:
    """Plans one claim; where it goes."""
    raw: dict[str, Any] = {"metadata": {"name": "nfs"}, "provisioner": OURS}
    asked = claim(uid=uid, name=uid, requested=size, annotations=annotations)
    return Planner(of, lambda _name: raw, OURS).plan(Situation(asked.key, asked)).export.name


def test_h35_a_full_export_is_left_for_the_next_and_only_then_a_claim_waits(two: Registry) -> None:
    sizes = [10, 9, 1]
    assert [plain(two, f"uid-{number}", size * GI) for number, size in enumerate(sizes)] == ["mail", "web", "web"]
    with pytest.raises(NoRoom, match=r"export mail lacks 1Gi: 10Gi of 10Gi .*; export web lacks 1Gi: 10Gi of 10Gi"):
        plain(two, "uid-late", GI)


def test_a_claim_goes_to_the_next_export_that_fits_when_one_fails_and_to_each_in_turn(two: Registry) -> None:
    """However much space they say they have: web has less, and other claims are not warned."""
    tell(two, "mail", generation=2, capacity="20Gi")
    tell(two, "small", capacity="1Mi")
    raw: dict[str, Any] = {"metadata": {"name": "nfs"}, "provisioner": OURS}
    planner, asked = Planner(two, lambda _name: raw, OURS), claim()

    def tried(failed: bool = True) -> str:
        export = planner.plan(Situation(asked.key, asked)).export.name
        planner.drop(asked.key, failed=failed)
        return export

    assert [tried() for _ in range(5)] == ["mail", "web", "mail", "web", "mail"]
    assert plain(two, "uid-other", GI) == "mail"
    assert tried(failed=False) == "web"
    planner.finish(asked.key)
    assert tried() == "mail", "how it went before is forgotten"


def test_h35_a_restore_is_promised_its_size_anew(two: Registry) -> None:
    """Its files take their space already, but nothing was promised for them while it was an archive."""
    old = {RESTORE_ARCHIVE: "archived-old"}
    plain(two, "uid-0", 10 * GI)
    plain(two, "uid-1", 10 * GI)
    with pytest.raises(
        NoRoom, match=r"^export web lacks 1Gi: 10Gi of 10Gi are promised and 1Gi are wanted$"
    ) as refused:
        plain(two, "uid-heir", GI, **old)
    assert refused.value.exports == ("web",)


def retained(of: Registry, size: int) -> dict[str, str]:
    """A retained volume of that size on web; what a claim says that is to have it."""
    web = of.get("web")
    assert web is not None
    web.catalog.put(record(State.RETAINED, pv="pv-kept", directory="kept", requested=size))
    return {RESTORE_ARCHIVE: "kept"}


def test_h35_the_restore_of_a_retained_volume_is_promised_only_what_it_asks_for_beyond_its_size(two: Registry) -> None:
    kept = retained(two, 6 * GI)
    for uid in ("uid-0", "uid-1"):
        plain(two, uid, (4 if uid == "uid-1" else 10) * GI)
    with pytest.raises(NoRoom, match=r"^export web lacks 1Gi: 10Gi of 10Gi are promised and 1Gi are wanted$"):
        plain(two, "uid-larger", 7 * GI, **kept)
    assert plain(two, "uid-heir", 6 * GI, **kept) == "web"


def test_h35_two_restores_of_one_retained_volume_are_not_both_given_its_space(two: Registry) -> None:
    kept = retained(two, 6 * GI)
    assert plain(two, "uid-heir", 6 * GI, **kept) == "web"
    with pytest.raises(NoRoom, match="export web lacks 2Gi"):
        plain(two, "uid-rival", 6 * GI, **kept)


def test_h35_a_retained_volume_is_restored_on_an_export_that_became_too_small_for_it(two: Registry) -> None:
    kept = retained(two, 6 * GI)
    tell(two, "web", generation=2, capacity="5Gi")
    assert plain(two, "uid-heir", 6 * GI, **kept) == "web"


def test_a_restore_does_not_mind_the_reserve(two: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(monkeypatch, web=0, mail=0)
    with pytest.raises(NoRoom, match="really free"):
        plain(two, "uid-0", GI)
    assert plain(two, "uid-heir", GI, **{RESTORE_ARCHIVE: "archived-old"}) == "web"


def test_h35_claims_that_see_the_same_room_at_one_moment_share_it_out(
    two: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them have read the figures before any of them reserves; the losers choose another export at once."""
    threads, start, first = 40, threading.Barrier(40), threading.local()
    inner = Export.room

    def room(export: Export) -> Room:
        found = inner(export)
        if export.name == "web" and not getattr(first, "read", False):
            first.read = True
            start.wait(DEADLINE)
        return found

    monkeypatch.setattr(Export, "room", room)

    def ask(number: int) -> str:
        first.read = False
        try:
            return plain(two, f"uid-{number}", GI)
        except NoRoom as refusal:
            return refusal.message

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(ask, range(threads)))
    assert (answers.count("web"), answers.count("mail")) == (10, 10)
    refused = [answer for answer in answers if answer not in ("web", "mail")]
    assert all("export web lacks 1Gi" in answer and "export mail lacks 1Gi" in answer for answer in refused)
    assert [export.catalog.reserved for export in two.all()] == [10 * GI, 10 * GI]
