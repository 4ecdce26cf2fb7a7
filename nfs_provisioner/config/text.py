"""How values and suggestions are written in messages.

Responsible for quoting what somebody wrote, shortened, so that a message stays one line whatever the value was.
Must not decide what is right or wrong. Invariant: the result is bounded in length and printable.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

_quote = reprlib.Repr()
_quote.maxstring = 100
_quote.maxother = 100
_quote.maxlevel = 2
_quote.maxdict = 3
_quote.maxlist = 3


def shown(value: object) -> str:
    """`value` as it should appear in a message: quoted, on one line, cut in the middle when long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return _quote.repr(value)


def listed(choices: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest known word, or which words there are when none is near."""
    words = list(known)
    by_lower = {known_word.lower(): known_word for known_word in words}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_lower[near[0]]}?"
    return f"; known are {', '.join(words)}" if words else ""
