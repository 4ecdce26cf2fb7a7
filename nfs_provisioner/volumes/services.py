"""What an export is given: the process around it, its partner's maker, and what the API says beside the spec.

Types only; nothing here acts. Invariant: knows nothing of the export itself, so that whoever serves one need not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nfs_provisioner.config import ReplicationSpec
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.identity import Remembered
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.replica import WORKER_COMMAND
from nfs_provisioner.export.standing import PairStanding, VolumeStanding
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.worker import LeaseEnd


class Partner(Protocol):
    """What brings the standby's records and files to the active's (`replication/driver.py`)."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def wake(self) -> None:
        """Something changed on the active side."""

    @property
    def message(self) -> str:
        """What a person should know; empty when all is well."""

    @property
    def halted(self) -> str:
        """Why the standby does not follow now; empty while it does."""

    def standing(self) -> PairStanding:
        """How far the standby is."""

    def volume(self, pv: str) -> VolumeStanding | None:
        """How far one volume's copy is."""

    def confirm(self, pv: str) -> int:
        """Let the deletions of this volume that wait be made, once; how many, 0 when none wait."""

    def acknowledged(self, pv: str) -> bool:
        """Whether the standby knows that this volume is gone."""


#: Export's name, its catalog, active, standby, the records that the standby holds, and the settings as they are now.
MakePartner = Callable[
    [str, Catalog, Attachment, Attachment, list[VolumeRecord], Callable[[], ReplicationSpec]], Partner
]


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
    on_room: Callable[[str], None] = lambda export: None  # there may be more room for volumes on it than before
    on_exceeded: Callable[[VolumeRecord, Usage], None] = lambda record, usage: None  # a volume went over its quota
    busy: Callable[[], bool] = lambda: False  # claims are waiting
    shared: Callable[[str], str] = lambda export: ""  # why its capacity is not its own
    measure_every: float = 600.0  # seconds between two measurements of a volume
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
