"""One NFSExport at work: which replica is active, its catalog, and what its status says.

Brings together what the replicas' attachments see (`export/attachment.py`), the verdict on their identity
(`export/identity.py`) and the object in the API. Acts on files only through the replicas. One thread per export does
what may wait for a server (`housekeeping.py`, `answers.py`), so that no export waits for another's. Invariant: nothing
is attached for an export that is refused or stopped.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from nfs_provisioner.config import ExportSpec
from nfs_provisioner.errors import NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.attachment import NOT_LOOKED_AT, Attachment, Loaded
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.identity import Remembered, Verdict, judge
from nfs_provisioner.export.moves import GiveUp
from nfs_provisioner.export.records import RESERVING, State, VolumeRecord
from nfs_provisioner.export.replica import CALL_DEADLINE, Replica
from nfs_provisioner.export.root import Space
from nfs_provisioner.volumes.answers import Answers
from nfs_provisioner.volumes.copies import Copies
from nfs_provisioner.volumes.housekeeping import BATCH_DEADLINE, Housekeeping
from nfs_provisioner.volumes.measuring import Measuring
from nfs_provisioner.volumes.objects import EXPORT_LABEL
from nfs_provisioner.volumes.replicas import Replicas
from nfs_provisioner.volumes.retention import age
from nfs_provisioner.volumes.room import Room
from nfs_provisioner.volumes.services import Partner, Seen, Services
from nfs_provisioner.volumes.status import ExportStatus
from nfs_provisioner.volumes.usage import Ledger

__all__ = ["BATCH_DEADLINE", "Export", "Seen", "Services"]

log = logging.getLogger(__name__)

FIRST_LOOK = 3.0  # seconds in which a new export is expected to be ready: before that, nobody is told that it is not
SETTLE = 15.0  # seconds after which a status is written whatever is not known; a replica that hangs is known before
HOUSEKEEPING = 15.0  # seconds between looks for archives to purge, tombstones to drop, strangers to count


class Export:
    """One export. `catalog` is the active replica's; `ready` says that it is filled and may be acted on."""

    def __init__(self, spec: ExportSpec, seen: Seen, services: Services, *, refused: str = "") -> None:
        """`refused`: why this export may not be used, whatever its replicas are like; empty when it may."""
        self.spec = spec
        self.seen = seen
        self.refused = refused
        self.invalid = ""  # why the object, as it is now, cannot be understood: what it was before goes on
        self.catalog = Catalog(clock=services.clock, on_freed=lambda: services.on_room(spec.name))
        self.usage = Ledger(self.catalog)
        self.copies = Copies(self.catalog, self.usage.get)
        self.measuring = Measuring(self, services)
        self.client_address: str | None = None  # the Service's ClusterIP, once known
        self.address_used = False  # since it was looked up last
        self._services = services
        self._lock = threading.RLock()
        self._replicas = Replicas(spec.name, services, self._on_change, self._on_space)
        self._verdict = _nothing_known(refused)
        self._remembered = seen.remembered
        self._accepted: str | None = None
        self._active: Attachment | None = None
        self._partner: Partner | None = None
        self._problems: dict[str, list[str]] = {}  # replica -> what is wrong with its records
        self._answers = Answers(self, seen.handled, services)
        self._housekeeping = Housekeeping(self, services.clock)
        self._wake = threading.Event()
        self._stopped = False
        self._looking_until = services.clock() + FIRST_LOOK
        self._settled_by = services.clock() + SETTLE
        self._thread = threading.Thread(target=self._run, name=f"export-{spec.name}", daemon=True)

    @property
    def name(self) -> str:
        """Of the NFSExport."""
        return self.spec.name

    def start(self) -> None:
        """Begin to look at the replicas."""
        with self._lock:
            if not self.refused:
                self._replicas.begin(self.spec)
        self._thread.start()

    def close(self) -> None:
        """End every child, and wait for none: so that those of many exports may end together."""
        self._stopped = True
        self._wake.set()
        self.measuring.stop()
        with self._lock:
            self._drop_partner()
            self._replicas.close()

    def stop(self) -> None:
        """End every child and thread; a child that hangs is waited for a second, counted from `close`."""
        self.close()
        self._replicas.stop()

    # -- what the API says ----------------------------------------------------------------------------------------

    def update(self, spec: ExportSpec, seen: Seen, *, refused: str = "") -> None:
        """The object changed. Replicas whose place changed are looked at anew."""
        with self._lock:
            moved = {r.name: r.mount_path for r in spec.replicas} != {r.name: r.mount_path for r in self.spec.replicas}
            if spec.service != self.spec.service:
                self.client_address = None
            self.spec, self.seen = spec, seen
            if moved or refused != self.refused:
                self._begin_anew(refused)
        self._wake.set()
        self._services.on_status(self.name)
        self._services.on_room(self.name)

    def refuse(self, why: str) -> None:
        """Let go of every replica, because of `why`; or, when that is empty, begin to use them (again)."""
        if why != self.refused:
            self.update(self.spec, self.seen, refused=why)

    def _begin_anew(self, refused: str) -> None:
        self._drop_partner()
        self._active = None
        self._replicas.let_go()
        if refused != self.refused:
            self.refused, self._verdict = refused, _nothing_known(refused)
        if not refused and not self._stopped:
            self._replicas.begin(self.spec)

    # -- what the replicas say --------------------------------------------------------------------------------------

    def _on_change(self, changed: Attachment, loaded: Loaded | None) -> None:
        """Called from an attachment's thread."""
        with self._lock:
            if self._stopped or self._replicas.get(changed.name) is not changed:
                return
            self._replicas.tell_reachable(changed)
            if loaded is not None:
                self._take(changed, loaded)
            elif changed is self._active and changed.attached is None:
                self._active = None
                self._drop_partner()
                for other in self._replicas.all():
                    other.assign(None)  # the standby has nothing to follow; it is read again when the active is back
            self._evaluate()
            self._replicas.note(changed, loaded, self._verdict.attach)
            if loaded is not None and changed.name == self._accepted:
                self._accepted = None  # only now: what agrees with it has been assigned, too
            became_ready = loaded is not None and self._active is changed
        self._services.on_status(self.name)
        if loaded is not None or self.seen.request:
            self._wake.set()  # a pair must know its members before one of them can be replaced; a request may wait
        if became_ready:
            self.measuring.wake()
            self._services.on_ready(self.name)

    def _on_space(self, looked: Attachment) -> None:
        """Called from an attachment's thread: the replica's free space is known anew."""
        if looked is self._active:
            self.copies.looked()
            self._services.on_room(self.name)

    @property
    def settled(self) -> bool:
        """Whether `status` is worth telling: every replica was attached, failed or was left out, or takes too long.

        Before that, it would take a pair that has only begun to be looked at for one that has lost its standby.
        """
        if self._stopped:
            return False
        late = self._services.clock() >= self._settled_by
        return late or bool(self.refused) or self._replicas.looked_at(self.spec)

    def _evaluate(self) -> None:
        """Judge again, and hand out what may be attached: the active first, the standby when that is done."""
        order = [found for replica in self.spec.replicas if (found := self._replicas.get(replica.name)) is not None]
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
        self._problems[attachment.name] = loaded.problems
        if identity.active == attachment.name:
            self._remembered = Remembered(identity.active, identity.epoch, identity.promotion)
            self.catalog.fill(loaded.records, age=age)
            for record in loaded.records:
                self.copies.begin(record)
            self._housekeeping.begin_anew()
            self.measuring.begin_anew()
            self._active = attachment
        elif self._active is not None:
            self._drop_partner()
            self._partner = self._services.partner(
                self.name, self.catalog, self._active, attachment, loaded.records, lambda: self.spec.replication
            )
            self._partner.start()

    def _drop_partner(self) -> None:
        if self._partner is not None:
            self._partner.stop()
            self._partner = None

    # -- what others ask ----------------------------------------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """A snapshot."""
        return self._replicas.all()

    @property
    def partner(self) -> Partner | None:
        """What the standby follows with, while there is one."""
        return self._partner

    @property
    def epoch(self) -> int | None:
        """The present one; None before the first start."""
        return self._remembered.epoch if self._remembered.promotion else None

    @property
    def ready(self) -> bool:
        """Whether the active replica is attached and its records are known."""
        active = self._active
        return active is not None and active.attached is not None and active.replica.up

    def call(self, operation: str, *arguments: Any, deadline: float = CALL_DEADLINE) -> Any:
        """One operation on the active replica; RetryLater while there is none."""
        with self._acting() as replica:
            return replica.call(operation, *arguments, deadline=deadline)

    def call_each(self, operation: str, item: Any) -> Any:
        """One operation of those that may go to the server together with the same of other volumes."""
        with self._acting() as replica:
            return replica.call_each(operation, item)

    def call_all(self, operation: str, items: list[Any]) -> list[Any]:
        """One operation for many volumes: for each its result or its error."""
        with self._acting() as replica:
            return replica.call_all(operation, items, deadline=BATCH_DEADLINE)

    @contextlib.contextmanager
    def _acting(self) -> Iterator[Replica]:
        active = self._active
        if active is None or active.attached is None:
            raise RetryLater(f"export {self.name} is {self.message or 'its replicas are being looked at'}")
        try:
            yield active.replica
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
        problem = "it is being deleted" if self.seen.deleting else ""
        if not problem and (active is None or not self.ready or active.space is None):
            decided = f"{self._verdict.phase}: " if self._verdict.phase in ("Halted", "Diverged") else ""
            problem = f"{decided}{self.message or 'its replicas are being looked at'}"
        space = active.space if active is not None else None
        problem = problem or _without_inodes(space)
        size = self.spec.capacity or (space.size if space else 0)
        looking = bool(problem) and self.looking and not self.seen.deleting
        available, held = space.free if space else 0, self.copies.held()
        return Room(self.spec, size, available, self.catalog.reserved, problem, looking, held)

    @property
    def looking(self) -> bool:
        """Whether this export is new and not ready yet: what is missing now may be there in a moment."""
        decided = self._verdict.phase in ("Halted", "Diverged")
        unseen = any(attachment.message == NOT_LOOKED_AT for attachment in self.attachments())
        return not self.ready and not decided and (unseen or self._services.clock() < self._looking_until)

    @property
    def active_replica(self) -> str:
        """Name of the replica that clients are to use; empty before the first start."""
        return self._remembered.active

    @property
    def message(self) -> str:
        """What a person should know, in one line."""
        partner = self._partner
        full = _without_inodes(self._active.space if self._active else None)
        going = f"it is deleted when no PV of it is left (kubectl get pv -l {EXPORT_LABEL}={self.name})"
        parts = [going if self.seen.deleting else "", self.invalid, self._verdict.message]
        parts += [partner.message if partner else "", *self._told(), full]
        for attachment in self.attachments():
            why = attachment.message or attachment.replica.down
            if why and why not in self._verdict.message:
                parts.append(f"replica {attachment.name}: {why}")
        return "; ".join(part for part in parts if part)

    def _told(self) -> list[str]:
        return [problem for attachment in self.attachments() for problem in self._problems.get(attachment.name, ())]

    @property
    def in_doubt(self) -> bool:
        """Whether a replica may hold what no record that can be read names."""
        return bool(self._told())

    def status(self) -> ExportStatus:
        """For people and for the API."""
        with self._lock:
            records = self.catalog.all() if self.catalog.filled else None
            active, space = self._active, self._active.space if self._active else None
            phase = self._verdict.phase
            standing = self._partner.standing() if self._partner is not None else None
            if phase == "Ready" and not self.ready:
                phase = "Initializing" if not self._remembered.promotion else "Degraded"
            elif phase == "Ready" and standing is not None and standing.stopped:
                phase = "Halted"  # of the pair: the active side serves on, and takes new volumes
            elif phase == "Ready" and self._standby_is_behind():
                phase = "Degraded"
            if self.invalid:
                phase = "Halted"  # for what is new; volumes that are there go on as they were
            return ExportStatus(
                generation=self.spec.generation,
                phase=phase,
                message=self.message,
                usable=self.ready and not self.seen.deleting and not self.invalid,
                active=self._remembered.active,
                epoch=self._remembered.epoch,
                promotion=self._remembered.promotion,
                capacity=self.spec.capacity or (space.size if space else None),
                available=space.free if space else None,
                used=space.used if space else None,
                reserved=None if records is None else self.catalog.reserved,
                volumes=None if records is None else sum(1 for record in records if record.state in RESERVING),
                archives=None if records is None else sum(1 for r in records if r.state is State.ARCHIVED),
                unmanaged=self._housekeeping.unmanaged if active else None,
                replicas=self._replicas.status(self.spec, self._remembered.active, self._verdict.problems),
                standing=standing,
                handled=self._answers.handled,
                shared=self._services.shared(self.name) if self.spec.capacity is None else "",
            )

    def _standby_is_behind(self) -> bool:
        away = any(attachment.attached is None for attachment in self.attachments())
        return away or (self._partner is not None and bool(self._partner.halted))

    # -- work that may wait for a server ------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._answers.turn(self.seen.request)
                if self.ready:
                    self._housekeeping.turn()
            except NfsProvisionerError as error:
                log.warning("export %s: %s", self.name, error.message)
            except Exception:  # the last resort: a thread that ended would leave this export without anybody
                log.exception("export %s: unexpected error; going on", self.name)
            if not self._stopped:
                self._services.on_status(self.name)
            left = HOUSEKEEPING if self.settled else max(0.0, self._settled_by - self._services.clock())
            self._wake.wait(min(left, HOUSEKEEPING))
            self._wake.clear()

    def pause(self, seconds: float) -> bool:
        """Wait, on the export's own thread; False when it is stopped."""
        self._wake.wait(seconds)
        return not self._stopped

    def purge(self, record: VolumeRecord) -> None:
        """Delete an archive."""
        names = self.catalog.unavailable_names()
        done = self.call_each("give_up", GiveUp(record.pv, "delete", None, frozenset({State.ARCHIVED}), names))
        self.recorded(done, record.pv)

    def accept(self, replica: str) -> str:
        """Take this replica as it is now, on a person's word. RefusedForSafety when even that does not make it safe."""
        with self._lock:
            attachment = self._replicas.get(replica)
            if attachment is None:
                raise RetryLater(f"replica {replica} is not looked at yet")
            if attachment.attached is not None:
                return f"replica {replica} is in use already; there was nothing to accept"
            if attachment.view().facts is None:
                raise RetryLater(f"replica {replica} cannot be looked at: {attachment.message}")
            if not self.settled:  # what is only not known yet is no reason to refuse what a person asks for
                raise RetryLater(f"the replicas of export {self.name} are still being looked at")
            self._accepted = replica
            self._evaluate()
            if replica not in self._verdict.attach:  # nobody vouched for whatever turns up there later
                self._accepted = None
                raise RefusedForSafety(self._verdict.message or self._verdict.problems.get(replica, "not now"))
        return f"replica {replica} is taken as it is now"


def _without_inodes(space: Space | None) -> str:
    """Why nothing can be made there although there may be space; empty when something can."""
    return "its file system has no inode left: delete files there" if space and space.inodes_free == 0 else ""


def _nothing_known(refused: str) -> Verdict:
    return Verdict("Halted", refused) if refused else Verdict("Initializing", "looking at the replicas")
