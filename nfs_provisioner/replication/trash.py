"""Where a pass puts what it replaces or deletes: trash, by relative path; or, without one, away at the very end.

Touches trash, and the one entry it is given. Keeps: nothing is lost from trash by a second entry of the same path; a
directory tree leaves the target by one rename.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat

from nfs_provisioner.export.filesystem import make_directory
from nfs_provisioner.replication import tree

_NO_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})
_ENDINGS = 1000


class Trash:
    """`directory` None: nothing is kept; a directory is set aside in `staging` until the end of the pass."""

    def __init__(self, directory: int | None, staging: int) -> None:
        self._directory, self._staging = directory, staging
        self._numbers = itertools.count(1)

    def keep(self, parent: int, path: str, name: str) -> None:
        """Keep what `name` in the open directory `parent` (relative `path`) is now, before it is renamed over."""
        if self._directory is None:
            return
        above = self._place(path)
        try:
            for ending in _endings(name):
                try:
                    os.link(name, ending, src_dir_fd=parent, dst_dir_fd=above, follow_symlinks=False)
                    return
                except FileNotFoundError:
                    return  # it is gone: nothing is replaced
                except OSError as error:
                    if error.errno == errno.ENAMETOOLONG or error.errno in _TAKEN:
                        continue
                    if error.errno not in _NO_LINK:
                        raise
                    self._rename(parent, name, above)
                    return
        finally:
            os.close(above)

    def take(self, parent: int, path: str, name: str) -> None:
        """Move `name` out of `parent`: a rename into trash; without trash a file is unlinked, a directory set aside."""
        if self._directory is not None:
            above = self._place(path)
            try:
                self._rename(parent, name, above)
            finally:
                os.close(above)
            return
        found = tree.look(parent, name)
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        aside = f"staged-gone-{next(self._numbers):x}"
        os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=self._staging)

    def _rename(self, parent: int, name: str, above: int) -> None:
        for ending in _endings(name):
            try:
                # mkdir or link would claim the name; a trash has one writer, so a look is enough.
                if tree.look(above, ending) is None:
                    os.rename(name, ending, src_dir_fd=parent, dst_dir_fd=above)
                    return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG or error.errno in _TAKEN:
                    continue
                raise

    def _place(self, path: str) -> int:
        """The directory of trash that stands for `path`, made where it is missing."""
        assert self._directory is not None
        try:
            return tree.open_directory(self._directory, path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link may be kept under that name
                raise
        fd = os.dup(self._directory)
        for part in path.split("/"):
            try:
                below = _enter(fd, part)
            finally:
                os.close(fd)
            fd = below
        return fd


def _enter(fd: int, part: str) -> int:
    for ending in _endings(part):
        try:
            make_directory(fd, ending, 0o700)
            return tree.open_directory(fd, ending)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                raise
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), part)


def _endings(name: str) -> itertools.chain[str]:
    """The name, then variations of it for when trash has it already, then names that no limit of length refuses."""
    varied = (f"{name}.~{number}~" for number in range(1, _ENDINGS))
    return itertools.chain((name,), varied, (f"kept-{os.urandom(8).hex()}" for _ in range(3)))
