"""What a person asks of an export: the annotation `nfs-provisioner.io/request`. Pure.

The text is `<verb> <arguments> epoch=<n>`, with ` at=<anything>` behind it to ask for the same thing once more. A
request of another epoch is refused, so that nothing replayed by GitOps acts twice. What was answered stands in
`status.lastHandledRequest`; a text that stands there already is not handled again. A name with spaces (a pathPattern
may give an archive one) stands in quotes, as a shell's.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from nfs_provisioner.errors import InvalidInput, RefusedForSafety

_SHAPES = {
    "archives purge": "archives purge NAME epoch=N",
    "accept": "accept --replica NAME epoch=N",
    "confirm-deletions": "confirm-deletions VOLUME epoch=N",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was understood. `verb` is one of _SHAPES; `name` the archive, the replica or the volume's PV."""

    verb: str
    name: str
    epoch: int


def compose(verb: str, name: str, epoch: int, at: str) -> str:
    """The annotation's text."""
    argument = f"--replica {shlex.quote(name)}" if verb == "accept" else shlex.quote(name)
    return f"{verb} {argument} epoch={epoch} at={at}"


def parse(text: str, *, epoch: int) -> Request:
    """Understand a request. InvalidInput when it cannot be; RefusedForSafety when it is of another epoch than now."""
    words = _words(text)
    options = dict(word.split("=", 1) for word in words if word.startswith(("epoch=", "at=")))
    plain = [word for word in words if not word.startswith(("epoch=", "at="))]
    verb, arguments = _verb(text, plain)
    if len(arguments) != 1:
        raise InvalidInput(f"request {text!r}: expected {_SHAPES[verb]!r}")
    if not options.get("epoch", "").isdigit():
        raise InvalidInput(f"request {text!r}: epoch is missing; expected {_SHAPES[verb]!r} (the export's is {epoch})")
    asked = int(options["epoch"])
    if asked != epoch:
        raise RefusedForSafety(
            f"request {text!r} is of epoch {asked}, the export is at {epoch}: it may be an old one that was applied "
            "again. If it is meant, write it with the present epoch."
        )
    return Request(verb, arguments[0], asked)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a lone quote is a part of the name
        return text.split()


def _verb(text: str, plain: list[str]) -> tuple[str, list[str]]:
    if plain[:2] == ["archives", "purge"]:
        return "archives purge", plain[2:]
    if plain[:2] == ["accept", "--replica"]:
        return "accept", plain[2:]
    if plain[:1] == ["accept"] and len(plain) == 2 and plain[1].startswith("--replica="):
        return "accept", [plain[1].removeprefix("--replica=")]
    if plain[:1] == ["confirm-deletions"]:
        return "confirm-deletions", plain[1:]
    known = "; ".join(repr(shape) for shape in _SHAPES.values())
    raise InvalidInput(f"request {text!r} is not understood; known are {known}")
