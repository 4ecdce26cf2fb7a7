"""Durations, percentages and quantities."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from nfs_provisioner.config import capped_quantity, format_quantity, parse_duration, parse_percent, parse_quantity
from nfs_provisioner.config.export import OVERCOMMIT_PATTERN
from nfs_provisioner.config.text import did_you_mean, listed, shown
from nfs_provisioner.config.units import DURATION_PATTERN, PERCENT_PATTERN, parse_share
from nfs_provisioner.errors import EXIT_USAGE, InvalidInput

CRD = Path(__file__).resolve().parents[2] / "manifests" / "crd.yaml"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15.0),
        ("5m", 300.0),
        ("24h", 86400.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        ("7d", 604800.0),
        ("1.5h", 5400.0),
        ("1m0.25s", 60.25),
        ("0s", 0.0),
        ("36500d", 3153600000.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


NO_DURATIONS = [
    "",
    "15",
    "-5m",
    "+5m",
    "5 m",
    " 5m",
    "5m ",
    "5m\n",
    "5 minutes",
    "1h-5m",
    ".5s",
    "5.s",
    "5S",
    "s",
    "٥s",
    "1w",
]


@pytest.mark.parametrize("value", [*NO_DURATIONS, 15, 1.5, None, True, [], "36501d", "9" * 400 + "s"])
def test_what_is_not_a_duration(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"write .*\d[smhd]") as caught:
        parse_duration(value)
    assert caught.value.exit_code == EXIT_USAGE
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("text", "share"), [("20%", 0.2), ("0%", 0.0), ("100%", 1.0), ("0.5%", 0.005), ("100.0%", 1.0)]
)
def test_percentages(text: str, share: float) -> None:
    assert parse_percent(text) == share


def test_a_share_is_exact() -> None:
    assert parse_share("0.1%") == Fraction(1, 1000)


@pytest.mark.parametrize(
    "value", ["20", "-1%", "101%", "100.1%", "1000%", "20 %", "%", "", ".5%", "5%\n", 20, 0.2, None, "²%"]
)
def test_what_is_not_a_percentage(value: object) -> None:
    with pytest.raises(InvalidInput, match="such as 20%"):
        parse_percent(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("0", 0),
        ("1", 1),
        (4096, 4096),
        ("1Ki", 1024),
        ("1Mi", 1024**2),
        ("10Gi", 10 * 1024**3),
        ("0.5Ti", 1024**4 // 2),
        ("1Pi", 1024**5),
        ("7Ei", 7 * 1024**6),
        ("1k", 1000),
        ("5M", 5_000_000),
        ("5G", 5_000_000_000),
        ("5T", 5 * 10**12),
        ("5P", 5 * 10**15),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e3", 1000),
        ("1e+3", 1000),
        ("1500e-1", 150),
        ("1.5e1", 15),
        ("1m", 1),
        ("1000m", 1),
        ("1001m", 2),
        ("1n", 1),
        ("2000000u", 2),
        ("1.", 1),
        (".5Ki", 512),
        ("0.1", 1),
        # Binary floating point gives 8466507203 for this one: 7.885Gi is 8466454282.24.
        ("7.885Gi", 8466454283),
        # More digits than a double has.
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775.807k", 2**63 - 1),
    ],
)
def test_quantities(value: object, size: int) -> None:
    assert parse_quantity(value) == size


NO_QUANTITIES = [
    "",
    "-1",
    "-1Gi",
    "1K",
    "1KI",
    "1ki",
    "1 Gi",
    " 1Gi",
    "1Gi\n",
    "Gi",
    "ten",
    "1e",
    "1e1000000000",
    "1,5Gi",
    "0x10",
    "١Gi",
]


@pytest.mark.parametrize("value", [*NO_QUANTITIES, "8Ei", "1e30", 2**63, -1, 1.5, None, True, [], "1" * 70])
def test_what_is_not_a_quantity(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"quantity|size can be"):
        parse_quantity(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1000, "1000"),
        (1023, "1023"),
        (1024, "1Ki"),
        (1025, "1025"),
        (1536, "1536"),
        (1024**2 * 3, "3Mi"),
        (1073741824, "1Gi"),
        (500 * 1024**3, "500Gi"),
        (1024**4, "1Ti"),
        (7 * 1024**6, "7Ei"),
        (10**10, "9765625Ki"),
    ],
)
def test_quantities_are_written_with_the_largest_unit_that_divides(size: int, text: str) -> None:
    assert format_quantity(size) == text


def test_the_crd_has_the_same_patterns() -> None:
    crd = CRD.read_text()
    for pattern in (DURATION_PATTERN, PERCENT_PATTERN, OVERCOMMIT_PATTERN):
        assert f"'{pattern}'".replace("\\.", "[.]") in crd


def test_messages_stay_short_and_on_one_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10_000)) < 120
    # Shared and nested, this one has a billion elements when it is written out.
    many: list[object] = ["x"]
    for _ in range(9):
        many = [many] * 10
    assert len(shown(many)) < 400
    assert [shown(value) for value in (None, True, 5)] == ["null", "true", "5"]


def test_suggestions() -> None:
    assert did_you_mean("renewDeadlin", ["enabled", "renewDeadline"]) == "; did you mean renewDeadline?"
    assert did_you_mean("ONDELETE", ["onDelete", "uid"]) == "; did you mean onDelete?"
    assert did_you_mean("xyz", ["onDelete", "uid"]) == "; known are onDelete, uid"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b or c"


@pytest.mark.parametrize("text", ["8Ei", "9Ei", "1e30", "9223372036854775808"])
def test_a_size_beyond_int64_is_refused_where_a_person_writes_it_and_capped_where_the_api_has_it(text: str) -> None:
    """As k8s.io/apimachinery/pkg/api/resource caps it."""
    assert capped_quantity(text) == 2**63 - 1
    with pytest.raises(InvalidInput, match="8Ei"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["0", "10Gi", "0.5", "1e3", "9223372036854775807"])
def test_any_other_size_is_the_same_capped(text: str) -> None:
    assert capped_quantity(text) == parse_quantity(text)
