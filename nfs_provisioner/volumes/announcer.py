"""Tells people and Prometheus what happened to a volume: Events, counters, one line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from nfs_provisioner.errors import NfsProvisionerError, RetryLater
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.kube.api import JsonObject
from nfs_provisioner.kube.events import EventWriter
from nfs_provisioner.metrics import Metrics
from nfs_provisioner.volumes import quota
from nfs_provisioner.volumes.decisions import Situation
from nfs_provisioner.volumes.objects import Claim, Volume, event

log = logging.getLogger(__name__)

PROGRESS_EVERY = 30.0  # seconds between two Events that say the same claim is waited for, or copied to


class Announcer:
    """One place for the wording. Never blocks, never fails."""

    def __init__(
        self,
        events: EventWriter,
        metrics: Metrics,
        component: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._metrics = metrics
        self._component = component
        self._clock = clock
        self._progress: dict[str, float] = {}  # volume -> when it was said last that it is waited for

    def provisioned(self, claim: Claim, pv: str, export: str, directory: str, seconds: float) -> None:
        """A claim has its PV."""
        self._progress.pop(pv, None)
        labels = claim.storage_class, _source(claim)
        self._metrics.provision_total.labels(*labels).inc()
        self._metrics.provision_duration_seconds.labels(*labels).observe(seconds)
        log.info("claim %s: PV %s on export %s, directory %s", claim, pv, export, directory)
        message = f"PV {pv} is the directory {directory} on export {export}"
        self.about_claim(claim, "ProvisioningSucceeded", message, warning=False)

    def is_news(self, s: Situation, error: NfsProvisionerError) -> bool:
        """Whether `failed` is due: that something goes on as it should is said now and then only."""
        if not _goes_on(error):
            return True
        now = self._clock()
        if now - self._progress.get(s.name, -PROGRESS_EVERY) < PROGRESS_EVERY:
            return False
        self._progress = {pv: said for pv, said in self._progress.items() if now - said < PROGRESS_EVERY}
        self._progress[s.name] = now
        return True

    def failed(self, s: Situation, error: NfsProvisionerError) -> None:
        """Something could not be done (now): an Event on the object whose owner can do something about it."""
        if s.volume is not None and (s.volume.phase == "Released" or s.claim is None):
            self._metrics.delete_failed_total.labels(s.volume.storage_class).inc()
            self.about_volume(s.volume, "VolumeFailedDelete", error.message)
        elif s.claim is not None:
            waiting = _goes_on(error)
            if not waiting and s.volume is None:
                self._metrics.provision_failed_total.labels(s.claim.storage_class, _source(s.claim)).inc()
            self.about_claim(s.claim, error.reason, error.message, warning=not waiting)
        else:
            log.warning("%s: %s", s.name, error.message)

    def deleted(self, volume: Volume, export: str, uid: str, record: VolumeRecord, seconds: float) -> None:
        """A PV went by its policy. `uid` is the NFSExport's: `kubectl describe` finds Events by it."""
        self._metrics.delete_total.labels(volume.storage_class).inc()
        self._metrics.delete_duration_seconds.labels(volume.storage_class).observe(seconds)
        log.info("PV %s of claim %s: %s, directory %s", volume.name, record.claim, record.state, record.directory)
        if record.state is State.ARCHIVED:
            message = f"volume {volume.name} of claim {record.claim} was archived as {record.directory}"
            self.about_export(export, "VolumeArchived", message, warning=False, uid=uid)

    def quota_exceeded(self, claim: Claim, record: VolumeRecord, usage: Usage) -> None:
        """A volume with a soft quota took more than requested."""
        log.info("claim %s: volume %s takes %d bytes of %d", claim, record.pv, usage.bytes, record.requested)
        self.about_claim(claim, "QuotaExceeded", quota.message(record, usage), warning=True)

    def about_claim(self, claim: Claim, reason: str, message: str, *, warning: bool) -> None:
        """An Event on a claim."""
        self._events.record(
            self._event("PersistentVolumeClaim", "v1", claim.name, claim.namespace, claim.uid, reason, message, warning)
        )

    def about_volume(self, volume: Volume, reason: str, message: str) -> None:
        """A warning on a PV."""
        self._events.record(self._event("PersistentVolume", "v1", volume.name, "", volume.uid, reason, message, True))

    def about_export(self, name: str, reason: str, message: str, *, warning: bool, uid: str = "") -> None:
        """An Event on an NFSExport."""
        self._events.record(
            self._event("NFSExport", "nfs-provisioner.io/v1alpha1", name, "", uid, reason, message, warning)
        )

    def _event(
        self, kind: str, version: str, name: str, namespace: str, uid: str, reason: str, message: str, warning: bool
    ) -> JsonObject:
        return event(
            kind=kind,
            api_version=version,
            name=name,
            namespace=namespace,
            uid=uid,
            reason=reason,
            message=message,
            warning=warning,
            component=self._component,
            moment=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )


def _goes_on(error: NfsProvisionerError) -> bool:
    """Whether it is only a matter of time."""
    return isinstance(error, RetryLater) and error.reason == "Provisioning"


def _source(claim: Claim) -> str:
    """The label `source`, as other provisioners fill it."""
    return "" if claim.data_source is None else claim.data_source.kind
