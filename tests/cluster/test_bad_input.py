"""What tenants and administrators get wrong: each is told once and clearly, hurts nobody else, and works once corrected.

After each test the export must hold what it held before: `unharmed` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.site import CLASSES, EXPORTS, RESTORE, ExportOnDisk, Site, eventually
from tests.contract.client import Json
from tests.plugins.controller import Controller

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def web(site: Site) -> ExportOnDisk:
    return site.export("web", "a")


@pytest.fixture(scope="module")
def plain(site: Site, web: ExportOnDisk) -> str:
    return site.storage_class("plain", web)


@pytest.fixture(scope="module", autouse=True)
def controller(site: Site, web: ExportOnDisk) -> Iterator[Controller]:
    with site.controller().start() as made:
        yield made.wait_ready(web.name)
        assert made.stop() == 0
        assert "Traceback" not in made.log


@pytest.fixture
def unharmed(site: Site, web: ExportOnDisk, plain: str, controller: Controller) -> Iterator[None]:
    """Another claim is bound meanwhile, and nothing but it is new on the export."""
    before, records = web.entries(), set(web.records())
    yield
    claim, pv = site.bind(f"neighbour-{len(records)}", plain)
    assert set(web.records()) - records == {pv["metadata"]["name"]}
    assert len(web.entries() - before) == 1
    site.give_up(claim, pv)


def refused(site: Site, controller: Controller, claim: Json, *words: str) -> Json:
    """Waits for the warning, reads it as a person does, and sees that it is not repeated in a hot loop."""
    event = site.event(claim, "ProvisioningFailed", words[0])
    assert event["type"] == "Warning"
    for word in words:
        assert word in event["message"]
    described = " ".join(site.describe(claim).split())
    assert "Warning ProvisioningFailed" in described
    assert " ".join(event["message"].split()) in described
    assert site.api.get(site.claim_path(claim)).ok()["status"]["phase"] == "Pending"
    pv = f"pvc-{claim['metadata']['uid']}"
    tries = len(re.findall(rf"INFO \S+reconciler: {pv}: ", controller.log))
    assert 1 <= tries <= 4, f"{tries} tries already"
    return event


PATTERNS = {
    "label that is missing": ("${.PVC.labels.team}", "team"),
    "annotation that is missing": ("${.PVC.namespace}/${.PVC.annotations.place}", "place"),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_h01_pattern_with_a_missing_value_makes_nothing_until_the_claim_has_it(
    site: Site, web: ExportOnDisk, controller: Controller, case: str
) -> None:
    pattern, key = PATTERNS[case]
    name = case.split()[0]
    storage_class = site.storage_class(f"h01-{name}", web, parameters={"pathPattern": pattern})
    before = web.entries()
    claim = site.claim(f"h01-{name}", storage_class)
    refused(site, controller, claim, key)
    assert web.entries() == before
    field = "labels" if "label" in case else "annotations"
    site.change(claim, {"metadata": {field: {key: f"h01-{name}"}}})
    pv = site.bound(claim)
    site.give_up(claim, pv)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "value", ["..", ".", "/", "/etc", "a/../../b", ".nfs-provisioner/volumes", "archived-x", "a//b", "x" * 300]
)
def test_h02_value_that_leads_elsewhere_makes_nothing(
    site: Site, web: ExportOnDisk, controller: Controller, value: str
) -> None:
    """Annotations take any text, so a tenant chooses it."""
    number = len(web.records())
    storage_class = site.storage_class(
        f"h02-{number}", web, parameters={"pathPattern": "${.PVC.annotations.place}"}
    )
    claim = site.claim(f"h02-{number}", storage_class, annotations={"place": value})
    if len(value) == 300:
        pv = site.bound(claim)  # shortened, with a hash
        assert len(pv["spec"]["nfs"]["path"].rsplit("/", 1)[1]) <= 228
        site.give_up(claim, pv)
        pytest.skip("long names are shortened, not refused")
    refused(site, controller, claim)
    site.delete(claim)
