"""All exports: made from NFSExport objects, published to the API (status, finalizer; `addresses.py` for the rest).

One thread writes to the API, at a bounded rate: what people wait for at once (but once a second at most), counts once
a minute. An export that cannot be understood, or whose directory is another's, says so in its status and disturbs no
other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from nfs_provisioner.config import ExportSpec, parse_export
from nfs_provisioner.errors import InvalidInput, LostLeadership
from nfs_provisioner.export.identity import Remembered
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.kube.api import NFS_EXPORT, Api, ApiError, Conflict, NotFound
from nfs_provisioner.volumes.addresses import Addresses
from nfs_provisioner.volumes.exports import Export, Seen, Services
from nfs_provisioner.volumes.objects import (
    EXPORT_FINALIZER,
    REQUEST,
    JsonObject,
)
from nfs_provisioner.volumes.overlaps import Present, refusals
from nfs_provisioner.volumes.room import Room
from nfs_provisioner.volumes.sharing import Ground, warnings
from nfs_provisioner.volumes.status import ExportStatus, status_object, urgent

log = logging.getLogger(__name__)

COUNTS_EVERY = 60.0  # seconds
SHARED_EVERY = 5.0  # seconds between two looks at which exports lie on one disk
RETRY = 10.0  # seconds before an API write that failed is tried again
AFTER_CONFLICT = 0.5  # seconds in which the watch brings what somebody else wrote
_LEFT = frozenset({State.CREATING, State.ARCHIVED, State.DELETED})  # what an attempt that went elsewhere leaves
_NEEDED = frozenset({State.LIVE, State.CREATING, State.RESTORING, State.ARCHIVING, State.DELETING})


@dataclass(frozen=True, slots=True)
class ExportObject:
    """An NFSExport as the cache keeps it."""

    name: str
    uid: str
    created: str
    version: str
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]
    request: str
    raw: JsonObject
    status: Mapping[str, Any]


def export_from(raw: JsonObject) -> ExportObject:
    """What is used of an NFSExport."""
    metadata = raw["metadata"]
    kept = {key: metadata[key] for key in ("name", "uid", "generation", "labels") if key in metadata}
    return ExportObject(
        name=metadata["name"],
        uid=metadata["uid"],
        created=metadata.get("creationTimestamp", ""),
        version=metadata["resourceVersion"],
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        finalizers=tuple(metadata.get("finalizers") or ()),
        request=(metadata.get("annotations") or {}).get(REQUEST, ""),
        raw={
            "apiVersion": raw.get("apiVersion", ""),
            "kind": "NFSExport",
            "metadata": kept,
            "spec": raw.get("spec") or {},
        },
        status=raw.get("status") or {},
    )


class Registry:
    """The exports by name. Methods are called from reflector, worker and HTTP threads."""

    def __init__(
        self,
        api: Api,
        services: Services,
        *,
        mount_root: str,
        has_volumes: Callable[[str], bool],
        check: Callable[[], None],
    ) -> None:
        self._api = api
        self._services = replace(services, shared=self._shared, on_ready=self._ready)
        self._on_one_disk: tuple[float, dict[str, str]] = 0.0, {}  # moment, and what was found
        self._on_ready = services.on_ready
        self._mount_root = mount_root
        self._has_volumes = has_volumes
        self._check = check
        self._lock = threading.Lock()
        self._exports: dict[str, Export] = {}
        self._sorted: tuple[Export, ...] = ()  # by name; made anew with each change, read for every event
        self._objects: dict[str, ExportObject] = {}
        self._invalid: dict[str, str] = {}
        self._written: dict[str, tuple[str, float, JsonObject]] = {}  # uid, when, what
        self._addresses = Addresses(api, check=check, on_ready=services.on_ready, on_change=self._publish_all)
        self._dirty: dict[str, float] = {}  # export -> moment from which it may be published
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def start(self, objects: list[ExportObject]) -> None:
        """Begin, with the exports that are there."""
        for obj in sorted(objects, key=lambda obj: (obj.created, obj.name)):  # of two in one directory the older
            self.changed(obj.name, obj)
        self._thread.start()

    def stop(self) -> None:
        """End everything."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        for export in self.all():
            export.stop()
        self._addresses.stop()

    def all(self) -> list[Export]:
        """A snapshot, by name."""
        return list(self._sorted)

    def not_understood(self) -> dict[str, ExportStatus]:
        """Statuses of those that were never understood, and so are not among `all`, by name."""
        with self._lock:
            invalid = sorted(self._invalid.items())
        return {name: _not_understood(why) for name, why in invalid if name not in self._exports}

    def get(self, name: str) -> Export | None:
        """The export of that name."""
        return self._exports.get(name)

    def find(self, pv: str, on: str = "") -> tuple[Export, VolumeRecord] | None:
        """The export that has a record of `pv`. A volume in use beats a leftover of an attempt elsewhere.

        `on` is the export that the PV itself names: where there is one of that name, no other's record counts.
        """
        best: tuple[Export, VolumeRecord] | None = None
        named = self._exports.get(on)
        for export in self._sorted if named is None else (named,):
            record = export.catalog.get(pv)
            if record is not None and (best is None or best[1].state in _LEFT):
                best = export, record
        return best

    @property
    def looking(self) -> bool:
        """Whether some export is new and its replicas were not looked at yet."""
        return any(export.looking for export in self._sorted)

    def rooms(self) -> list[Room]:
        """Every export as a place for a new volume; those that cannot be understood say so."""
        rooms = {export.name: export.room() for export in self.all()}
        with self._lock:
            invalid = list(self._invalid.items())
        for name, message in invalid:
            known = rooms.get(name)  # it was understood before: its volumes go on as they were, new ones do not come
            spec = ExportSpec(name=name, replicas=()) if known is None else known.spec
            rooms[name] = Room(spec, problem=message)
        return list(rooms.values())

    def changed(self, name: str, obj: ExportObject | None) -> bool:
        """An NFSExport appeared, changed or went. False when only its status did."""
        with self._lock:
            before = self._objects.get(name)
            if obj is None:
                self._objects.pop(name, None)
            else:
                self._objects[name] = obj
            relevant = before is None or obj is None or _relevant(before) != _relevant(obj)
        if not relevant:
            return False
        spec = self._parse(name, obj)
        if spec is None or obj is None:
            known = self._exports.get(name)
            if known is not None:
                known.invalid = self._invalid.get(name, "")
            with self._lock:
                gone = self._exports.pop(name, None) if obj is None else None
                self._sort()
            if gone is not None:
                gone.stop()
                self._judge_overlaps()
        else:
            self._make_or_update(spec, obj)
        self.publish(name)
        return True

    def _sort(self) -> None:
        self._sorted = tuple(self._exports[name] for name in sorted(self._exports))

    def _parse(self, name: str, obj: ExportObject | None) -> ExportSpec | None:
        if obj is None:
            self._invalid.pop(name, None)
            return None
        try:
            spec = parse_export(obj.raw, mount_root=self._mount_root)
        except InvalidInput as error:
            self._invalid[name] = error.message
            log.warning("NFSExport %s: %s", name, error.message)
            return None
        self._invalid.pop(name, None)
        return spec

    def _make_or_update(self, spec: ExportSpec, obj: ExportObject) -> None:
        status = obj.status
        seen = Seen(
            uid=obj.uid,
            deleting=obj.deleting,
            request=obj.request,
            remembered=Remembered(status.get("active", ""), int(status.get("epoch", 0)), status.get("promotion", "")),
            handled=status.get("lastHandledRequest"),
        )
        found = self._refusals(spec)
        for other in self.all():
            if other.name != spec.name and other.name in found:
                _refuse(other, found[other.name])  # before somebody else begins to use the directory
        refused = found.get(spec.name, "")
        with self._lock:
            export = self._exports.get(spec.name)
            if export is None:
                export = self._exports[spec.name] = Export(spec, seen, self._services, refused=refused)
                self._sort()
                fresh = True
            else:
                fresh = False
        export.invalid = ""
        if fresh:
            export.start()
        else:
            export.update(spec, seen, refused=refused)
        self._judge_overlaps()

    def _refusals(self, fresh: ExportSpec | None = None) -> dict[str, str]:
        """Which exports may not be used; `fresh` counts instead of what was known of that export."""
        specs = {export.name: export.spec for export in self.all()} | ({} if fresh is None else {fresh.name: fresh})
        with self._lock:
            present = [
                Present(self._objects[name].created, spec) for name, spec in specs.items() if name in self._objects
            ]
        return refusals(present)

    def _judge_overlaps(self) -> None:
        """What became of one export may allow others."""
        found = self._refusals()
        for export in self.all():
            _refuse(export, found.get(export.name, ""))

    def _shared(self, name: str) -> str:
        """What was found a moment ago: each export asks with each status, and all are looked at for each."""
        if time.monotonic() - self._on_one_disk[0] > SHARED_EVERY:
            self._look_at_disks()
        return self._on_one_disk[1].get(name, "")

    def _look_at_disks(self) -> dict[str, str]:
        """Exports that promise a file system that is not theirs alone, as far as they were seen. Takes no lock: an
        export asks with its own held."""
        found = warnings(
            Ground(
                export.name,
                export.spec.capacity is not None,
                export.active_replica,
                {a.name: space.device for a in export.attachments() if (space := a.space) is not None},
            )
            for export in self._sorted
        )
        self._on_one_disk = time.monotonic(), found
        return found

    def _ready(self, name: str) -> None:
        self._on_ready(name)
        for other in self._look_at_disks():  # of whom some were alone on it so far
            self.publish(other)

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, name: str, *, after: float = 0.0) -> None:
        """Compare what the API says of this export with what is, soon."""
        with self._changed:
            due = time.monotonic() + after
            self._dirty[name] = min(due, self._dirty.get(name, due))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped:
                    now = time.monotonic()
                    due = [name for name, moment in self._dirty.items() if moment <= now]
                    if due:
                        break
                    self._changed.wait(min(self._dirty.values()) - now if self._dirty else None)
                if self._stopped:
                    return
                for name in due:
                    del self._dirty[name]
            for name in due:
                try:
                    self._publish(name)
                except NotFound:
                    continue  # deleted meanwhile
                except LostLeadership:
                    return  # this process ends; the elector has said why
                except Conflict as error:  # somebody else just wrote, as at each start: what it was comes in a moment
                    log.debug("NFSExport %s: %s", name, error)
                    self.publish(name, after=AFTER_CONFLICT)
                except ApiError as error:
                    log.warning("NFSExport %s: %s", name, error)
                    self.publish(name, after=RETRY)
                except Exception:  # the last resort: a thread that ended would leave every status as it is
                    log.exception("NFSExport %s: unexpected error; tried again", name)
                    self.publish(name, after=RETRY)

    def _publish(self, name: str) -> None:
        obj = self._objects.get(name)
        if obj is None:
            self._written.pop(name, None)
            self._addresses.forget(name)
            return
        self._check()
        export = self._exports.get(name)
        self._keep_finalizer(obj, export)
        invalid = self._invalid.get(name)
        if invalid is not None:
            if export is None or export.settled:
                known = _not_understood(invalid) if export is None else export.status()
                self._write_status(obj, replace(known, generation=obj.generation))
        elif export is not None:
            try:
                if not self._addresses.direct(export):
                    self.publish(name, after=RETRY)
            finally:  # what may not be done in a Service's namespace must not hide the rest from people
                if export.settled:
                    self._write_status(obj, export.status())

    def _write_status(self, obj: ExportObject, status: ExportStatus) -> None:
        uid, moment, before = self._written.get(obj.name, ("", 0.0, {}))
        if uid != obj.uid:
            moment, before = 0.0, dict(obj.status)
        after = status_object(status, before, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        age = time.monotonic() - moment
        left = COUNTS_EVERY - age if age < COUNTS_EVERY else COUNTS_EVERY
        self.publish(obj.name, after=max(1.0, left))  # nobody calls for a count, or for the lag
        if after == before or (not urgent(before, after) and age < COUNTS_EVERY):
            return
        if age < 1.0:
            self.publish(obj.name, after=1.0 - age)
            return
        # What is not there any more must not linger: a merge patch removes only what is null.
        gone = {key: None for key in before if key not in after}
        self._api.patch(NFS_EXPORT, obj.name, {"status": after | gone}, subresource="status")
        self._written[obj.name] = (obj.uid, time.monotonic(), after)

    def _keep_finalizer(self, obj: ExportObject, export: Export | None) -> None:
        has = EXPORT_FINALIZER in obj.finalizers
        if not obj.deleting and not has:
            wanted = [*obj.finalizers, EXPORT_FINALIZER]
        elif obj.deleting and has and not self._in_use(obj.name, export):
            wanted = [finalizer for finalizer in obj.finalizers if finalizer != EXPORT_FINALIZER]
        else:
            return
        body = {"metadata": {"finalizers": wanted, "resourceVersion": obj.version}}
        self._api.patch(NFS_EXPORT, obj.name, body)

    def _in_use(self, name: str, export: Export | None) -> bool:
        if self._has_volumes(name):
            return True
        return export is not None and any(record.state in _NEEDED for record in export.catalog.all())

    def _publish_all(self) -> None:
        for export in self.all():
            self.publish(export.name)


def _not_understood(why: str) -> ExportStatus:
    return ExportStatus(0, "Halted", why, usable=False)


def _relevant(obj: ExportObject) -> tuple[object, ...]:
    """What makes a difference when an NFSExport changes; our own status writes do not."""
    labels = obj.raw["metadata"].get("labels")
    return obj.uid, obj.generation, obj.deleting, obj.finalizers, obj.request, labels


def _refuse(export: Export, why: str) -> None:
    if why != export.refused:
        log.warning("%s", why or f"NFSExport {export.name}: its directories are its own now")
        export.refuse(why)
