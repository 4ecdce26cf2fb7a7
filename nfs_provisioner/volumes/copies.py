"""What the clones of one export are still to write, held back from what is really free there.

A copy takes the space of its source, but not at once: until it did, nobody else may be told that the space is free.
What was written counts as gone from the file system with the next look at that (`looked`), not before; until then both
figures are of the same moment. In memory only, thread-safe; after a restart it begins with the clones that were begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.usage import Usage


@dataclass(slots=True)
class _Copy:
    source: str  # PV
    size: int = 0  # of the source, as far as it was measured; kept when the source goes
    written: int = 0
    seen: int = 0  # what had been written before the file system was looked at last


class Copies:
    """Of one export. `usage` tells what a volume takes."""

    def __init__(self, catalog: Catalog, usage: Callable[[str], Usage | None]) -> None:
        self._catalog = catalog
        self._usage = usage
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}

    def begin(self, record: VolumeRecord) -> None:
        """Hold what this clone is to write, if it is one that is not copied yet."""
        with self._lock:
            if _copying(record) and record.clone_of is not None:
                self._copies.setdefault(record.pv, _Copy(record.clone_of))

    def wrote(self, pv: str, size: int) -> None:
        """So many bytes of it are written. A copy that is begun again counts anew; what is there stays written."""
        with self._lock:
            if pv in self._copies:
                self._copies[pv].written = max(self._copies[pv].written, size)

    def drop(self, pv: str) -> None:
        """It came to nothing before anything was written."""
        with self._lock:
            self._copies.pop(pv, None)

    def looked(self) -> None:
        """The file system's free space was looked at. Copies that are done, or were given up, are over with that."""
        with self._lock:
            self._copies = {pv: copy for pv, copy in self._copies.items() if _copying(self._catalog.get(pv))}
            for copy in self._copies.values():
                copy.seen = copy.written

    def held(self) -> int:
        """Bytes that are still to be written, and not free for anybody else."""
        with self._lock:
            for copy in self._copies.values():
                known = self._usage(copy.source)
                copy.size = max(copy.size, 0 if known is None else known.bytes)
            return sum(max(0, copy.size - copy.seen) for copy in self._copies.values())


def _copying(record: VolumeRecord | None) -> bool:
    return record is not None and record.state is State.CREATING and record.clone_of is not None and not record.copied
