"""What the controller needs goes away: the API server, its token, a server of files, a worker process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.site import EXPORTS, ExportOnDisk, Site, agree, eventually, restart_apiserver
from tests.plugins.controller import ENDLESS_LEASE, NAMESPACE, Controller
from tests.plugins.hang import HangingDirectory

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

#: Seconds: below the deadline of a call to a replica (10), so that a claim that waited for one would be too late.
PROMPT = 6.0
#: A machine that stalls makes a claim late as well, now and then; a server that is waited for does in every round.
ROUNDS = 5


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
    controller.wait_ready(web.name)
    for number in range(60):
        site.bound({"metadata": {"name": f"restart-{number}", "namespace": site.namespace}})
    eventually(lambda: agree(site, web), "all agrees")


def test_h17_api_server_that_refuses_connections_is_not_asked_in_a_loop(site: Site, web: ExportOnDisk) -> None:
    with site.controller().start() as controller:
        controller.wait_ready(web.name)
        began = time.monotonic()
        site.plane.stop_apiserver(grace=0)
        try:
            eventually(
                lambda: controller.metric("nfs_provisioner_api_requests_total", code="none") >= 12, "it asks again"
            )
            refused = controller.metric("nfs_provisioner_api_requests_total", code="none")
            seconds = time.monotonic() - began
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
    with site.controller(kubeconfig=kubeconfig, lease=ENDLESS_LEASE).start() as made:
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


def late(site: Site, controller: Controller, name: str, *classes: str) -> list[str]:
    """What takes so long that it may have waited for a hung server: a claim of each class, an answer over HTTP."""
    found = []

    def timed(what: str, seconds: float, act: Callable[[], object]) -> None:
        began = time.monotonic()
        act()
        if (took := time.monotonic() - began) >= seconds:
            found.append(f"{what} took {took:.1f} s")

    def answers(path: str) -> None:
        assert controller.http(path)[0] == 200

    for number, storage_class in enumerate(classes):
        timed(storage_class, PROMPT, lambda: site.bind(f"{name}-{number}", storage_class))  # noqa: B023 (called at once)
    for path in ("/healthz", "/metrics"):
        timed(path, 2, lambda: answers(path))  # noqa: B023
    return found


def test_h33_h36_hanging_servers_delay_no_other_export_and_no_partner_and_it_stays_healthy(
    site: Site,
    plain: str,
    sick: tuple[ExportOnDisk, HangingDirectory],
    limping: tuple[ExportOnDisk, HangingDirectory],
    controller: Controller,
) -> None:
    hung, pair = sick[0], limping[0]
    controller.wait_ready(hung.name, pair.name)
    on_hung, on_pair = site.storage_class("sick", hung), site.storage_class("limping", pair)
    site.bind("h33-before", on_hung)
    for number in range(ROUNDS):
        told = hung_for_a_while(site, plain, on_hung, on_pair, sick, limping, controller, f"h33-{number}")
        if not told:
            break
    assert not told
    assert controller.stop() == 0


def hung_for_a_while(
    site: Site,
    plain: str,
    on_hung: str,
    on_pair: str,
    sick: tuple[ExportOnDisk, HangingDirectory],
    limping: tuple[ExportOnDisk, HangingDirectory],
    controller: Controller,
    name: str,
) -> list[str]:
    """Both servers hang, others are served, they come back; returns what was late."""
    hung, disk = sick
    pair, standby = limping
    told = []
    disk.hang()
    standby.hang()
    with contextlib.ExitStack() as ends:
        ends.callback(disk.release)
        ends.callback(standby.release)
        waiting = [site.claim(f"{name}-waits-{number}", on_hung) for number in range(20)]
        for number in range(3):
            told += late(site, controller, f"{name}-other-{number}", plain, on_pair)
        controller.until(lambda: controller.metric("nfs_provisioner_replica_up", export=hung.name) == 0, "hang noticed")
        controller.until(
            lambda: controller.metric("nfs_provisioner_replica_up", export=pair.name, replica="b") == 0, "hang noticed"
        )
        site.event(waiting[0], "ProvisioningFailed", "hangs or is out of reach")
        controller.until(lambda: phases(controller, hung, pair) == ["Degraded", "Degraded"], "both are Degraded")
        told += late(site, controller, f"{name}-still", plain, on_pair)
    for claim in waiting:
        site.bound(claim)
    eventually(lambda: agree(site, pair), "the standby caught up")
    controller.wait_ready(hung.name, pair.name)
    return told


def phases(controller: Controller, *exports: ExportOnDisk) -> list[str]:
    shown = {export["name"]: export["phase"] for export in controller.status()["exports"]}
    return [shown[export.name] for export in exports]


def test_h33_controller_starts_and_serves_while_a_server_hangs(
    site: Site, web: ExportOnDisk, plain: str, sick: tuple[ExportOnDisk, HangingDirectory]
) -> None:
    hung, disk = sick
    for number in range(ROUNDS):
        disk.hang()
        try:
            with site.controller().start() as controller:
                controller.wait_ready(web.name)
                told = late(site, controller, f"h33-started-{number}", plain)
                disk.release()
                controller.wait_ready(hung.name)
                assert controller.stop() == 0
        finally:
            disk.release()
        if not told:
            break
    assert not told


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
