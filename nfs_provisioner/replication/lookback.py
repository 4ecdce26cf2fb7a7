"""Finds what moved, during a walk, from a directory that was yet to be listed into one that was listed already (H44).

Only reads. Keeps: a walk that ends here unnamed has listed every entry that was there from its beginning to its end;
whatever moves changes the ctime of the directory that it leaves, and of the one that it comes into.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.changes import Changes, Place
from nfs_provisioner.replication.copier import GONE
from nfs_provisioner.replication.course import Course
from nfs_provisioner.replication.entries import APART_NS, MARGIN_NS, inside

ROUNDS = 3


class LookBack:
    """Used by the thread that walks. `needed`: a directory changed since the pass began, so something may have moved."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._listed: dict[str, tuple[int, int]] = {}
        cached, clock = course.rules.cached, course.job.clock
        self._since = course.began - (0 if not cached else MARGIN_NS if clock is not None else APART_NS)
        self._raced = False
        self.arrived: str | None = None
        """Of the last round: an entry that is older than the pass, and had been missed."""

    def listed(self, path: str, found: os.stat_result) -> None:
        """Note a directory as it was when its names were read."""
        self._listed[path] = found.st_ino, found.st_ctime_ns
        self._raced = self._raced or found.st_ctime_ns >= self._since

    def knows(self, path: str) -> bool:
        """Whether the directory was listed in this pass."""
        return path in self._listed

    @property
    def needed(self) -> bool:
        """Not in a pass that is not clean anyway: the next one looks at everything again."""
        job, course = self._course.job, self._course
        return self._raced and job.only is None and not (job.dry_run or course.full or course.tally.doubts)

    def now(self, paths: Iterable[str] | None = None) -> dict[str, tuple[int, int]]:
        """Those of the paths (None: of all) that are not as they were listed, as they are."""
        found: dict[str, tuple[int, int]] = {}
        portions = self._course.portions(list(self._listed if paths is None else paths))
        self._course.each([partial(self._look, portion) for portion in portions], found.update)
        return found

    def _look(self, paths: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """In any thread."""
        self._course.pulse()
        changed: dict[str, tuple[int, int]] = {}
        for path in paths:
            try:
                fd = tree.open_directory(self._course.job.source, path)
                try:
                    found = tree.look_again(fd, cached=self._course.rules.cached)
                finally:
                    os.close(fd)
                state = found.st_ino, found.st_ctime_ns
            except OSError as error:
                if error.errno in GONE:
                    continue  # what it lay in has changed as well
                state = 0, 0  # listing it again tells
            if state != self._listed[path]:
                changed[path] = state
        return changed

    def quiet(self, before: Mapping[str, tuple[int, int]]) -> bool:
        """Whether the directories held still from that look until they were listed again."""
        return all(self._listed[path] == state for path, state in before.items())

    def arrivals(self, place: Place, found: Changes) -> None:
        """Note what a directory that is listed again has, and the target has not: was it there all the time?"""
        for entries in (found.copies, found.linked, found.directories):
            for name, _, was in entries:
                born = tree.born(place.source, name) if was is None else self._course.began
                if born is None or born < self._course.began:
                    self.arrived = inside(place.path, name)
