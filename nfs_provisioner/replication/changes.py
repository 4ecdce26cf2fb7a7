"""Compares one directory on both sides: what to copy, to look into, to link, to descend into, and what is surplus.

Only reads; chooses by `entries.decide`. Keeps: a surplus name is only a candidate for deletion, and the listing says
whether it may have missed names; what cannot be looked at is an error with its name, and stops nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.entries import (
    FULL,
    MARGIN_NS,
    Action,
    DirectoryId,
    Rules,
    decide,
    fingerprint,
    is_silly,
)
from nfs_provisioner.replication.usage import DirectoryUsage, Linked

SMALL = 20_000
"""A directory of more entries is compared in parts, so that what lstat says of a million entries is never all held."""

MOUNTED = "something is mounted here: a copy ends at mount points"

Found = tuple[str, os.stat_result, os.stat_result | None]
"""A name, and what lstat says of it on the source and on the target."""


class TargetError(OSError):
    """The target's side of a directory cannot be opened or listed; a plain OSError is the source's."""


@dataclass(slots=True)
class Unit:
    """A directory that the target lacks, staged with its own files; `obstacle`: something else lies in its place."""

    path: str
    staged: str
    fd: int
    obstacle: bool
    failed: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """One directory, open on both sides. `target` is None where that side lacks it; `unit` then collects its copy.

    `users` counts the tasks that still need the descriptors; `rules` is what its entries are compared by. The rest sums
    up what the source has here.
    """

    path: str
    source: int
    target: int | None
    found: os.stat_result
    rules: Rules
    unit: Unit | None = None
    users: int = 1
    blocks: int = 0
    inodes: int = 1
    linked: list[Linked] = field(default_factory=list)
    below: list[str] = field(default_factory=list)

    def add(self, found: Changes) -> None:
        """What a part of it takes."""
        self.blocks += found.blocks
        self.inodes += found.entries - found.apart
        self.linked += found.several
        self.below += [name for name, _, _ in found.directories]

    @property
    def usage(self) -> DirectoryUsage:
        """What it takes, as far as its parts were added."""
        return DirectoryUsage(self.found.st_blocks + self.blocks, self.inodes, tuple(self.linked), tuple(self.below))

    def close(self) -> None:
        """Give back the descriptors."""
        os.close(self.source)
        if self.target is not None:
            os.close(self.target)


@dataclass(slots=True)
class Changes:
    """What is due in one directory, or in a part of it; and the sums over the source entries that were looked at."""

    copies: list[Found] = field(default_factory=list)
    inspections: list[Found] = field(default_factory=list)
    linked: list[Found] = field(default_factory=list)
    directories: list[Found] = field(default_factory=list)
    obstacles: list[Found] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, OSError]] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    entries: int = 0
    files: int = 0
    bytes: int = 0
    blocks: int = 0
    """512-byte units of what has one link only: directories and sets of links count by themselves, as in `apart`."""
    apart: int = 0
    several: list[Linked] = field(default_factory=list)


@dataclass(slots=True)
class Survey:
    """One directory as found. `remaining` are source names that are yet to be compared, in parts.

    `was` is what fstat says of the target's directory, `targets` the number of its entries, `surplus` those that the
    source lacks, `lacking` those of `remaining` that the target lacks.
    """

    place: Place
    was: os.stat_result | None
    identity: DirectoryId | None
    settled: bool
    surplus: list[str]
    targets: int
    changes: Changes
    remaining: set[str]
    lacking: set[str]


def survey(
    source: int,
    target: int,
    path: str,
    target_path: str | None,
    rules: Rules,
    skip: frozenset[str],
    beat: Callable[[], None],
    *,
    known: DirectoryId | None,
    distant: bool,
) -> Survey:
    """Open and list the directory on both sides, and compare it unless it is large or `distant`.

    `target_path` is None where the target lacks it. `known`: which directory of the source the target's is a copy of;
    of any other, everything is compared in depth, because its files came with it, old times and all. OSError
    (TargetError) when a side cannot be opened or listed; EXDEV for a mount point. `beat` is called now and then.
    """
    fd, found_here = tree.open_and_look(source, path)
    place = Place(path, fd, None, found_here, rules)
    small = 0 if distant else SMALL
    try:
        if place.found.st_dev != rules.device:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        ours = tree.list_directory(fd, with_stats_below=small, until_settled=True, beat=beat)
        place.found = os.fstat(fd)
        identity = tree.directory_id(fd)
        if target_path is not None and rules.base is not None and identity is not None and identity != known:
            rules = rules.strict
        place.rules = rules
        found = Survey(place, None, identity, ours.settled, [], 0, Changes(), set(), set())
        if target_path is not None:
            with _of_target(path):
                place.target = tree.open_directory(target, target_path)
                found.was = os.fstat(place.target)
        _match(found, ours, rules, skip, beat)
        return found
    except BaseException:
        place.close()
        raise


@contextlib.contextmanager
def _of_target(path: str) -> Iterator[None]:
    """OSErrors raised within are the target's."""
    try:
        yield
    except OSError as error:
        raise TargetError(error.errno, error.strerror, path) from error


