"""What is staged and not yet published.

Publishes through the copier. Keeps: nothing is published before a syncfs made it durable; a directory is published
before what lies in it, and only when all of its own files are in.
"""

from __future__ import annotations

from functools import partial

from nfs_provisioner.replication.changes import Unit
from nfs_provisioner.replication.copier import Done, Staged
from nfs_provisioner.replication.course import Course

FILES = 16_384
BYTES = 1 << 30


class Batch:
    """Units are added in the order of the walk, staged files with the directory they belong to."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._units: list[Unit] = []
        self._staged: dict[str, list[Staged]] = {}
        self._sealed: tuple[list[Unit], dict[str, list[Staged]]] = [], {}
        self._files = self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether it is time to publish."""
        return self._files >= FILES or self._bytes >= BYTES

    def add_unit(self, unit: Unit) -> None:
        """A directory that is being staged."""
        self._units.append(unit)

    def add(self, path: str, done: Done) -> None:
        """Files staged for the directory `path`, or in its unit."""
        self._files += done.files
        self._bytes += done.bytes
        if done.staged:
            self._staged.setdefault(path, []).extend(done.staged)

    def seal(self) -> None:
        """Begin to make what is staged durable, while more is being staged; publish what was sealed before.

        No task that stages may be outstanding, nor the last sync.
        """
        self._publish()
        self._sealed = self._units, self._staged
        self._units, self._staged = [], {}
        self._files = self._bytes = 0
        if any(self._sealed) and not self._course.job.dry_run:
            course = self._course
            course.guard()
            course.workers.submit(course.syncing(course.synced, "target"), lambda _: None)

    def publish(self) -> None:
        """Sync, then rename everything to its place. No task that stages may be outstanding."""
        self.seal()
        self._course.workers.wait()
        self._publish()

    def _publish(self) -> None:
        course, copier = self._course, self._course.copier
        units, staged = self._sealed
        self._sealed = [], {}
        if course.job.dry_run:
            return
        levels: dict[int, list[Unit]] = {}
        for unit in units:
            levels.setdefault(unit.path.count("/"), []).append(unit)
        for level in sorted(levels):
            tasks = [partial(copier.publish_units, portion) for portion in course.portions(levels[level])]
            course.each(tasks, partial(course.done, ""))
        for path, files in staged.items():
            tasks = [partial(copier.publish, path, portion) for portion in course.portions(files)]
            course.each(tasks, partial(course.done, path))
