"""Comparison in depth of entries that both sides have, and mending of what differs in owner, mode or attributes only.

Writes owner, mode and attributes in place; other content goes through the copier. Keeps: content is never written to a
file that shows; what has equal metadata, an old ctime and other content is named, and kept on both sides.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from nfs_provisioner.replication import contents, tree
from nfs_provisioner.replication.changes import Found, Place
from nfs_provisioner.replication.copier import TRIES, Copier, Done, changed
from nfs_provisioner.replication.entries import Rules, inside, same_access, same_content, same_state

_INSPECT = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Inspector:
    """One pass's reader in depth. Its methods may run in several threads; each call works on entries of its own."""

    def __init__(
        self, target: int, copier: Copier, rules: Rules, guard: Callable[[], None], pulse: Callable[[], None]
    ) -> None:
        self._target, self._copier, self._rules, self._guard, self._pulse = target, copier, rules, guard, pulse
        self._holds = rules.holds

    def inspect(self, place: Place, entries: Iterable[Found]) -> Done:
        """Look into entries that look equal, or differ in owner or mode only: nothing, mend, or copy."""
        done = Done()
        for name, found, was in entries:
            self._pulse()
            path = inside(place.path, name)
            if was is None or place.target is None:
                continue
            try:
                same = self._same_inside(place, name, found, place.target, was)
                if same is None:
                    done.unstable.append(path)
                elif same:
                    self._mend(place, name, found, was, place.target, path, done)
                elif self.is_rot(found, was, place.rules):
                    done.different.append(path)
                else:
                    self._copier.copy_one(place, None, name, found, was, done)
            except OSError as error:
                if changed(place.source, name, found):
                    done.unstable.append(path)
                else:
                    done.failed(path, error)
            if done.full:
                break
        return done

    def is_rot(self, found: os.stat_result, was: os.stat_result, rules: Rules) -> bool:
        """Whether other content is to be named, and kept on both sides (H30); else it is the source's change."""
        looking = self._rules.checksum and self._copier.dry_run
        return same_content(found, was, self._holds) and (looking or not rules.suspicious(found, was))

    def _same_inside(
        self, place: Place, name: str, found: os.stat_result, target: int, was: os.stat_result
    ) -> bool | None:
        """Whether the content is the same; None when the source did not hold still."""
        if stat.S_ISLNK(found.st_mode):
            return os.readlink(name, dir_fd=place.source) == os.readlink(name, dir_fd=target)
        if not stat.S_ISREG(found.st_mode):
            return True
        for _ in range(TRIES):
            ours, theirs = contents.open_source(place.source, name), -1
            try:
                theirs = os.open(name, _INSPECT, dir_fd=target)
                before = os.fstat(ours)
                same = before.st_size == was.st_size and contents.equal_content(
                    ours, theirs, before.st_size, self._pulse
                )
                if same_state(tree.look_again(ours, cached=self._rules.cached)) == same_state(before):
                    return same and same_state(before) == same_state(found)
            finally:
                os.close(ours)
                if theirs >= 0:
                    os.close(theirs)
        return None

    def same_or_mended(
        self, source: int, path: str, found: os.stat_result, now: os.stat_result, done: Done
    ) -> bool | None:
        """Whether the target's file at `path` holds the same as the source's, after mending owner and mode.

        None: it cannot serve for another reason than its content.
        """
        above, _, name = path.rpartition("/")
        fd = tree.open_directory(source, above)
        try:
            place = Place(above, fd, tree.open_directory(self._target, above), found, self._rules)
        except OSError:
            os.close(fd)
            raise
        try:
            assert place.target is not None
            if not (same := self._same_inside(place, name, found, place.target, now)):
                return same
            if stat.S_ISREG(found.st_mode):
                self._mend(place, name, found, now, place.target, path, done)
                return True
            return same_access(found, now, self._holds) or None
        finally:
            place.close()

    def _mend(
        self,
        place: Place,
        name: str,
        found: os.stat_result,
        was: os.stat_result,
        target: int,
        path: str,
        done: Done,
    ) -> None:
        """Same content: bring owner, mode and attributes over in place. Other types than files are made anew."""
        access = same_access(found, was, self._holds)
        if not stat.S_ISREG(found.st_mode):
            ours, theirs = (contents.by_path(fd, name) for fd in (place.source, target))
            if not access or contents.attributes(ours, self._holds) != contents.attributes(theirs, self._holds):
                self._copier.copy_one(place, None, name, found, was, done)
            return
        ours_fd = contents.open_source(place.source, name)
        try:
            theirs_fd = os.open(name, _INSPECT, dir_fd=target)
            try:
                wanted = contents.attributes(ours_fd, self._holds)
                present = contents.attributes(theirs_fd, self._holds)
                if access and wanted == present:
                    return
                if self._copier.dry_run:
                    done.log.append(f"mend {path}")
                    done.mended += 1
                    return
                self._guard()
                contents.set_access(theirs_fd, found, os.fstat(theirs_fd), self._holds)
                why = contents.write_attributes(
                    theirs_fd, wanted, contents.attributes(theirs_fd, self._holds), self._holds
                )
                if why is not None:
                    done.skipped.append((path, why))
                done.mended += 1
            finally:
                os.close(theirs_fd)
            if same_state(tree.look_again(ours_fd, cached=self._rules.cached)) != same_state(found):
                done.unstable.append(path)
        finally:
            os.close(ours_fd)

    def mend_directory(self, place: Place, was: os.stat_result) -> Done:
        """Owner, mode and attributes of a directory that both sides have; times come last."""
        done, found = Done(), place.found
        assert place.target is not None
        try:
            access = same_access(found, was, self._holds) or not self._copier.lets_in(found.st_mode)
            if access and not self._rules.checksum and not place.rules.suspicious(found, was):
                return done
            wanted, present = (contents.attributes(fd, self._holds) for fd in (place.source, place.target))
            if access and wanted == present:
                return done
            done.mended = 1
            if self._copier.dry_run:
                done.log.append(f"mend {place.path or '.'}")
                return done
            self._guard()
            if not access:
                contents.set_access(place.target, found, was, self._holds)
            why = contents.write_attributes(
                place.target, wanted, contents.attributes(place.target, self._holds), self._holds
            )
            if why is not None:
                done.skipped.append((place.path, why))
        except OSError as error:
            done.failed(place.path, error)
        return done
