"""Carries out what a person asked of an export (`requests.py` understands it) and says how it went.

Acts on the export only. Invariant: a request is answered once, with Done, Refused or Invalid, or waits: one that fails
half-way because of a server is tried again, not answered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from nfs_provisioner.config import ExportSpec
from nfs_provisioner.errors import InvalidInput, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.volumes import requests
from nfs_provisioner.volumes.services import Partner, Services

log = logging.getLogger(__name__)


class Asked(Protocol):
    """An export, as far as requests need it."""

    spec: ExportSpec
    catalog: Catalog
    refused: str

    @property
    def name(self) -> str:
        """Of the NFSExport."""

    @property
    def epoch(self) -> int | None:
        """The present one; None before the first start."""

    @property
    def ready(self) -> bool:
        """Whether the active replica may be acted on."""

    @property
    def message(self) -> str:
        """What a person should know."""

    def accept(self, replica: str) -> str:
        """Take the replica as it is now."""

    def purge(self, record: VolumeRecord) -> None:
        """Delete an archive."""

    @property
    def partner(self) -> Partner | None:
        """What the standby follows with, while there is one."""


class Answers:
    """Of one export. `handled` is the last one that was given, as `status.lastHandledRequest` tells it.

    The texts before that are remembered as well, while this process lives: whoever keeps an old one in Git and puts it
    back after a newer one was answered asks for nothing.
    """

    def __init__(self, export: Asked, handled: Mapping[str, str] | None, services: Services) -> None:
        self.handled = handled
        self._answered: set[str] = set()
        self._export = export
        self._services = services

    def turn(self, text: str) -> None:
        """Answer the request that stands on the object, unless that was done."""
        if self.handled is not None:
            self._answered.add(self.handled.get("request", ""))
        if not text or text in self._answered:
            return
        answered = answer(self._export, text)
        if answered is not None:
            self.handled = answered
            result, message = answered["result"], answered["message"]
            self._services.on_event(self._export.name, f"Request{result}", f"{text}: {message}", result != "Done")


def answer(export: Asked, text: str) -> dict[str, str] | None:
    """Do it; what `status.lastHandledRequest` is to say. None: it has to wait, and is to be asked again."""
    if export.epoch is None and "accept" not in text:
        return None  # its epoch is not known yet
    try:
        asked = requests.parse(text, epoch=export.epoch or 0)
        result, message = "Done", _carry_out(export, asked)
    except RetryLater as error:
        log.info("export %s: request %r waits: %s", export.name, text, error.message)
        return None
    except NfsProvisionerError as error:
        result, message = ("Invalid" if isinstance(error, InvalidInput) else "Refused"), error.message
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"request": text, "result": result, "message": message, "time": now}


def _carry_out(export: Asked, asked: requests.Request) -> str:
    if export.refused:
        raise RefusedForSafety(export.refused)
    if asked.verb == "accept":
        if export.spec.replica(asked.name) is None:
            names = [replica.name for replica in export.spec.replicas]
            raise InvalidInput(f"there is no replica {asked.name!r}; there are {names}")
        return export.accept(asked.name)
    if not export.ready:
        raise RetryLater(f"export {export.name} cannot be used now: {export.message}")
    if asked.verb == "confirm-deletions":
        return _confirm(export, asked.name)
    record = export.catalog.archive_named(asked.name)
    if record is None or record.state is not State.ARCHIVED:
        raise InvalidInput(f"there is no archive {asked.name!r} on export {export.name}")
    export.purge(record)
    return f"archive {record.directory} of claim {record.claim} was deleted"


def _confirm(export: Asked, pv: str) -> str:
    """`pv` may be written as namespace/claim."""
    record = export.catalog.get(pv)
    if record is None:
        record = next((record for record in export.catalog.all() if str(record.claim) == pv), None)
    if record is None:
        raise InvalidInput(f"there is no volume {pv!r} on export {export.name}; 'nfs-provisioner volumes' lists them")
    partner = export.partner
    if partner is None:
        raise RetryLater(f"export {export.name}: the standby does not follow now: {export.message}")
    confirmed = partner.confirm(record.pv)
    if not confirmed:
        raise RefusedForSafety(f"nothing of volume {record.pv} waits for confirmation")
    return (
        f"{confirmed} deletions of volume {record.pv} (claim {record.claim}) are made on the standby with the next "
        "pass; what it replaces or deletes stays in trash there for trashRetention"
    )
