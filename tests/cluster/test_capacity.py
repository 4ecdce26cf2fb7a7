"""Two hundred claims and room for a hundred: no more are bound than fit, and space that comes back is used at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.site import EXPORT_LABEL, EXPORTS, NAMESPACES, ExportOnDisk, Site, eventually
from tests.contract.client import Client, Credentials, Json
from tests.plugins.controller import Controller

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

CLAIMS, ROOM = 200, 100
LACKS = "lacks 1Gi: 100Gi of 100Gi are promised and 1Gi are wanted"
PATIENCE = 240.0  # seconds for all of them, on a machine that does other things as well
SOON = 70.0  # seconds: far below the 150 that a claim waits at the least that nobody wakes


@pytest.fixture(scope="module")
def narrow(site: Site) -> ExportOnDisk:
    return site.export("narrow", capacity=f"{ROOM}Gi")


@pytest.fixture
def controller(site: Site, narrow: ExportOnDisk) -> Iterator[Controller]:
    with site.controller().start() as made:
        yield made.wait_ready(narrow.name)
        assert "Traceback" not in made.log
        assert made.stop() == 0


def test_h35_of_200_claims_racing_for_room_for_100_exactly_100_are_bound_and_10_deletions_bind_10_more(
    site: Site, narrow: ExportOnDisk, controller: Controller
) -> None:
    storage_class = site.storage_class("narrow", narrow)
    create(site, storage_class)
    wait_for_bound(site, ROOM)
    waiting = eventually(lambda: all_told(site, narrow), "every claim that waits says how much is missing", PATIENCE)
    assert len(waiting) == CLAIMS - ROOM
    assert reserved(site, narrow) == ROOM

    going = sorted(bound(site))[:10]
    for name in going:
        site.api.delete(f"{site.claims_path()}/{name}").ok()
    wait_for_bound(site, ROOM, without=going, seconds=SOON)
    still = {name for name, claim in claims(site).items() if claim["status"]["phase"] == "Pending"}
    assert len(still) == CLAIMS - ROOM - 10 and still < waiting
    eventually(lambda: check(site, narrow), "claims, PVs and records agree", PATIENCE)

    path = f"{EXPORTS}/{narrow.name}"
    site.api.patch(path, {"spec": {"capacity": f"{ROOM + 5}Gi"}}).ok()
    wait_for_bound(site, ROOM + 5, seconds=SOON)
    eventually(lambda: check(site, narrow), "claims, PVs and records agree", PATIENCE)


def create(site: Site, storage_class: str) -> None:
    """Over four connections, so that several are decided at one moment."""
    spec = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }

    def send(numbers: range) -> None:
        client = Client(Credentials.read(site.plane.admin_kubeconfig))
        for number in numbers:
            client.post(site.claims_path(), {"metadata": {"name": f"race-{number:03}"}, "spec": spec}).ok()
        client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, [range(first, CLAIMS, 4) for first in range(4)]))


def claims(site: Site) -> dict[str, Json]:
    return {claim["metadata"]["name"]: claim for claim in site.api.get(site.claims_path()).ok()["items"]}


def bound(site: Site) -> set[str]:
    return {name for name, claim in claims(site).items() if claim["status"].get("phase") == "Bound"}


def wait_for_bound(site: Site, number: int, *, without: list[str] | None = None, seconds: float = PATIENCE) -> None:
    """And not one more, at any moment."""

    def enough() -> bool:
        now = bound(site).difference(without or ())
        if len(now) > number:
            raise RuntimeError(f"{len(now)} claims are Bound where {number} fit")
        assert len(now) == number, f"{len(now)} of {number} are Bound"
        return True

    eventually(enough, f"{number} claims are Bound", seconds)


def all_told(site: Site, export: ExportOnDisk) -> set[str]:
    """The claims that wait, when each of them has an Event with the figures."""
    waiting = {c["metadata"]["uid"]: name for name, c in claims(site).items() if c["status"]["phase"] == "Pending"}
    events = site.api.get(f"{NAMESPACES}/{site.namespace}/events").ok()["items"]
    told = Counter(
        event["involvedObject"]["uid"]
        for event in events
        if event["reason"] == "ProvisioningFailed" and event["message"] == f"export {export.name} {LACKS}"
    )
    missing = sorted(name for uid, name in waiting.items() if not told[uid])
    assert not missing, f"{len(missing)} claims say nothing, such as {missing[:3]}"
    return set(waiting.values())


def reserved(site: Site, export: ExportOnDisk) -> int:
    """Gi, by a fresh count of PVs."""
    return sum(
        int(volume["spec"]["capacity"]["storage"].removesuffix("Gi"))
        for volume in site.volumes().values()
        if volume["metadata"]["labels"][EXPORT_LABEL] == export.name
    )


def check(site: Site, export: ExportOnDisk) -> bool:
    """What is promised is what PVs, records and the status say, on both replicas."""
    records = [record for record in export.same_on_both().values() if record["state"] == "live"]
    count = reserved(site, export)
    assert sum(record["requested"] for record in records) == count << 30
    assert {record["pv"] for record in records} == set(site.volumes())
    assert site.export_status(export)["reserved"] == f"{count}Gi"
    return True
