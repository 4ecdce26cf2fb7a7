"""What there is: the JSON of /api/status and the levels of /metrics, out of caches and catalogs. No disk, no API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nfs_provisioner import __version__
from nfs_provisioner.export.records import RESERVING, State, VolumeRecord
from nfs_provisioner.export.standing import PairStanding, VolumeStanding
from nfs_provisioner.metrics import ExportSample, ReplicaSample, Snapshot, VolumeSample
from nfs_provisioner.volumes import quota
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import Volume
from nfs_provisioner.volumes.status import ExportStatus, rfc3339

JsonObject = dict[str, Any]
_NONE: Mapping[str, ExportStatus] = {}


def overview(
    exports: list[Export],
    volume: Callable[[str], Volume | None],
    *,
    leader: str,
    provisioner: str,
    others: Mapping[str, ExportStatus] = _NONE,
) -> JsonObject:
    """Exports, volumes and archives, sizes in bytes. Unknown figures are null. `others`: exports without volumes."""
    records = [(export, record) for export in exports for record in export.catalog.all()]
    return {
        "version": __version__,
        "leader": leader,
        "provisioner": provisioner,
        "exports": sorted(
            [*map(_export, exports), *(_shown(name, status) for name, status in others.items())],
            key=lambda shown: shown["name"],
        ),
        "volumes": [
            _volume(volume(record.pv), export, record) for export, record in records if record.state in RESERVING
        ],
        "archives": [
            _archive(export, record) for export, record in records if record.state in (State.ARCHIVED, State.RETAINED)
        ],
    }


def _export(export: Export) -> JsonObject:
    status = export.status()
    archive_bytes = None if status.archives is None else export.usage.archive_bytes()
    return _shown(export.name, status, mirror=export.spec.is_mirror, archive_bytes=archive_bytes)


def _shown(name: str, status: ExportStatus, *, mirror: bool = False, archive_bytes: int | None = None) -> JsonObject:
    standing = status.standing or PairStanding()
    return {
        "name": name,
        "phase": status.phase,
        "message": "; ".join(part for part in (status.message, status.shared) if part),
        "active": status.active,
        "epoch": status.epoch,
        "mirror": mirror,
        "capacity": status.capacity,
        "available": status.available,
        "used": status.used,
        "reserved": status.reserved,
        "volumes": status.volumes,
        "archives": status.archives,
        "archiveBytes": archive_bytes,
        "unmanaged": status.unmanaged,
        "lag": standing.lag if status.standing is not None else None,
        "lastCleanPass": _moment(standing.last_clean),
        "unstable": standing.unstable,
        "waiting": dict(standing.waiting),
        "replicas": [
            {"name": r.name, "role": r.role, "reachable": r.reachable, "message": r.message} for r in status.replicas
        ],
    }


def _moment(unix: float | None) -> str | None:
    return None if unix is None else rfc3339(unix)


def _volume(volume: Volume | None, export: Export, record: VolumeRecord) -> JsonObject:
    partner = export.partner
    standing = (partner.volume(record.pv) if partner is not None else None) or VolumeStanding()
    return {
        "namespace": record.claim.namespace,
        "claim": record.claim.name,
        "volume": record.pv,
        "phase": volume.phase if volume is not None else "",
        "state": str(record.state),
        "export": export.name,
        "directory": record.directory,
        "requested": record.requested,
        **_usage(export, record),
        "quotaExceeded": export.usage.exceeded(record.pv) if quota.applies(record) else None,
        "storageClass": record.storage_class,
        "onDelete": record.policy.on_delete,
        "shared": record.shared,
        "lag": standing.lag,
        "lastCleanPass": _moment(standing.last_clean),
        "unstable": standing.unstable,
        "skipped": standing.skipped,
        "waiting": standing.waiting,
        "message": "; ".join(filter(None, (standing.message, export.measuring.trouble(record.pv)))),
    }


def _archive(export: Export, record: VolumeRecord) -> JsonObject:
    return {
        "name": record.directory,
        "export": export.name,
        "namespace": record.claim.namespace,
        "claim": record.claim.name,
        "volume": record.pv,
        "state": str(record.state),
        "since": record.since,
        "requested": record.requested,
        **_usage(export, record),
        "retention": record.policy.archive_retention,
        "message": export.measuring.trouble(record.pv),
    }


def _usage(export: Export, record: VolumeRecord) -> JsonObject:
    usage = export.usage.get(record.pv)
    if usage is None:
        return {"used": None, "inodes": None, "usageTime": None, "incomplete": False}
    incomplete = usage.unreadable > 0
    return {"used": usage.bytes, "inodes": usage.inodes, "usageTime": rfc3339(usage.at), "incomplete": incomplete}


def snapshot(
    exports: list[Export], *, leading: bool, depth: int, others: Mapping[str, ExportStatus] = _NONE
) -> Snapshot:
    """The levels for one scrape; only the leader has any of exports and volumes."""
    if not leading:
        return Snapshot(leader=False, workqueue_depth=depth)
    return Snapshot(
        volumes=[
            _level(export, record)
            for export in exports
            for record in export.catalog.all()
            if record.state is State.LIVE
        ],
        exports=[
            *(_sample(export) for export in exports),
            *(ExportSample(name, phase=status.phase) for name, status in others.items()),
        ],
        leader=True,
        workqueue_depth=depth,
    )


def _level(export: Export, record: VolumeRecord) -> VolumeSample:
    usage = export.usage.get(record.pv)
    return VolumeSample(
        record.claim.namespace,
        record.claim.name,
        record.pv,
        export.name,
        record.requested,
        usage.bytes if usage is not None else None,
        usage.inodes if usage is not None else None,
        usage.at if usage is not None else None,
        export.usage.exceeded(record.pv) if quota.applies(record) else None,
    )


def _sample(export: Export) -> ExportSample:
    status = export.status()
    return ExportSample(
        name=export.name,
        replicas=[ReplicaSample(r.name, r.reachable, r.role == "active") for r in status.replicas],
        volumes=status.volumes,
        archives=status.archives,
        reserved=status.reserved,
        capacity=status.capacity,
        used=status.used,
        available=status.available,
        archive_bytes=None if status.archives is None else export.usage.archive_bytes(),
        unmanaged=status.unmanaged,
        epoch=status.epoch if status.promotion else None,
        replication_lag=status.standing.lag if status.standing is not None else None,
        unstable_files=status.standing.unstable if status.standing is not None else None,
        skipped_entries=status.standing.skipped if status.standing is not None else None,
        phase=status.phase,
        behind=status.standing.behind if status.standing is not None else None,
        max_lag=export.spec.replication.max_lag if len(export.spec.replicas) > 1 else None,
        waiting_deletions=sum(n for _, n in status.standing.waiting) if status.standing is not None else None,
    )
