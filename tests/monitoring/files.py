"""What manifests/monitoring says, taken apart for the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "manifests/monitoring"
ALERT_TESTS = sorted((Path(__file__).resolve().parent / "alerts").glob("*.yaml"))


def document(name: str) -> Json:
    """A manifest with one document."""
    found: Json = yaml.safe_load((MONITORING / name).read_text())
    return found


def rules() -> list[Json]:
    """Every alert."""
    return [rule for group in document("prometheusrule.yaml")["spec"]["groups"] for rule in group["rules"]]


def write_rules(file: Path) -> Path:
    """The rules as Prometheus and promtool read them: the PrometheusRule's spec."""
    file.write_text(yaml.safe_dump(document("prometheusrule.yaml")["spec"]))
    return file


def panels() -> Iterator[Json]:
    """Every panel of the dashboard that asks something, as the file has it."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def filled(expression: str, interval: str = "1m", step: str = "1m") -> str:
    """A panel's query as Grafana sends it, with everything chosen; `step` of subqueries, for who cannot wait minutes."""
    filled = expression.replace("$export", ".*").replace("$namespace", ".*").replace("$__rate_interval", interval)
    filled = filled.replace(":1m]", f":{step}]")
    assert "$" not in filled, f"an unknown variable in {expression}"
    return filled
