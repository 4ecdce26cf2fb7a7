"""Writes the Grafana dashboard: `python -m tests.monitoring.dashboard`.

manifests/monitoring/dashboard.json is what comes out of here; a test compares them. The panels stand here once, for the
dashboard, for the test that asks a running Prometheus each of their queries, and for the picture in docs/. Levels are
exposed by the leader alone, so every query aggregates away from the pod.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

FILE = Path(__file__).resolve().parents[2] / "manifests/monitoring/dashboard.json"
WIDTH = 24  # of Grafana's grid
HEIGHT = 7
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

JOB = 'job="nfs-provisioner"'
_EXPORT = 'export=~"$export"'
_VOLUME = f'namespace=~"$namespace", {_EXPORT}'


@dataclass(frozen=True, slots=True)
class Query:
    """`legend` is what Grafana makes of the labels."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """`kind` and `unit` are Grafana's names. `quiet`: why it may be empty although all is well; if it may."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    about: str = ""
    quiet: str = ""


def _level(name: str, labels: str = "export", matching: str = _EXPORT) -> str:
    """A level, whichever pod leads."""
    return f"max by ({labels}) (nfs_provisioner_{name}{{{matching}}})"


def _per_minute(name: str, labels: str, matching: str) -> str:
    return f"60 * sum by ({labels}) (rate({name}{{{matching}}}[$__rate_interval]))"


def _quantile(share: float, name: str, labels: str, matching: str) -> str:
    by = f"le, {labels}" if labels else "le"
    return f"histogram_quantile({share}, sum by ({by}) (rate({name}_bucket{{{matching}}}[$__rate_interval])))"


def _both_quantiles(name: str, labels: str, matching: str) -> tuple[Query, ...]:
    prefix = " ".join(f"{{{{{label}}}}}" for label in labels.split(", ") if label)
    return tuple(
        Query(_quantile(share, name, labels, matching), f"{prefix} {legend}".strip())
        for share, legend in ((0.5, "p50"), (0.99, "p99"))
    )


