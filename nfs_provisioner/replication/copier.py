"""Stages copies in a private directory of the target's file system, and publishes them by renames; chooses nothing.

Touches the target only. Keeps: a name of the target shows the whole old file or the whole new one; what a rename
replaces is kept in trash by a hard link first; a copy during which the source changed is not published, unless there
is nothing older, and then with an mtime that makes the next pass copy it again.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nfs_provisioner.errors import RetryLater
from nfs_provisioner.export.filesystem import FULL, filesystem_type
from nfs_provisioner.replication import contents, tree
from nfs_provisioner.replication.changes import Found, Place, Unit
from nfs_provisioner.replication.entries import Rules, inside, same_state
from nfs_provisioner.replication.trash import Trash

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
TRIES = 3
_TORN_NS = 1
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
STAGED = "staged-"
"""How every name begins that a pass makes directly in staging."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A copy that waits in `spool` under the name `staged`, to be published as `name`."""

    name: str
    spool: int
    staged: str
    replaces: bool


@dataclass(slots=True)
class Done:
    """What became of some entries; names are relative paths. `full`: the target had no room, the rest was left."""

    staged: list[Staged] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    mended: int = 0
    linked: int = 0
    unstable: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, OSError]] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    full: bool = False

    def failed(self, path: str, error: OSError) -> None:
        """Note an entry's error; raise what no other entry would survive."""
        if error.errno == errno.EROFS:
            why = "the target is mounted read-only; the pass goes on when it can be written"
            raise RetryLater(why, reason="TargetReadOnly") from error
        if error.errno in FULL:
            self.full = True  # nothing is wrong with this entry: its directory may lose what makes room
            return
        if error.errno in GONE:
            self.unstable.append(path)  # it, or a directory on the way, was moved in this very pass
            return
        self.errors.append((path, error))


