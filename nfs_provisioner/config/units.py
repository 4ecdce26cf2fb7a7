"""Durations, percentages and quantities: text to numbers and back.

Responsible for the three notations that configuration and Kubernetes objects share. Must not know which field it
reads: the caller adds file, line and key to the error. Invariant: a value is either exact or refused, never rounded
down and never clipped; quantities are exact integers of bytes (a fraction of a byte counts as a whole one).
"""

from __future__ import annotations

import re
from fractions import Fraction

from nfs_provisioner.config.text import shown
from nfs_provisioner.errors import InvalidInput

# The same patterns stand in the CRD's schema, so that the API server refuses what would be refused here.
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"
PERCENT_PATTERN = r"^(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)%$"
QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,3})?$"

# Beyond this, waits and dates overflow; nobody means it.
_LONGEST_DURATION = 36_500 * 86_400
# What int64 holds: the largest size the API and every file system know.
_LARGEST_QUANTITY = 2**63 - 1
_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BINARY = {suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_FACTORS = {"": Fraction(1)} | {suffix: Fraction(factor) for suffix, factor in _BINARY.items()}
_FACTORS |= {suffix: Fraction(1, 1000**power) for power, suffix in enumerate("mun", start=1)}
_FACTORS |= {suffix: Fraction(1000**power) for power, suffix in enumerate("kMGTPE", start=1)}

_duration = re.compile(DURATION_PATTERN.strip("^$"))
_duration_part = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_percent = re.compile(PERCENT_PATTERN.strip("^$"))
_quantity = re.compile(QUANTITY_PATTERN.strip("^$"))
# Longer numbers are typing errors at best, and cost time to convert at worst.
_LONGEST_TEXT = 64


def parse_duration(text: object) -> float:
    """Seconds in a duration such as `15s`, `1h30m`, `500ms` or `7d` (Go's notation and days). Raises InvalidInput."""
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT or not _duration.fullmatch(text):
        raise InvalidInput(f"{shown(text)} is not a duration; write numbers with units, such as 15s, 5m, 1h30m or 7d")
    parts = _duration_part.findall(text)
    seconds = sum((Fraction(number) * _MILLISECONDS[unit] for number, unit in parts), start=Fraction(0)) / 1000
    if seconds > _LONGEST_DURATION:
        raise InvalidInput(f"{shown(text)} is longer than a hundred years; write 36500d or less")
    return float(seconds)


def parse_percent(text: object) -> float:
    """The share in a percentage: `20%` is 0.2. Raises InvalidInput for anything outside 0% to 100%."""
    return float(parse_share(text))


def parse_share(text: object) -> Fraction:
    """As parse_percent, exactly."""
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT or not _percent.fullmatch(text):
        raise InvalidInput(f"{shown(text)} is not a percentage; write one from 0% to 100%, such as 20%")
    return Fraction(text[:-1]) / 100


def parse_quantity(value: object) -> int:
    """Bytes in a Kubernetes quantity: `10Gi`, `5G`, `1e3`, `0.5Ti`, 4096. A fraction of a byte is rounded up.

    Follows k8s.io/apimachinery/pkg/api/resource: `E` alone is exa, `E` before digits an exponent; `K` is not a suffix.
    Raises InvalidInput for anything else, for negative values, and for what int64 cannot hold.
    """
    size = _exact_quantity(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    if size > _LARGEST_QUANTITY:
        raise InvalidInput(f"{shown(value)} is more than a size can be; write less than 8Ei")
    return -(-size.numerator // size.denominator)


def capped_quantity(value: object) -> int:
    """As parse_quantity, but as the API server reads its objects: what int64 cannot hold is the most that it can."""
    size = _exact_quantity(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    return min(-(-size.numerator // size.denominator), _LARGEST_QUANTITY)


def _exact_quantity(value: object) -> Fraction:
    match = _quantity.fullmatch(value) if isinstance(value, str) and len(value) <= _LONGEST_TEXT else None
    if match is None:
        raise InvalidInput(
            f"{shown(value)} is not a quantity; write a number, not negative, and perhaps a unit, such as 10Gi or 5G"
        )
    number = Fraction(match[1])
    suffix: str = match[3] or ""
    factor = _FACTORS.get(suffix)
    if factor is None:
        exponent = int(suffix[1:])
        factor = Fraction(10**exponent) if exponent >= 0 else Fraction(1, 10**-exponent)
    return number * factor


def format_quantity(size: int) -> str:
    """The shortest exact quantity with a binary unit: 1073741824 is `1Gi`, 1000 is `1000`."""
    for suffix, factor in reversed(_BINARY.items()):
        if size and size % factor == 0:
            return f"{size // factor}{suffix}"
    return str(size)


def rough_size(number: int | None) -> str:
    """A size for people, with three digits at the most; `-` when it is not known."""
    if number is None:
        return "-"
    value, units = float(number), ("B", "Ki", "Mi", "Gi", "Ti", "Pi")
    unit = units[0]
    for unit in units:
        if abs(value) < 1024 or unit == units[-1]:
            break
        value /= 1024
    return f"{value:.0f}{unit}" if abs(value) >= 10 or value == int(value) else f"{value:.1f}{unit}"
