"""What is done on an export now and then: members noted, strangers counted, tombstones dropped, old archives purged.

Runs on the export's own thread and acts on files only through the active replica's child. Nothing here is in a hurry,
and nothing that fails for one volume holds up the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from nfs_provisioner.config import ExportSpec
from nfs_provisioner.errors import RefusedForSafety
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.volumes.retention import Retention
from nfs_provisioner.volumes.services import Partner

log = logging.getLogger(__name__)

BATCH_DEADLINE = 60.0  # seconds; for what touches many files in one request, of which none is in a hurry
SECOND_LOOK = 1.0  # seconds


class Kept(Protocol):
    """An export, as far as keeping it in order needs it."""

    spec: ExportSpec
    catalog: Catalog

    @property
    def name(self) -> str:
        """Of the NFSExport."""

    @property
    def partner(self) -> Partner | None:
        """What the standby follows with, while there is one."""

    @property
    def in_doubt(self) -> bool:
        """Whether a replica may hold what no record that can be read names."""

    def attachments(self) -> list[Attachment]:
        """Its replicas."""

    def pause(self, seconds: float) -> bool:
        """Wait; False when there is nothing to wait for any more, because the export is stopped."""

    def call(self, operation: str, *arguments: Any, deadline: float = ...) -> Any:
        """One operation on the active replica."""

    def recorded(self, record: VolumeRecord | None, pv: str) -> None:
        """The record was written or, None, removed."""

    def purge(self, record: VolumeRecord) -> None:
        """Delete an archive."""


class Housekeeping:
    """Of one export. `turn` is called while the export is ready, by one thread."""

    def __init__(self, export: Kept, clock: Callable[[], float]) -> None:
        self.unmanaged: int | None = None  # entries of the root that no record names; None: not counted yet
        self._export = export
        self._retention = Retention(clock)
        self._doubted: frozenset[str] = frozenset()  # archives that are kept because the clocks contradict each other

    def begin_anew(self) -> None:
        """The catalog was filled: what was seen of its archives before counts no more."""
        self._retention.begin_anew()

    def turn(self) -> None:
        """Do everything once. Raises what the active replica raises."""
        self._note_members()
        self.unmanaged = len(self._strangers())
        self._drop_tombstones()
        self._purge_old_archives()

    def _note_members(self) -> None:
        """Both replicas have their identity: say so on each, so that neither is later taken for a new one."""
        attached = self._export.attachments()
        members = {a.name: identity.replica_id for a in attached if (identity := a.attached) is not None}
        for attachment in attached:
            known = attachment.view().facts
            if attachment.name not in members or known is None or known.identity is None:
                continue
            kept = {k: v for k, v in known.identity.members.items() if self._export.spec.replica(k)}
            wanted = kept | members
            if dict(known.identity.members) != wanted:
                attachment.replica.call("set_members", wanted)
                attachment.note_members(wanted)

    def _strangers(self) -> frozenset[str]:
        """Entries of the root that belong to nobody. Seen twice, so that what is being made or moved does not count."""
        first = self._strangers_now()
        return first & self._strangers_now() if first and self._export.pause(SECOND_LOOK) else first

    def _strangers_now(self) -> frozenset[str]:
        catalog = self._export.catalog
        found: frozenset[str] = self._export.call("unmanaged", catalog.root_names(), deadline=BATCH_DEADLINE)
        return found - catalog.root_names()

    def _drop_tombstones(self) -> None:
        if self._export.in_doubt:  # a standby whose record is damaged seems to have nothing left, and has it all
            return
        for record in self._export.catalog.old_tombstones():
            partner = self._export.partner
            if len(self._export.spec.replicas) == 1 or (partner is not None and partner.acknowledged(record.pv)):
                try:
                    self._export.call("forget", record.pv)
                except RefusedForSafety as error:  # one that is not as it should be must not hold up the others
                    log.warning("export %s: %s", self._export.name, error.message)
                    continue
                self._export.recorded(None, record.pv)

    def _purge_old_archives(self) -> None:
        archives = self._export.catalog.in_state(State.ARCHIVED)
        due, doubtful = self._retention.due(archives, lambda: float(self._export.call("server_time")))
        for record in due:
            try:
                self._export.purge(record)
            except RefusedForSafety as error:
                log.warning("export %s: %s", self._export.name, error.message)
        for record in doubtful:
            if record.pv not in self._doubted:
                log.warning(
                    "export %s: archive %s is due by this machine's clock, but the file server's says otherwise, or "
                    "one of them jumped; it is kept for now",
                    self._export.name,
                    record.directory,
                )
        self._doubted = frozenset(record.pv for record in doubtful)
