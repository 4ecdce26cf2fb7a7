"""Every metric by name, type and labels; and what a scrape costs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from nfs_provisioner import __version__
from nfs_provisioner.metrics import PHASES, ExportSample, Metrics, ReplicaSample, Snapshot, VolumeSample

VOLUME = ("namespace", "persistentvolumeclaim", "persistentvolume", "export")
OURS = "nfs_provisioner_"
# name -> type, labels: the contract's list.
CONTRACT: dict[str, tuple[str, tuple[str, ...]]] = {
    "controller_persistentvolumeclaim_provision_total": ("counter", ("class", "source")),
    "controller_persistentvolumeclaim_provision_failed_total": ("counter", ("class", "source")),
    "controller_persistentvolumeclaim_provision_duration_seconds": ("histogram", ("class", "source")),
    "controller_persistentvolume_delete_total": ("counter", ("class",)),
    "controller_persistentvolume_delete_failed_total": ("counter", ("class",)),
    "controller_persistentvolume_delete_duration_seconds": ("histogram", ("class",)),
    f"{OURS}volume_used_bytes": ("gauge", VOLUME),
    f"{OURS}volume_requested_bytes": ("gauge", VOLUME),
    f"{OURS}volume_inodes": ("gauge", VOLUME),
    f"{OURS}volume_usage_timestamp_seconds": ("gauge", VOLUME),
    f"{OURS}volume_quota_exceeded": ("gauge", VOLUME),
    f"{OURS}export_capacity_bytes": ("gauge", ("export",)),
    f"{OURS}export_reserved_bytes": ("gauge", ("export",)),
    f"{OURS}export_used_bytes": ("gauge", ("export",)),
    f"{OURS}export_available_bytes": ("gauge", ("export",)),
    f"{OURS}export_volumes": ("gauge", ("export",)),
    f"{OURS}export_archive_bytes": ("gauge", ("export",)),
    f"{OURS}export_archives": ("gauge", ("export",)),
    f"{OURS}export_unmanaged_entries": ("gauge", ("export",)),
    f"{OURS}replica_up": ("gauge", ("export", "replica")),
    f"{OURS}replica_operation_duration_seconds": ("histogram", ("export", "replica")),
    f"{OURS}export_epoch": ("gauge", ("export",)),
    f"{OURS}export_active": ("gauge", ("export", "replica")),
    f"{OURS}replication_lag_seconds": ("gauge", ("export",)),
    f"{OURS}replication_passes_total": ("counter", ("export", "result")),
    f"{OURS}replication_pass_duration_seconds": ("histogram", ("export",)),
    f"{OURS}replication_copied_bytes_total": ("counter", ("export",)),
    f"{OURS}replication_copied_files_total": ("counter", ("export",)),
    f"{OURS}replication_deleted_files_total": ("counter", ("export",)),
    f"{OURS}replication_unstable_files": ("gauge", ("export",)),
    f"{OURS}replication_skipped_entries": ("gauge", ("export",)),
    f"{OURS}replication_behind_seconds": ("gauge", ("export",)),
    f"{OURS}replication_max_lag_seconds": ("gauge", ("export",)),
    f"{OURS}replication_waiting_deletions": ("gauge", ("export",)),
    f"{OURS}export_phase": ("gauge", ("export", "phase")),
    f"{OURS}leader": ("gauge", ()),
    f"{OURS}workqueue_depth": ("gauge", ()),
    f"{OURS}workqueue_retries_total": ("counter", ()),
    f"{OURS}api_requests_total": ("counter", ("verb", "resource", "code")),
    f"{OURS}api_request_duration_seconds": ("histogram", ("verb", "resource")),
    f"{OURS}config_last_reload_successful": ("gauge", ()),
    f"{OURS}build_info": ("gauge", ("version", "python")),
}

WEB = ExportSample(
    name="web",
    replicas=[ReplicaSample("a", up=True, active=True), ReplicaSample("b", up=True, active=False)],
    volumes=2,
    archives=1,
    reserved=3 * 2**30,
    capacity=2**40,
    used=2**35,
    available=2**39,
    archive_bytes=77,
    unmanaged=4,
    epoch=7,
    replication_lag=12.5,
    unstable_files=5,
    skipped_entries=6,
    phase="Degraded",
    behind=13.5,
    max_lag=300.0,
    waiting_deletions=8,
)
DATA = VolumeSample(
    "team", "data", "pvc-1", "web", requested=2**30, used=1234, inodes=9, usage_time=1767323045.5, quota_exceeded=False
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: Metrics) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, frozenset(labels.items())))


def touched() -> Metrics:
    """Every series once."""
    metrics = Metrics(CollectorRegistry(), lambda: Snapshot([DATA], [WEB], leader=True, workqueue_depth=3))
    metrics.provision_total.labels("nfs", "").inc()
    metrics.provision_failed_total.labels("nfs", "").inc()
    metrics.provision_duration_seconds.labels("nfs", "").observe(0.03)
    metrics.delete_total.labels("nfs").inc()
    metrics.delete_failed_total.labels("nfs").inc()
    metrics.delete_duration_seconds.labels("nfs").observe(0.2)
    for export in ("web", "db"):
        metrics.replica_operation_duration_seconds.labels(export, "a").observe(0.001)
        metrics.replication_passes_total.labels(export, "clean").inc()
        metrics.replication_passes_total.labels(export, "failed").inc()
        metrics.replication_pass_duration_seconds.labels(export).observe(3)
        metrics.replication_copied_bytes_total.labels(export).inc(4096)
        metrics.replication_copied_files_total.labels(export).inc()
        metrics.replication_deleted_files_total.labels(export).inc()
    metrics.workqueue_retries_total.inc()
    metrics.api_requests_total.labels("POST", "persistentvolumes", "201").inc()
    metrics.api_request_duration_seconds.labels("POST", "persistentvolumes").observe(0.004)
    return metrics


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contracts_metric_is_there_with_its_type_and_labels(name: str) -> None:
    kind, labels = CONTRACT[name]
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(touched().render().decode())
    }
    family = families[name]
    assert family.type == kind
    assert family.documentation
    assert family.samples
    assert {frozenset(sample.labels) - {"le"} for sample in family.samples} == {frozenset(labels)}


def test_no_metric_of_ours_is_there_that_the_contract_does_not_know() -> None:
    families = text_string_to_metric_families(touched().render().decode())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert {name for name in names if not name.startswith("process_")} == set(CONTRACT)


def test_levels_come_from_the_snapshot() -> None:
    series = scrape(touched())
    volume = {"namespace": "team", "persistentvolumeclaim": "data", "persistentvolume": "pvc-1", "export": "web"}
    assert value(series, f"{OURS}volume_used_bytes", **volume) == 1234
    assert value(series, f"{OURS}volume_requested_bytes", **volume) == 2**30
    assert value(series, f"{OURS}volume_inodes", **volume) == 9
    assert value(series, f"{OURS}volume_usage_timestamp_seconds", **volume) == 1767323045.5
    assert value(series, f"{OURS}volume_quota_exceeded", **volume) == 0
    levels = {
        "export_capacity_bytes": 2**40,
        "export_reserved_bytes": 3 * 2**30,
        "export_used_bytes": 2**35,
        "export_available_bytes": 2**39,
        "export_volumes": 2,
        "export_archive_bytes": 77,
        "export_archives": 1,
        "export_unmanaged_entries": 4,
        "export_epoch": 7,
        "replication_lag_seconds": 12.5,
        "replication_unstable_files": 5,
        "replication_skipped_entries": 6,
        "replication_behind_seconds": 13.5,
        "replication_max_lag_seconds": 300,
        "replication_waiting_deletions": 8,
    }
    assert {name: value(series, OURS + name, export="web") for name in levels} == levels
    replicas = [
        value(series, f"{OURS}{name}", export="web", replica=r)
        for name in ("replica_up", "export_active")
        for r in "ab"
    ]
    assert replicas == [1, 1, 1, 0]
    assert (value(series, f"{OURS}leader"), value(series, f"{OURS}workqueue_depth")) == (1, 3)


def test_an_export_is_in_one_of_all_phases() -> None:
    series = scrape(touched())
    phases = {phase: value(series, f"{OURS}export_phase", export="web", phase=phase) for phase in PHASES}
    assert phases == dict.fromkeys(PHASES, 0) | {"Degraded": 1}
    crd = yaml.safe_load((Path(__file__).resolve().parents[2] / "manifests/crd.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    assert list(PHASES) == version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["phase"]["enum"]


def test_what_is_not_known_has_no_sample_and_zero_has_one() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.provide(
        lambda: Snapshot([VolumeSample("n", "c", "p", "e", 0, used=0)], [ExportSample("e", used=0, volumes=0)])
    )
    names = {name for name, labels in scrape(metrics) if ("export", "e") in labels}
    assert names == {
        f"{OURS}volume_requested_bytes",
        f"{OURS}volume_used_bytes",
        f"{OURS}export_used_bytes",
        f"{OURS}export_volumes",
    }


def test_a_deleted_volume_and_a_removed_export_are_gone_from_the_next_scrape() -> None:
    metrics = Metrics(CollectorRegistry(), lambda: Snapshot([DATA], [WEB]))
    assert b'"web"' in metrics.render()
    metrics.provide(Snapshot)
    assert b'"web"' not in metrics.render()


def test_the_counts_of_a_removed_export_go_and_those_of_others_stay() -> None:
    metrics = touched()
    metrics.provide(Snapshot)
    before = scrape(metrics)
    metrics.forget_export("web")
    after = scrape(metrics)
    gone = {key for key in before if ("export", "web") in key[1]}
    assert set(before) - set(after) == gone
    assert any(name == f"{OURS}replication_passes_total" for name, _ in gone)
    assert value(after, f"{OURS}replication_passes_total", export="db", result="clean") == 1


def test_a_class_that_is_known_counts_from_zero() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.expect_class("nfs")
    series = scrape(metrics)
    for name in ("provision_total", "provision_failed_total"):
        assert value(series, f"controller_persistentvolumeclaim_{name}", **{"class": "nfs"}, source="") == 0
    for name in ("delete_total", "delete_failed_total"):
        assert value(series, f"controller_persistentvolume_{name}", **{"class": "nfs"}) == 0
    metrics.provision_total.labels("nfs", "").inc()
    metrics.expect_class("nfs")
    assert (
        value(scrape(metrics), "controller_persistentvolumeclaim_provision_total", **{"class": "nfs"}, source="") == 1
    )


def test_counters_count() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.provision_total.labels("nfs", "").inc()
    metrics.provision_total.labels("nfs", "").inc()
    metrics.provision_duration_seconds.labels("nfs", "").observe(0.3)
    series = scrape(metrics)
    assert value(series, "controller_persistentvolumeclaim_provision_total", **{"class": "nfs"}, source="") == 2
    name = "controller_persistentvolumeclaim_provision_duration_seconds"
    assert value(series, f"{name}_bucket", **{"class": "nfs"}, source="", le="0.25") == 0
    assert value(series, f"{name}_bucket", **{"class": "nfs"}, source="", le="0.5") == 1
    assert value(series, f"{name}_sum", **{"class": "nfs"}, source="") == 0.3


def test_the_process_says_which_it_is_and_that_its_configuration_is_good() -> None:
    metrics = Metrics(CollectorRegistry())
    series = scrape(metrics)
    build = [dict(labels) for name, labels in series if name == f"{OURS}build_info"]
    assert [labels["version"] for labels in build] == [__version__]
    assert value(series, f"{OURS}config_last_reload_successful") == 1
    metrics.config_last_reload_successful.set(0)
    assert value(scrape(metrics), f"{OURS}config_last_reload_successful") == 0
    assert value(series, "process_resident_memory_bytes")


def test_creation_times_are_left_out() -> None:
    assert b"_created" not in touched().render()


def test_label_values_are_escaped() -> None:
    metrics = Metrics(CollectorRegistry(), lambda: Snapshot([VolumeSample('a"b\\c\nd', "c", "p", "e", 1)]))
    (labels,) = (dict(labels) for name, labels in scrape(metrics) if name == f"{OURS}volume_requested_bytes")
    assert labels["namespace"] == 'a"b\\c\nd'


@pytest.mark.parametrize("registry", [CollectorRegistry, lambda: CollectorRegistry(auto_describe=True)])
def test_registering_does_not_ask_for_a_snapshot(registry: Callable[[], CollectorRegistry]) -> None:
    asked: list[int] = []

    def snapshot() -> Snapshot:
        asked.append(1)
        return Snapshot()

    metrics = Metrics(registry(), snapshot)
    assert asked == []
    metrics.render()
    assert asked == [1]


def test_two_registries_do_not_share_anything() -> None:
    one, other = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    one.workqueue_retries_total.inc()
    assert value(scrape(other), f"{OURS}workqueue_retries_total") == 0


def test_a_scrape_of_10_000_volumes_takes_less_than_a_second() -> None:
    volumes = [
        VolumeSample(f"namespace-{n % 50}", f"claim-{n}", f"pvc-{n:036d}", "web", 2**30, n * 4096, n, 1767323045.0 + n)
        for n in range(10_000)
    ]
    metrics = Metrics(CollectorRegistry(), lambda: Snapshot(volumes, [WEB]))
    gc.collect()
    began = time.thread_time()
    text = metrics.render()
    took = time.thread_time() - began
    assert text.count(b"\nnfs_provisioner_volume_") == 40_000
    assert took < 1.0
