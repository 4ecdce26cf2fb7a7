"""Directories that the source renamed since the last pass, recognised and renamed on the target.

Writes one rename at a time. Keeps: a directory is taken for a renamed one only when its inode and its birth time (or
file handle) are those of the last pass, its old name is gone from the source, and its new one is free on the target;
what lies in it is compared afterwards as always.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.entries import DirectoryId, parent


class Renames:
    """`old` is the index of directories that the last pass left: path -> identity on the source."""

    def __init__(self, source: int, target: int, old: Mapping[str, DirectoryId]) -> None:
        self._source, self._target = source, target
        self._old = {(identity[0], identity[1]): path for path, identity in old.items() if path}
        self._inodes = {identity[0] for identity in self._old}
        self._done: list[tuple[str, str]] = []

    def origin(self, path: str, inode: int) -> tuple[str, str] | None:
        """Where the target has the directory that the source now shows at `path`, and under which name it is in the index.

        None: nowhere, it is new.
        """
        if inode not in self._inodes:
            return None
        fd = tree.open_directory(self._source, path)
        try:
            identity = tree.directory_id(fd)
        finally:
            os.close(fd)
        was = self._old.get(identity) if identity is not None else None
        if was is None:
            return None
        now = self._where(was)
        if now == path or path.startswith(now + "/") or now.startswith(path + "/"):
            return None
        if any(tree.look_at(self._source, name) is not None for name in {was, now}):
            return None
        return (now, was) if tree.is_directory(tree.look_at(self._target, now)) else None

    def _where(self, path: str) -> str:
        """Where `path` is on the target after the renames that were done."""
        for before, after in self._done:
            if path == before or path.startswith(before + "/"):
                path = after + path[len(before) :]
        return path

    def rename(self, origin: str, path: str) -> None:
        """Rename on the target. OSError when its parent is missing, or something took the name meanwhile."""
        above = tree.open_directory(self._target, parent(origin))
        try:
            below = tree.open_directory(self._target, parent(path))
            try:
                old, new = origin.rpartition("/")[2], path.rpartition("/")[2]
                os.rename(old, new, src_dir_fd=above, dst_dir_fd=below)
            finally:
                os.close(below)
        finally:
            os.close(above)
        self._done.append((origin, path))
