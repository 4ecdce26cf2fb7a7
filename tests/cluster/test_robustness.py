"""Processes that die, pause and double, an API server that goes, a token that ends, servers that hang."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.site import EXPORTS, VOLUMES, ExportOnDisk, Site, eventually
from tests.contract.client import Json
from tests.plugins.controller import NAMESPACE, SHORT_LEASE, Controller
from tests.plugins.hang import HangingDirectory

pytestmark = pytest.mark.cluster

#: Seconds: below the deadline of a call to a replica (10), so that a claim that waited for one would be too late.
PROMPT = 6.0


@pytest.fixture(scope="module")
def web(site: Site) -> ExportOnDisk:
    return site.export("web")


@pytest.fixture(scope="module")
def plain(site: Site, web: ExportOnDisk) -> str:
    return site.storage_class("plain", web)


@pytest.fixture
def controller(site: Site, web: ExportOnDisk) -> Iterator[Controller]:
    """Started afresh for each test; a short lease, because most tests here end it the hard way."""
    with site.controller(lease=SHORT_LEASE).start() as made:
        yield made.wait_ready(web.name)
        assert "Traceback" not in made.log


def agree(site: Site, export: ExportOnDisk) -> bool:
    """Bound claims, PVs, live records and directories name each other one to one, on both replicas."""
    records = {
        pv: r for pv, r in export.same_on_both().items() if r["state"] not in ("deleted", "archived", "retained")
    }
    assert {r["state"] for r in records.values()} <= {"live"}
    volumes = {
        n: v for n, v in site.volumes().items() if v["metadata"]["labels"]["nfs-provisioner.io/export"] == export.name
    }
    assert set(volumes) == set(records)
    for pv, volume in volumes.items():
        assert volume["spec"]["nfs"]["path"] == f"{export.path}/{records[pv]['directory']}"
        assert volume["spec"]["claimRef"]["uid"] == records[pv]["claim"]["uid"]
    return True


def claims_in(site: Site) -> list[Json]:
    found: list[Json] = site.api.get(site.claims_path()).ok()["items"]
    return found


def restart_apiserver(site: Site) -> None:
    site.plane.start_apiserver()
    site.api.close()  # it connects again with its next request


# -- down, killed, doubled ------------------------------------------------------------------------------------------------


def test_h15_what_happened_while_the_controller_was_down_is_made_good(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    deleted, pv = site.bind("h15-deleted", plain)
    controller.kill()
    site.delete(deleted)
    made = site.claim("h15-made", plain)
    short = site.claim("h15-short", plain)
    site.delete(short)
    site.api.eventually(f"{VOLUMES}/{pv['metadata']['name']}", lambda found: found["status"]["phase"] == "Released")
    controller.start().wait_ready(web.name)
    site.gone(pv)
    site.bound(made)
    assert web.record(pv["metadata"]["name"])["state"] == "archived"
    assert short["metadata"]["uid"] not in str(web.entries())
    eventually(lambda: agree(site, web), "all agrees")


def test_h13_claims_deleted_and_made_again_under_their_names_leave_no_trace(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    gone = []
    for number in range(20):
        claim = site.claim(f"h13-{number}", plain)
        gone.append(claim["metadata"]["uid"])
        if number == 10:
            controller.kill()
            controller.start()
        site.delete(claim)
        site.api.eventually_gone(site.claim_path(claim))
        site.claim(f"h13-{number}", plain)
    for number in range(20):
        site.bound({"metadata": {"name": f"h13-{number}", "namespace": site.namespace}})
    eventually(lambda: agree(site, web), "all agrees")
    left = {r["claim"]["uid"] for r in web.records().values() if r["state"] not in ("archived", "deleted")}
    assert not left & set(gone)


def test_h13_claim_that_went_between_directory_and_volume_leaves_no_trace(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    """The directory is made, the PV cannot be; the controller dies, the claim goes, and one of its name comes."""
    before = web.entries()
    (worker,) = controller.workers(web.root("a"))
    os.kill(worker, signal.SIGSTOP)
    said = len(controller.log)
    claim = site.claim("h13-cut", plain)
    controller.until(lambda: "provision: the claim waits" in controller.log[said:], "it is on its way")
    site.plane.stop_apiserver(grace=0)
    try:
        os.kill(worker, signal.SIGCONT)
        name = f"pvc-{claim['metadata']['uid']}"
        eventually(lambda: web.records().get(name, {}).get("state") == "creating", "the record is written")
        eventually(lambda: web.entries() - before, "the directory is made")
    finally:
        controller.kill()
        restart_apiserver(site)
    assert site.api.get(f"{VOLUMES}/{name}").code == 404
    site.delete(claim)
    site.api.eventually_gone(site.claim_path(claim))
    controller.start().wait_ready(web.name)
    site.bind("h13-cut", plain)
    eventually(lambda: name not in web.records(), "the record is gone")
    assert claim["metadata"]["uid"] not in str(web.entries())
    eventually(lambda: agree(site, web), "all agrees")


def test_h16_leader_paused_past_its_lease_changes_nothing_and_ends(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    with site.controller(lease=SHORT_LEASE).start() as second:
        eventually(lambda: second.http("/readyz")[0] == 200, "the second one is ready")
        assert second.http("/healthz")[0] == 200
        assert second.http("/api/status")[0] == 503
        assert second.metric("nfs_provisioner_leader") == 0
        for number in range(40):
            site.claim(f"h16-{number}", plain)
        archived = archives(web)
        controller.signal(signal.SIGSTOP)  # with its workers, in the middle of it all
        second.wait_ready(web.name)
        for number in range(40):
            site.bound({"metadata": {"name": f"h16-{number}", "namespace": site.namespace}})
        eventually(lambda: agree(site, web), "all agrees")
        for number in range(20):  # work that the first one would love to do
            site.delete({"metadata": {"name": f"h16-{number}", "namespace": site.namespace}})
        eventually(lambda: archives(web) == archived + 20 and agree(site, web), "20 are archived, and all agrees")
        before = {replica: snapshot(web.root(replica)) for replica in "ab"}
        said = len(controller.log)
        controller.signal(signal.SIGCONT)
        assert controller.wait() == 1
        assert {replica: snapshot(web.root(replica)) for replica in "ab"} == before
        assert "lease" in controller.log[said:]
        assert second.metric("nfs_provisioner_leader") == 1
        assert agree(site, web)
        assert second.stop() == 0


def archives(export: ExportOnDisk) -> int:
    return sum(record["state"] == "archived" for record in export.records().values())


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of everything below a root."""
    found = {str(path): path.lstat() for path in root.rglob("*")}
    return {name: (stat.st_ino, stat.st_ctime_ns) for name, stat in found.items()}


