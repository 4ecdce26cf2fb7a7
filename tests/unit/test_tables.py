"""Tables for people: what stands in them, and that names of tenants are shown as they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from nfs_provisioner import tables
from nfs_provisioner.config import rough_size

Json = dict[str, Any]


def printed(draw: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=10_000, no_color=True, highlight=False)
    draw(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


SIZES = [
    (None, "-"),
    (0, "0B"),
    (1023, "1023B"),
    (1024, "1Ki"),
    (1536, "1.5Ki"),
    (10 << 20, "10Mi"),
    ((1 << 30) + (1 << 29), "1.5Gi"),
    (999 << 40, "999Ti"),
    (5000 << 50, "5000Pi"),
]


@pytest.mark.parametrize(("number", "shown"), SIZES)
def test_a_size_has_three_digits(number: int | None, shown: str) -> None:
    assert rough_size(number) == shown


def export(**changes: Any) -> Json:
    made: Json = {
        "name": "web", "phase": "Ready", "message": "", "active": "a", "epoch": 1, "mirror": False,
        "capacity": 10 << 30, "available": 5 << 30, "used": 5 << 30, "reserved": 1 << 30,
        "volumes": 2, "archives": 1, "unmanaged": 0, "lag": 12.4,
        "replicas": [
            {"name": "a", "role": "active", "reachable": True, "message": ""},
            {"name": "b", "role": "standby", "reachable": True, "message": ""},
        ],
    }  # fmt: skip
    return made | changes


def shown(**changes: Any) -> str:
    return printed(lambda console: tables.exports(console, {"exports": [export(**changes)]}))


def test_a_narrow_terminal_wraps_lines_and_folds_no_cell() -> None:
    console = Console(file=io.StringIO(), width=40, no_color=True)
    tables.exports(console, {"exports": [export(name="a-long-name-of-an-export", message="word " * 20)]})
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "a-long-name-of-an-export" in lines[2] and lines[2].rstrip().endswith("a active, b standby")
    assert len(lines) > 4 and all(len(line) <= 40 for line in lines[3:]), "what is said is wrapped between words"


def test_a_healthy_pair_takes_one_line() -> None:
    lines = shown().splitlines()
    assert len(lines) == 3  # head, rule, row
    assert lines[2].split() == [
        "web",
        "Ready",
        "a",
        "12s",
        "5Gi",
        "5Gi",
        "█████░░░░░",
        "50%",
        "1Gi",
        "10Gi",
        "2",
        "1",
        "a",
        "active,",
        "b",
        "standby",
    ]


def test_an_unreachable_replica_cannot_be_missed() -> None:
    replicas = [{"name": "a", "role": "active", "reachable": False, "message": "no answer"}]
    assert "a active UNREACHABLE" in shown(replicas=replicas)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"message": "two strangers: accept one"}, "web: two strangers: accept one"),
        ({"mirror": True}, "a mirror"),
        ({"unmanaged": 3}, "3 entries at its root belong to no volume"),
        ({"active": "", "capacity": None, "used": None, "available": None, "unmanaged": None}, " - "),
    ],
)
def test_what_a_person_should_know_is_said(changes: Json, says: str) -> None:
    assert says in shown(**changes)


def test_messages_are_not_taken_for_markup() -> None:
    """A path like [red] in a message, or a message that ends a style, is text."""
    assert "replica [a]: /exports/[/red]: gone" in shown(message="replica [a]: /exports/[/red]: gone")


def volume(**changes: Any) -> Json:
    made: Json = {
        "namespace": "shop", "claim": "data", "export": "web", "directory": "shop-data", "requested": 1 << 30,
        "state": "live", "phase": "Bound", "volume": "pvc-1", "lag": 5.0, "message": "", "used": 1 << 20, "inodes": 3,
    }  # fmt: skip
    return made | changes


def test_a_volumes_state_is_its_pvs_phase_until_something_is_wrong() -> None:
    rows = [volume(), volume(state="orphaned", phase=""), volume(phase="Released")]
    lines = printed(lambda console: tables.volumes(console, rows)).splitlines()[2:]
    assert [line.split()[9] for line in lines] == ["Bound", "orphaned", "Released"]


BARS = [
    (None, 1 << 30, "-"),
    (1, None, "-"),
    (1, 0, "-"),
    (0, 100, "░░░░░░░░░░   0%"),
    (1, 1000, "█░░░░░░░░░   0%"),
    (50, 100, "█████░░░░░  50%"),
    (51, 100, "██████░░░░  51%"),
    (999, 1000, "█████████░ 100%"),
    (100, 100, "██████████ 100%"),
    (5000, 100, "██████████5000%"),
]


@pytest.mark.parametrize(("part", "whole", "bar"), BARS)
def test_a_bar_is_empty_for_nothing_and_full_for_everything_only(part: int | None, whole: int | None, bar: str) -> None:
    assert tables.bar(Console(file=io.StringIO()), part, whole).plain == bar


def test_where_there_are_no_blocks_a_bar_is_made_of_letters() -> None:
    written = io.BytesIO()
    output = io.TextIOWrapper(written, encoding="ascii")
    console = Console(file=output, width=10_000)
    tables.volumes(console, [volume(used=1 << 29)])
    output.flush()
    assert "#####.....  50%" in written.getvalue().decode("ascii")


def test_volumes_are_sorted_by_what_they_take_and_the_unknown_come_last() -> None:
    used = {"a": 0, "b": None, "c": 2, "d": 1 << 40, "e": 2, "f": None}
    rows = tables.by_use([volume(claim=claim, used=size) for claim, size in reversed(used.items())])
    assert [row["claim"] for row in rows] == ["d", "c", "e", "a", "b", "f"]


def test_a_volume_says_what_it_takes_of_what_was_requested() -> None:
    row = printed(lambda console: tables.volumes(console, [volume(used=1610612736, inodes=12)])).splitlines()[2]
    assert row.split()[2:8] == ["1.5Gi", "1Gi", "██████████", "150%", "12", "web"]
    unknown = printed(lambda console: tables.volumes(console, [volume(used=None, inodes=None)])).splitlines()[2]
    assert unknown.split()[2:7] == ["-", "1Gi", "-", "-", "web"]


@pytest.mark.parametrize("directory", ["a[b]c", "team [/bold] x", "[link=http://evil]x", "ä ü 漢字"])
def test_h19_what_tenants_choose_is_shown_as_it_is(directory: str) -> None:
    assert directory in printed(lambda console: tables.volumes(console, [volume(directory=directory)]))
    archive = {
        "export": "web", "name": f"archived-{directory}", "namespace": "shop", "claim": "data", "state": "archived",
        "since": "2026-01-01T00:00:00Z", "requested": 1, "retention": None,
    }  # fmt: skip
    assert f"archived-{directory}" in printed(lambda console: tables.archives(console, [archive]))


@pytest.mark.parametrize(("seconds", "kept"), [(None, "for ever"), (86400.0, "1 days"), (43200.0, "0.5 days")])
def test_an_archive_says_how_long_it_is_kept(seconds: float | None, kept: str) -> None:
    archive = {
        "export": "web", "name": "archived-x", "namespace": "shop", "claim": "data", "state": "archived",
        "since": "2026-01-01T00:00:00Z", "requested": 1, "retention": seconds,
    }  # fmt: skip
    assert kept in printed(lambda console: tables.archives(console, [archive]))
