"""What a controller and the child process of a pair say to each other. Types, and the counters they share."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfs_provisioner.export.records import Identity
from nfs_provisioner.export.syncrecord import SyncRecord
from nfs_provisioner.export.usage import Usage

if TYPE_CHECKING:  # the engine is the child's
    pass

DOUBT = "ReplicaDoubted"  # reason of an error that says: a side is not the one that was proven
ROLLED_BACK = "ActiveRolledBack"  # of one that says: the standby's copy is newer than the active side
FOREIGN = "ForeignWrites"  # of one that says: somebody else writes to the standby
UNWRITABLE = "StandbyUnwritable"  # of one that says: the standby is read-only, or takes no more
WHOLE = frozenset({DOUBT, ROLLED_BACK, UNWRITABLE, "TargetFull", "TargetReadOnly"})
"""Reasons of errors that end the pass of one volume and concern all of them; the last two are the engine's."""
SHOWN = 20  # names of files that a report carries; the counts are whole


class Beat:
    """Counters shared with the parent, one for each connection: one that stands still is a pass that hangs."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("beat") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._counts = memoryview(mmap.mmap(self.fd, mmap.PAGESIZE)).cast("Q")

    def bump(self, slot: int) -> None:
        """It goes on."""
        self._counts[slot] += 1

    def count(self, slot: int) -> int:
        """To be compared with the next look."""
        return self._counts[slot]

    def close(self) -> None:
        """Give the descriptor back; the counters can still be read."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Expected:
    """Who the two sides were when the pair was judged."""

    active: Identity
    standby: Identity


@dataclass(frozen=True, slots=True)
class Found:
    """What a child found when it opened the pair: what the standby says of its copies, by the name of its file."""

    local: bool
    promotion: str
    records: dict[str, SyncRecord]
    lacks: tuple[str, ...] = ()  # what the standby cannot hold, and no copy there has


@dataclass(frozen=True, slots=True)
class Request:
    """One pass. `delete_limit`: share of the volume's entries, None: no limit.

    `allowed`: deletions that a person confirmed; then what was found there that somebody else wrote may go as well.
    `deleted`, `entries`: how many went lately, and of how many (0: not known); they count with what is to go now.
    """

    pv: str
    rev: int
    only: frozenset[str] | None = None
    delete_limit: float | None = 0.2
    allowed: int = 0
    deleted: int = 0
    entries: int = 0
    refresh: float = 60.0  # seconds after which the base of a copy that stays clean is written anew
    clock: int | None = None  # ns to add to CLOCK_BOOTTIME for the source's clock; None: it is this machine's


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass went. Names are capped, counts are not."""

    clean: bool
    began: int  # ns of the source's clock
    copied_files: int = 0
    copied_bytes: int = 0
    deleted: int = 0  # names, each with what lay below it
    deleted_entries: int = 0  # all of them; with those of earlier passes that failed
    entries: int = 0  # of the source, as far as the pass looked
    usage: Usage | None = None  # of the active side, when this pass saw all that is to be known of it
    unstable: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    different: tuple[str, ...] = ()
    unstable_count: int = 0
    skipped_count: int = 0
    deferred: int = 0
    waiting: int = 0
    foreign: tuple[str, ...] = ()
    foreign_count: int = 0
