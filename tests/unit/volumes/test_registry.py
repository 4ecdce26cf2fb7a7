"""Which exports there are, as places for new volumes."""

from __future__ import annotations

from nfs_provisioner.volumes.registry import Registry
from tests.unit.volumes.exports import registry, tell


def rooms(of: Registry) -> list[tuple[str, bool]]:
    """Names, and whether they are usable as far as their objects go."""
    return [(room.spec.name, "not a quantity" not in room.problem) for room in of.rooms()]


def test_an_export_that_became_invalid_is_listed_once_and_takes_no_new_volume() -> None:
    with registry() as made:
        tell(made, "web", labels={"tier": "gold"})
        tell(made, "mail")
        tell(made, "typo", capacity="10Gx")
        assert rooms(made) == [("mail", True), ("web", True), ("typo", False)]
        tell(made, "web", 2, labels={"tier": "gold"}, capacity="10Gx")
        assert sorted(rooms(made)) == [("mail", True), ("typo", False), ("web", False)]
        (web,) = (room for room in made.rooms() if room.spec.name == "web")
        assert web.spec.labels == {"tier": "gold"}, "a selector still finds it, and its problem is what the claim hears"
        assert not web.looking
        tell(made, "web", 3, labels={"tier": "gold"})
        assert rooms(made) == [("mail", True), ("web", True), ("typo", False)]
        made.changed("typo", None)
        made.changed("web", None)
        assert rooms(made) == [("mail", True)]
