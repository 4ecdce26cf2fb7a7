"""What comes after the walk, in this order: sets of hard links, deletions, times of directories, the last syncfs.

Writes through the copier, the links and the removal. Keeps: nothing is deleted while a part of the source could not be
looked at, above the limit, or before both sides were proven once more.
"""

from __future__ import annotations

import os
from functools import partial

from nfs_provisioner.export.filesystem import remove_tree
from nfs_provisioner.replication import tree
from nfs_provisioner.replication.batch import BYTES, FILES, Batch
from nfs_provisioner.replication.changes import Place
from nfs_provisioner.replication.copier import STAGED, Done
from nfs_provisioner.replication.course import Course
from nfs_provisioner.replication.entries import inside
from nfs_provisioner.replication.links import Links, Plan
from nfs_provisioner.replication.removal import Removal, Removed, Surplus
from nfs_provisioner.replication.walk import Walk


class Ending:
    """Its methods are called once each, in their order."""

    def __init__(self, course: Course, batch: Batch) -> None:
        self._course, self._batch = course, batch

    def link(self) -> None:
        """Copy each set of hard links once, and link it."""
        self._link(self._course.links)

    def _link(self, links: Links) -> None:
        course, plans, done = self._course, list[Plan](), Done()
        for plan in links.plans(done):
            plans.append(plan)
            if len(plans) >= FILES or done.bytes >= BYTES:
                self._publish(links, plans)
        self._publish(links, plans)
        course.done("", done)

    def _publish(self, links: Links, plans: list[Plan]) -> None:
        course, done = self._course, Done()
        if any(plan.staged for plan in plans):
            course.guard()
            course.sync(course.synced, "target")
        for plan in plans:
            for path in links.publish(plan, done):
                course.touched.setdefault(path)
            course.tick()
        plans.clear()
        course.done("", done)

    def remove(self, walk: Walk) -> None:
        """Delete what the source lacks, unless it is more than may go at once."""
        course, job, tally = self._course, self._course.job, self._course.tally
        if not walk.surplus and not walk.obstacles:
            return
        trash = course.copier.trash
        removal = Removal(
            job.source,
            job.target,
            trash,
            course.began,
            job.missed,
            course.guard,
            course.beat,
            course.foreign,
            job.deleted,
            dry_run=job.dry_run,
        )
        due = [surplus.without(walk.moved_away) for surplus in walk.surplus]
        left: list[Surplus] = []
        blocked: list[Surplus] = []
        total = 0

        def counted(into: list[Surplus], found: Removed) -> None:
            nonlocal total
            tally.removed(found)
            total += found.entries
            if found.left is not None and found.left.names:
                into.append(found.left)
                tally.targets += found.entries - len(found.left.names)

        course.each([partial(removal.count, surplus) for surplus in due], partial(counted, left))
        obstacles = [Surplus(path, (name,), True) for path, name in walk.obstacles]
        course.each([partial(removal.count, surplus) for surplus in obstacles], partial(counted, blocked))
        if not total:
            return
        if not job.delete_limit(total, tally.targets):
            tally.waiting = total
            return
        job.prove()
        freed = {path for surplus in blocked if (path := self._replace(surplus, removal, trash_forbidden=tally.unseen))}
        if freed:
            self._link(course.links.again(freed))
        for surplus in left:
            forbidden = tally.unseen or surplus.path in tally.unsound
            course.each(
                [partial(removal.remove, portion, forbidden=forbidden) for portion in surplus.portions(course.chunk)],
                partial(self._removed, walk, surplus.path),
            )

    def _removed(self, walk: Walk, path: str, removed: Removed) -> None:
        course = self._course
        course.tally.removed(removed)
        for name in removed.names:
            if course.job.dry_run:
                course.tally.say(f"delete {name}")
            walk.forget(name)
        if removed.names:
            course.touched.setdefault(path)

    def _replace(self, surplus: Surplus, removal: Removal, *, trash_forbidden: bool) -> str | None:
        """A directory of the target lies where the source has something else: stage, take it away, publish.

        Returns the path when its place was freed for one of several links.
        """
        course, (name,) = self._course, surplus.names
        path = inside(surplus.path, name)
        if trash_forbidden:
            course.tally.deferred.add(path)
            return None
        done, freed = Done(), None
        try:
            fd, ours = tree.open_and_look(course.job.source, surplus.path)
            place = Place(surplus.path, fd, None, ours, course.rules)
            try:
                place.target = tree.open_directory(course.job.target, surplus.path)
                found = tree.look(fd, name)
                linked = found is not None and found.st_nlink > 1 and course.job.holds.links
                if found is None or tree.is_directory(found) or linked > course.links.is_late(path, found.st_ino):
                    course.tally.moved(path)
                    return None
                if linked:
                    freed = path
                else:
                    done = course.copier.copy(place, None, [(name, found, None)])
                    self._batch.add(surplus.path, done)
                if course.job.dry_run:
                    course.tally.say(f"delete {path}")
                elif done.staged or freed:
                    course.sync(course.synced, "target")
                    course.guard()
                    course.copier.trash.take(place.target, surplus.path, name)
                    removal.gone(path)
                    course.tally.deleted += 1
                    course.touched.setdefault(surplus.path)
            finally:
                place.close()
        except OSError as error:
            done.failed(path, error)
            freed = None
        course.done(surplus.path, done)
        self._batch.publish()
        return freed

    def finish(self) -> None:
        """Times, the last syncfs, and what was set aside for want of a trash."""
        course, job = self._course, self._course.job
        touched = list(course.touched.items())
        if touched:  # asked only before something is written: who keeps the guard notes the pass then
            course.guard()
        course.each(
            [partial(course.copier.finish_directories, job.source, portion) for portion in course.portions(touched)],
            partial(course.done, ""),
        )
        if not course.wrote:
            return
        course.sync(course.synced, "target")
        for name in os.listdir(job.staging):
            if name.startswith(STAGED):  # what was set aside for want of a trash, too
                remove_tree(job.staging, name, stop=self._never)

    def _never(self) -> bool:
        """Asked before each entry that is removed."""
        self._course.pulse()
        self._course.tick()
        return False
