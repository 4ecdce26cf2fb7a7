"""Volumes that share a directory, or lie in another's, are passed once."""

from __future__ import annotations

import pytest

from nfs_provisioner.replication.volumes import outermost
from tests.unit.export.world import volume

PLACES: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {}),
    ({"one": "a", "two": "b"}, {}),
    ({"one": "a", "two": "ab"}, {}),
    ({"one": "a", "two": "a"}, {"two": "one"}),
    ({"one": "a/b", "two": "a"}, {"one": "two"}),
    ({"one": "a/b/c", "two": "a", "three": "a/b"}, {"one": "two", "three": "two"}),
    ({"one": "a/b", "two": "a/c"}, {}),
    ({"one": "a/b", "two": "a", "three": "a"}, {"one": "three", "two": "three"}),
]


@pytest.mark.parametrize(("places", "within"), PLACES)
def test_the_outermost_takes_care_of_the_others(places: dict[str, str], within: dict[str, str]) -> None:
    assert outermost({pv: volume(pv, directory) for pv, directory in places.items()}) == within