class Copier:
    """One pass's writer. Its methods may run in several threads; each call works on entries of its own."""

    def __init__(
        self,
        target: int,
        staging: int,
        trash: Trash,
        rules: Rules,
        guard: Callable[[], None],
        pulse: Callable[[], None],
        *,
        dry_run: bool,
    ) -> None:
        self.trash, self._pulse = trash, pulse
        self.spooled = threading.local()
        self._target, self._staging, self._rules, self._guard, self.dry_run = target, staging, rules, guard, dry_run
        self._holds = rules.holds
        self._numbers = itertools.count(1)
        self._spools: list[int] = []
        self._sync_each = not dry_run and filesystem_type(target) == "fuse"  # syncfs of FUSE tells no write errors
        self._umask = _umask()
        self._born: tuple[int, int] | None = None
        if not dry_run:
            made = os.fstat(staging)
            if (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid()):
                self._born = made.st_uid, made.st_gid  # what is made here needs no chown to belong to us

    def close(self) -> None:
        """Give back the descriptors of this pass."""
        while self._spools:
            os.close(self._spools.pop())

    def number(self) -> str:
        """A name that nothing in staging has."""
        return f"{next(self._numbers):x}"

    def spool(self) -> int:
        """This thread's own directory in staging: threads that shared one would wait for each other in the kernel."""
        fd: int | None = getattr(self.spooled, "fd", None)
        if fd is None:
            name = f"{STAGED}spool-{self.number()}"
            os.mkdir(name, 0o700, dir_fd=self._staging)
            fd = tree.open_directory(self._staging, name)
            self._spools.append(fd)
            self.spooled.fd = fd
        return fd

    # Directories

    def begin_unit(self, path: str, *, obstacle: bool) -> Unit:
        """Make a directory in staging that becomes `path`."""
        self._guard()
        name = f"{STAGED}unit-{self.number()}"
        os.mkdir(name, 0o700, dir_fd=self._staging)
        return Unit(path, name, tree.open_directory(self._staging, name), obstacle)

    def finish_unit(self, unit: Unit, place: Place) -> Done:
        """All its files are in: owner, mode, attributes and times, and no descriptor any more."""
        done = Done()
        try:
            self._set_directory(place, unit.fd, done)
        except OSError as error:
            unit.failed = True
            done.failed(unit.path, error)
        finally:
            os.close(unit.fd)
            unit.fd = -1
        return done

    def _set_directory(self, place: Place, target: int, done: Done) -> None:
        if self.lets_in(place.found.st_mode):
            contents.set_access(target, place.found, os.fstat(target), self._holds)
        wanted = contents.attributes(place.source, self._holds)
        why = contents.write_attributes(target, wanted, contents.attributes(target, self._holds), self._holds)
        if why is not None:
            done.skipped.append((place.path, why))
        os.utime(target, ns=(place.found.st_atime_ns, place.found.st_mtime_ns))

    @staticmethod
    def lets_in(mode: int) -> bool:
        """Whether this program can work in a directory of this mode; if not, it gets its mode at the end."""
        return contents.PRIVILEGED or mode & 0o700 == 0o700

    def finish_directories(self, source: int, paths: Iterable[tuple[str, os.stat_result | None]]) -> Done:
        """Times (and modes that would have kept us out) of directories, when nothing below them changes any more."""
        done = Done()
        for path, found in paths:
            try:
                wanted = found or tree.look_at(source, path)
                theirs = tree.look_at(self._target, path)
                if wanted is None or not tree.is_directory(wanted) or not tree.is_directory(theirs):
                    continue  # what was renamed away left its place to something else
                fd = tree.open_directory(self._target, path)
                try:
                    contents.set_access(fd, wanted, os.fstat(fd), self._holds)
                    os.utime(fd, ns=(wanted.st_atime_ns, wanted.st_mtime_ns))
                finally:
                    os.close(fd)
            except OSError as error:
                done.failed(path, error)
        return done

    def publish_units(self, units: Iterable[Unit]) -> Done:
        """Rename staged directories to their places; parents before children is the caller's order."""
        done = Done()
        for unit in units:
            if unit.failed:
                continue
            self._guard()
            above, _, name = unit.path.rpartition("/")
            try:
                parent = tree.open_directory(self._target, above)
                try:
                    if unit.obstacle:
                        self.trash.take(parent, above, name)
                    os.rename(unit.staged, name, src_dir_fd=self._staging, dst_dir_fd=parent)
                finally:
                    os.close(parent)
            except OSError as error:
                done.failed(unit.path, error)
        return done

    # Everything else

    def copy(self, place: Place, into: int | None, entries: Iterable[Found]) -> Done:
        """Stage copies: directly in a unit that is being made (`into`), or in this thread's spool."""
        done = Done()
        if not self.dry_run:
            self._guard()
        for name, found, was in entries:
            self._pulse()
            self.copy_one(place, into, name, found, was, done)
            if done.full:
                break
        return done

    def copy_one(
        self, place: Place, into: int | None, name: str, found: os.stat_result, was: os.stat_result | None, done: Done
    ) -> None:
        path = inside(place.path, name)
        if self.dry_run:
            done.log.append(f"copy {path}")
            done.files, done.bytes = done.files + 1, done.bytes + found.st_size
            return
        try:
            spool, staged = (into, name) if into is not None else (self.spool(), f"f{self.number()}")
            made = self._stage(place.source, name, found, spool, staged, path, done, fresh=was is None)
        except OSError as error:
            done.failed(path, error)
            return
        if made is not None:
            done.files, done.bytes = done.files + 1, done.bytes + made
            if into is None:
                done.staged.append(Staged(name, spool, staged, was is not None))

    def stage_alone(self, place: int, name: str, found: os.stat_result, path: str, done: Done) -> str | None:
        """Stage one entry that is linked to several names; None when it did not hold still (noted) or failed."""
        self._guard()
        staged = f"f{self.number()}"
        made = self._stage(place, name, found, self.spool(), staged, path, done, fresh=False)
        if made is not None:
            done.files, done.bytes = done.files + 1, done.bytes + made
        return staged if made is not None else None

    def _stage(
        self,
        source: int,
        name: str,
        found: os.stat_result,
        into: int,
        staged: str,
        path: str,
        done: Done,
        *,
        fresh: bool,
    ) -> int | None:
        """Copy until it held still, three times at most; bytes copied, or None when there is nothing to publish."""
        for attempt in range(TRIES):
            if attempt:
                tree.remove(into, staged)
                again = tree.look(source, name)
                if again is None or tree.is_directory(again):
                    break
                found = again
            try:
                after, copied, why = self._make(source, name, found, into, staged)
            except OSError as error:
                tree.remove(into, staged)
                if error.errno in FULL or not changed(source, name, found):
                    raise
                if attempt + 1 < TRIES:
                    continue
                break
            if same_state(after) == same_state(found):
                if why is not None:
                    done.skipped.append((path, why))
                return copied
        else:
            if fresh and stat.S_ISREG(found.st_mode) and stat.S_ISREG(after.st_mode):
                done.unstable.append(path)
                os.utime(staged, ns=(_TORN_NS, _TORN_NS), dir_fd=into, follow_symlinks=False)
                return copied
            tree.remove(into, staged)
        done.unstable.append(path)
        return None

    def _make(
        self, source: int, name: str, found: os.stat_result, into: int, staged: str
    ) -> tuple[os.stat_result, int, str | None]:
        """One attempt: what lstat says of the source afterwards, bytes copied, what could not be carried."""
        if not stat.S_ISREG(found.st_mode):
            return self._make_node(source, name, found, into, staged)
        fd = contents.open_source(source, name)
        try:
            mode = found.st_mode & 0o777
            out = os.open(staged, _CREATE, mode, dir_fd=into)
            try:
                copied = contents.copy_content(fd, out, found, self._between)
                wanted = contents.attributes(fd, self._holds)
                self._own(out, found, mode)
                why = contents.write_attributes(out, wanted, {}, self._holds) if wanted else None
                os.utime(out, ns=(found.st_atime_ns, found.st_mtime_ns))
                if self._sync_each:
                    os.fsync(out)
            finally:
                os.close(out)
            return tree.look_again(fd, cached=self._rules.cached), copied, why
        finally:
            os.close(fd)

    def _between(self) -> None:
        """Between two blocks of a large file: it shows that it goes on, and may be stopped."""
        self._pulse()
        self._guard()

    def _own(self, fd: int, found: os.stat_result, created: int) -> None:
        """Owner before mode. Neither call is made for what the file was created with."""
        born = self._holds.owners and (found.st_uid, found.st_gid) != self._born
        if born:
            os.fchown(fd, found.st_uid, found.st_gid)
        if self._holds.modes and (found.st_mode & 0o7777 != created or created & self._umask):
            os.fchmod(fd, stat.S_IMODE(found.st_mode))

    def _make_node(
        self, source: int, name: str, found: os.stat_result, into: int, staged: str
    ) -> tuple[os.stat_result, int, str | None]:
        """A link, FIFO, socket or device. Staging is ours alone, so names in it can be trusted."""
        link = stat.S_ISLNK(found.st_mode)
        if link:
            os.symlink(os.readlink(name, dir_fd=source), staged, dir_fd=into)
        else:
            os.mknod(staged, found.st_mode, device=found.st_rdev, dir_fd=into)
        if self._holds.owners and (found.st_uid, found.st_gid) != self._born:
            os.chown(staged, found.st_uid, found.st_gid, dir_fd=into, follow_symlinks=False)
        if not link and self._holds.modes:
            os.chmod(staged, stat.S_IMODE(found.st_mode), dir_fd=into)
        wanted = contents.attributes(contents.by_path(source, name), self._holds)
        why = contents.write_attributes(contents.by_path(into, staged), wanted, {}, self._holds) if wanted else None
        os.utime(staged, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=into, follow_symlinks=False)
        return os.stat(name, dir_fd=source, follow_symlinks=False), 0, why

    def publish(self, directory: str, files: Iterable[Staged]) -> Done:
        """Rename staged copies over their names in one directory; what they replace is kept first."""
        done = Done()
        try:
            fd = tree.open_directory(self._target, directory)
        except OSError as error:
            for file in files:
                done.failed(inside(directory, file.name), error)
            return done
        try:
            for file in files:
                self._guard()
                try:
                    if file.replaces:
                        self.trash.keep(fd, directory, file.name)
                    os.rename(file.staged, file.name, src_dir_fd=file.spool, dst_dir_fd=fd)
                except OSError as error:
                    done.failed(inside(directory, file.name), error)
        finally:
            os.close(fd)
        return done


def changed(directory: int, name: str, found: os.stat_result) -> bool:
    """Whether a source entry is another one, or nothing, by now: that explains any error."""
    now = tree.look(directory, name)
    return now is None or same_state(now) != same_state(found)


def _umask() -> int:
    """Read without setting it: other threads make files, too."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        return 0o777  # unknown: every file gets its mode explicitly
    return 0o777
