"""Finishes what may wait: records of volumes that have their PVs, and what a failed attempt left on another export.

Gathered per export under a key of its own in the queue, so that a burst costs a few requests. Decides nothing: asks
`decide` again before it acts, because things may have moved on since a volume was noted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.moves import GiveUp
from nfs_provisioner.export.paths import server_path
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.kube.workqueue import WorkQueue
from nfs_provisioner.volumes.decisions import Situation
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import Volume
from nfs_provisioner.volumes.registry import Registry

log = logging.getLogger(__name__)

LEFT = "left/"  # the key, with an export's name behind it, under which attempts that ended elsewhere are taken back
LIVE = "live/"  # the key, with an export's name behind it, under which records are finished
MOST_AT_ONCE = 200  # records finished by one request; far from its deadline


class Finisher:
    """`look` and `due_act` are the reconciler's eyes, `failed` and `look_at` its hands."""

    def __init__(
        self,
        registry: Registry,
        queue: WorkQueue[str],
        check: Callable[[], None],
        *,
        look: Callable[[str], Situation],
        due_act: Callable[[Situation], str],
        look_at: Callable[[str], None],
        failed: Callable[[Situation, NfsProvisionerError, str], None],
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._check = check
        self._look = look
        self._due_act = due_act
        self._look_at = look_at
        self._failed = failed
        self._lock = threading.Lock()
        self._with_volume: dict[str, set[str]] = {}  # export -> volumes whose records are to be finished

    def process(self, key: str, lane: str) -> bool:
        """Do what a key of this module stands for; False when it is another's."""
        if key.startswith(LIVE):
            self._finish_records(key, lane)
        elif key.startswith(LEFT):
            self._take_back_leftovers(key, lane)
        else:
            return False
        return True

    def soon(self, s: Situation) -> None:
        """Gather volumes whose records are to be finished: nobody waits for that, and together it costs less."""
        assert s.export is not None
        with self._lock:
            self._with_volume.setdefault(s.export, set()).add(s.name)
        self._queue.add(LIVE + s.export, s.export, low=True)

    def _finish_records(self, key: str, lane: str) -> None:
        export = self._registry.get(key.removeprefix(LIVE))
        if export is None:
            return
        with self._lock:
            waiting = self._with_volume.pop(export.name, set())
        try:
            self._check()
            self._make_live(export, waiting)
        except BaseException as error:
            with self._lock:
                self._with_volume.setdefault(export.name, set()).update(waiting)
            if isinstance(error, LostLeadership) or not isinstance(error, NfsProvisionerError):
                raise
            log.info("export %s: %s", export.name, error.message)
            self._queue.retry(key, lane, low=True)
            return
        self._queue.forget(key)

    def _make_live(self, export: Export, waiting: set[str]) -> None:
        """Finish the records of volumes that have their PVs, many in one request."""
        names = [name for name in waiting if self._may_live(export, name)]
        for start in range(0, len(names), MOST_AT_ONCE):
            batch = names[start : start + MOST_AT_ONCE]
            results: list[VolumeRecord | NfsProvisionerError] = export.call_all("make_live", batch)
            for name, result in zip(batch, results, strict=True):
                if isinstance(result, VolumeRecord):
                    export.recorded(result, name)
                    self._queue.forget(name)
                    self._look_at(name)
                else:
                    self._failed(self._look(name), result, export.name)

    def _may_live(self, export: Export, name: str) -> bool:
        """Whether this is still due; things may have moved on since it was noted."""
        situation = self._look(name)
        if situation.export != export.name or self._due_act(situation) != "make-live":
            return False
        assert situation.volume is not None and situation.record is not None
        try:
            _same_place(export, situation.volume, situation.record)
        except RefusedForSafety as error:
            self._failed(situation, error, export.name)
            return False
        return True

    def look_for_leftovers(self) -> None:
        """A server that failed half-way and came back may still hold what was made on another export instead."""
        for export in self._registry.all():
            if any(self._left(export, record) for record in _begun(export)):
                self._queue.add(LEFT + export.name, export.name, low=True)

    def _left(self, export: Export, record: VolumeRecord) -> bool:
        found = self._look(record.pv)
        elsewhere = found.export not in (None, export.name)
        return elsewhere and found.record is not None and found.record.state is not State.CREATING

    def _take_back_leftovers(self, key: str, lane: str) -> None:
        export = self._registry.get(key.removeprefix(LEFT))
        for record in _begun(export) if export is not None else ():
            try:
                if export is not None and self._left(export, record):
                    self._check()
                    done = taken_back(export, record)
                    export.recorded(None if done is None else done.slim(), record.pv)
            except (RetryLater, RefusedForSafety) as error:
                log.info("export %s: %s: %s", export.name if export else "", record.pv, error.message)
                self._queue.retry(key, lane, low=True)
                return
        self._queue.forget(key)


def _begun(export: Export) -> list[VolumeRecord]:
    """Volumes that have no PV yet, as far as the export tells."""
    return export.catalog.in_state(State.CREATING) + export.catalog.in_state(State.RESTORING)


def taken_back(export: Export, record: VolumeRecord) -> VolumeRecord | None:
    """End an attempt that came to nothing: what was being restored is an archive again, the rest goes. Its record."""
    if record.state is State.RESTORING:
        names, begun = export.catalog.unavailable_names(), frozenset({State.RESTORING})
        archived: VolumeRecord = export.call_each(
            "give_up", GiveUp(record.pv, "archive", record.claim.uid, begun, names)
        )
        return archived
    left: VolumeRecord | None = export.call("undo", record.pv)
    return left


def _same_place(export: Export, volume: Volume, record: VolumeRecord) -> None:
    """RefusedForSafety when a PV names another directory than its record (H06)."""
    paths = {server_path(replica.path, record.directory) for replica in export.spec.replicas}
    if volume.path not in paths:
        raise RefusedForSafety(
            f"PV {volume.name} names {volume.server}:{volume.path}, its record on export {export.name} says "
            f"{' or '.join(sorted(paths))}; nothing is done with it"
        )
