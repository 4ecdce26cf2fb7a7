"""How far copies are, a standby's or a clone's, as people see it. Types only: `replication` has the figures."""

from __future__ import annotations

from dataclasses import dataclass

from nfs_provisioner.export.records import VolumeRecord


@dataclass(frozen=True, slots=True)
class VolumeStanding:
    """One volume. `lag` in seconds and `last_clean` (Unix time) are None until its first clean pass."""

    lag: float | None = None
    last_clean: float | None = None
    waiting: int = 0  # deletions over the limit
    unstable: int = 0
    skipped: int = 0
    message: str = ""  # why the last pass was not clean


@dataclass(frozen=True, slots=True)
class PairStanding:
    """All volumes of an export. `lag` and `last_clean` are the oldest volume's, None until each had a clean pass."""

    lag: float | None = None
    last_clean: float | None = None
    behind: float = 0.0  # like lag, but a volume that was never clean counts since it is known
    unstable: int = 0
    skipped: int = 0
    waiting: tuple[tuple[str, int], ...] = ()  # volumes and how many of their deletions wait
    stopped: str = ""  # why nothing is copied until a person has acted


@dataclass(frozen=True, slots=True)
class CloneStanding:
    """How far the copying of a clone is. `record` has no manifests; `skipped`: what could not be carried, and why."""

    record: VolumeRecord
    running: bool
    files: int = 0
    bytes: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
