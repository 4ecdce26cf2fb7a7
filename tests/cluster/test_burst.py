"""A thousand claims at once, and the controller killed again and again while it makes and archives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.site import ExportOnDisk, Site, eventually
from tests.contract.client import Client, Credentials, Json
from tests.plugins.controller import Controller

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

CLAIMS = 1000
KILLS = 5
PATIENCE = 600.0  # seconds for a thousand of anything, on a machine that does other things as well

Requests = list[tuple[str, str, Json | None]]


@pytest.fixture
def export(site: Site, request: pytest.FixtureRequest) -> ExportOnDisk:
    return site.export(str(request.node.name).partition("_")[2].replace("_", "-")[:30].rstrip("-"))


@pytest.fixture
def controller(site: Site, export: ExportOnDisk) -> Iterator[Controller]:
    with site.controller().start() as made:
        yield made.wait_ready(export.name)
        assert made.stop() == 0


def test_burst_of_a_thousand_claims_is_bound_and_archived(
    site: Site, export: ExportOnDisk, controller: Controller
) -> None:
    storage_class = site.storage_class("burst", export)
    create(site, storage_class)
    wait_for(CLAIMS, lambda: bound(site), "Bound", controller)
    check_bound(site, export)
    delete_all(site)
    check_archived(site, export)
    # Counted when the API server has answered, which is when everybody else sees it as well.
    for counter in ("controller_persistentvolumeclaim_provision_total", "controller_persistentvolume_delete_total"):
        controller.until(lambda counter=counter: controller.metric(counter) >= CLAIMS, counter)  # type: ignore[misc]
        assert controller.metric(counter) == CLAIMS
    if not stalled(controller):
        assert controller.metric("controller_persistentvolumeclaim_provision_failed_total") == 0


def test_killed_five_times_while_making_and_while_archiving_nothing_is_lost_or_doubled(
    site: Site, export: ExportOnDisk, controller: Controller
) -> None:
    storage_class = site.storage_class("killed", export)
    with ThreadPoolExecutor(1) as burst:
        making = burst.submit(create, site, storage_class)
        kill_five_times(site, controller, lambda: len(site.volumes()))
        making.result()
    wait_for(CLAIMS, lambda: bound(site), "Bound", controller)
    check_bound(site, export)
    with ThreadPoolExecutor(1) as burst:
        deleting = burst.submit(delete_all, site)
        kill_five_times(site, controller, lambda: CLAIMS - len(site.volumes()))
        deleting.result()
    check_archived(site, export)


def stalled(controller: Controller) -> bool:
    """Whether the disk was away for longer than a call may take: then a claim fails, and is tried again."""
    return "the server hangs or is out of reach" in controller.log or "it is busy for" in controller.log


def kill_five_times(site: Site, controller: Controller, done: Callable[[], int]) -> None:
    """Controller and workers at one moment, each time after some more was done; started again at once."""
    for number in range(KILLS):
        wait_for(CLAIMS * (number + 1) // (3 * KILLS), done, "done", controller)
        controller.kill()
        assert done() < CLAIMS, "it was killed too late: nothing was under way"
        site.give_lease_back()
        controller.start()


def wait_for(least: int, count: Callable[[], int], what: str, controller: Controller) -> None:
    def enough() -> bool:
        controller.require_running()
        now = count()
        assert now >= least, f"{now} of {least} are {what}"
        return True

    eventually(enough, what, PATIENCE)


def create(site: Site, storage_class: str) -> None:
    spec = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    bodies = [{"metadata": {"name": f"burst-{number:04}"}, "spec": spec} for number in range(CLAIMS)]
    send_in_parallel(site, [("POST", site.claims_path(), body) for body in bodies])


def delete_all(site: Site) -> None:
    send_in_parallel(site, [("DELETE", f"{site.claims_path()}/burst-{number:04}", None) for number in range(CLAIMS)])


def send_in_parallel(site: Site, requests: Requests) -> None:
    """Over four connections: a burst, not a queue."""

    def send(share: Requests) -> None:
        client = Client(Credentials.read(site.plane.admin_kubeconfig))
        for method, path, body in share:
            client.request(method, path, body).ok()
        client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, [requests[first::4] for first in range(4)]))


def bound(site: Site) -> int:
    return sum(claim["status"].get("phase") == "Bound" for claim in site.api.get(site.claims_path()).ok()["items"])


def check_bound(site: Site, export: ExportOnDisk) -> None:
    """Claims, PVs, records and directories name each other, one to one, on both replicas."""

    def agree() -> bool:
        records = export.same_on_both()
        assert {record["state"] for record in records.values()} == {"live"}
        volumes = site.volumes()
        assert set(volumes) == set(records)
        claims = site.api.get(site.claims_path()).ok()["items"]
        assert {claim["metadata"]["uid"]: claim["spec"]["volumeName"] for claim in claims} == {
            record["claim"]["uid"]: pv for pv, record in records.items()
        }
        for pv, volume in volumes.items():
            assert volume["spec"]["nfs"]["path"] == f"{export.path}/{records[pv]['directory']}"
            assert volume["spec"]["claimRef"]["uid"] == records[pv]["claim"]["uid"]
        return True

    eventually(agree, "claims, PVs, records and directories agree", PATIENCE)
    assert len(export.entries("a")) == len(export.entries("b")) == CLAIMS


def check_archived(site: Site, export: ExportOnDisk) -> None:
    """No claim and no PV is left, and every volume is exactly one archive on both replicas."""

    def agree() -> bool:
        volumes = site.volumes()
        assert volumes == {}, f"{len(volumes)} PVs are left, such as {next(iter(volumes.values()))}"
        records = export.same_on_both()
        assert {record["state"] for record in records.values()} == {"archived"}
        assert len(records) == CLAIMS
        return True

    eventually(agree, f"{CLAIMS} archives and nothing else", PATIENCE)
    assert site.api.get(site.claims_path()).ok()["items"] == []
    assert len(export.entries("a")) == CLAIMS
    assert all(name.startswith("archived-") for name in export.entries("a"))
