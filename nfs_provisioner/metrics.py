"""Every metric, declared once.

Responsible for names, types, labels and buckets, and for the text of a scrape. Must not measure anything itself: counts
and times come from whoever does the work, levels from a snapshot that is asked for at scrape time. Invariant: a scrape
does no I/O, and what a snapshot no longer holds (a deleted volume, a removed export) is gone from the next scrape.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nfs_provisioner import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "nfs_provisioner_"
# From an API round trip on a quiet cluster to the patience of the tools that wait for a claim.
_CLAIM_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# From a cached stat to the deadline of a call on a server that hangs.
_CALL_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 30)
# From an empty volume to a first copy.
_PASS_BUCKETS = (0.1, 0.5, 2.5, 10, 60, 300, 1800, 7200)


@dataclass(frozen=True, slots=True)
class VolumeSample:
    """Levels of one volume. None: not known (yet), so no sample. `usage_time` is Unix time of the measurement."""

    namespace: str
    claim: str
    volume: str
    export: str
    requested: int
    used: int | None = None
    inodes: int | None = None
    usage_time: float | None = None
    quota_exceeded: bool | None = None  # None: nobody asked for a quota


@dataclass(frozen=True, slots=True)
class ReplicaSample:
    name: str
    up: bool
    active: bool


@dataclass(frozen=True, slots=True)
class ExportSample:
    """Levels of one export, sizes in bytes. None: not known (yet), so no sample."""

    name: str
    replicas: Sequence[ReplicaSample] = ()
    volumes: int | None = None
    archives: int | None = None
    reserved: int | None = None
    capacity: int | None = None
    used: int | None = None
    available: int | None = None
    archive_bytes: int | None = None
    unmanaged: int | None = None
    epoch: int | None = None
    replication_lag: float | None = None
    unstable_files: int | None = None
    skipped_entries: int | None = None
    phase: str = ""  # of PHASES
    behind: float | None = None
    max_lag: float | None = None
    waiting_deletions: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All levels at one moment."""

    volumes: Iterable[VolumeSample] = ()
    exports: Sequence[ExportSample] = ()
    leader: bool = False
    workqueue_depth: int = 0


#: Phases of an export; each is a series, so that a phase that ends is seen to end.
PHASES = ("Initializing", "Ready", "Degraded", "Switching", "Rejoining", "Diverged", "Halted")
_VOLUME_LABELS = ("export", "namespace", "persistentvolume", "persistentvolumeclaim")  # in the order of generate_latest
# name, help, attribute of the sample
_VOLUME_LEVELS = (
    ("volume_used_bytes", "Space that a volume's files take, hard links once.", "used"),
    ("volume_requested_bytes", "Size that the claim of a volume was granted.", "requested"),
    ("volume_inodes", "Files, directories and other entries of a volume.", "inodes"),
    ("volume_usage_timestamp_seconds", "Unix time at which a volume's usage was measured.", "usage_time"),
    (
        "volume_quota_exceeded",
        "Whether a volume with a soft quota takes more than requested, until it is below 95 % of it again.",
        "quota_exceeded",
    ),
)
_EXPORT_LEVELS = (
    ("export_capacity_bytes", "Size of an export: of its file system, or as configured.", "capacity"),
    ("export_reserved_bytes", "Sum of the sizes of an export's volumes.", "reserved"),
    ("export_used_bytes", "Space that is taken on an export's file system, as df counts it.", "used"),
    ("export_available_bytes", "Space that is really free on an export's file system.", "available"),
    ("export_volumes", "Volumes on an export.", "volumes"),
    ("export_archive_bytes", "Space that the archives on an export take.", "archive_bytes"),
    ("export_archives", "Archives on an export.", "archives"),
    ("export_unmanaged_entries", "Entries at an export's root that no record names.", "unmanaged"),
    ("export_epoch", "Number of promotions of an export's replicas.", "epoch"),
    (
        "replication_lag_seconds",
        "Time since the start of the last clean pass of an export's oldest copy.",
        "replication_lag",
    ),
    ("replication_unstable_files", "Files that changed during every attempt to copy them.", "unstable_files"),
    ("replication_skipped_entries", "Entries that could not be copied faithfully.", "skipped_entries"),
    (
        "replication_behind_seconds",
        "Like the lag, but volumes that were never copied count since they are known.",
        "behind",
    ),
    ("replication_max_lag_seconds", "The lag that an export allows its standby.", "max_lag"),
    ("replication_waiting_deletions", "Deletions on the standby that wait for confirmation.", "waiting_deletions"),
)
_EXPORT_PHASE = ("export_phase", "Whether an export is in this phase.")
_REPLICA_LEVELS = (
    ("replica_up", "Whether a replica answers.", "up"),
    ("export_active", "Whether a replica is the one that clients use.", "active"),
)