def test_lease_is_given_back_so_that_the_next_leader_need_not_wait(
    site: Site, web: ExportOnDisk, controller: Controller
) -> None:
    with site.controller(lease={"leaseDuration": "60s"}).start() as second:
        eventually(lambda: second.http("/readyz")[0] == 200, "the second one is ready")
        assert controller.stop() == 0
        second.wait_leading(10)


# -- the API server ---------------------------------------------------------------------------------------------------------


def test_api_server_restarted_during_work_delays_it_and_nothing_else(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    for number in range(60):
        site.claim(f"restart-{number}", plain)
    site.plane.stop_apiserver(grace=0)
    try:
        eventually(lambda: controller.metric("nfs_provisioner_api_requests_total", code="none") > 0, "it noticed")
    finally:
        restart_apiserver(site)
    if controller.exit_code is not None:  # its lease ran out meanwhile: the kubelet starts it again
        assert controller.wait() == 1
        controller.start()
    controller.wait_ready(web.name)
    for number in range(60):
        site.bound({"metadata": {"name": f"restart-{number}", "namespace": site.namespace}})
    eventually(lambda: agree(site, web), "all agrees")


def test_h17_api_server_that_refuses_connections_is_not_asked_in_a_loop(site: Site, web: ExportOnDisk) -> None:
    with site.controller(lease={"leaseDuration": "60s", "renewDeadline": "50s"}).start() as controller:
        controller.wait_ready(web.name)
        site.plane.stop_apiserver(grace=0)
        try:
            began = time.monotonic()
            eventually(
                lambda: controller.metric("nfs_provisioner_api_requests_total", code="none") >= 12, "it asks again"
            )
            seconds = time.monotonic() - began
            refused = controller.metric("nfs_provisioner_api_requests_total", code="none")
            assert controller.http("/healthz")[0] == 200
        finally:
            restart_apiserver(site)
        # Four watches and the lease, each with pauses that grow from a fraction of a second.
        assert refused / seconds < 12, f"{refused} requests in {seconds:.1f} s"
        controller.until(lambda: controller.leads, "it leads again")
        assert controller.stop() == 0


@pytest.fixture
def bound_token(site: Site) -> Iterator[str]:
    """A token of the controller's account that ends when a Secret of this name is deleted."""
    name = site.name("token")
    site.plane.kubectl("create", "secret", "generic", name, "-n", NAMESPACE)
    yield name
    site.plane.kubectl("delete", "secret", name, "-n", NAMESPACE, "--ignore-not-found")


def test_token_that_ended_is_named_and_its_successor_is_read(
    site: Site, web: ExportOnDisk, plain: str, bound_token: str
) -> None:
    kubeconfig = site.directory / "rotating.kubeconfig"
    bound = ("--bound-object-kind=Secret", f"--bound-object-name={bound_token}")
    write_token(kubeconfig, site, *bound)
    with site.controller(kubeconfig=kubeconfig, lease={"leaseDuration": "60s", "renewDeadline": "50s"}).start() as made:
        made.wait_ready(web.name)
        site.plane.kubectl("delete", "secret", bound_token, "-n", NAMESPACE)
        # The API server remembers a good token for some seconds.
        made.until(lambda: made.metric("nfs_provisioner_api_requests_total", code="401") > 0, "a 401 came")
        made.until(lambda: "Unauthorized" in made.log or "401" in made.log, "it says so")
        claim = site.claim("rotated", plain)
        write_token(kubeconfig, site)
        site.bound(claim)
        assert made.leads
        assert made.stop() == 0
        assert "Traceback" not in made.log


def write_token(kubeconfig: Path, site: Site, *options: str) -> None:
    token = site.plane.kubectl("create", "token", "nfs-provisioner", "-n", NAMESPACE, *options)
    config = yaml.safe_load(site.account.read_text())
    config["users"][0]["user"]["token"] = token.strip()
    fresh = kubeconfig.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(config))
    fresh.replace(kubeconfig)


