"""Growing a claim, and what a growth that does not fit says."""

from __future__ import annotations

from typing import Any

from nfs_provisioner.kube.api import PV, PVC
from tests.embedded.site import MI, Site

Json = dict[str, Any]


def status(site: Site, name: str = "data") -> Json:
    claim = site.get_claim(name)
    assert claim is not None
    found: Json = claim["status"]
    return found


def size(site: Site, pv: str) -> str:
    found: str = site.api.get(PV, pv)["spec"]["capacity"]["storage"]
    return found


def test_a_claim_grows_with_its_pv_and_its_record(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        site.grow("data", "30Mi")
        site.until(lambda: status(site)["capacity"]["storage"] == "30Mi", "the claim has not grown")
        assert size(site, pv) == "30Mi"
        record = site.record(pv)
        assert record is not None and record.requested == 30 * MI
        assert status(site)["allocatedResources"]["storage"] == "30Mi"
        assert not status(site).get("allocatedResourceStatuses")
        site.until(lambda: site.events("VolumeResizeSuccessful"), "no Event says that it has grown")


def test_a_claim_grown_while_the_controller_was_down_grows_with_the_next(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
    site.grow("data", "20Mi")
    with site.controller():
        site.until(lambda: status(site)["capacity"]["storage"] == "20Mi", "the claim has not grown")
    assert size(site, pv) == "20Mi"


def test_a_growth_that_does_not_fit_is_infeasible_until_it_does(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        site.grow("data", "11Gi")  # the export has ten
        site.until(
            lambda: (
                (status(site).get("allocatedResourceStatuses") or {}).get("storage") == "ControllerResizeInfeasible"
            ),
            "the claim does not say that it cannot grow",
        )
        site.until(lambda: site.events("VolumeResizeFailed"), "no Event says that it cannot grow")
        (condition,) = status(site)["conditions"]
        assert condition["type"] == "ControllerResizeError" and "web" in condition["message"]
        assert size(site, pv) == "10Mi"
        record = site.record(pv)
        assert record is not None and record.requested == 10 * MI
        site.grow("data", "20Mi")  # which KEP-1790 allows after a growth that failed
        site.until(lambda: status(site)["capacity"]["storage"] == "20Mi", "the claim has not grown")
        assert not status(site).get("allocatedResourceStatuses")
        assert not status(site).get("conditions")


def test_h35_two_claims_cannot_both_grow_into_the_last_space(site: Site) -> None:
    for name in ("one", "two"):
        site.claim(name, "1Gi")
    with site.controller():
        pvs = [site.bound(name) for name in ("one", "two")]
    for name in ("one", "two"):
        site.grow(name, "6Gi")
    with site.controller():
        site.until(lambda: site.events("VolumeResizeFailed"), "both have grown")
        site.until(lambda: "6Gi" in [size(site, pv) for pv in pvs], "neither has grown")
    assert sorted(size(site, pv) for pv in pvs) == ["1Gi", "6Gi"]


def test_a_pv_never_shrinks(site: Site) -> None:
    site.claim("data")
    with site.controller():
        pv = site.bound("data")
        site.api.patch(PV, pv, {"spec": {"capacity": {"storage": "40Mi"}}})  # by a person
        site.until(lambda: (r := site.record(pv)) is not None and r.requested == 40 * MI, "the record does not follow")
        site.claim("later")
        site.bound("later")
        assert size(site, pv) == "40Mi"
        assert status(site)["capacity"]["storage"] == "10Mi"
        assert site.api.get(PVC, "data", "shop")["spec"]["resources"]["requests"]["storage"] == "10Mi"