@dataclass(frozen=True, slots=True)
class _Levels(Collector):
    """Turns a snapshot into gauges, but for those of volumes."""

    snapshot: Snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self.snapshot
        for name, help_text, attribute in _EXPORT_LEVELS:
            of_exports = (((export.name,), getattr(export, attribute)) for export in snapshot.exports)
            yield _family(name, help_text, ("export",), of_exports)
        of_phases = (
            ((export.name, phase), export.phase == phase)
            for export in snapshot.exports
            if export.phase
            for phase in PHASES
        )
        yield _family(*_EXPORT_PHASE, ("export", "phase"), of_phases)
        for name, help_text, attribute in _REPLICA_LEVELS:
            of_replicas = (
                ((export.name, replica.name), getattr(replica, attribute))
                for export in snapshot.exports
                for replica in export.replicas
            )
            yield _family(name, help_text, ("export", "replica"), of_replicas)
        yield _family("leader", "Whether this process is the one that acts.", (), [((), snapshot.leader)])
        yield _family("workqueue_depth", "Keys that wait for a worker.", (), [((), snapshot.workqueue_depth)])


def _text_of_volumes(volumes: Iterable[VolumeSample]) -> bytes:
    """The gauges of volumes, as generate_latest would write them, in a tenth of its time: there may be 10,000 of each,
    and while a scrape is made every other thread waits for the interpreter."""
    labelled = [(_volume_labels(volume), volume) for volume in volumes]
    lines = []
    for short, help_text, attribute in _VOLUME_LEVELS:
        name, level_of = _PREFIX + short, attrgetter(attribute)
        lines.append(f"# HELP {name} {help_text}\n# TYPE {name} gauge\n")
        for labels, volume in labelled:
            if (level := level_of(volume)) is not None:
                lines.append(f"{name}{labels} {float(level)!r}\n")
    return "".join(lines).encode()


def _volume_labels(volume: VolumeSample) -> str:
    values = (volume.export, volume.namespace, volume.volume, volume.claim)
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(_VOLUME_LABELS, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _family(
    name: str, help_text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float | None]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, help_text, labels=labels)
    for values, level in samples:
        if level is not None:
            family.add_metric(values, float(level))
    return family


