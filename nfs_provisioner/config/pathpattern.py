"""The syntax of pathPattern.

Responsible for splitting a pattern into literal text and variables, and for refusing at once what no claim could ever
make right. Must not see a claim: export/paths.py puts the names in. Invariant: a PathPattern's parts, with any values,
concatenate to what its text means; no `${` is ever left as literal text.

nfs-subdir-external-provisioner replaces whatever stands in `${.PVC.` and `}` and is not known to it (a space inside the
braces is enough) by nothing, and leaves every other `${` as it is. Here both are refused.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from nfs_provisioner.config.fields import is_qualified_name
from nfs_provisioner.config.text import did_you_mean, shown
from nfs_provisioner.errors import InvalidInput

DEFAULT_PATH_PATTERN = "${.PVC.namespace}-${.PVC.name}-${.PV.name}"

VariableKind = Literal["namespace", "name", "label", "annotation", "pv"]

_PLAIN: dict[str, VariableKind] = {".PVC.namespace": "namespace", ".PVC.name": "name", ".PV.name": "pv"}
_KEYED: dict[str, VariableKind] = {".PVC.labels.": "label", ".PVC.annotations.": "annotation"}
_EXAMPLES = (*_PLAIN, *(f"{prefix}KEY" for prefix in _KEYED))
_variable = re.compile(r"\$\{([^}]*)\}")
_LONGEST_PATTERN = 4096


@dataclass(frozen=True, slots=True)
class Variable:
    """A place in a pattern that a claim fills; `key` is the label's or annotation's."""

    kind: VariableKind
    key: str = ""


@dataclass(frozen=True, slots=True)
class PathPattern:
    text: str
    parts: tuple[str | Variable, ...]


@functools.lru_cache(maxsize=256)
def parse_pattern(text: str) -> PathPattern:
    """The parts of a pattern. Raises InvalidInput for what is wrong whatever the claim."""
    if not text:
        raise InvalidInput(
            f"the pattern is empty: the directory would be the export itself; write {DEFAULT_PATH_PATTERN}"
        )
    if len(text) > _LONGEST_PATTERN:
        raise InvalidInput(f"{shown(text)} is longer than {_LONGEST_PATTERN} characters; no path is")
    parts: list[str | Variable] = []
    # Odd elements are what stood between the braces.
    for index, piece in enumerate(_variable.split(text)):
        if index % 2:
            parts.append(_parse_variable(piece, text))
        elif piece:
            parts.append(_checked_literal(piece, text))
    _check_shape(parts, text)
    return PathPattern(text, tuple(parts))


def _parse_variable(name: str, pattern: str) -> Variable:
    if name in _PLAIN:
        return Variable(_PLAIN[name])
    for prefix, kind in _KEYED.items():
        if name.startswith(prefix):
            key = name.removeprefix(prefix)
            if not is_qualified_name(key):
                raise InvalidInput(f"{shown(pattern)}: {shown(key)} cannot be the key of a label or annotation")
            return Variable(kind, key)
    raise InvalidInput(f"{shown(pattern)}: unknown variable ${{{name}}}{did_you_mean(name, _EXAMPLES)}")


def _checked_literal(piece: str, pattern: str) -> str:
    # A stray one is a mistyped variable, and would put every claim into one literal directory.
    for character in piece:
        if character in "${}":
            raise InvalidInput(f"{shown(pattern)}: {shown(character)} stands outside of ${{...}}; write ${{.PVC.name}}")
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InvalidInput(f"{shown(pattern)} has control characters in it; remove them")
    return piece


def _check_shape(parts: list[str | Variable], pattern: str) -> None:
    # A variable stands for at least one character, so an "x" shows which components can never be right.
    components = "".join(part if isinstance(part, str) else "x" for part in parts).split("/")
    if not components[0]:
        raise InvalidInput(f"{shown(pattern)} starts with '/'; a pattern is relative to the export: leave the '/' out")
    if any(component in ("", ".", "..") for component in components):
        raise InvalidInput(f"{shown(pattern)} has an empty, '.' or '..' component (or a '/' at its end); remove it")
