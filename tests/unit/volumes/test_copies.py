"""What is held back for clones that are being copied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.volumes.copies import Copies
from tests.unit.volumes.situations import record

CLONE = record(State.CREATING, pv="clone", directory="clone", clone_of="old")


@pytest.fixture
def used() -> dict[str, Usage]:
    return {"old": Usage(1000, 10, 1.0)}


@pytest.fixture
def catalog() -> Catalog:
    made = Catalog()
    made.put(CLONE)
    return made


@pytest.fixture
def copies(catalog: Catalog, used: dict[str, Usage]) -> Copies:
    made = Copies(catalog, used.get)
    made.begin(CLONE)
    return made


def test_what_is_written_is_held_until_the_file_system_was_looked_at(copies: Copies) -> None:
    copies.wrote("clone", 300)
    assert copies.held() == 1000, "what was free a while ago does not say that it is gone"
    copies.looked()
    assert copies.held() == 700


def test_a_copy_that_is_begun_again_does_not_hold_once_more_what_is_written(copies: Copies) -> None:
    copies.wrote("clone", 900)
    copies.looked()
    copies.wrote("clone", 0)
    copies.looked()
    assert copies.held() == 100


@pytest.mark.parametrize("after", [replace(CLONE, copied=True), replace(CLONE, state=State.LIVE), None], ids=str)
def test_a_copy_that_is_over_holds_nothing_after_the_next_look(copies: Copies, catalog: Catalog, after: object) -> None:
    catalog.drop("clone") if after is None else catalog.put(after)  # type: ignore[arg-type]
    assert copies.held() == 1000
    copies.looked()
    assert copies.held() == 0


def test_a_source_that_goes_or_shrinks_leaves_held_what_was_begun_with_it(
    copies: Copies, used: dict[str, Usage]
) -> None:
    assert copies.held() == 1000
    used["old"] = Usage(2000, 10, 2.0)
    assert copies.held() == 2000, "it grows while it is copied"
    del used["old"]
    assert copies.held() == 2000


def test_more_than_was_known_of_the_source_is_not_less_than_nothing(copies: Copies) -> None:
    copies.wrote("clone", 5000)
    copies.looked()
    assert copies.held() == 0


@pytest.mark.parametrize(
    "other", [record(State.CREATING), replace(CLONE, copied=True), replace(CLONE, state=State.LIVE)], ids=str
)
def test_only_clones_that_are_not_copied_hold_anything(catalog: Catalog, used: dict[str, Usage], other: object) -> None:
    made = Copies(catalog, used.get)
    made.begin(other)  # type: ignore[arg-type]
    assert made.held() == 0
