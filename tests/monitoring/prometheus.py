"""A Prometheus of a test's own: loopback, one target, the shipped rules; scrapes as the shipped PodMonitor says.

What a PodMonitor becomes is the operator's business; here it is the few lines that matter: labels of the target, and
that the labels of a metric win over them. Knows nothing of the controller.
"""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.controlplane.processes import Child, free_ports
from tests.monitoring.files import document, write_rules
from tests.plugins import packages

Json = dict[str, Any]
Series = list[tuple[dict[str, str], list[tuple[float, float]]]]

NAMESPACE = "nfs-provisioner"
DEADLINE = 120.0


class Prometheus:
    """Runs from `with` to its end."""

    def __init__(self, directory: Path, target_port: int, *, interval: str = "1s") -> None:
        packages.require("prometheus", debian=["prometheus"])
        directory.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        config = directory / "prometheus.yaml"
        config.write_text(yaml.safe_dump(_config(write_rules(directory / "rules.yaml"), target_port, interval)))
        self._child = Child(
            "prometheus",
            (
                packages.find("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ),
            directory / "prometheus.log",
        )

    def __enter__(self) -> Self:
        self._child.start()
        end = time.monotonic() + DEADLINE
        self._child.wait_until(self._ready, deadline=end, what="it was not ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Json:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=DEADLINE) as answer:
            found: Json = json.loads(answer.read())
        assert found["status"] == "success", found
        data: Json = found["data"]
        return data

    def targets(self) -> list[Json]:
        """What it scrapes, with `health` and `lastError`."""
        return list(self._get("targets")["activeTargets"])

    def rules(self) -> list[Json]:
        """Every rule that it loaded, with `health` (unknown before the first evaluation) and `lastError`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The value of an expression now: labels and value of each series."""
        found = self._get("query", query=expression)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(entry["metric"], float(entry["value"][1])) for entry in found["result"]]

    def query_range(self, expression: str, begin: float, end: float, step: float) -> Series:
        """The same over time: labels, and (Unix time, value) of each moment."""
        found = self._get("query_range", query=expression, start=str(begin), end=str(end), step=str(step))
        return [(e["metric"], [(float(at), float(value)) for at, value in e["values"]]) for e in found["result"]]


def _config(rules: Path, target_port: int, interval: str) -> Json:
    monitor = document("podmonitor.yaml")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    labels = {
        "job": monitor["selector"]["matchLabels"][monitor["jobLabel"]],
        "namespace": NAMESPACE,
        "pod": "nfs-provisioner-0",
        "container": "nfs-provisioner",
        "endpoint": endpoint["port"],
    }
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "podMonitor/nfs-provisioner/nfs-provisioner/0",
                "metrics_path": endpoint["path"],
                "honor_labels": endpoint["honorLabels"],
                "static_configs": [{"targets": [f"127.0.0.1:{target_port}"], "labels": labels}],
            }
        ],
    }
