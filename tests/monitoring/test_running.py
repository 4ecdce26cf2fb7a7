"""A controller that lives and a Prometheus that scrapes it: every name exists, no panel is empty, the rules load."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.cluster.site import eventually
from tests.monitoring import dashboard
from tests.monitoring.expressions import TARGET_LABELS, legend_labels, names, unknown
from tests.monitoring.files import filled, panels, rules
from tests.monitoring.life import Life, port
from tests.monitoring.prometheus import Prometheus

Exposed = dict[str, frozenset[str]]
#: Grows whenever somebody does something.
LIFE = ("controller_persistentvolumeclaim_provision_total", "nfs_provisioner_replication_copied_files_total")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Exposed]]:
    """A Prometheus that has seen a controller's life, and what that controller exposes."""
    directory = tmp_path_factory.mktemp("monitoring")
    with EmbeddedApiServer() as server:
        life = Life(server, directory / "site")
        with life.controller() as controller, Prometheus(directory, port(controller)) as prometheus:
            life.until(lambda: [t["health"] for t in prometheus.targets()] == ["up"], "the controller is not scraped")
            data = life.lead_a_life()
            life.until(lambda: prometheus.query("nfs_provisioner_volume_used_bytes > 5e5"), "nothing is measured")
            life.write(data, "large", 1 << 21)
            life.until(lambda: prometheus.query("nfs_provisioner_volume_used_bytes > 2e6"), "growth is not measured")
            life.until(lambda: prometheus.query("nfs_provisioner_export_archive_bytes"), "no archive is measured")
            life.until(lambda: not missing(prometheus), "a panel is empty")
            yield prometheus, exposed(port(controller))


def exposed(number: int) -> Exposed:
    """Labels of every metric of /metrics, as Prometheus stores them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {sample.name: frozenset(sample.labels) for family in families for sample in family.samples}


def queries() -> list[tuple[str, str, str]]:
    """Panel, legend and expression of every query of the dashboard."""
    return [(p["title"], target["legendFormat"], target["expr"]) for p in panels() for target in p["targets"]]


def answered(prometheus: Prometheus, expression: str, interval: str = "10m") -> bool:
    """Whether there is anything to draw: a quantile of nothing is not a number."""
    return any(not math.isnan(value) for _, value in prometheus.query(filled(expression, interval, "1s")))


def asked(prometheus: Prometheus, expression: str) -> list[tuple[dict[str, str], float]]:
    """The series of an expression that has some; none while a scrape took too long, which makes all of them stale."""
    return eventually(lambda: prometheus.query(expression), f"{expression} has an answer")


def missing(prometheus: Prometheus) -> list[str]:
    """Queries without an answer."""
    return [f"{title}: {expression}" for title, _, expression in queries() if not answered(prometheus, expression)]


def test_the_dashboard_is_the_one_that_its_script_writes() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run `python -m tests.monitoring.dashboard`"


def test_prometheus_scrapes_the_controller(stage: tuple[Prometheus, Exposed]) -> None:
    def found() -> list[tuple[str, str]]:
        return [(target["health"], target["lastError"]) for target in stage[0].targets()]

    eventually(lambda: found() == [("up", "")], "the one target is scraped")  # one scrape may take too long


def test_prometheus_loads_every_rule(stage: tuple[Prometheus, Exposed]) -> None:
    assert [rule["name"] for rule in stage[0].rules()] == [rule["alert"] for rule in rules()]

    def judged() -> set[tuple[str, str]]:
        return {(rule["health"], rule.get("lastError", "")) for rule in stage[0].rules()}

    eventually(lambda: judged() == {("ok", "")}, "every rule is evaluated")


def test_a_volumes_namespace_is_its_claims(stage: tuple[Prometheus, Exposed]) -> None:
    series = asked(stage[0], "nfs_provisioner_volume_requested_bytes")
    assert {labels["namespace"] for labels, _ in series} == {"shop"}


def test_only_what_is_wrong_alerts(stage: tuple[Prometheus, Exposed]) -> None:
    """One claim cannot be provisioned, one takes twice what it requested; nothing else is wrong."""
    wrong = {"NfsProvisionerProvisioningFails", "NfsProvisionerClaimOverRequest"}

    def told() -> set[str]:
        return {rule["name"] for rule in stage[0].rules() if rule["state"] != "inactive"}

    # A busy machine may hold up an evaluation, or the standby, for a moment.
    eventually(lambda: told() == wrong, "those two, and no others, are pending or firing")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_name_what_the_controller_exposes(stage: tuple[Prometheus, Exposed], rule: dict[str, str]) -> None:
    assert list(unknown(rule["expr"], stage[1])) == []


@pytest.mark.parametrize(("title", "legend", "expression"), queries())
def test_panels_name_what_the_controller_exposes(
    stage: tuple[Prometheus, Exposed], title: str, legend: str, expression: str
) -> None:
    plain = filled(expression)
    assert list(unknown(plain, stage[1])) == []
    assert legend_labels(legend) <= names(plain).grouped, "the legend names a label that the query does not keep"


@pytest.mark.parametrize(("title", "legend", "expression"), queries())
def test_no_panel_is_empty(stage: tuple[Prometheus, Exposed], title: str, legend: str, expression: str) -> None:
    eventually(lambda: answered(stage[0], expression), f"{title} ({legend}): {expression}")


def test_only_panels_that_say_so_are_empty_while_nothing_happens(stage: tuple[Prometheus, Exposed]) -> None:
    """The interval is so short that none of what the life was made of lies in it."""
    quiet = {panel.title for panel in dashboard.panels() if panel.quiet}

    def told() -> bool:
        over = " + ".join(f"sum(increase({name}[3s]))" for name in LIFE)
        assert [value for _, value in stage[0].query(over)] == [0], "some of that life lies in it still"
        empty = {t for t, _, expression in queries() if not answered(stage[0], expression, interval="3s")}
        assert empty <= quiet, f"empty: {empty - quiet}"
        return True

    eventually(told, "no other panel is empty")  # two scrapes have to lie in it, and one may take too long


def test_variables_have_something_to_choose(stage: tuple[Prometheus, Exposed]) -> None:
    for variable in dashboard.dashboard()["templating"]["list"][1:]:
        expression, _, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
        found = {labels[label] for labels, _ in asked(stage[0], filled(expression))}
        assert found == {"export": {"web"}, "namespace": {"shop"}}[variable["name"]]


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("sum(nfs_provisioner_leeder)", "there is no metric nfs_provisioner_leeder"),
        ('nfs_provisioner_leader{export="web"} == 1', "nfs_provisioner_leader has no label export"),
        (
            "max by (replica) (nfs_provisioner_export_volumes)",
            "nfs_provisioner_export_volumes has no label replica to group by",
        ),
    ],
)
def test_a_name_that_does_not_exist_is_found(expression: str, wrong: str) -> None:
    there: Exposed = {
        "nfs_provisioner_leader": frozenset(),
        "nfs_provisioner_export_volumes": frozenset({"export"}),
    }
    assert list(unknown(expression, there)) == [wrong]
    assert "pod" in TARGET_LABELS and list(unknown("sum by (pod) (nfs_provisioner_leader)", there)) == []
