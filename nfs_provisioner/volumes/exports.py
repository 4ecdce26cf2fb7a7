"""One NFSExport at work: which replica is active, its catalog, its status, and what a person asks of it.

Brings together what the replicas' attachments see (`export/attachment.py`), the verdict on their identity
(`export/identity.py`) and the object in the API. Acts on files only through the replicas. One thread per export does
what may wait for a server, so that no export waits for another's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

from nfs_provisioner.config import ExportSpec
from nfs_provisioner.errors import InvalidInput, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.attachment import NOT_LOOKED_AT, Attachment, Loaded
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.identity import Remembered, Verdict, judge
from nfs_provisioner.export.records import RESERVING, State, VolumeRecord
from nfs_provisioner.export.replica import CALL_DEADLINE, WORKER_COMMAND, Replica
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.volumes import requests
from nfs_provisioner.volumes.decisions import Room
from nfs_provisioner.volumes.retention import Retention, age
from nfs_provisioner.volumes.status import ExportStatus, ReplicaStatus

log = logging.getLogger(__name__)

FIRST_LOOK = 3.0  # seconds in which a new export is expected to be ready: before that, nobody is told that it is not
BATCH_DEADLINE = 60.0  # seconds; for what touches many files in one request, of which none is in a hurry
SECOND_LOOK = 1.0  # seconds
HOUSEKEEPING = 15.0  # seconds between looks for archives to purge, tombstones to drop, strangers to count


class Partner(Protocol):
    """What brings the standby's records to the active's (`replication/mirror.py`)."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def wake(self) -> None:
        """Something changed on the active side."""

    @property
    def message(self) -> str:
        """What does not go on by itself; empty when all is well."""

    def acknowledged(self, pv: str) -> bool:
        """Whether the standby knows that this volume is gone."""


@dataclass(frozen=True, slots=True)
class Services:
    """What an export needs of the process around it."""

    cluster: str
    lease: LeaseEnd
    term: Callable[[], str]
    partner: Callable[[Export, Attachment, Attachment, list[VolumeRecord]], Partner]
    on_ready: Callable[[str], None]  # the catalog of this export was filled: look at every volume again
    on_status: Callable[[str], None]  # something that people see has changed
    on_event: Callable[[str, str, str, bool], None]  # export, reason, message, warning
    observe: Callable[[str, str, float], None] = lambda export, replica, seconds: None
    worker_command: tuple[str, ...] = WORKER_COMMAND
    clock: Callable[[], float] = time.monotonic
    poll: float = 10.0


@dataclass(slots=True)
class Seen:
    """What the NFSExport object says beside its spec."""

    uid: str = ""
    deleting: bool = False
    request: str = ""
    remembered: Remembered = field(default_factory=Remembered)
    handled: Mapping[str, str] | None = None


