"""What an export says of the file system below it: the figures of `df`, and who else was promised the same space."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.config import parse_quantity
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.kube.api import NFS_EXPORT
from nfs_provisioner.volumes import exports
from tests.embedded.site import MI, Controller, Site
from tests.embedded.test_overview import metrics, status
from tests.plugins.loopfs import LoopFileSystem
from tests.unit.test_tables import shown

Json = dict[str, Any]
FIGURES = ("used", "available")
SOON = 45.0  # seconds: less than what the first of two would wait that is not told when the other is ready


def df(path: Path) -> tuple[int, int, str]:
    """Used and available bytes, and how full it is, as everybody's tool says it."""
    said = subprocess.run(
        ("df", "-B1", "--output=used,avail,pcent", str(path)), capture_output=True, text=True, check=True
    ).stdout
    used, available, percent = said.splitlines()[1].split()
    return int(used), int(available), percent


def test_blocks_that_only_root_may_use_are_not_counted_as_used(embedded_api: EmbeddedApiServer, tmp_path: Path) -> None:
    """ext4 keeps 5 % for root by itself; a fifth here. `df` is what people compare with."""
    site = Site(embedded_api, tmp_path)
    with LoopFileSystem(tmp_path / "disk", 64 * MI, mountpoint=site.root, options=("-m", "20")) as disk:
        (site.root / "lost+found").rmdir()
        site.make_export()
        site.make_class()
        site.claim("data")
        with site.controller() as controller:
            pv = site.bound("data")
            with open(site.directory_of(pv) / "file", "wb") as file:
                file.write(os.urandom(20 * MI))
                os.fsync(file.fileno())

            def settled() -> tuple[Json, tuple[int, int, str]] | None:
                """All of them at one moment: the controller writes there, too."""
                said = df(disk.path)
                export, samples = status(controller)["exports"][0], metrics(controller)
                scraped = [samples.get(f'nfs_provisioner_export_{kind}_bytes{{export="web"}}') for kind in FIGURES]
                right = [export[kind] for kind in FIGURES] == scraped == list(said[:2])
                return (export, said) if right else None

            export, (used, _, percent) = site.until(settled, "used and available are not what df says")
            assert used < 30 * MI, "df does not count what is kept for root"
            # df rounds up, the bar to the nearest.
            bar = shown(**{key: export[key] for key in ("used", "available")}).split("FULL")[1]
            assert any(f"{int(percent[:-1]) - less}%" in bar for less in (0, 1)), (bar, percent)


# -- two exports on one file system -----------------------------------------------------------------------------------


def told(site: Site, name: str) -> str | None:
    """The condition's message, as it is in the API."""
    found = site.export_condition(name, "CapacityShared")
    return found["message"] if found.get("status") == "True" else None


def alone(site: Site, name: str) -> bool:
    return told(site, name) is None


def message(controller: Controller, name: str) -> str:
    said: str = next(export["message"] for export in status(controller)["exports"] if export["name"] == name)
    return said


def set_capacity(site: Site, name: str, capacity: str | None) -> None:
    site.api.patch(NFS_EXPORT, name, {"spec": {"capacity": capacity}})


def test_two_exports_that_promise_the_same_file_system_are_told_of_each_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "HOUSEKEEPING", 3600.0)
    set_capacity(site, "web", None)
    with site.controller() as controller:
        site.export_ready("web")
        site.until(lambda: status(controller)["exports"][0]["unmanaged"] == 0, "its first round is not over")
        site.make_export("mail", capacity=None)  # web looks at nothing of its own accord any more
        for name, other in (("web", "mail"), ("mail", "web")):
            said = site.until(partial(told, site, name), f"{name} is told nothing", SOON)
            assert f"NFSExport {other}" in said and "set spec.capacity" in said
            assert said in message(controller, name), "`status` has it, too"
            site.export_ready(name)  # it works; it only promises too much
            assert parse_quantity(site.export_status(name)["capacity"]) > 0
        for name in ("web", "mail"):
            set_capacity(site, name, "1Gi")
        for name in ("web", "mail"):
            site.until(partial(alone, site, name), f"{name} is told what is not so any more")
            assert message(controller, name) == ""


def test_the_replicas_of_one_export_may_lie_on_one_file_system(site: Site) -> None:
    (site.mount_root / "pair" / "b").mkdir(parents=True)
    replicas = [
        {"name": name, "server": f"192.0.2.{n}", "path": "/srv/nfs", "mountPath": str(site.mount_root / "pair" / name)}
        for n, name in enumerate("ab", start=1)
    ]
    set_capacity(site, "web", None)
    site.api.delete(NFS_EXPORT, "web")
    site.make_export("pair", replicas=replicas)
    set_capacity(site, "pair", None)
    with site.controller() as controller:
        site.export_ready("pair")
        assert told(site, "pair") is None and message(controller, "pair") == ""
