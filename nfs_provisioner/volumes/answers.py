"""Carries out what a person asked of an export (`requests.py` understands it) and says how it went.

Acts on the export only. Invariant: a request is answered once, with Done, Refused or Invalid, or waits: one that fails
half-way because of a server is tried again, not answered.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Protocol

from nfs_provisioner.config import ExportSpec
from nfs_provisioner.errors import InvalidInput, NfsProvisionerError, RefusedForSafety, RetryLater
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.volumes import requests

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
    record = export.catalog.archive_named(asked.name)
    if record is None or record.state is not State.ARCHIVED:
        raise InvalidInput(f"there is no archive {asked.name!r} on export {export.name}")
    export.purge(record)
    return f"archive {record.directory} of claim {record.claim} was deleted"
