"""Which of two NFSExports in one directory may be used."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfs_provisioner.config import ExportSpec, ReplicaSpec
from nfs_provisioner.volumes.overlaps import Present, refusals


def present(name: str, created: str, *paths: str) -> Present:
    replicas = [ReplicaSpec(replica, "192.0.2.1", "/srv", path) for replica, path in zip("ab", paths, strict=False)]
    return Present(created, ExportSpec(name=name, replicas=tuple(replicas)))


@pytest.mark.parametrize(
    ("older", "younger", "how"),
    [
        ("/exports/web", "/exports/web", "is also"),
        ("/exports/web", "/exports/web/a", "lies in"),
        ("/exports/web/a", "/exports/web", "contains"),
        ("/exports/web", "/exports/web-2", ""),
        ("/exports/web/a", "/exports/web/ab", ""),
    ],
)
def test_the_younger_of_two_in_one_directory_is_refused(older: str, younger: str, how: str) -> None:
    found = refusals([present("young", "T2", younger), present("old", "T1", older)])
    if not how:
        assert not found
        return
    assert list(found) == ["young"]
    for part in ("NFSExport old", "spec.replicas[0].mountPath", repr(younger), how, repr(older)):
        assert part in found["young"]


def test_any_replica_counts_and_is_named() -> None:
    found = refusals([present("old", "T1", "/e/1", "/e/2"), present("young", "T2", "/e/3", "/e/2/x")])
    assert "spec.replicas[1].mountPath" in found["young"] and "replica b of NFSExport old" in found["young"]


def test_of_two_that_are_equally_old_the_first_by_name_is_used() -> None:
    assert list(refusals([present("b", "T1", "/e"), present("a", "T1", "/e")])) == ["b"]


def test_an_export_that_is_used_stays_used_when_an_older_one_goes() -> None:
    """`third` is not used even while `second` is not: else it would have to be given up when `first` goes."""
    first, second, third = (
        present("first", "T1", "/e/1"),
        present("second", "T2", "/e/1", "/e/2"),
        present("third", "T3", "/e/2"),
    )
    assert set(refusals([first, second, third])) == {"second", "third"}
    assert set(refusals([second, third])) == {"third"}
    assert not refusals([third])


PATHS = st.lists(st.sampled_from(["x", "y", "xy"]), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(st.tuples(st.sampled_from(["T1", "T2"]), PATHS), max_size=6))
def test_no_two_used_exports_share_a_directory_whatever_the_order(exports: list[tuple[str, str]]) -> None:
    made = [present(f"e{number}", created, path) for number, (created, path) in enumerate(exports)]
    found = refusals(made)
    assert found == refusals(reversed(made))
    used = [one.spec.replicas[0].mount_path for one in made if one.spec.name not in found]
    for one, two in itertools.permutations(used, 2):
        assert one != two and not one.startswith(two + "/")
    if made:
        assert min(made, key=lambda one: one.age).spec.name not in found
