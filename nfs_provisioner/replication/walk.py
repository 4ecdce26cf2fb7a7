"""The walk of both sides: which directory is looked at next, and who gets what is due in it.

Writes through the copier and the batch. Keeps: a directory is walked after the one it lies in; few descriptors are
open however wide or deep the tree; every entry of the source is looked at, or the tally says that it was not.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from nfs_provisioner.errors import RetryLater
from nfs_provisioner.export.filesystem import components
from nfs_provisioner.replication import changes, tree
from nfs_provisioner.replication.batch import Batch
from nfs_provisioner.replication.changes import MOUNTED, Changes, Found, Place, Survey, TargetError
from nfs_provisioner.replication.copier import GONE, Done
from nfs_provisioner.replication.course import Course
from nfs_provisioner.replication.entries import equal, inside, parent, same_times
from nfs_provisioner.replication.removal import Surplus
from nfs_provisioner.replication.renames import Renames
from nfs_provisioner.replication.usage import DirectoryUsage

_MORE_LOOKS = 3  # at directories that change during a pass
_MOUNTED_THERE = "something is mounted here on the target: unmount it, it is in the way of the copy"


@dataclass(frozen=True, slots=True)
class _Item:
    """A directory to walk. `origin`: where it is on the target; None: it is missing. `shallow`: its entries only."""

    path: str
    origin: str | None
    shallow: bool = False
    obstacle: bool = False
    inode: int = 0


_Part = tuple[_Item, Place, Iterator[str], set[str]]


class Walk:
    """`run` it once; then `surplus`, `obstacles` (directories in the way of something else) and the index are there."""

    def __init__(self, course: Course, batch: Batch) -> None:
        job = course.job
        self._course, self._batch = course, batch
        self._renames = Renames(job.source, job.target, job.directories)
        self._pending: list[_Item] = []
        self._parts: deque[_Part] = deque()
        self._open: set[Place] = set()
        self._surveying = 0
        spare = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 64 - 4 * course.workers.threads
        self._most_open = max(2, min(4 * course.workers.threads, spare // 4))  # three descriptors each
        self._asked: set[str] = set()
        self._restless: dict[str, int] = {}
        """Directories that changed after the pass had begun, with their ctimes then: something may have left them, into
        one that was listed before."""
        self._seen_before: set[str] = set()
        self._moved_here = False
        self.directories = dict(job.directories) if job.only is not None else {}
        self.surplus: list[Surplus] = []
        self.obstacles: list[tuple[str, str]] = []
        self.moved_away: set[str] = set()
        self.usage: dict[str, DirectoryUsage | None] = {}
        self.overlooked = False
        """There are directories that were to be looked at and are not in `usage`."""

    def close(self) -> None:
        """Give back what is still open, also when the pass ended in the middle of something."""
        for outcome in self._course.workers.abandoned():
            if isinstance(outcome, tuple) and isinstance(outcome[0], Survey):
                self._open.add(outcome[0].place)
        for place in self._open:
            place.close()
            if place.unit is not None and place.unit.fd >= 0:
                os.close(place.unit.fd)

    def _start(self) -> None:
        if self._course.job.only is None:
            self._pending.append(_Item("", ""))
        else:
            for path in sorted(self._course.job.only, reverse=True):
                if path:
                    components(path)
                self._ask(path)

    def _ask(self, path: str) -> None:
        if path not in self._asked:
            self._asked.add(path)
            self._pending.append(_Item(path, path, shallow=True))

    def run(self) -> None:
        """Walk everything, and publish what it led to; then look once more where something may have been moved to."""
        self._start()
        self._walk()
        for turn in range(_MORE_LOOKS if self._restless and not self._course.job.dry_run else 0):
            changed = self._changed(since_looked=turn > 0)
            self._moved_here = False
            self._look_again(changed)
            self._walk()
            if turn and not self._moved_here:
                return
        if self._moved_here:
            self._course.tally.moved("")  # things are moved about faster than they can be followed

    def _changed(self, *, since_looked: bool) -> set[str]:
        """Directories of the source that changed since the pass began, or since they were looked at."""
        course, changed = self._course, set[str]()
        walked = [path for path, usage in self.usage.items() if usage is not None]

        def ask(paths: Sequence[str]) -> list[tuple[str, os.stat_result | None]]:
            course.pulse()
            found: list[tuple[str, os.stat_result | None]] = []
            for path in paths:
                try:
                    found.append((path, tree.look_at(course.job.source, path)))
                except OSError:  # something else took its place: its parent has changed, too
                    continue
            return found

        def then(answers: list[tuple[str, os.stat_result | None]]) -> None:
            for path, now in answers:
                moment = now.st_ctime_ns if now is not None else 0
                if moment >= course.began and not (since_looked and self._restless.get(path) == moment):
                    changed.add(path)

        course.each([partial(ask, portion) for portion in course.portions(walked)], then)
        return changed

    def _look_again(self, directories: set[str]) -> None:
        """What is known of them is forgotten: it comes again."""
        self._course.links.drop(directories)
        self.surplus = [surplus for surplus in self.surplus if surplus.path not in directories]
        self.obstacles = [(path, name) for path, name in self.obstacles if path not in directories]
        for path in sorted(directories, reverse=True):
            self._seen_before.add(path)
            self._asked.discard(path)
            self._ask(path)

    def _walk(self) -> None:
        course, workers = self._course, self._course.workers
        while self._pending or self._parts or workers.outstanding:
            course.pulse()
            course.tick()
            if self._parts:
                self._next_part()
            elif self._pending and len(self._open) + self._surveying < self._most_open:
                item = self._pending.pop()
                if item.origin is None and (item := self._recognised(item)).origin is None and self._course.full:
                    continue
                if self._course.distant:
                    self._surveying += 1
                    workers.submit(partial(self._survey, item), partial(self._arrived, item))
                else:
                    self._surveyed(item, self._survey(item))
            else:
                workers.wait(max(1, workers.outstanding))
            workers.wait(workers.threads * 4)
            if self._batch.is_full:
                self._complete()
                self._batch.seal()
        self._flush()

    def _flush(self) -> None:
        """Publish all that is staged."""
        self._complete()
        self._batch.publish()

    def _complete(self) -> None:
        """Wait for what is being staged, and for the directories that are staged as units to be whole."""
        workers = self._course.workers
        workers.wait()
        while any(part[1].unit is not None for part in self._parts):
            while self._parts:
                self._next_part()
                workers.wait(workers.threads * 4)
            workers.wait()

    def _next_part(self) -> None:
        item, place, names, lacking = self._parts.popleft()
        chunk = list(islice(names, self._course.chunk))
        if not chunk:
            self._release(place)
            return
        self._parts.appendleft((item, place, names, lacking))
        place.users += 1
        compare = partial(changes.compare_names, place, chunk, lacking, place.rules)
        then = partial(self._compared, item, place)
        if self._course.distant:
            self._course.workers.submit(compare, then)
        else:
            then(compare())

    def _survey(self, item: _Item) -> tuple[Survey, Done | None] | OSError:
        """In any thread: list and compare; begin the copy of a missing directory, mend one that is there."""
        job = self._course.job
        try:
            found = changes.survey(
                job.source,
                job.target,
                item.path,
                item.origin,
                self._course.rules,
                job.skip,
                self._course.beat,
                known=None if item.origin is None else job.directories.get(self._renames.before(item.origin)),
                distant=self._course.distant,
            )
        except OSError as error:
            return error
        try:
            done = None
            if item.origin is None and not job.dry_run:
                found.place.unit = self._course.copier.begin_unit(item.path, obstacle=item.obstacle)
            elif found.was is not None:
                done = self._course.inspector.mend_directory(found.place, found.was)
        except OSError as error:
            found.place.close()
            return TargetError(error.errno, error.strerror)
        except BaseException:
            found.place.close()
            raise
        return found, done

    def _arrived(self, item: _Item, outcome: tuple[Survey, Done | None] | OSError) -> None:
        self._surveying -= 1
        self._surveyed(item, outcome)

    def _surveyed(self, item: _Item, outcome: tuple[Survey, Done | None] | OSError) -> None:
        if isinstance(outcome, OSError):
            self._unsurveyed(item, outcome)
            return
        survey, done = outcome
        place = survey.place
        self._open.add(place)
        if done is not None:
            self._course.done(place.path, done)
        if place.unit is not None:
            self._batch.add_unit(place.unit)
            if not self._course.copier.lets_in(place.found.st_mode):
                self._course.touched[place.path] = place.found
        elif survey.was is None:
            self._course.tally.say(f"copy {place.path}")
        elif not same_times(place.found, survey.was, self._course.job.holds):
            self._course.touched[place.path] = place.found
            if self._course.job.dry_run:
                self._course.tally.say(f"mend {place.path or '.'}")
        if survey.identity is not None:
            self.directories[place.path] = survey.identity
        if not survey.settled:
            self._course.tally.moved(place.path)
        if place.found.st_ctime_ns >= self._course.began:
            self._restless[place.path] = place.found.st_ctime_ns
        if survey.surplus:
            self.surplus.append(Surplus(place.path, tuple(survey.surplus), survey.settled))
        if place.path not in self._seen_before:
            self._course.tally.targets += survey.targets
        if survey.remaining:
            place.users += 1
            self._parts.append((item, place, iter(survey.remaining), survey.lacking))
        self._compared(item, place, survey.changes)

    def _unsurveyed(self, item: _Item, error: OSError) -> None:
        """A directory that could not be opened or listed, on either side."""
        tally = self._course.tally
        self._unmeasured(item, error)
        if error.errno == errno.EXDEV and isinstance(error, TargetError):
            tally.failed(item.path, OSError(error.errno, _MOUNTED_THERE), directory=parent(item.path))
        elif error.errno == errno.EXDEV:
            tally.skip([(item.path, MOUNTED)])
        elif not item.path:
            side = "target" if isinstance(error, TargetError) else "source"
            raise RetryLater(f"the {side} cannot be read: {error.strerror}") from error
        elif error.errno in GONE and item.shallow:
            self._ask(parent(item.path))  # gone, or not yet there: its parent tells which
        elif isinstance(error, TargetError):
            done = Done()
            done.failed(item.path, error)
            self._course.done(parent(item.path), done)
            tally.unsound.add(item.path)
        elif error.errno in GONE:
            tally.moved(item.path)
        else:
            tally.failed(item.path, error, directory=item.path)
            tally.unseen = True

    def _unmeasured(self, item: _Item, error: OSError) -> None:
        if not isinstance(error, TargetError) and error.errno in (*GONE, errno.EXDEV):
            self.usage[item.path] = None
        elif not (isinstance(error, TargetError) and error.errno in GONE and item.shallow):
            self.overlooked = True

    def _compared(self, item: _Item, place: Place, found: Changes) -> None:
        rules = place.rules
        self._course.tally.compared(place.path, found)
        place.add(found)
        if (foreign := self._course.foreign) is not None:
            for entries in (found.copies, found.inspections, found.linked, found.directories):
                self._course.tally.kept(foreign.among(place, entries))
        if place.path in self._seen_before and not self._moved_here:
            new = [name for name, _, was in (*found.copies, *found.linked, *found.directories) if was is None]
            self._moved_here = any(0 < (tree.born(place.source, name) or 0) < self._course.began for name in new)
        for name, mine, was in found.linked:
            self._course.links.add(inside(place.path, name), mine, was, rules)
        for name, mine, _ in found.obstacles:
            self.obstacles.append((place.path, name))
            if mine.st_nlink > 1 and self._course.job.holds.links:
                self._course.links.add_late(inside(place.path, name), mine)
        into = place.unit.fd if place.unit is not None else None
        self._hand_out(place, found.copies, partial(self._course.copier.copy, place, into))
        self._hand_out(place, found.inspections, partial(self._course.inspector.inspect, place))
        for name, mine, was in found.directories:
            path = inside(place.path, name)
            if was is None or not tree.is_directory(was):
                self._course.touched[place.path] = place.found
                self._pending.append(_Item(path, None, obstacle=was is not None, inode=mine.st_ino))
            elif not item.shallow:
                self._pending.append(_Item(path, path if item.origin == item.path else inside(item.origin or "", name)))
            elif not equal(mine, was, self._course.job.holds) or rules.suspicious(mine, was):
                self._ask(path)
        self._release(place)

    def _hand_out(self, place: Place, entries: list[Found], task: Callable[[list[Found]], Done]) -> None:
        """In portions, so that several threads work in one large directory."""
        portions = iter(entries)
        while not self._course.full and (portion := list(islice(portions, self._course.chunk))):
            place.users += 1
            self._course.workers.submit(partial(task, portion), partial(self._handled, place))

    def _handled(self, place: Place, done: Done) -> None:
        self._course.done(place.path, done)
        self._batch.add(place.path, done)
        if done.staged:
            self._course.touched[place.path] = place.found
        self._release(place)

    def _release(self, place: Place) -> None:
        place.users -= 1
        if place.users:
            return
        self.usage[place.path] = place.usage
        if place.unit is None:
            self._open.remove(place)
            place.close()
            return

        def finished(done: Done) -> None:
            self._open.remove(place)
            place.close()
            self._course.done(place.path, done)

        self._course.workers.submit(partial(self._course.copier.finish_unit, place.unit, place), finished)

    def _recognised(self, item: _Item) -> _Item:
        """A directory that is missing under this name only: renamed on the target, and compared like any other."""
        if item.obstacle:
            return item
        try:
            origin = self._renames.origin(item.path, item.inode)
            if origin is None:
                return item
            if self._course.job.dry_run:
                self._course.tally.say(f"rename {origin} -> {item.path}")
            else:
                self._flush()  # its new parent may be waiting to be published
                self._course.guard()
                self._renames.rename(origin, item.path)
        except OSError:
            return item  # whatever is in the way: it is copied
        self._course.tally.renamed += 1
        self.forget(origin)
        self.moved_away.add(origin)
        self._course.touched.setdefault(parent(origin))
        return _Item(item.path, origin if self._course.job.dry_run else item.path)

    def forget(self, path: str) -> None:
        """The index of a partial pass is the last one's, changed: what is gone leaves it."""
        if self._course.job.only is not None and path in self.directories:
            for known in [known for known in self.directories if known == path or known.startswith(path + "/")]:
                del self.directories[known]
