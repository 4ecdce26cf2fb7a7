"""Where a new volume goes when it is an archive that is restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nfs_provisioner.errors import Infeasible
from nfs_provisioner.export.records import State
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE
from nfs_provisioner.volumes.planner import Planner
from nfs_provisioner.volumes.registry import Registry
from tests.unit.volumes.exports import registry, tell
from tests.unit.volumes.situations import OURS, claim, record, situation


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
