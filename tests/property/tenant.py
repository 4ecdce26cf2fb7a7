"""What there is in a tree, by numbers that hypothesis draws, and the hand that removes it; for machines of tenants' rules."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path


def is_directory(path: Path) -> bool:
    """A link to one is none."""
    return os.path.lexists(path) and stat.S_ISDIR(path.lstat().st_mode)


class Tenant:
    """Works below `source`, which whoever inherits sets. Numbers choose in sorted order, so that a history can be repeated."""

    source: Path

    def paths(self, wanted: Callable[[Path], bool]) -> list[Path]:
        found = []
        for place, directories, files in os.walk(self.source):
            found += [path for name in (*directories, *files) if wanted(path := Path(place, name))]
        return sorted(found)

    def directory(self, pick: int) -> Path:
        found = [self.source, *self.paths(is_directory)]
        return found[pick % len(found)]

    def any_of(self, pick: int, wanted: Callable[[Path], bool] = lambda path: True) -> Path | None:
        found = self.paths(wanted)
        return found[pick % len(found)] if found else None

    def file(self, pick: int) -> Path | None:
        return self.any_of(pick, lambda path: stat.S_ISREG(path.lstat().st_mode))

    @staticmethod
    def remove(path: Path) -> None:
        if is_directory(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