class Metrics:
    """The counters and histograms, as attributes named like the metrics, and the text of a scrape.

    `snapshot` gives the levels; `provide` sets it later, when the parts that know them exist.
    """

    def __init__(self, registry: CollectorRegistry, snapshot: Callable[[], Snapshot] = Snapshot) -> None:
        self.registry = registry
        self._snapshot = snapshot
        self._declare_claims()
        self._declare_replication()
        self._declare_process()

    def provide(self, snapshot: Callable[[], Snapshot]) -> None:
        """Take levels from here from now on. Called on the scraping thread: it must not wait for anything."""
        self._snapshot = snapshot

    def render(self) -> bytes:
        """A scrape in Prometheus' text format (CONTENT_TYPE)."""
        snapshot = self._snapshot()
        others = generate_latest(_WithoutCreationTimes(self.registry, _Levels(snapshot)))
        return others + _text_of_volumes(snapshot.volumes)

    def expect_class(self, storage_class: str) -> None:
        """Begin its counts with zero: the first failure of a counter that begins with one is not seen as a change."""
        self.provision_total.labels(storage_class, "")
        self.provision_failed_total.labels(storage_class, "")
        self.provision_duration_seconds.labels(storage_class, "")
        self.delete_total.labels(storage_class)
        self.delete_failed_total.labels(storage_class)
        self.delete_duration_seconds.labels(storage_class)

    def forget_export(self, export: str) -> None:
        """Drop the counts of an export that does not exist any more."""
        for metric in self._by_export:
            metric.remove_by_labels({"export": export})

    def _declare_claims(self) -> None:
        # Names, labels and help of sigs.k8s.io/sig-storage-lib-external-provisioner, whose dashboards people have.
        claim, volume = "controller_persistentvolumeclaim_provision", "controller_persistentvolume_delete"
        by_class_and_source, by_class = ("class", "source"), ("class",)
        self.provision_total = self._counter(f"{claim}_total", "Volumes provisioned.", by_class_and_source)
        self.provision_failed_total = self._counter(
            f"{claim}_failed_total", "Failed attempts to provision a volume.", by_class_and_source
        )
        self.provision_duration_seconds = self._histogram(
            f"{claim}_duration_seconds", "Time to provision a volume.", by_class_and_source, _CLAIM_BUCKETS
        )
        self.delete_total = self._counter(f"{volume}_total", "Volumes deleted.", by_class)
        self.delete_failed_total = self._counter(
            f"{volume}_failed_total", "Failed attempts to delete a volume.", by_class
        )
        self.delete_duration_seconds = self._histogram(
            f"{volume}_duration_seconds", "Time to delete a volume.", by_class, _CLAIM_BUCKETS
        )

    def _declare_replication(self) -> None:
        replication = f"{_PREFIX}replication"
        self.replica_operation_duration_seconds = self._histogram(
            f"{_PREFIX}replica_operation_duration_seconds",
            "Time of one operation on a replica.",
            ("export", "replica"),
            _CALL_BUCKETS,
        )
        self.replication_passes_total = self._counter(
            f"{replication}_passes_total", "Passes that ended, by result.", ("export", "result")
        )
        self.replication_pass_duration_seconds = self._histogram(
            f"{replication}_pass_duration_seconds", "Time of a pass over one volume.", ("export",), _PASS_BUCKETS
        )
        self.replication_copied_bytes_total = self._counter(
            f"{replication}_copied_bytes_total", "Bytes copied to the standby.", ("export",)
        )
        self.replication_copied_files_total = self._counter(
            f"{replication}_copied_files_total", "Files copied to the standby.", ("export",)
        )
        self.replication_deleted_files_total = self._counter(
            f"{replication}_deleted_files_total", "Files deleted on the standby.", ("export",)
        )
        self._by_export: tuple[Counter | Histogram, ...] = (
            self.replica_operation_duration_seconds,
            self.replication_passes_total,
            self.replication_pass_duration_seconds,
            self.replication_copied_bytes_total,
            self.replication_copied_files_total,
            self.replication_deleted_files_total,
        )

    def _declare_process(self) -> None:
        self.workqueue_retries_total = self._counter(f"{_PREFIX}workqueue_retries_total", "Keys tried again.", ())
        self.api_requests_total = self._counter(
            f"{_PREFIX}api_requests_total", "Requests to the API server.", ("verb", "resource", "code")
        )
        self.api_request_duration_seconds = self._histogram(
            f"{_PREFIX}api_request_duration_seconds",
            "Time of a request to the API server, watches excepted.",
            ("verb", "resource"),
            _CALL_BUCKETS,
        )
        self.config_last_reload_successful = Gauge(
            f"{_PREFIX}config_last_reload_successful",
            "Whether the configuration in use is the one in the file.",
            registry=self.registry,
        )
        self.config_last_reload_successful.set(1)
        build_info = Gauge(
            f"{_PREFIX}build_info", "Always 1; the labels say what runs.", ("version", "python"), registry=self.registry
        )
        build_info.labels(version=__version__, python=platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, help_text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)


@dataclass(frozen=True, slots=True)
class _WithoutCreationTimes(Collector):
    """Levels and a registry, without the `_created` series of its counters and histograms: a third more text that
    nobody asks for.

    prometheus_client can leave them out itself, but only by a switch for the whole process.
    """

    registry: CollectorRegistry
    levels: _Levels

    def collect(self) -> Iterator[Metric]:
        yield from self.levels.collect()
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