# -- servers that hang --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sick(site: Site) -> Iterator[tuple[ExportOnDisk, HangingDirectory]]:
    """An export with one replica, on a directory that can hang."""
    export = site.directories("sick", "a")
    (site.directory / "sick").mkdir()
    with HangingDirectory(site.directory / "sick", export.root()) as disk:
        site.api.post(EXPORTS, site.export_body(export)).ok()
        site.exports[export.name] = export
        yield export, disk


@pytest.fixture(scope="module")
def limping(site: Site) -> Iterator[tuple[ExportOnDisk, HangingDirectory]]:
    """A pair whose standby can hang."""
    export = site.directories("limping", "ab")
    (site.directory / "limping").mkdir()
    with HangingDirectory(site.directory / "limping", export.root("b")) as disk:
        site.api.post(EXPORTS, site.export_body(export)).ok()
        site.exports[export.name] = export
        yield export, disk


def promptly(site: Site, name: str, storage_class: str) -> Json:
    """A claim whose volume comes before any deadline of a hung server."""
    began = time.monotonic()
    _, pv = site.bind(name, storage_class)
    assert time.monotonic() - began < PROMPT
    return pv


def test_h33_h36_hanging_servers_delay_no_other_export_and_no_partner_and_it_stays_healthy(
    site: Site,
    plain: str,
    sick: tuple[ExportOnDisk, HangingDirectory],
    limping: tuple[ExportOnDisk, HangingDirectory],
    controller: Controller,
) -> None:
    hung, disk = sick
    pair, standby = limping
    controller.wait_ready(hung.name, pair.name)
    on_hung, on_pair = site.storage_class("sick", hung), site.storage_class("limping", pair)
    site.bind("h33-before", on_hung)
    disk.hang()
    standby.hang()
    with contextlib.ExitStack() as ends:
        ends.callback(disk.release)
        ends.callback(standby.release)
        waiting = [site.claim(f"h33-waits-{number}", on_hung) for number in range(20)]
        for number in range(3):
            promptly(site, f"h33-other-{number}", plain)
            promptly(site, f"h33-partner-{number}", on_pair)
            assert controller.http("/healthz", timeout=2)[0] == 200
            assert controller.http("/metrics", timeout=2)[0] == 200
        controller.until(lambda: controller.metric("nfs_provisioner_replica_up", export=hung.name) == 0, "hang noticed")
        controller.until(
            lambda: controller.metric("nfs_provisioner_replica_up", export=pair.name, replica="b") == 0, "hang noticed"
        )
        site.event(waiting[0], "ProvisioningFailed", "hangs or is out of reach")
        phases = {export["name"]: export["phase"] for export in controller.status()["exports"]}
        assert phases[hung.name] == phases[pair.name] == "Degraded"
        promptly(site, "h33-still", plain)
        promptly(site, "h33-partner-still", on_pair)
        assert controller.http("/healthz", timeout=2)[0] == 200
    for claim in waiting:
        site.bound(claim)
    eventually(lambda: agree(site, pair), "the standby caught up")
    controller.wait_ready(hung.name, pair.name)
    assert controller.stop() == 0


