"""Whatever tenants write into their claims: paths stay below the root, names fit, owners are told apart."""

from __future__ import annotations

import os
import unicodedata
from datetime import UTC, datetime

from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfs_provisioner.config import format_quantity, parse_pattern, parse_quantity
from nfs_provisioner.errors import Infeasible
from nfs_provisioner.export.paths import (
    ClaimNames,
    OwnedDirectories,
    archive_name,
    conflict_key,
    contains,
    relative_of,
    resolve,
    server_path,
)

ROOT = "/exports/web/a"
OURS = (".nfs-provisioner", "lost+found", ".snapshot", ".snapshots", ".zfs")

# Text out of what has gone wrong before, so that it is hit on every run, and any other text.
NASTY = st.lists(
    st.sampled_from(
        ["", "/", ".", "..", "//", "a", "A", "ä", "-", " ", "\0", "\n", *OURS, "．", "／", "x" * 200, "é" * 120]
    ),
    max_size=6,
).map("".join)
VALUES = st.one_of(NASTY, st.text(max_size=300), st.text(alphabet="./ab", max_size=12))
PARTS = st.sampled_from(
    [
        "${.PVC.namespace}",
        "${.PVC.name}",
        "${.PV.name}",
        "${.PVC.labels.l}",
        "${.PVC.annotations.x.io/a}",
        "/",
        "-",
        "a",
        ".",
    ]
)
PATTERNS = st.lists(PARTS, min_size=1, max_size=7).map("".join)
CLAIMS = st.builds(
    ClaimNames,
    namespace=VALUES,
    name=VALUES,
    labels=st.one_of(st.just({}), st.fixed_dictionaries({"l": VALUES})),
    annotations=st.one_of(st.just({}), st.fixed_dictionaries({"x.io/a": VALUES})),
)


@settings(max_examples=500)
@given(pattern=PATTERNS, claim=CLAIMS, pv=VALUES)
def test_h02_a_resolved_directory_lies_strictly_below_the_root_or_is_refused(
    pattern: str, claim: ClaimNames, pv: str
) -> None:
    try:
        directory = resolve(parse_pattern(pattern), claim, pv)
    except Infeasible:
        event("refused")
        return
    event("resolved")
    joined = os.path.join(ROOT, directory)
    assert os.path.normpath(joined) == joined == f"{ROOT}/{directory}"
    assert contains(ROOT, joined)
    components = directory.split("/")
    assert all(0 < len(os.fsencode(component)) <= 228 for component in components)
    assert len(os.fsencode(directory)) <= 1024
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in directory)
    assert not {component.casefold() for component in components} & set(OURS)
    # No server that folds case or normalises makes something else of it.
    folded = conflict_key(directory).split("/")
    assert len(folded) == len(components)
    assert not set(folded) & {"", ".", "..", *OURS}
    assert resolve(parse_pattern(pattern), claim, pv) == directory
    assert relative_of("/srv/nfs", server_path("/srv/nfs", directory)) == directory


LONG = st.text(st.characters(categories=["L", "N"]), min_size=100, max_size=400)


@given(one=LONG, other=LONG)
def test_h63_different_names_give_different_directories(one: str, other: str) -> None:
    directories = {resolve(parse_pattern("${.PVC.name}"), ClaimNames("n", name), "pv") for name in (one, other)}
    assert len(directories) == len({one, other})


@given(
    directory=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300),
    taken=st.integers(0, 12),
    now=st.datetimes(timezones=st.just(UTC)),
)
def test_h09_an_archives_name_fits_is_free_and_lies_at_the_root(directory: str, taken: int, now: datetime) -> None:
    names: set[str] = set()
    for _ in range(taken + 1):
        name = archive_name(directory, names, now)
        assert name not in names
        assert len(name.encode()) <= 255
        assert "/" not in name
        assert name.startswith("archived-")
        names.add(name)


@given(st.integers(0, 2**63 - 1))
def test_a_quantity_survives_being_written(size: int) -> None:
    assert parse_quantity(format_quantity(size)) == size


@given(st.integers(0, 7), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]))
def test_a_quantity_with_a_unit_survives(number: int, unit: str) -> None:
    assert parse_quantity(format_quantity(parse_quantity(f"{number}{unit}"))) == parse_quantity(f"{number}{unit}")


SHORT = st.lists(st.sampled_from(["a", "A", "b", "ab"]), min_size=1, max_size=4).map("/".join)
OWNERS = st.sampled_from(["pv-1", "pv-2", "pv-3"])


class OwnedDirectoriesMatchAList(RuleBasedStateMachine):
    """The index against a list that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.owned = OwnedDirectories()
        self.model: set[tuple[str, str]] = set()

    @rule(path=SHORT, owner=OWNERS)
    def add(self, path: str, owner: str) -> None:
        self.owned.add(path, owner)
        self.model.add((conflict_key(path), owner))

    @rule(path=SHORT, owner=OWNERS)
    def discard(self, path: str, owner: str) -> None:
        self.owned.discard(path, owner)
        self.model.discard((conflict_key(path), owner))

    @rule(path=SHORT, besides=st.one_of(st.none(), OWNERS))
    def h04_conflict(self, path: str, besides: str | None) -> None:
        key = conflict_key(path)
        in_the_way = {
            owner
            for taken, owner in self.model
            if owner != besides and (taken == key or contains(taken, key) or contains(key, taken))
        }
        found = self.owned.conflict(path, besides=besides)
        assert found in in_the_way if in_the_way else found is None

    @invariant()
    def as_many(self) -> None:
        assert len(self.owned) == len(self.model)


TestOwnedDirectories = OwnedDirectoriesMatchAList.TestCase