def _match(found: Survey, ours: tree.Listing, rules: Rules, skip: frozenset[str], beat: Callable[[], None]) -> None:
    """List the target's side, and compare, if both sides are small."""
    target = found.place.target
    with _of_target(found.place.path):
        if ours.stats is None:
            _match_names(found, ours.names, tree.names_of(target, beat) if target is not None else (), skip)
            return
        theirs = tree.Listing(stats={})
        if target is not None:
            theirs = tree.list_directory(target, with_stats_below=SMALL, until_settled=False, beat=beat)
    if theirs.stats is None:
        _match_names(found, set(ours.stats), theirs.names, skip)
        return
    for name in skip:
        ours.stats.pop(name, None)
        theirs.stats.pop(name, None)
    compare(ours.stats, theirs.stats, rules, found.changes)
    found.surplus = [name for name in theirs.stats if name not in ours.stats]
    found.targets = len(theirs.stats)


def _match_names(found: Survey, mine: set[str], others: Iterable[str], skip: frozenset[str]) -> None:
    """By names alone, the target's as they come: of a million, one copy is in memory."""
    mine -= skip
    lacking = set(mine)
    for name in others:
        if name in lacking:
            lacking.remove(name)
        elif name in mine or name in skip:
            continue
        else:
            found.surplus.append(name)
        found.targets += 1
    found.remaining, found.lacking = mine, lacking


def compare_names(place: Place, names: Iterable[str], lacking: set[str], rules: Rules) -> Changes:
    """The part of a large or distant directory that these names are; `lacking` are those that the target lacks."""
    changes = Changes()
    ours: dict[str, os.stat_result] = {}
    theirs: dict[str, os.stat_result] = {}
    for name in names:
        try:
            mine = tree.look(place.source, name)
            if mine is None:
                changes.vanished.append(name)
                continue
            if (
                place.target is not None
                and name not in lacking
                and (other := tree.look(place.target, name)) is not None
            ):
                theirs[name] = other
            ours[name] = mine
        except OSError as error:
            changes.errors.append((name, error))
    compare(ours, theirs, rules, changes)
    return changes


def compare(
    ours: Mapping[str, os.stat_result], theirs: Mapping[str, os.stat_result], rules: Rules, changes: Changes
) -> None:
    """Sort what differs into `changes`. The loop that a pass with nothing changed consists of: keep it tight."""
    quick = rules.holds == FULL and not rules.checksum and (rules.base is not None or rules.one_clock)
    due = rules.base - MARGIN_NS if rules.base is not None else None
    file, kind_mask, directory = stat.S_IFREG, 0o170000, stat.S_IFDIR
    files = size = blocks = 0
    other = theirs.get
    for name, mine in ours.items():
        was = other(name)
        kind = mine.st_mode & kind_mask
        if kind == file:
            files += 1
            size += mine.st_size
        if mine.st_nlink == 1 and kind != directory:
            blocks += mine.st_blocks
        if (
            quick
            and was is not None
            and was.st_nlink == 1 == mine.st_nlink
            and kind != directory
            and mine.st_ctime_ns < (was.st_ctime_ns - MARGIN_NS if due is None else due)
            and fingerprint(mine) == fingerprint(was)
        ):
            continue
        _sort(name, mine, was, rules, changes)
    changes.entries += len(ours)
    changes.files += files
    changes.bytes += size
    changes.blocks += blocks


def _sort(name: str, mine: os.stat_result, was: os.stat_result | None, rules: Rules, changes: Changes) -> None:
    if mine.st_nlink > 1 or tree.is_directory(mine):
        changes.apart += 1
        if mine.st_dev == rules.device and not tree.is_directory(mine):
            changes.several.append((mine.st_ino, mine.st_nlink, mine.st_blocks))
    if is_silly(name, mine.st_ino):
        return
    if mine.st_dev != rules.device:
        changes.skipped.append((name, MOUNTED))
        return
    action = decide(mine, was, rules)
    if action is Action.SAME:
        return
    if action is not Action.DIRECTORY and not rules.holds.devices and stat.S_IFMT(mine.st_mode) in _DEVICES:
        changes.skipped.append((name, "a device, and the target cannot hold devices"))
        return
    _LISTS[action](changes).append((name, mine, was))


_DEVICES = (stat.S_IFBLK, stat.S_IFCHR)
_LISTS = {
    Action.COPY: lambda changes: changes.copies,
    Action.INSPECT: lambda changes: changes.inspections,
    Action.LINKED: lambda changes: changes.linked,
    Action.DIRECTORY: lambda changes: changes.directories,
    Action.OBSTACLE: lambda changes: changes.obstacles,
}