def test_h33_controller_starts_and_serves_while_a_server_hangs(
    site: Site, web: ExportOnDisk, plain: str, sick: tuple[ExportOnDisk, HangingDirectory]
) -> None:
    hung, disk = sick
    disk.hang()
    try:
        with site.controller().start() as controller:
            controller.wait_ready(web.name)
            promptly(site, "h33-started", plain)
            assert controller.http("/healthz", timeout=2)[0] == 200
            disk.release()
            controller.wait_ready(hung.name)
            assert controller.stop() == 0
    finally:
        disk.release()


def test_h33_stopped_worker_is_replaced_and_its_claims_are_served(
    site: Site, web: ExportOnDisk, plain: str, controller: Controller
) -> None:
    (worker,) = controller.workers(web.root("a"))
    os.kill(worker, signal.SIGSTOP)
    claims = [site.claim(f"h33-stopped-{number}", plain) for number in range(5)]
    for claim in claims:
        site.bound(claim)
    assert controller.workers(web.root("a")) != [worker]
    assert controller.http("/healthz")[0] == 200
    eventually(lambda: agree(site, web), "all agrees")


def test_h33_killed_worker_is_replaced(site: Site, web: ExportOnDisk, plain: str, controller: Controller) -> None:
    for worker in controller.workers():
        os.kill(worker, signal.SIGKILL)
    claim = site.claim("h33-killed", plain)
    site.bound(claim)
    eventually(lambda: agree(site, web), "all agrees")


# -- idle ---------------------------------------------------------------------------------------------------------------------


def test_idle_controller_asks_the_api_for_nothing_but_its_lease(site: Site, web: ExportOnDisk) -> None:
    with site.controller(lease={"retryPeriod": "500ms"}).start() as controller:
        controller.wait_ready(web.name)
        renewed(controller, 4)  # what follows a start is over
        before = requests(controller)
        renewed(controller, 16)
        after = requests(controller)
        more = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        assert more.pop(("update", "leases")) >= 16
        more.pop(("get", "leases"), None)
        statuses = more.pop(("patch", "nfsexports"), 0)
        assert statuses <= len(site.exports)  # figures of free space: once a minute at the most
        assert more == {}
        assert controller.stop() == 0


def renewed(controller: Controller, times: int) -> None:
    def renewals() -> float:
        return controller.metric("nfs_provisioner_api_requests_total", verb="update", resource="leases")

    before = renewals()
    controller.until(lambda: renewals() >= before + times, "it renews its lease")


def requests(controller: Controller) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for labels, value in controller.samples("nfs_provisioner_api_requests_total"):
        key = labels["verb"], labels["resource"]
        found[key] = found.get(key, 0.0) + value
    return found
