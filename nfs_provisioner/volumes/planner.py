"""Plans new volumes: export, directory, record; reserves name and space until the plan is carried out or dropped.

In memory only: nothing here touches the API server or an export.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import uuid4

from nfs_provisioner.config import StorageClassSpec, parse_class, parse_pattern
from nfs_provisioner.errors import Infeasible, InvalidInput, RetryLater
from nfs_provisioner.export.catalog import Full
from nfs_provisioner.export.paths import ClaimNames, resolve
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.volumes.decisions import (
    LOOK_AGAIN,
    QUIET,
    Situation,
    frozen_policy,
)
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE, Claim, JsonObject, Volume
from nfs_provisioner.volumes.registry import Registry
from nfs_provisioner.volumes.room import Need, Room, choose_export, labels_of, no_room
from nfs_provisioner.volumes.selectors import matches

SLOWLY = 60.0  # seconds between tries of what only a person can mend, outside the API
RACES = 100  # lost in a row, each to another claim, before one that is still refused waits


@dataclass(frozen=True, slots=True)
class Plan:
    """A new volume, decided: where it goes and what is recorded first."""

    export: Export
    record: VolumeRecord
    storage_class: StorageClassSpec
    restore_from: str | None
    clone_from: str | None = None  # PV

    @property
    def directory(self) -> str:
        """Where the volume will be in the end."""
        return self.record.target or self.record.directory


class Planner:
    """`plan` decides once for each volume; `finish` and `drop` end the plan. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        find_class: Callable[[str], JsonObject | None],
        provisioner: str,
        *,
        find_volume: Callable[[str], Volume | None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._find_class = find_class
        self._find_volume = find_volume
        self._provisioner = provisioner
        self._clock = clock
        self._lock = threading.Lock()
        self._clones = threading.Lock()  # one is decided at a time: what it is to write is held before the next
        self._plans: dict[str, Plan] = {}
        self._began: dict[str, float] = {}
        self._failed_on: dict[str, set[str]] = {}  # exports that were tried since all of those that fit have failed
        self._parsed: dict[str, tuple[JsonObject, StorageClassSpec]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._began

    def plan(self, s: Situation) -> Plan:
        """Where the volume goes: the name and the space are reserved from here on."""
        with self._lock:
            plan = self._plans.get(s.name)
        if plan is not None and self._registry.get(plan.export.name) is plan.export:
            return plan
        assert s.claim is not None
        self._began.setdefault(s.name, self._clock())
        made = self._begun(s) or self._new(s, s.claim)
        with self._lock:
            self._plans[s.name] = made
        return made

    def finish(self, name: str) -> float:
        """The plan was carried out (or nothing is due any more). Seconds since it was first thought of."""
        with self._lock:
            self._plans.pop(name, None)
            self._failed_on.pop(name, None)
            return self._clock() - self._began.pop(name, self._clock())

    def drop(self, name: str, *, failed: bool = False) -> None:
        """Give the reservation back, unless something of it is on disk already. The time goes on counting.

        `failed`: the export could not do it, whatever its figures say; another that fits has its turn before it.
        """
        with self._lock:
            plan = self._plans.pop(name, None)
            if plan is not None and failed:
                self._failed_on.setdefault(name, set()).add(plan.export.name)
        if plan is not None and plan.export.catalog.get(name) is plan.record:
            plan.export.copies.drop(name)
            plan.export.catalog.drop(name)

    def _begun(self, s: Situation) -> Plan | None:
        """An earlier attempt left a record: its export and its directory stay."""
        export = self._registry.get(s.export) if s.export is not None else None
        if s.record is None or export is None or s.claim is None:
            return None
        return _plan(export, s.record, self._class(s.claim.storage_class))

    def _new(self, s: Situation, claim: Claim) -> Plan:
        storage_class = self._class(claim.storage_class)
        wanted = claim.annotations.get(RESTORE_ARCHIVE)
        place: Export | None = None
        need = Need(claim.requested)
        record = _record(s.name, claim, storage_class)
        if wanted:  # its files take their space already; what is promised to the new claim is not yet, but where the
            place, archive = self._archive(wanted, claim, storage_class)  # archive is a retained volume
            need = Need(claim.requested - place.catalog.reserved_for(archive.pv), written=None)
            record = replace(record, origin=archive.pv)
        elif claim.clone_from:
            place, source = self._source(claim, storage_class)
            used = place.usage.get(source.pv)
            need = Need(claim.requested, written=0 if used is None else used.bytes)
            record = replace(record, clone_of=source.pv)
        if record.clone_of is None:
            export = self._reserved(record, claim, storage_class, need, place)
        else:
            with self._clones:
                export = self._reserved(record, claim, storage_class, need, place)
                export.copies.begin(record)
        return _plan(export, record, storage_class)

    def _reserved(
        self, record: VolumeRecord, claim: Claim, storage_class: StorageClassSpec, need: Need, place: Export | None
    ) -> Export:
        """The export with room, and the room taken. Who loses a race for the last of it chooses again at once."""
        for _ in range(RACES):
            rooms = self._registry.rooms() if place is None else [place.room()]
            room = self._chosen(record.pv, claim, storage_class, rooms, need)
            export = place or self._export(room)
            try:
                export.catalog.reserve(record, limit=room.limit)
            except Full:  # since the figures were read
                continue
            except Infeasible as error:  # the other volume may go one day, and nobody tells us
                raise RetryLater(error.message, after=SLOWLY) from error
            return export
        raise no_room([room], need)

    def _chosen(self, name: str, claim: Claim, storage_class: StorageClassSpec, rooms: list[Room], need: Need) -> Room:
        """In turn those that fit, if one after the other fails."""
        avoid = self._failed_on.get(name, set())
        room = choose_export(claim, storage_class, rooms, need, avoid=avoid)
        if room.spec.name in avoid:
            with self._lock:
                self._failed_on.pop(name, None)
        return room

    def _source(self, claim: Claim, storage_class: StorageClassSpec) -> tuple[Export, VolumeRecord]:
        """The volume that a clone is made from, on the export where the clone will be, too."""
        wanted = f"{claim.namespace}/{claim.clone_from}"
        for export in self._registry.all():
            for record in export.catalog.live_of(claim.namespace, claim.clone_from):
                volume = self._find_volume(record.pv)
                if volume is None or volume.phase != "Bound" or volume.claim != record.claim:
                    continue  # an earlier claim of that name: its volume is nobody's to copy
                why = _excluded(export, claim, storage_class)
                if why:
                    raise Infeasible(
                        f"claim {wanted} lies on NFSExport {export.name}, where its clone will be, but {why}"
                    )
                if record.requested > claim.requested:
                    raise Infeasible(
                        f"claim {wanted} was promised {record.requested} bytes, its clone asks for {claim.requested}; "
                        "ask for more"
                    )
                return export, record
        if self._registry.looking:
            raise RetryLater("the replicas are being looked at", after=LOOK_AGAIN, reason=QUIET)
        unread = [export.name for export in self._registry.all() if not export.ready]
        hint = f" (not readable now: {', '.join(unread)})" if unread else ""
        raise RetryLater(
            f"waits for claim {wanted}, which it is to be a clone of: there is no bound volume of that claim on any "
            f"NFSExport{hint}",
            after=LOOK_AGAIN,
            reason="Provisioning",
        )

    def _export(self, room: Room) -> Export:
        export = self._registry.get(room.spec.name)
        if export is None:
            raise RetryLater(f"NFSExport {room.spec.name} is gone")
        return export

    def _archive(self, name: str, claim: Claim, storage_class: StorageClassSpec) -> tuple[Export, VolumeRecord]:
        excluded = ""
        for export in self._registry.all():
            record = export.catalog.archive_named(name)
            if record is None:
                continue
            if record.claim.namespace != claim.namespace:
                continue  # somebody else's: the answer is the same as for one that does not exist
            why = _excluded(export, claim, storage_class)
            if why:
                excluded = f"archive {name!r} lies on NFSExport {export.name}, where a restore leaves it, but {why}"
                continue  # another export may have one of that name
            if record.shared:
                raise Infeasible(f"the directory of {name!r} is used by other volumes too; it cannot be moved")
            if record.requested > claim.requested:
                raise Infeasible(
                    f"archive {name!r} was promised {record.requested} bytes, the claim asks for {claim.requested}; "
                    "ask for more"
                )
            return export, record
        if excluded:
            raise Infeasible(excluded)
        unread = [export.name for export in self._registry.all() if not export.ready]
        hint = f" (not readable now: {', '.join(unread)})" if unread else ""
        problem = f"there is no archive {name!r} of namespace {claim.namespace!r}{hint}; see 'nfs-provisioner archives'"
        raise RetryLater(problem, after=None if unread else SLOWLY)  # the volume may be on its way to the archive

    def _class(self, name: str) -> StorageClassSpec:
        raw = self._find_class(name)
        if raw is None:
            raise RetryLater(f"StorageClass {name!r} does not exist (any more); the claim waits for it")
        known = self._parsed.get(name)
        if known is None or known[0] is not raw:
            known = self._parsed[name] = (raw, parse_class(raw))
        spec = known[1]
        if spec.provisioner != self._provisioner:
            raise InvalidInput(
                f"StorageClass {name!r} names provisioner {spec.provisioner!r}, not {self._provisioner!r}"
            )
        return spec


def _excluded(export: Export, claim: Claim, storage_class: StorageClassSpec) -> str:
    """Why a new volume of this claim cannot be on `export`; empty when it can."""
    named = storage_class.parameters.exports
    if named and export.name not in named:
        return (
            f"StorageClass {storage_class.name} admits only {', '.join(named)} (parameter export); "
            f"use a class that admits {export.name}"
        )
    if not matches(claim.selector, export.spec.labels):
        return (
            f"the claim's selector does not match its labels ({labels_of(export.spec)}); "
            "make the claim anew with a selector that does, or without one"
        )
    return ""


def _plan(export: Export, record: VolumeRecord, storage_class: StorageClassSpec) -> Plan:
    return Plan(export, record, storage_class, record.origin, record.clone_of)


def _record(name: str, claim: Claim, storage_class: StorageClassSpec) -> VolumeRecord:
    names = ClaimNames(claim.namespace, claim.name, claim.labels, claim.annotations)
    return VolumeRecord(
        pv=name,
        tree=uuid4().hex,
        claim=claim.ref,
        directory=resolve(parse_pattern(storage_class.parameters.path_pattern), names, name),
        state=State.CREATING,
        requested=claim.requested,
        policy=frozen_policy(storage_class.parameters),
        storage_class=storage_class.name,
    )
