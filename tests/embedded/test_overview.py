"""What people and Prometheus are told of a running controller, and what it costs the API server."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from nfs_provisioner.config import format_quantity
from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import ENDPOINT_SLICE, NFS_EXPORT, PV, SERVICE
from nfs_provisioner.volumes.registry import COUNTS_EVERY
from tests.embedded.site import MI, Controller, Site

Json = dict[str, Any]
SERIES = 'nfs_provisioner_export_{}{{export="{}"}}'


def http(controller: Controller, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{controller.daemon.web.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(controller: Controller) -> dict[str, float]:
    lines = [line for line in http(controller, "/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def status(controller: Controller) -> Json:
    code, body = http(controller, "/api/status")
    assert code == 200, body
    found: Json = json.loads(body)
    return found


def test_volumes_and_archives_are_counted_where_they_are(site: Site) -> None:
    site.make_class("keep", onDelete="retain")
    site.claim("one", "10Mi")
    site.claim("two", "20Mi")
    site.claim("three", "30Mi", storage_class="keep")
    with site.controller() as controller:
        pvs = {name: site.bound(name) for name in ("one", "two", "three")}
        for name in ("two", "three"):
            site.delete_claim(name)
            site.gone(pvs[name])
        shown = status(controller)
        (export,) = shown["exports"]
        # What is retained still takes its space, and is listed as something that can be restored.
        assert (export["volumes"], export["archives"], export["reserved"]) == (2, 1, 40 * MI)
        assert {v["claim"]: v["state"] for v in shown["volumes"]} == {"one": "live", "three": "retained"}
        assert {a["claim"]: a["state"] for a in shown["archives"]} == {"two": "archived", "three": "retained"}
        made = 'controller_persistentvolumeclaim_provision_total{class="nfs",source=""}'
        site.until(lambda: metrics(controller).get(made) == 2, "two volumes of that class are not counted")
        samples = metrics(controller)
        volume = f'namespace="shop",persistentvolume="{pvs["one"]}",persistentvolumeclaim="one"'
        assert samples[f'nfs_provisioner_volume_requested_bytes{{export="web",{volume}}}'] == 10 * MI
        assert samples['nfs_provisioner_export_volumes{export="web"}'] == 2
        assert samples['nfs_provisioner_export_archives{export="web"}'] == 1
        assert samples['nfs_provisioner_export_reserved_bytes{export="web"}'] == 40 * MI
        assert samples['nfs_provisioner_replica_up{export="web",replica="a"}'] == 1
        assert samples["nfs_provisioner_leader"] == 1
        assert not [name for name in samples if "requested_bytes" in name and pvs["two"] in name]


def test_an_export_that_is_gone_is_gone_from_everything(site: Site) -> None:
    site.make_export("short")
    with site.controller() as controller:
        site.export_ready("short")
        site.api.delete(NFS_EXPORT, "short")
        site.until(
            lambda: "short" not in [e["name"] for e in status(controller)["exports"]] or None, "it is still shown"
        )
        site.until(
            lambda: not [name for name in metrics(controller) if 'export="short"' in name], "its metrics are there"
        )


def test_an_export_that_is_not_understood_is_halted_wherever_one_looks(site: Site) -> None:
    """What the schema cannot see: a path that lies outside of mountRoot. One that was understood before serves on."""
    with site.controller() as controller:
        site.claim("data", "60Mi")
        site.bound("data")
        site.until(lambda: metrics(controller).get(SERIES.format("reserved_bytes", "web")) == 60 * MI, "no metrics")
        site.export_ready("web")
        before = site.export_status("web")
        for name in ("web", "never"):
            outside = {"name": "a", "server": "192.0.2.1", "path": "/srv/nfs", "mountPath": f"/outside/{name}"}
            if name == "web":
                site.api.patch(NFS_EXPORT, name, {"spec": {"replicas": [outside]}})
            else:
                kind = {"apiVersion": "nfs-provisioner.io/v1alpha1", "kind": "NFSExport"}
                site.api.create(NFS_EXPORT, kind | {"metadata": {"name": name}, "spec": {"replicas": [outside]}})
            site.until(
                lambda name=name: site.export_status(name).get("phase") == "Halted",  # type: ignore[misc]
                f"{name} is not Halted",
            )
        web = site.export_status("web")
        assert [web[key] for key in ("reserved", "volumes")] == ["60Mi", 1]
        assert [web[key] for key in ("active", "epoch", "promotion")] == [
            before[key] for key in ("active", "epoch", "promotion")
        ]
        assert [(replica["name"], replica["reachable"]) for replica in web["replicas"]] == [("a", True)]
        assert "mountPath" in web["conditions"][0]["message"]
        assert web["observedGeneration"] == site.api.get(NFS_EXPORT, "web")["metadata"]["generation"]
        shown = {export["name"]: export for export in status(controller)["exports"]}
        assert {name: export["phase"] for name, export in shown.items()} == {"never": "Halted", "web": "Halted"}
        assert all("mountPath" in export["message"] for export in shown.values())
        assert (shown["web"]["reserved"], shown["never"]["reserved"]) == (60 * MI, None)
        samples = metrics(controller)
        for name in shown:
            assert samples[f'nfs_provisioner_export_phase{{export="{name}",phase="Halted"}}'] == 1
        assert SERIES.format("reserved_bytes", "never") not in samples

        inside = {"name": "a", "server": "192.0.2.1", "path": "/srv/nfs", "mountPath": str(site.root)}
        site.api.patch(NFS_EXPORT, "web", {"spec": {"replicas": [inside]}})
        site.api.delete(NFS_EXPORT, "never")
        site.until(
            lambda: [(e["name"], e["phase"]) for e in status(controller)["exports"]] == [("web", "Ready")],
            "web is not Ready again, or never is still shown",
        )


def test_health_and_readiness(site: Site) -> None:
    with site.controller() as controller:
        site.until(lambda: http(controller, "/readyz") == (200, "ok\n"), "it is not ready")
        assert http(controller, "/healthz") == (200, "ok\n")


def test_h36_a_replica_that_is_gone_does_not_make_the_controller_unhealthy(site: Site) -> None:
    with site.controller() as controller:
        site.export_ready("web")
        site.root.rename(site.root.with_name("away"))
        site.until(lambda: status(controller)["exports"][0]["phase"] != "Ready", "nobody noticed")
        assert http(controller, "/healthz") == (200, "ok\n")
        assert http(controller, "/readyz") == (200, "ok\n")
        site.root.with_name("away").rename(site.root)
        site.claim("data")
        site.bound("data")


COUNTED = ("export_reserved_bytes", "export_volumes", "export_archives", "export_archive_bytes")


def test_h36_a_start_while_the_server_is_away_does_not_say_that_nothing_is_promised(site: Site) -> None:
    with site.controller():
        site.claim("data", "60Mi")
        site.bound("data")
        site.export_ready("web")
    known = {"reserved": "60Mi", "volumes": 1, "archives": 0}  # as it is published once a minute
    site.api.patch(NFS_EXPORT, "web", {"status": known}, subresource="status")
    before = site.export_status("web")
    site.root.rename(site.root.with_name("away"))
    with site.controller() as controller:
        site.until(lambda: site.export_status("web")["phase"] == "Degraded", "nobody noticed")
        after = site.export_status("web")
        kept = (*known, "active", "epoch", "promotion")
        assert {key: after.get(key) for key in kept} == {key: before[key] for key in kept}
        (web,) = status(controller)["exports"]
        assert [web[key] for key in ("reserved", "volumes", "archives", "archiveBytes")] == [None] * 4
        assert not [name for name in metrics(controller) if any(f"nfs_provisioner_{c}{{" in name for c in COUNTED)]
        site.root.with_name("away").rename(site.root)
        site.until(lambda: status(controller)["exports"][0]["reserved"] == 60 * MI, "it is not counted again")
        samples = metrics(controller)
        assert [samples[f'nfs_provisioner_{c}{{export="web"}}'] for c in COUNTED] == [60 * MI, 1, 0, 0]


def test_a_burst_of_claims_costs_few_status_writes(site: Site) -> None:
    """Counts wait for the minute; one write an export, not one a claim."""
    with site.controller() as controller:
        site.export_ready("web")
        before, began = requests(controller, "patch", "nfsexports"), time.monotonic()
        for number in range(30):
            site.claim(f"c{number}")
        for number in range(30):
            site.bound(f"c{number}")
        minutes = (time.monotonic() - began) // COUNTS_EVERY  # on a slow machine
        assert requests(controller, "patch", "nfsexports") - before <= 3 + minutes
        # One POST a claim, and nothing else that was not needed.
        assert requests(controller, "create", "persistentvolumes") == 30
        assert requests(controller, "patch", "persistentvolumes") == 0
        assert requests(controller, "get", "persistentvolumes") == 0


def requests(controller: Controller, verb: str, resource: str) -> float:
    wanted = (f'verb="{verb}"', f'resource="{resource}"')
    samples = metrics(controller).items()
    return sum(
        value for name, value in samples if "api_requests_total" in name and all(part in name for part in wanted)
    )


def test_a_services_address_goes_into_pvs_and_its_slice_on_the_active_replica(site: Site) -> None:
    site.api.create(
        SERVICE,
        {
            "metadata": {"name": "web-nfs"},
            "spec": {"clusterIP": "10.96.0.77", "ports": [{"name": "nfs", "port": 2049}]},
        },
        "shop",
    )
    (site.mount_root / "pair" / "b").mkdir(parents=True)
    replicas = [
        {"name": name, "server": f"192.0.2.{n}", "path": "/srv/nfs", "mountPath": str(site.mount_root / "pair" / name)}
        for n, name in enumerate("ab", start=1)
    ]
    site.make_export("pair", replicas=replicas, service={"namespace": "shop", "name": "web-nfs"})
    site.make_class("paired", export="pair")
    site.claim("data", storage_class="paired")
    with site.controller():
        claim = site.until(lambda: (c := site.get_claim("data")) and c["spec"].get("volumeName") and c, "it has no PV")
        pv = claim["spec"]["volumeName"]
        assert site.api.get(PV, pv)["spec"]["nfs"]["server"] == "10.96.0.77"
        slices = site.until(lambda: list(site.api.list(ENDPOINT_SLICE, "shop")[0]), "there is no EndpointSlice")
        active = site.until(lambda: site.export_status("pair").get("active"), "no replica is active")
        (endpoint,) = slices[0]["endpoints"]
        assert endpoint["addresses"] == ["192.0.2.1" if active == "a" else "192.0.2.2"]
        foreign = {"endpoints": [{"addresses": ["192.0.2.99"], "conditions": {"ready": True}}]}
        site.api.patch(ENDPOINT_SLICE, slices[0]["metadata"]["name"], foreign, namespace="shop")
        site.until(
            lambda: (
                next(site.api.list(ENDPOINT_SLICE, "shop")[0])["endpoints"][0]["addresses"] == endpoint["addresses"]
            ),
            "the slice was not put right",
        )


def test_the_standby_gets_directories_archives_and_deletions(site: Site) -> None:
    (site.mount_root / "pair" / "b").mkdir(parents=True)
    replicas = [
        {"name": name, "server": f"192.0.2.{n}", "path": "/srv/nfs", "mountPath": str(site.mount_root / "pair" / name)}
        for n, name in enumerate("ab", start=1)
    ]
    site.make_export("pair", replicas=replicas)
    site.make_class("paired", export="pair", pathPattern="${.PVC.name}")
    site.make_class("gone", export="pair", pathPattern="${.PVC.name}", onDelete="delete")
    for name, storage_class in (("kept", "paired"), ("old", "paired"), ("gone", "gone")):
        site.claim(name, storage_class=storage_class)

    def on(replica: str) -> list[str]:
        return sorted(p.name for p in (site.mount_root / "pair" / replica).iterdir() if not p.name.startswith("."))

    with site.controller():
        site.until(lambda: on("b") == ["gone", "kept", "old"], "the standby does not have the directories")
        for name in ("old", "gone"):
            site.delete_claim(name)
        site.until(lambda: on("b") == ["archived-old", "kept"], "the standby does not have the archive")
        assert on("a") == on("b")
        records = site.records("pair")
        assert sorted(r.state for r in records.values()) == [State.ARCHIVED, State.DELETED, State.LIVE]


def test_capacity_in_the_status_is_the_specs(site: Site) -> None:
    with site.controller():
        site.export_ready("web")
        assert site.export_status("web")["capacity"] == format_quantity(10 << 30)
