"""The controller itself: down, killed, paused, doubled, idle."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.site import VOLUMES, ExportOnDisk, Site, agree, eventually, restart_apiserver
from tests.plugins.controller import ENDLESS_LEASE, LASTING_LEASE, SHORT_LEASE, Controller

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


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
    site.give_lease_back()
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
            site.give_lease_back()
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
        with contextlib.suppress(ProcessLookupError):  # it was away for so long that another has taken its place
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
    site.give_lease_back()
    controller.start().wait_ready(web.name)
    site.bind("h13-cut", plain)
    eventually(lambda: name not in web.records(), "the record is gone")
    assert claim["metadata"]["uid"] not in str(web.entries())
    eventually(lambda: agree(site, web), "all agrees")


def test_h16_leader_paused_past_its_lease_changes_nothing_and_ends(site: Site, web: ExportOnDisk, plain: str) -> None:
    with (
        site.controller(lease=SHORT_LEASE).start() as controller,
        site.controller(lease=ENDLESS_LEASE) as second,
    ):
        controller.wait_ready(web.name)
        second.start()
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
        second.signal(signal.SIGSTOP)  # what it looks after every now and then is not the other's doing
        before = eventually(Still(web), "the new leader has come to rest")
        said = len(controller.log)
        controller.signal(signal.SIGCONT)
        assert controller.wait() == 1
        assert {replica: snapshot(web.root(replica)) for replica in "ab"} == before
        assert "lease" in controller.log[said:]
        second.signal(signal.SIGCONT)
        assert second.metric("nfs_provisioner_leader") == 1
        eventually(lambda: agree(site, web), "all still agrees")
        assert second.stop() == 0
        assert "Traceback" not in controller.log


def archives(export: ExportOnDisk) -> int:
    return sum(record["state"] == "archived" for record in export.records().values())


class Still:
    """True, being what lies there, once ten looks in a row saw the same."""

    def __init__(self, export: ExportOnDisk) -> None:
        self.export, self.seen, self.times = export, dict[str, dict[str, tuple[int, int]]](), 0

    def __call__(self) -> dict[str, dict[str, tuple[int, int]]] | None:
        now = {replica: snapshot(self.export.root(replica)) for replica in "ab"}
        self.times = self.times + 1 if now == self.seen else 0
        self.seen = now
        return now if self.times >= 10 else None


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of everything below a root."""
    found = {str(path): path.lstat() for path in root.rglob("*")}
    return {name: (stat.st_ino, stat.st_ctime_ns) for name, stat in found.items()}


def test_lease_is_given_back_so_that_the_next_leader_need_not_wait(site: Site, web: ExportOnDisk) -> None:
    with site.controller(lease=ENDLESS_LEASE).start() as first, site.controller() as second:
        first.wait_ready(web.name)
        second.start()
        eventually(lambda: second.http("/readyz")[0] == 200, "the second one is ready")
        assert second.http("/api/status")[0] == 503
        assert first.stop() == 0
        second.wait_leading()  # far less than the first one's lease


# -- idle ---------------------------------------------------------------------------------------------------------------------


def test_idle_controller_asks_the_api_for_nothing_but_its_lease(site: Site, web: ExportOnDisk) -> None:
    with site.controller(lease=LASTING_LEASE).start() as controller:
        controller.wait_ready(web.name)
        eventually(lambda: not asked(site, controller, 4), "what follows a start is over")
        said = len(controller.log)
        while (more := asked(site, controller, 16)) and "hangs or is out of reach" in controller.log[said:]:
            said = len(controller.log)  # the disk was away meanwhile, and that is told
        assert more == {}
        assert controller.stop() == 0


def asked(site: Site, controller: Controller, renewals: int) -> dict[tuple[str, str], float]:
    """What it asked for, in the time of so many renewals of its lease, that an idle one has no need of."""
    began = time.monotonic()
    before = requests(controller)
    renewed(controller, renewals)
    after = requests(controller)
    more = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert more.pop(("update", "leases")) >= renewals
    more.pop(("get", "leases"), None)
    if more.get(("patch", "nfsexports"), 0) <= len(site.exports) * (1 + (time.monotonic() - began) // 60):
        more.pop(("patch", "nfsexports"), None)  # figures of free space: once a minute at the most
    return more


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
