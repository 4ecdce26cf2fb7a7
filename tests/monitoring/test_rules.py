"""Alerts: promtool fires each one and sees it silent when all is well; each has a page to follow."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from nfs_provisioner.demo.schema import admit
from tests.monitoring.files import ALERT_TESTS, MONITORING, ROOT, Json, document, rules, write_rules
from tests.plugins import packages

CRDS = Path(__file__).resolve().parent / "crds.yaml"
RUNBOOK = "docs/alerts.md"


def promtool(*arguments: str | Path) -> str:
    packages.require("promtool", debian=["prometheus"])
    done = subprocess.run((packages.find("promtool"), *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verdicts() -> list[tuple[str, bool]]:
    """Alert, and whether it is expected to fire, of every check in the promtool files."""
    return [
        (check["alertname"], bool(check["exp_alerts"]))
        for file in ALERT_TESTS
        for case in yaml.safe_load(file.read_text())["tests"]
        for check in case["alert_rule_test"]
    ]


def test_promtool_finds_nothing_wrong_with_the_rules(tmp_path: Path) -> None:
    said = promtool("check", "rules", write_rules(tmp_path / "rules.yaml"))
    assert f"SUCCESS: {len(rules())} rules found" in said


@pytest.mark.parametrize("file", ALERT_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path, tmp_path: Path) -> None:
    write_rules(tmp_path / "rules.yaml")
    shutil.copy(file, tmp_path)
    promtool("test", "rules", tmp_path / file.name)


@pytest.mark.parametrize("fires", [True, False], ids=["fires", "silent"])
@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules()])
def test_each_alert_is_tried_both_ways(alert: str, fires: bool) -> None:
    assert (alert, fires) in verdicts()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_it_is_and_where_to_read_on(rule: Json) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (page, anchor) == (RUNBOOK, rule["alert"].lower())
    sections = re.split(r"(?m)^## ", (ROOT / RUNBOOK).read_text())
    (section,) = (text for text in sections if text.partition("\n")[0] == rule["alert"])
    assert len(section) > 200


def test_no_page_is_about_an_alert_that_is_gone() -> None:
    headings = re.findall(r"(?m)^## (\w+)$", (ROOT / RUNBOOK).read_text())
    assert headings == sorted(headings, key=[rule["alert"] for rule in rules()].index)
    assert len(headings) == len(rules())


def test_links_of_the_page_lead_somewhere() -> None:
    for page, anchor in re.findall(r"\]\(([\w.-]*)#([\w-]+)\)", (ROOT / RUNBOOK).read_text()):
        text = (ROOT / "docs" / (page or "alerts.md")).read_text()
        anchors = {
            re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"(?m)^#+ (.*)$", text)
        }
        assert anchor in anchors, f"{page}#{anchor}"


@pytest.mark.parametrize("name", ["podmonitor.yaml", "prometheusrule.yaml"])
def test_the_operators_kinds_have_nothing_that_it_does_not_know(name: str) -> None:
    found = document(name)
    (crd,) = (d for d in yaml.safe_load_all(CRDS.read_text()) if d["spec"]["names"]["kind"] == found["kind"])
    (version,) = crd["spec"]["versions"]
    assert found["apiVersion"] == f"{crd['spec']['group']}/{version['name']}"
    admitted = copy.deepcopy(found)
    assert admit(version["schema"]["openAPIV3Schema"], admitted) == []
    assert admitted == found, "something was pruned: the operator has no such field"


def test_the_pods_are_found_and_their_port_too() -> None:
    spec = document("podmonitor.yaml")["spec"]
    deployment = yaml.safe_load((ROOT / "manifests/deployment.yaml").read_text())["spec"]["template"]
    labels = deployment["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert labels[spec["jobLabel"]] == "nfs-provisioner"  # which expressions match
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for c in deployment["spec"]["containers"] for port in c["ports"]}
    assert endpoint["honorLabels"], "a volume's namespace would be the pod's"


def test_the_component_installs_all_of_it() -> None:
    component = ROOT / "kustomize/components/monitoring"
    (base,) = yaml.safe_load((component / "kustomization.yaml").read_text())["resources"]
    assert (component / base).resolve() == MONITORING
    made = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    (generated,) = made["configMapGenerator"]
    assert generated["options"]["labels"]["grafana_dashboard"] == "1"
    files = {*made["resources"], *(entry.partition("=")[2] for entry in generated["files"])}
    assert files == {path.name for path in MONITORING.iterdir()} - {"kustomization.yaml"}