class Export:
    """One export. `catalog` is the active replica's; `ready` says that it is filled and may be acted on."""

    def __init__(self, spec: ExportSpec, seen: Seen, services: Services) -> None:
        self.spec = spec
        self.seen = seen
        self.catalog = Catalog(clock=services.clock)
        self.client_address: str | None = None  # the Service's ClusterIP, once known
        self.address_used = False  # since it was looked up last
        self._services = services
        self._lock = threading.RLock()
        self._attachments: dict[str, Attachment] = {}
        self._verdict = Verdict("Initializing", "looking at the replicas")
        self._remembered = seen.remembered
        self._accepted: str | None = None
        self._active: Attachment | None = None
        self._partner: Partner | None = None
        self._problems: list[str] = []
        self._unmanaged: int | None = None
        self._handled = seen.handled
        self._retention = Retention(services.clock)
        self._reachable: dict[str, bool] = {}
        self._wake = threading.Event()
        self._stopped = False
        self._looking_until = services.clock() + FIRST_LOOK
        self._thread = threading.Thread(target=self._run, name=f"export-{spec.name}", daemon=True)

    @property
    def name(self) -> str:
        """Of the NFSExport."""
        return self.spec.name

    def start(self) -> None:
        """Begin to look at the replicas."""
        with self._lock:
            self._make_attachments(self.spec)
        self._thread.start()

    def stop(self) -> None:
        """End every child."""
        self._stopped = True
        self._wake.set()
        with self._lock:
            if self._partner is not None:
                self._partner.stop()
            attachments = list(self._attachments.values())
        for attachment in attachments:
            attachment.stop()

    def _make_attachments(self, spec: ExportSpec) -> None:
        for replica in spec.replicas:
            handle = Replica(
                replica.name,
                replica.mount_path,
                self._services.lease,
                observe=lambda _operation, seconds, name=replica.name: self._services.observe(self.name, name, seconds),  # type: ignore[misc]
                command=self._services.worker_command,
            )
            made = Attachment(handle, self._services.term, self._on_change, poll=self._services.poll)
            self._attachments[replica.name] = made
            made.start()

    # -- what the API says ----------------------------------------------------------------------------------------

    def update(self, spec: ExportSpec, seen: Seen) -> None:
        """The object changed. Replicas whose place changed are looked at anew."""
        with self._lock:
            moved = {r.name: r.mount_path for r in spec.replicas} != {r.name: r.mount_path for r in self.spec.replicas}
            if spec.service != self.spec.service:
                self.client_address = None
            self.spec, self.seen = spec, seen
            if moved:
                self._drop_partner()
                self._active = None
                for attachment in self._attachments.values():
                    attachment.stop()
                self._attachments.clear()
                self._make_attachments(spec)
        self._wake.set()
        self._services.on_status(self.name)

    # -- what the replicas say --------------------------------------------------------------------------------------

    def _on_change(self, changed: Attachment, loaded: Loaded | None) -> None:
        """Called from an attachment's thread."""
        with self._lock:
            if self._stopped or self._attachments.get(changed.name) is not changed:
                return
            self._note_reachable(changed)
            if loaded is not None:
                self._take(changed, loaded)
            elif changed is self._active and changed.attached is None:
                self._active = None
                self._drop_partner()
                for other in self._attachments.values():
                    other.assign(None)  # the standby has nothing to follow; it is read again when the active is back
            self._evaluate()
            if loaded is not None and changed.name == self._accepted:
                self._accepted = None  # only now: what agrees with it has been assigned, too
            became_ready = loaded is not None and self._active is changed
        self._services.on_status(self.name)
        if loaded is not None:
            self._wake.set()  # a pair must know its members before one of them can be replaced
        if became_ready:
            self._services.on_ready(self.name)

    def _note_reachable(self, attachment: Attachment) -> None:
        up = attachment.view().facts is not None
        before = self._reachable.get(attachment.name)
        if up and before is False and attachment.attached is None:
            return  # it answers; whether it can be used shows in a moment
        self._reachable[attachment.name] = up
        if before is not False and not up:
            self._services.on_event(
                self.name, "ReplicaUnreachable", f"replica {attachment.name}: {attachment.message}", True
            )
        elif before is False and up:
            self._services.on_event(self.name, "ReplicaReachable", f"replica {attachment.name} answers again", False)

    def _evaluate(self) -> None:
        """Judge again, and hand out what may be attached: the active first, the standby when that is done."""
        order = [self._attachments[replica.name] for replica in self.spec.replicas]
        self._verdict = judge(
            self.name,
            self._services.cluster,
            self._remembered,
            tuple(attachment.view() for attachment in order),
            accepted=self._accepted,
            new_id=lambda: uuid4().hex,
        )
        stopped = self._verdict.phase in ("Halted", "Diverged")
        for attachment in order:
            identity = self._verdict.attach.get(attachment.name)
            is_active = attachment.name == self._verdict.active
            if identity is not None and (is_active or self._active is not None):
                attachment.assign(identity)
            elif stopped or attachment.name in self._verdict.problems:
                if attachment is self._active:
                    self._active = None
                    self._drop_partner()
                attachment.assign(None)

    def _take(self, attachment: Attachment, loaded: Loaded) -> None:
        """A replica was attached and read."""
        identity = attachment.attached
        assert identity is not None
        if identity.active == attachment.name:
            self._remembered = Remembered(identity.active, identity.epoch, identity.promotion)
            self.catalog.fill(loaded.records, age=age)
            self._retention = Retention(self._services.clock)
            self._problems = loaded.problems
            self._active = attachment
        elif self._active is not None:
            self._drop_partner()
            self._partner = self._services.partner(self, self._active, attachment, loaded.records)
            self._partner.start()

    def _drop_partner(self) -> None:
        if self._partner is not None:
            self._partner.stop()
            self._partner = None

    # -- what others ask ----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the active replica is attached and its records are known."""
        active = self._active
        return active is not None and active.attached is not None and active.replica.up

    def call(self, operation: str, *arguments: Any, deadline: float = CALL_DEADLINE) -> Any:
        """One operation on the active replica; RetryLater while there is none."""
        active = self._active
        if active is None or active.attached is None:
            raise RetryLater(f"export {self.name} is {self.message or 'its replicas are being looked at'}")
        try:
            return active.replica.call(operation, *arguments, deadline=deadline)
        finally:
            if not active.replica.up:
                active.look_again()  # its thread sleeps until the next poll

    def recorded(self, record: VolumeRecord | None, pv: str) -> None:
        """The record of `pv` was written (or, None, removed): remember it, and let the standby follow."""
        if record is None:
            self.catalog.drop(pv)
        else:
            self.catalog.put(record)
        partner = self._partner
        if partner is not None:
            partner.wake()

    def client_mount(self) -> tuple[str, str]:
        """Server and root path that PVs of this export name. RetryLater while it cannot be told."""
        active = self._active
        if active is None:
            raise RetryLater(f"export {self.name} is {self._verdict.phase}: {self.message}")
        replica = self.spec.replica(active.name) or self.spec.replicas[0]
        if self.spec.service is not None:
            if self.client_address is None:
                service = f"{self.spec.service.namespace}/{self.spec.service.name}"
                raise RetryLater(
                    f"export {self.name}: Service {service} does not exist or has no ClusterIP; "
                    "create it without a selector, with port 2049"
                )
            self.address_used = True
            return self.client_address, replica.path
        return self.spec.address or replica.server, replica.path

    def room(self) -> Room:
        """This export as a place for a new volume."""
        active = self._active
        problem = ""
        if self.seen.deleting:
            problem = "it is being deleted"
        elif active is None or not self.ready or active.space is None:
            decided = f"{self._verdict.phase}: " if self._verdict.phase in ("Halted", "Diverged") else ""
            problem = f"{decided}{self.message or 'its replicas are being looked at'}"
        space = active.space if active is not None else None
        size = self.spec.capacity or (space.size if space else 0)
        looking = bool(problem) and self.looking and not self.seen.deleting
        return Room(self.spec, size, space.free if space else 0, self.catalog.reserved, problem, looking)

    @property
    def looking(self) -> bool:
        """Whether this export is new and not ready yet: what is missing now may be there in a moment."""
        decided = self._verdict.phase in ("Halted", "Diverged")
        unseen = any(attachment.message == NOT_LOOKED_AT for attachment in list(self._attachments.values()))
        return not self.ready and not decided and (unseen or self._services.clock() < self._looking_until)

    @property
    def active_replica(self) -> str:
        """Name of the replica that clients are to use; empty before the first start."""
        return self._remembered.active

    @property
    def message(self) -> str:
        """What a person should know, in one line."""
        partner = self._partner
        parts = [self._verdict.message, partner.message if partner else "", *self._problems]
        for attachment in list(self._attachments.values()):
            why = attachment.message or attachment.replica.down
            if why and why not in self._verdict.message:
                parts.append(f"replica {attachment.name}: {why}")
        return "; ".join(part for part in parts if part)

    def status(self) -> ExportStatus:
        """For people and for the API."""
        with self._lock:
            records = self.catalog.all()
            active, space = self._active, self._active.space if self._active else None
            phase = self._verdict.phase
            if phase == "Ready" and not self.ready:
                phase = "Initializing" if not self._remembered.promotion else "Degraded"
            elif (phase == "Ready" and any(a.attached is None for a in self._attachments.values())) or (
                phase == "Ready" and self._partner is not None and self._partner.message
            ):
                phase = "Degraded"
            return ExportStatus(
                generation=self.spec.generation,
                phase=phase,
                message=self.message,
                usable=self.ready and not self.seen.deleting,
                active=self._remembered.active,
                epoch=self._remembered.epoch,
                promotion=self._remembered.promotion,
                capacity=self.spec.capacity or (space.size if space else None),
                available=space.free if space else None,
                size=space.size if space else None,
                reserved=self.catalog.reserved,
                volumes=sum(1 for record in records if record.state in RESERVING),
                archives=sum(1 for record in records if record.state is State.ARCHIVED),
                unmanaged=self._unmanaged if active else None,
                replicas=[self._replica_status(r.name) for r in self.spec.replicas],
                handled=self._handled,
            )

    def _replica_status(self, name: str) -> ReplicaStatus:
        attachment = self._attachments[name]
        role = "active" if name == self._remembered.active else "standby"
        message = self._verdict.problems.get(name) or attachment.message
        abilities = attachment.abilities
        if not message and abilities is not None and abilities.root and not abilities.chown:
            message = "root is squashed: owners cannot be set here; export it with no_root_squash"
        return ReplicaStatus(name, role, attachment.view().facts is not None, message)

    # -- work that may wait for a server ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._handle_request()
                if self.ready:
                    self._housekeeping()
            except NfsProvisionerError as error:
                log.warning("export %s: %s", self.name, error.message)
            except Exception:  # the last resort: a thread that ended would leave this export without anybody
                log.exception("export %s: unexpected error; going on", self.name)
            self._services.on_status(self.name)
            self._wake.wait(HOUSEKEEPING)
            self._wake.clear()

    def _housekeeping(self) -> None:
        self._note_members()
        self._unmanaged = len(self._strangers())
        for record in self.catalog.old_tombstones():
            partner = self._partner
            if len(self.spec.replicas) == 1 or (partner is not None and partner.acknowledged(record.pv)):
                try:
                    self.call("forget", record.pv)
                except RefusedForSafety as error:  # one that is not as it should be must not hold up the others
                    log.warning("export %s: %s", self.name, error.message)
                    continue
                self.recorded(None, record.pv)
        self._purge_old_archives()

    def _strangers(self) -> frozenset[str]:
        """Entries of the root that belong to nobody. Seen twice, so that what is being made or moved does not count."""
        seen: list[frozenset[str]] = []
        while len(seen) < 2 and not self._stopped:
            found = self.call("unmanaged", self.catalog.root_names(), deadline=BATCH_DEADLINE)
            seen.append(found - self.catalog.root_names())
            if not seen[0]:
                break
            if len(seen) < 2:
                self._wake.wait(SECOND_LOOK)
        return frozenset.intersection(*seen) if seen else frozenset()

    def _note_members(self) -> None:
        """Both replicas have their identity: say so on each, so that neither is later taken for a new one."""
        attached = list(self._attachments.values())
        members = {a.name: identity.replica_id for a in attached if (identity := a.attached) is not None}
        for attachment in attached:
            known = attachment.view().facts
            if attachment.name not in members or known is None or known.identity is None:
                continue
            wanted = {**{k: v for k, v in known.identity.members.items() if self.spec.replica(k)}, **members}
            if dict(known.identity.members) != wanted:
                attachment.replica.call("set_members", wanted)
                attachment.note_members(wanted)

    def _purge_old_archives(self) -> None:
        due = self._retention.due(self.catalog.in_state(State.ARCHIVED), time.time())
        if not due:
            return
        server_now = float(self.call("server_time"))
        for record in due:
            if Retention.over(record, server_now):
                try:
                    self.purge(record)
                except RefusedForSafety as error:
                    log.warning("export %s: %s", self.name, error.message)
            else:
                log.warning(
                    "export %s: archive %s is due by this machine's clock but not by the file server's; it is kept",
                    self.name,
                    record.directory,
                )

    def purge(self, record: VolumeRecord) -> None:
        """Delete an archive."""
        done = self.call(
            "give_up", record.pv, "delete", None, frozenset({State.ARCHIVED}), self.catalog.unavailable_names()
        )
        self.recorded(done, record.pv)

    def _handle_request(self) -> None:
        text = self.seen.request
        if not text or (self._handled is not None and self._handled.get("request") == text):
            return
        if not self._remembered.promotion and "accept" not in text:
            return  # its epoch is not known yet
        try:
            asked = requests.parse(text, epoch=self._remembered.epoch)
            message = self._carry_out(asked)
            result = "Done"
        except RetryLater as error:
            log.info("export %s: request %r waits: %s", self.name, text, error.message)
            return
        except NfsProvisionerError as error:
            result, message = ("Invalid" if isinstance(error, InvalidInput) else "Refused"), error.message
        self._handled = {"request": text, "result": result, "message": message, "time": _now()}
        self._services.on_event(self.name, f"Request{result}", f"{text}: {message}", result != "Done")

    def _carry_out(self, asked: requests.Request) -> str:
        if asked.verb == "accept":
            if self.spec.replica(asked.name) is None:
                raise InvalidInput(
                    f"there is no replica {asked.name!r}; there are {[r.name for r in self.spec.replicas]}"
                )
            with self._lock:
                attachment = self._attachments[asked.name]
                if attachment.attached is not None:
                    return f"replica {asked.name} is in use already; there was nothing to accept"
                if attachment.view().facts is None:
                    raise RetryLater(f"replica {asked.name} cannot be looked at: {attachment.message}")
                self._accepted = asked.name
                self._evaluate()
                if asked.name not in self._verdict.attach:  # nobody vouched for whatever turns up there later
                    self._accepted = None
                    raise RefusedForSafety(self._verdict.message or self._verdict.problems.get(asked.name, "not now"))
            return f"replica {asked.name} is taken as it is now"
        if not self.ready:
            raise RetryLater(f"export {self.name} is {self._verdict.phase}: {self.message}")
        record = self.catalog.archive_named(asked.name)
        if record is None or record.state is not State.ARCHIVED:
            raise InvalidInput(f"there is no archive {asked.name!r} on export {self.name}")
        self.purge(record)
        return f"archive {record.directory} of claim {record.claim} was deleted"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
