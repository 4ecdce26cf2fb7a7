"""What an export is given: the process around it, its partner's maker, and what the API says beside the spec.

Types only; nothing here acts. Invariant: knows nothing of the export itself, so that whoever serves one need not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.identity import Remembered
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.replica import WORKER_COMMAND
from nfs_provisioner.export.worker import LeaseEnd


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


#: Export's name, its catalog, active, standby, and the records that the standby holds.
MakePartner = Callable[[str, Catalog, Attachment, Attachment, list[VolumeRecord]], Partner]


@dataclass(frozen=True, slots=True)
class Services:
    """What an export needs of the process around it."""

    cluster: str
    lease: LeaseEnd
    term: Callable[[], str]
    partner: MakePartner
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
