"""What a pass says of itself: counts while it runs, and its result.

Pure. Keeps: lists of names are cut at a thousand, counts and `deferred` never; a result is only clean when nothing in
it speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nfs_provisioner.replication.changes import Changes
from nfs_provisioner.replication.copier import Done
from nfs_provisioner.replication.entries import DirectoryId, inside
from nfs_provisioner.replication.removal import Removed
from nfs_provisioner.replication.usage import DirectoryUsage

NAMED = 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """`entries`, `files` and `bytes` are the source's."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    mended: int = 0
    renamed: int = 0
    linked: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """`began` is of the source's clock (ns). `clean`: the target is a faithful copy as of `began`.

    `unstable`: entries (directories, too) that did not hold still; `skipped` what was left out or not carried in full,
    and why; `different`: same metadata, other content, kept on both sides; `deferred`: deletions put off, to be given
    to the next pass; `waiting`: deletions above the limit; `foreign`: what somebody else wrote on the target, where it
    is kept. `usage`: what each directory that was walked takes on the source (None: it is gone); `measured`: none that
    should have been walked is missing there. `not_compared`: in words, what of every entry was left out, because it
    cannot be held. `log`, of a dry run: what would be done.
    """

    clean: bool
    began: int
    counts: Counts
    unstable: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    different: tuple[str, ...] = ()
    deferred: frozenset[str] = frozenset()
    waiting: int = 0
    foreign: tuple[str, ...] = ()
    directories: dict[str, DirectoryId] = field(default_factory=dict)
    usage: Mapping[str, DirectoryUsage | None] = field(default_factory=dict)
    measured: bool = True
    not_compared: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


class Tally:
    """Collects what the parts of a pass report; used by the thread that walks only."""

    def __init__(self) -> None:
        self.entries = self.files = self.bytes = self.targets = 0
        self.copied_files = self.copied_bytes = self.mended = self.renamed = self.linked = self.deleted = 0
        self.unstable: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.errors: list[tuple[str, str]] = []
        self.different: list[str] = []
        self.foreign: list[str] = []
        self.log: list[str] = []
        self.deferred: set[str] = set()
        self.waiting = 0
        self.doubts = False
        """Something was missed, torn or refused: the pass is not clean, whatever the lists had room for."""
        self.unsound: set[str] = set()
        """Directories in which an entry failed: nothing is deleted there."""
        self.unseen = False
        """A part of the source could not be looked at: nothing is deleted anywhere."""

    def compared(self, path: str, found: Changes) -> None:
        """Add what the comparison of (a part of) a directory found."""
        self.entries += found.entries
        self.files += found.files
        self.bytes += found.bytes
        self.skip((inside(path, name), why) for name, why in found.skipped)
        for name in found.vanished:
            self.moved(inside(path, name))
        for name, error in found.errors:
            self.failed(inside(path, name), error, directory=path)
            self.unseen = True

    def done(self, path: str, done: Done) -> None:
        """Add what became of entries of the directory `path`."""
        self.copied_files += done.files
        self.copied_bytes += done.bytes
        self.mended += done.mended
        self.linked += done.linked
        for name in done.unstable:
            self.moved(name)
        self.skip(done.skipped)
        for name, error in done.errors:
            self.failed(name, error, directory=path)
        self.differing(done.different)
        for line in done.log:
            self.say(line)

    def removed(self, done: Removed) -> None:
        """Add what became of surplus names."""
        self.deleted += len(done.names)
        self.deferred.update(done.deferred)
        for name in done.reappeared:
            self.moved(name)
        self.kept(done.foreign)
        for name, error in done.errors:
            self.failed(name, error)

    def kept(self, names: Iterable[str]) -> None:
        """Entries of the target that somebody else wrote."""
        for name in names:
            self.doubts = True
            if len(self.foreign) < NAMED:
                self.foreign.append(name)

    def moved(self, path: str) -> None:
        """An entry that did not hold still."""
        self.doubts = True
        if len(self.unstable) < NAMED and (path or ".") not in self.unstable:
            self.unstable.append(path or ".")

    def say(self, line: str) -> None:
        """What a dry run would do."""
        if len(self.log) < NAMED:
            self.log.append(line)

    def skip(self, names: Iterable[tuple[str, str]]) -> None:
        """Entries that no copy is made of, or not of all of them."""
        for name in names:
            if len(self.skipped) < NAMED:
                self.skipped.append(name)

    def differing(self, names: Iterable[str]) -> None:
        """Files with equal metadata and other content."""
        for name in names:
            self.doubts = True
            if len(self.different) < NAMED:
                self.different.append(name)

    def failed(self, path: str, error: OSError, *, directory: str | None = None) -> None:
        """One entry's error. Nothing is deleted in its directory."""
        self.doubts = True
        if directory is not None:
            self.unsound.add(directory)
        if len(self.errors) < NAMED:
            self.errors.append((path or ".", error.strerror or str(error)))

    def counts(self) -> Counts:
        """As of now."""
        return Counts(
            self.entries,
            self.files,
            self.bytes,
            self.copied_files,
            self.copied_bytes,
            self.mended,
            self.renamed,
            self.linked,
            self.deleted,
        )

    def result(
        self,
        began: int,
        counts: Counts,
        directories: dict[str, DirectoryId],
        usage: Mapping[str, DirectoryUsage | None],
        *,
        measured: bool,
    ) -> Result:
        """What the pass amounts to."""
        return Result(
            clean=not (self.doubts or self.deferred or self.waiting),
            began=began,
            counts=counts,
            unstable=tuple(self.unstable),
            skipped=tuple(self.skipped),
            errors=tuple(self.errors),
            different=tuple(self.different),
            deferred=frozenset(self.deferred),
            waiting=self.waiting,
            foreign=tuple(self.foreign),
            directories=directories,
            usage=usage,
            measured=measured and not self.unseen,
            log=tuple(self.log[:NAMED]),
        )
