"""sync/<pv>.json on a standby: how far its copy of a volume is. Pure: dataclasses and their JSON.

`base` is the last clean pass, `under_way` the pass that may have left the copy between two states. Invariant: a record
that cannot be read counts as none: everything is compared again, nothing is lost by that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class Base:
    """The last clean pass: whose promotion, the active's seq, when it began (ns of the source's clock), the record's
    rev."""

    promotion: str
    seq: int
    as_of: int
    rev: int


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A pass that has written, or may have. `began` is ns of the controller's clock, for people."""

    seq: int
    began: int


@dataclass(frozen=True, slots=True)
class SyncRecord:
    """`missed`: paths whose deletion was deferred. `unstable`: files that never held still (both capped).

    `wrote`: when a pass last wrote in the copy, by the standby's clock (ns); None: never, or nobody knows, because a
    pass did not come to its end. `foreign`: what somebody else wrote there (capped).
    """

    base: Base | None = None
    under_way: UnderWay | None = None
    missed: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    waiting: int = 0
    wrote: int | None = None
    foreign: tuple[str, ...] = ()

    @property
    def seq(self) -> int:
        """The newest state of the active that this copy has anything of."""
        return max(0 if self.base is None else self.base.seq, 0 if self.under_way is None else self.under_way.seq)


def encode_sync(record: SyncRecord) -> bytes:
    """Names may hold any bytes: lone surrogates are written as escapes."""
    base, passing = record.base, record.under_way
    raw = {
        "version": VERSION,
        "base": None
        if base is None
        else {"promotion": base.promotion, "seq": base.seq, "asOf": base.as_of, "rev": base.rev},
        "pass": None if passing is None else {"seq": passing.seq, "began": passing.began},
        "missed": list(record.missed),
        "unstable": list(record.unstable),
        "waiting": record.waiting,
        "wrote": record.wrote,
        "foreign": list(record.foreign),
    }
    return (json.dumps(raw) + "\n").encode()


def decode_sync(data: bytes | None) -> SyncRecord:
    """What it says; nothing known, when it is missing, damaged or of another version."""
    try:
        raw: Any = json.loads(data or b"")
        if raw["version"] != VERSION:
            return SyncRecord()
        base, passing = raw["base"], raw["pass"]
        return SyncRecord(
            base=None
            if base is None
            else Base(str(base["promotion"]), int(base["seq"]), int(base["asOf"]), int(base["rev"])),
            under_way=None if passing is None else UnderWay(int(passing["seq"]), int(passing["began"])),
            missed=tuple(map(str, raw["missed"])),
            unstable=tuple(map(str, raw["unstable"])),
            waiting=int(raw["waiting"]),
            wrote=None if raw.get("wrote") is None else int(raw["wrote"]),
            foreign=tuple(map(str, raw.get("foreign", ()))),
        )
    except (ValueError, KeyError, TypeError):
        return SyncRecord()


def encode_directories(as_of: int, directories: Mapping[str, tuple[int, int | str]]) -> bytes:
    """sync/<pv>.dirs.json: which directory was which on the source, at the clean pass that began then."""
    return (json.dumps({"version": VERSION, "asOf": as_of, "directories": directories}) + "\n").encode()


def decode_directories(data: bytes | None, as_of: int) -> dict[str, tuple[int, int | str]]:
    """Empty when it is not of that pass, or cannot be read: then nothing is recognised as renamed."""
    try:
        raw: Any = json.loads(data or b"")
        if raw["version"] == VERSION and raw["asOf"] == as_of:
            return {str(path): (int(inode), other) for path, (inode, other) in raw["directories"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}
