"""Who waits for room, and who of them is looked at again when space appears.

Knows nothing of why space appeared: somebody says `appeared`, as often as they like, and as many are queued as fit by
the export's figures at that moment, the oldest first. Takes no space and promises none: those who are woken ask for it
like everybody else. Invariant: whoever is refused for want of room is in here until it gets it, or wants none any more.
In memory only: after a restart everything is looked at, and those who are refused are here again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from nfs_provisioner.kube.workqueue import WorkQueue
from nfs_provisioner.volumes.registry import Registry
from nfs_provisioner.volumes.room import Need, NoRoom

ROOM = "room/"  # the key, with an export's name behind it, under which those who wait for its space are looked through
SECOND_LOOK = 1.0  # seconds after a refusal: space may have appeared between the decision and its entry here
AGAIN = 300.0  # seconds after which a volume is looked at whatever nobody said


class Waiting:
    """All methods may be called from any thread; `appeared` also from below others' locks."""

    def __init__(
        self,
        registry: Registry,
        queue: WorkQueue[str],
        look_at: Callable[[str], None],
        *,
        lane: str = "",
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._look_at = look_at
        self._lane = lane
        self._lock = threading.Lock()
        self._needs: dict[str, dict[str, Need]] = {}  # export -> volume -> what it needs, by the time of its refusal
        self._exports: dict[str, tuple[str, ...]] = {}  # volume -> exports
        self._least: dict[str, Need] = {}  # export -> what each who waits needs at the least

    def __contains__(self, name: str) -> bool:
        return name in self._exports

    def __len__(self) -> int:
        return len(self._exports)

    def add(self, name: str, refusal: NoRoom) -> None:
        """A volume was refused. Refused again, it keeps its place."""
        with self._lock:
            for export in self._exports.get(name, ()):
                if export not in refusal.exports:
                    self._leave(export, name)
            self._exports[name] = refusal.exports
            for export in refusal.exports:
                self._needs.setdefault(export, {})[name] = refusal.need
                self._least[export] = _least(self._least.get(export), refusal.need)
        for export in refusal.exports:
            self._queue.add_after(ROOM + export, SECOND_LOOK, self._lane)
        self._queue.add_after(name, AGAIN * random.uniform(0.5, 1.0), self._lane)

    def forget(self, name: str) -> None:
        """It has its room, or does not wait for any now."""
        if name not in self._exports:  # nearly always
            return
        with self._lock:
            for export in self._exports.pop(name, ()):
                self._leave(export, name)

    def appeared(self, export: str) -> None:
        """There may be more room on this export than before. Costs nothing where there is too little for anybody."""
        least = self._least.get(export)
        found = self._registry.get(export) if least is not None else None
        if least is None or found is None:
            return
        room = found.room()
        if not room.problem and room.fits(least):
            self._queue.add(ROOM + export, self._lane)

    def process(self, key: str) -> bool:
        """Do what a key of this module stands for; False when it is another's."""
        if not key.startswith(ROOM):
            return False
        for name in self._fitting(key.removeprefix(ROOM)):
            self._look_at(name)
        return True

    def _fitting(self, name: str) -> list[str]:
        export = self._registry.get(name)
        if export is None:
            return []
        with self._lock:
            needs = list(self._needs.get(name, {}).items())
            for number, (_volume, need) in enumerate(needs):
                self._least[name] = _least(self._least[name] if number else None, need)
        room = export.room()
        if not needs or room.problem:  # when that is over, everything is looked at
            return []
        found: list[str] = []
        promised = written = 0
        for volume, need in needs:  # a small one may pass a large one: space that nobody can use helps nobody
            if room.fits(need, promised=promised, written=written):
                found.append(volume)
                promised += need.promise
                written += need.written or 0
        return found

    def _leave(self, export: str, name: str) -> None:
        needs = self._needs.get(export, {})
        needs.pop(name, None)
        if not needs:
            self._needs.pop(export, None)
            self._least.pop(export, None)


def _least(one: Need | None, other: Need) -> Need:
    if one is None:
        return other
    written = None if one.written is None or other.written is None else min(one.written, other.written)
    return Need(min(one.promise, other.promise), written)
