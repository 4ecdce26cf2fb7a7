"""Which exports promise a file system that is not theirs alone."""

from __future__ import annotations

from nfs_provisioner.volumes.sharing import Ground, warnings


def ground(name: str, *, capacity: bool = False, active: str = "a", **devices: int) -> Ground:
    return Ground(name, capacity, active, devices)


def test_each_of_two_is_told_of_the_other_and_what_to_do() -> None:
    found = warnings([ground("web", a=1), ground("mail", a=1), ground("db", a=2)])
    assert found.keys() == {"web", "mail"}
    assert "NFSExport mail" in found["web"] and "NFSExport web" in found["mail"]
    assert all("set spec.capacity" in said and "db" not in said for said in found.values())


def test_two_with_a_capacity_each_know_what_they_do() -> None:
    assert not warnings([ground("web", capacity=True, a=1), ground("mail", capacity=True, a=1)])


def test_one_that_takes_all_is_told_of_one_that_takes_a_part() -> None:
    found = warnings([ground("web", a=1), ground("mail", capacity=True, a=1)])
    assert found.keys() == {"web"} and "NFSExport mail" in found["web"]


def test_the_replicas_of_one_export_may_lie_on_one_file_system() -> None:
    assert not warnings([ground("web", a=1, b=1), ground("mail", a=2, b=2)])


def test_a_standby_takes_its_space_from_the_other_export() -> None:
    """Crossed over, so that each server has work: each active one's size is promised, and holds the other's copy."""
    found = warnings([ground("web", a=1, b=2), ground("mail", active="b", a=1, b=2)])
    assert "its replica a" in found["web"] and "its replica b" in found["mail"]
    found = warnings([ground("web", a=1, b=2), ground("mail", a=3, b=2)])
    assert not found, "two standbys promise nothing"


def test_who_was_not_seen_is_not_accused() -> None:
    assert not warnings([ground("web", a=1), ground("mail")])
    assert warnings([ground("web", a=1), ground("mail", b=1)]).keys() == {"web"}, "whose active one is away cannot tell"


def test_many_are_named_up_to_a_point() -> None:
    found = warnings([ground(f"e{number:02}", a=7) for number in range(30)])
    assert len(found) == 30
    assert "e00" in found["e29"] and "24 more" in found["e29"] and "e28" not in found["e29"]
