"""Kubernetes quantities ("1.5Gi", "100m", "2e3"): exact values and the canonical text. Pure.

The rules are those of k8s.io/apimachinery/pkg/api/resource/quantity.go.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}
_FORM = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)$")


def parse(text: object) -> Fraction:
    """Raises ValueError for anything that is not a quantity."""
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise ValueError(f"not a quantity: {text!r}")
    number, exponent, suffix = match.groups()
    if exponent is not None:
        return Fraction(number) * Fraction(10) ** int(exponent)
    return Fraction(number) * _SUFFIXES[suffix or ""]


def canonical(text: object) -> str:
    """The text the API server answers with: "1024Mi" becomes "1Gi", "0.5" becomes "500m". Raises ValueError."""
    value = parse(text)
    match = _FORM.fullmatch(str(text))
    assert match is not None
    _, exponent, suffix = match.groups()
    if (suffix or "").endswith("i") and abs(value) >= 1024:
        return _shortest(ceil(value), 1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
    if exponent is not None:
        return _shortest(ceil(value * 10**9), 1000, ["e-9", "e-6", "e-3", "", "e3", "e6", "e9", "e12", "e15", "e18"])
    return _shortest(ceil(value * 10**9), 1000, ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"])


def _shortest(number: int, base: int, suffixes: list[str]) -> str:
    """The largest suffix that leaves an integer."""
    if number == 0:
        return "0"
    place = 0
    while number % base == 0 and place < len(suffixes) - 1:
        number //= base
        place += 1
    return f"{number}{suffixes[place]}"