_CLAIM = "controller_persistentvolumeclaim_provision"
_DELETE = "controller_persistentvolume_delete"
_BY_CLAIM = "namespace, persistentvolumeclaim, export"
_CLAIM_LEGEND = "{{namespace}}/{{persistentvolumeclaim}} ({{export}})"
_USED = _level("volume_used_bytes", _BY_CLAIM, _VOLUME)
_REQUESTED = _level("volume_requested_bytes", _BY_CLAIM, _VOLUME)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Provisioning": (
        Panel(
            "Leaders",
            (Query("sum(nfs_provisioner_leader)", "leaders"),),
            kind="stat",
            width=4,
            about="Always 1. 0: nobody acts.",
        ),
        Panel(
            "Claims provisioned, per minute",
            (Query(_per_minute(f"{_CLAIM}_total", "class", JOB), "{{class}}"),),
            width=10,
        ),
        Panel(
            "Time to provision a claim",
            _both_quantiles(f"{_CLAIM}_duration_seconds", "", JOB),
            "s",
            width=10,
            quiet="no claim was provisioned within the interval",
        ),
        Panel(
            "Failed attempts, per minute",
            (
                Query(_per_minute(f"{_CLAIM}_failed_total", "class", JOB), "provisioning {{class}}"),
                Query(_per_minute(f"{_DELETE}_failed_total", "class", JOB), "deleting {{class}}"),
            ),
        ),
        Panel(
            "Volumes archived or deleted, per minute",
            (Query(_per_minute(f"{_DELETE}_total", "class", JOB), "{{class}}"),),
        ),
        Panel(
            "Work queue",
            (
                Query("sum(nfs_provisioner_workqueue_depth)", "waiting"),
                Query("60 * sum(rate(nfs_provisioner_workqueue_retries_total[$__rate_interval]))", "retries a minute"),
            ),
        ),
        Panel(
            "Requests to the API server, per minute",
            (Query(_per_minute("nfs_provisioner_api_requests_total", "verb, resource, code", JOB),
                   "{{verb}} {{resource}} {{code}}"),),
            width=12,
        ),
        Panel(
            "Time of a request to the API server",
            _both_quantiles("nfs_provisioner_api_request_duration_seconds", "verb", JOB),
            "s",
            width=12,
            quiet="no request of this kind within the interval",
        ),
    ),
    "Exports": (
        Panel(
            "Phase",
            (Query(f"{_level('export_phase', 'export, phase')} == 1", "{{export}} {{phase}}"),),
            kind="state-timeline",
        ),
        Panel(
            "Space of the file system",
            (
                Query(_level("export_used_bytes"), "{{export}} used"),
                Query(_level("export_available_bytes"), "{{export}} free"),
            ),
            "bytes",
        ),
        Panel(
            "Free in four hours, as the last hour went",
            (
                Query(
                    f"clamp_min(predict_linear({_level('export_available_bytes')}[1h:1m], 4 * 3600), 0)", "{{export}}"
                ),
            ),
            "bytes",
            about="What the alert NfsProvisionerExportFillingUp looks at, beside the same of the last quarter of an hour.",
        ),
        Panel(
            "Promised",
            (Query(f"{_level('export_reserved_bytes')} / {_level('export_capacity_bytes')}", "{{export}}"),),
            "percentunit",
            about="Sum of what claims requested, of the capacity. More than 100 % only with overcommit.",
        ),
        Panel(
            "What takes the space",
            (
                Query("sum by (export) (" + _level("volume_used_bytes", "persistentvolume, export") + ")",
                      "{{export}} volumes"),
                Query(_level("export_archive_bytes"), "{{export}} archives"),
            ),
            "bytes",
        ),
        Panel(
            "How many",
            (
                Query(_level("export_volumes"), "{{export}} volumes"),
                Query(_level("export_archives"), "{{export}} archives"),
                Query(_level("export_unmanaged_entries"), "{{export}} unmanaged entries"),
            ),
        ),
    ),
    "Pairs": (
        Panel(
            "Replicas that answer",
            (Query(_level("replica_up", "export, replica"), "{{export}} {{replica}}"),),
            kind="state-timeline",
        ),
        Panel(
            "Active replica",
            (Query(f"{_level('export_active', 'export, replica')} == 1", "{{export}} {{replica}}"),),
            kind="state-timeline",
        ),
        Panel("Epoch", (Query(_level("export_epoch"), "{{export}}"),), about="Raised by one with each promotion."),
        Panel(
            "Lag",
            (
                Query(_level("replication_lag_seconds"), "{{export}} since its oldest copy was clean"),
                Query(_level("replication_behind_seconds"), "{{export}} with new volumes"),
                Query(_level("replication_max_lag_seconds"), "{{export}} allowed"),
            ),
            "s",
        ),
        Panel(
            "Passes, per minute",
            (Query(_per_minute("nfs_provisioner_replication_passes_total", "export, result", _EXPORT),
                   "{{export}} {{result}}"),),
        ),
        Panel(
            "Duration of a pass",
            _both_quantiles("nfs_provisioner_replication_pass_duration_seconds", "export", _EXPORT),
            "s",
            quiet="no pass ended within the interval",
        ),
        Panel(
            "Copied",
            (Query("sum by (export) (rate(nfs_provisioner_replication_copied_bytes_total"
                   f"{{{_EXPORT}}}[$__rate_interval]))", "{{export}}"),),
            "Bps",
        ),
        Panel(
            "Files, per minute",
            (
                Query(_per_minute("nfs_provisioner_replication_copied_files_total", "export", _EXPORT),
                      "{{export}} copied"),
                Query(_per_minute("nfs_provisioner_replication_deleted_files_total", "export", _EXPORT),
                      "{{export}} deleted"),
            ),
        ),
        Panel(
            "What a pass could not do",
            (
                Query(_level("replication_waiting_deletions"), "{{export}} deletions that wait"),
                Query(_level("replication_unstable_files"), "{{export}} unstable files"),
                Query(_level("replication_skipped_entries"), "{{export}} skipped entries"),
            ),
        ),
        Panel(
            "Time of an operation on a replica",
            _both_quantiles("nfs_provisioner_replica_operation_duration_seconds", "export, replica", _EXPORT),
            "s",
            width=24,
            quiet="no operation within the interval",
        ),
    ),
    "Volumes": (
        Panel("Largest", (Query(f"topk(20, {_USED})", _CLAIM_LEGEND),), "bytes", "bargauge", 12),
        Panel("Used, of what was requested", (Query(f"topk(20, {_USED} / {_REQUESTED})", _CLAIM_LEGEND),),
              "percentunit", "bargauge", 12),
        Panel("Requested", (Query(f"topk(20, {_REQUESTED})", _CLAIM_LEGEND),), "bytes", "bargauge", 12),
        Panel("Most files and directories",
              (Query(f"topk(20, {_level('volume_inodes', _BY_CLAIM, _VOLUME)})", _CLAIM_LEGEND),),
              kind="bargauge", width=12),
        Panel(
            "Growing fastest",
            (Query(f"topk(10, deriv({_USED}[30m:1m])) > 0", _CLAIM_LEGEND),),
            "Bps",
            quiet="nothing grows",
        ),
        Panel("Claims over their request", (Query(f"count({_USED} > {_REQUESTED}) or vector(0)", "claims"),)),
        Panel(
            "Age of the oldest measurement",
            (Query("time() - min by (export) (nfs_provisioner_volume_usage_timestamp_seconds{" + _VOLUME + "})",
                   "{{export}}"),),
            "s",
        ),
    ),
}  # fmt: skip


def panels() -> Iterator[Panel]:
    """All of them, from the top."""
    for row in ROWS.values():
        yield from row


def dashboard() -> Json:
    """What Grafana reads."""
    return {
        "uid": "nfs-provisioner",
        "title": "nfs-provisioner",
        "tags": ["storage", "nfs"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": list(_placed()),
    }


def _variables() -> list[Json]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
        _choice("export", "label_values(nfs_provisioner_export_volumes, export)"),
        _choice("namespace", f"label_values(nfs_provisioner_volume_requested_bytes{{{_EXPORT}}}, namespace)"),
    ]


def _choice(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": f"Variable-{name}"},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
    }


def _placed() -> Iterator[Json]:
    y = number = 0
    for title, row in ROWS.items():
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1)}
        x, y = 0, y + 1
        for panel in row:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            number += 1
            yield _panel(number, panel, _place(x, y, panel.width, HEIGHT))
            x += panel.width
        y += HEIGHT


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(number: int, panel: Panel, place: Json) -> Json:
    instant = panel.kind == "bargauge"
    options: Json = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if instant:
        options = {"orientation": "horizontal", "displayMode": "basic", "reduceOptions": {"calcs": ["lastNotNull"]}}
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "gridPos": place,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _DATASOURCE, "expr": query.expr, "legendFormat": query.legend}
            | ({"instant": True, "range": False} if instant else {})
            for n, query in enumerate(panel.queries)
        ],
    }
    about = " ".join(part for part in (panel.about, f"Empty: {panel.quiet}." if panel.quiet else "") if part)
    return made | ({"description": about} if about else {})


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
