"""What fits where, and what a refusal says: the figures, in people's units, and the export."""

from __future__ import annotations

from fractions import Fraction

import pytest

from nfs_provisioner.config import Reserve
from nfs_provisioner.volumes.room import Need, NoRoom, Room, choose_export, no_room
from tests.unit.volumes.situations import GI, claim, room, storage_class

FULL = room("a", reserved=10 * GI)
LOW = room("b", available=GI // 4, reserve=Reserve(share=Fraction(1, 10)))  # 1Gi is to stay free


def refusal(need: Need, *rooms: Room) -> NoRoom:
    with pytest.raises(NoRoom) as caught:
        choose_export(claim(requested=need.promise), storage_class(), rooms, need)
    return caught.value


def test_a_refusal_says_how_much_is_missing_on_each_export() -> None:
    refused = refusal(Need(2 * GI), FULL, room("c", capacity=3 * GI, reserved=2 * GI), LOW)
    assert refused.message == (
        "export a lacks 2Gi: 10Gi of 10Gi are promised and 2Gi are wanted; "
        "export c lacks 1Gi: 2Gi of 3Gi are promised and 2Gi are wanted; "
        "export b lacks 768Mi of really free space: 256Mi are free, 1Gi are kept in reserve (spec.reserve)"
    )
    assert (refused.need, refused.exports) == (Need(2 * GI), ("a", "c", "b"))


def test_overcommit_is_part_of_what_may_be_promised() -> None:
    over = room("a", reserved=10 * GI, overcommit=Fraction(3, 2))
    assert over.fits(Need(5 * GI)) and not over.fits(Need(5 * GI + 1))
    assert "10Gi of 15Gi are promised" in refusal(Need(6 * GI), over).message


def test_what_lacks_both_says_both() -> None:
    both = room("a", reserved=10 * GI, available=GI, reserve=Reserve(size=2 * GI))
    message = refusal(Need(GI), both).message
    assert "lacks 1Gi: 10Gi of 10Gi" in message and "lacks 1Gi of really free space: 1Gi are free, 2Gi" in message


def test_a_copy_needs_the_space_that_its_files_take() -> None:
    place = room("a", available=3 * GI, reserve=Reserve(size=GI))
    assert place.fits(Need(5 * GI, written=2 * GI))
    message = refusal(Need(5 * GI, written=3 * GI), place).message
    assert "lacks 1Gi of really free space" in message and "the copied files take 3Gi" in message


def test_what_takes_no_new_space_does_not_mind_the_reserve() -> None:
    assert choose_export(claim(), storage_class(), [LOW], Need(GI, written=None)) is LOW
    assert not LOW.fits(Need(GI))


def test_the_needs_of_several_add_up() -> None:
    place = room("a", reserved=7 * GI, available=6 * GI, reserve=Reserve(size=GI))
    need = Need(GI, written=2 * GI)
    assert place.fits(need, promised=2 * GI) and not place.fits(need, promised=2 * GI + 1)
    assert place.fits(need, written=3 * GI) and not place.fits(need, written=3 * GI + 1)


def test_space_that_appeared_meanwhile_is_no_contradiction() -> None:
    assert no_room([room("a")], Need(GI)).message == "export a was full a moment ago"
