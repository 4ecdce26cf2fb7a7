"""What volumes take: measured by a running controller, told to people and Prometheus, remembered over its restarts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.export.records import State
from nfs_provisioner.export.usagefile import decode
from nfs_provisioner.replication.measuring import REPLICA_COMMAND
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE
from tests.embedded.site import MI, Controller, Site
from tests.embedded.test_overview import http, metrics, status

Json = dict[str, Any]
OFTEN = 0.3  # seconds between two looks at a volume


def du(directory: Path) -> tuple[int, int]:
    """Bytes and inodes, as du says."""
    figures = []
    for arguments in (["--block-size=1"], ["--inodes"]):
        done = subprocess.run(["du", "-s", *arguments, str(directory)], capture_output=True, text=True, check=True)
        figures.append(int(done.stdout.split()[0]))
    return figures[0], figures[1]


def fill(directory: Path, name: str, size: int) -> None:
    """A file that is on disk with all its blocks, so that du says tomorrow what it says now."""
    with (directory / name).open("wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def row(controller: Controller, pv: str, kind: str = "volumes") -> Json:
    """What /api/status says; nothing while nobody leads, or there is no such volume."""
    code, body = http(controller, "/api/status")
    rows: list[Json] = json.loads(body)[kind] if code == 200 else []
    return next((row for row in rows if row["volume"] == pv), {})


def figures(controller: Controller, pv: str, kind: str = "volumes") -> tuple[int | None, int | None]:
    found = row(controller, pv, kind)
    return found.get("used"), found.get("inodes")


def sample(controller: Controller, name: str, pv: str) -> float | None:
    wanted = f'persistentvolume="{pv}"'
    found = (
        v for key, v in metrics(controller).items() if key.startswith(f"nfs_provisioner_{name}{{") and wanted in key
    )
    return next(found, None)


def make_pair(site: Site) -> Path:
    """Export `pair`; its standby's root."""
    replicas = []
    for number, name in enumerate("ab", start=1):
        root = site.mount_root / "pair" / name
        root.mkdir(parents=True)
        replicas.append({"name": name, "server": f"192.0.2.{number}", "path": "/srv/nfs", "mountPath": str(root)})
    site.make_export("pair", replicas=replicas, address="nfs.example.net", replication={"interval": "1s"})
    site.make_class("paired", export="pair")
    return site.mount_root / "pair"


def test_what_du_says_is_told_and_kept_over_a_restart(site: Site) -> None:
    site.claim("data")
    began = time.time()
    with site.controller(measure_every=OFTEN) as controller:
        pv = site.bound("data")
        directory = site.directory_of(pv)
        empty = du(directory)
        site.until(lambda: figures(controller, pv) == empty or None, "a new volume is not measured")
        (directory / "below").mkdir()
        fill(directory / "below", "file", 3 * MI)
        os.link(directory / "below" / "file", directory / "again")
        full = du(directory)
        assert full[0] - empty[0] >= 3 * MI and full[1] == empty[1] + 2
        site.until(lambda: figures(controller, pv) == full or None, f"/api/status does not say {full}")
        assert sample(controller, "volume_used_bytes", pv) == full[0]
        assert sample(controller, "volume_inodes", pv) == full[1]
        measured = sample(controller, "volume_usage_timestamp_seconds", pv)
        assert measured is not None and began - 1 < measured <= time.time()
        assert sample(controller, "volume_quota_exceeded", pv) is None
    kept = decode((site.root / ".nfs-provisioner" / "usage.json").read_bytes())
    assert kept[pv][:2] == full
    with site.controller() as controller:
        site.until(lambda: figures(controller, pv) == full or None, "the figure is forgotten")
        assert row(controller, pv)["usageTime"] is not None


def test_a_damaged_memory_costs_one_more_look(site: Site) -> None:
    site.claim("data")
    with site.controller(measure_every=OFTEN) as controller:
        pv = site.bound("data")
        site.until(lambda: figures(controller, pv)[0] is not None or None, "it is not measured")
    file = site.root / ".nfs-provisioner" / "usage.json"
    file.write_bytes(file.read_bytes()[:-5])
    with site.controller() as controller:
        wanted = du(site.directory_of(pv))
        site.until(lambda: figures(controller, pv) == wanted or None, "it is not measured again")
    assert decode(file.read_bytes())[pv][:2] == wanted


@pytest.mark.parametrize("at", [1e18, -1e18, 4e9])
def test_a_memory_of_a_time_that_cannot_be_breaks_nothing_and_freezes_no_figure(site: Site, at: float) -> None:
    site.claim("data")
    with site.controller(measure_every=OFTEN) as controller:
        pv = site.bound("data")
        site.until(lambda: figures(controller, pv)[0] is not None or None, "it is not measured")
    file = site.root / ".nfs-provisioner" / "usage.json"
    file.write_text(json.dumps({"version": 1, "volumes": {pv: {"bytes": 4096, "inodes": 1, "at": at}}}))
    with site.controller(measure_every=OFTEN) as controller:
        fill(site.directory_of(pv), "file", MI)
        wanted = du(site.directory_of(pv))
        site.until(lambda: figures(controller, pv) == wanted or None, "it is not measured again")
        assert row(controller, pv)["usageTime"] <= datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_memory_that_can_be_neither_read_nor_written_keeps_nobody_from_measuring(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.claim("data")
    with site.controller(measure_every=OFTEN) as controller:
        pv = site.bound("data")
        site.until(lambda: figures(controller, pv)[0] is not None or None, "it is not measured")
    file = site.root / ".nfs-provisioner" / "usage.json"
    file.unlink()
    file.mkdir()
    fill(site.directory_of(pv), "file", MI)
    wanted = du(site.directory_of(pv))
    with site.controller(measure_every=OFTEN) as controller:
        site.until(lambda: figures(controller, pv) == wanted or None, "it is not measured")
        site.until(lambda: "cannot be written down" in caplog.text or None, "nobody is told")
    assert caplog.text.count("cannot be written down") == 1


def test_a_directory_that_is_closed_to_the_controller_does_not_hide_the_volume(
    site: Site, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a server that squashes root. What can be seen counts, for the quota, too."""
    from nfs_provisioner.cli import main

    site.make_class("soft", quota="soft")
    site.claim("data", "1Mi", storage_class="soft")
    mortal = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", *REPLICA_COMMAND)
    with site.controller(measure_every=OFTEN, worker_command=mortal) as controller:
        pv = site.bound("data")
        private = site.directory_of(pv) / "private"
        private.mkdir(0o700)
        fill(private, "secret", 4 * MI)
        os.chown(private, 12345, 12345)
        fill(site.directory_of(pv), "open", 2 * MI)
        site.until(lambda: site.events("QuotaExceeded"), "nobody is told")

        def told_so() -> Json | None:
            """By a look that began when all of it was there."""
            found = row(controller, pv)
            right = found.get("incomplete") and 2 * MI <= found["used"] < 4 * MI and found["inodes"] == 3
            return found if right else None

        told = site.until(told_so, "it does not say that there is more")
        assert "a directory is closed to the controller" in told["message"]
        capsys.readouterr()
        assert main(["volumes", "--url", f"http://127.0.0.1:{controller.daemon.web.port}"]) == 0
        shown = capsys.readouterr().out
        assert ">2" in shown and "closed to the controller" in shown
        private.chmod(0o777)
        full = du(site.directory_of(pv))
        site.until(lambda: figures(controller, pv) == full or None, "it is still hidden")
        assert row(controller, pv)["message"] == "" and row(controller, pv)["incomplete"] is False
    assert caplog.text.count("closed to the controller") == 1


def test_an_archive_is_told_with_its_size_and_what_is_restored_has_it_at_once(site: Site) -> None:
    site.claim("data")
    with site.controller(measure_every=OFTEN) as controller:
        pv = site.bound("data")
        fill(site.directory_of(pv), "file", MI)
        full = du(site.directory_of(pv))
        site.until(lambda: figures(controller, pv) == full or None, "it is not measured")
        assert metrics(controller)['nfs_provisioner_export_archive_bytes{export="web"}'] == 0
        site.delete_claim("data")
        site.gone(pv)
        site.becomes(pv, State.ARCHIVED)
        site.until(lambda: figures(controller, pv, "archives") == full or None, "the archive has another size")
        archives = 'nfs_provisioner_export_archive_bytes{export="web"}'
        site.until(lambda: metrics(controller)[archives] == full[0], "the archives have another size")
        name = row(controller, pv, "archives")["name"]
    with site.controller() as controller:  # looks too seldom to measure what is restored
        site.until(lambda: figures(controller, pv, "archives") == full or None, "the archive's size is forgotten")
        site.claim("again", annotations={RESTORE_ARCHIVE: name})
        again = site.bound("again")
        assert figures(controller, again) == full
        assert metrics(controller)['nfs_provisioner_export_archive_bytes{export="web"}'] == 0


def test_a_soft_quota_is_told_once_and_a_restart_does_not_tell_it_again(site: Site) -> None:
    site.make_class("soft", quota="soft")
    site.claim("data", "1Mi", storage_class="soft")
    site.claim("free", "1Mi")
    with site.controller(measure_every=OFTEN) as controller:
        pv, free = site.bound("data"), site.bound("free")
        site.until(lambda: sample(controller, "volume_quota_exceeded", pv) == 0 or None, "there is no gauge")
        for one in (pv, free):
            fill(site.directory_of(one), "big", 2 * MI)
        site.until(lambda: site.events("QuotaExceeded"), "nobody is told")
        (message,) = site.events("QuotaExceeded")
        assert "more than the 1Mi" in message and "patch pvc data" in message
        assert sample(controller, "volume_quota_exceeded", pv) == 1
        assert row(controller, pv)["quotaExceeded"] is True and row(controller, free)["quotaExceeded"] is None
    assert decode((site.root / ".nfs-provisioner" / "usage.json").read_bytes())[pv][3] is True
    with site.controller(measure_every=OFTEN) as controller:
        measured = time.time()
        site.until(
            lambda: (sample(controller, "volume_usage_timestamp_seconds", pv) or 0) > measured or None, "no look"
        )
        assert sample(controller, "volume_quota_exceeded", pv) == 1
        assert len(site.events("QuotaExceeded")) == 1
        big = site.directory_of(pv) / "big"
        big.unlink()
        site.until(lambda: sample(controller, "volume_quota_exceeded", pv) == 0 or None, "it is still exceeded")
        fill(site.directory_of(pv), "big", 2 * MI)
        site.until(lambda: sample(controller, "volume_quota_exceeded", pv) == 1 or None, "it is not exceeded again")
        site.until(lambda: site.events("QuotaExceeded"), "nobody is told")


def test_a_pair_says_what_its_active_side_takes(site: Site) -> None:
    root = make_pair(site)
    site.claim("data", storage_class="paired")
    with site.controller() as controller:  # passes report; the interval of a look of its own is never over
        claim = site.until(lambda: (c := site.get_claim("data")) and c["spec"].get("volumeName") and c, "it has no PV")
        pv = claim["spec"]["volumeName"]
        directory = root / "a" / f"shop-data-{pv}"
        site.until(lambda: directory.is_dir() or None, "it has no directory")
        fill(directory, "file", MI)
        full = du(directory)
        site.until(lambda: figures(controller, pv) == full or None, f"it does not say {full}")
        (directory / "file").unlink()
        empty = du(directory)
        site.until(lambda: figures(controller, pv) == empty or None, f"it does not say {empty}")
    assert decode((root / "a" / ".nfs-provisioner" / "usage.json").read_bytes())[pv][:2] == empty
    assert not (root / "b" / ".nfs-provisioner" / "usage.json").exists()


def test_a_scrape_does_not_wait_for_a_replica_that_is_gone(site: Site) -> None:
    site.claim("data")
    with site.controller(measure_every=OFTEN) as controller:
        pv = site.bound("data")
        site.until(lambda: figures(controller, pv)[0] is not None or None, "it is not measured")
        used = figures(controller, pv)
        site.root.rename(site.root.with_name("away"))
        site.until(lambda: status(controller)["exports"][0]["phase"] != "Ready", "nobody noticed")
        assert http(controller, "/metrics")[0] == 200 and figures(controller, pv) == used
        site.root.with_name("away").rename(site.root)
        fill(site.directory_of(pv), "file", MI)
        full = du(site.directory_of(pv))
        site.until(lambda: figures(controller, pv) == full or None, "it is not measured again")


@pytest.mark.parametrize("words", [["volumes"]])
def test_volumes_are_shown_with_the_largest_first(
    site: Site, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from nfs_provisioner.cli import main

    for name in ("a-small", "b-large", "c-middle"):
        site.claim(name, "10Mi")
    with site.controller(measure_every=OFTEN) as controller:
        pvs = [site.bound(name) for name in ("a-small", "b-large", "c-middle")]
        for pv, size in zip(pvs, (0, 5 * MI, MI), strict=True):
            fill(site.directory_of(pv), "file", size)
        wanted = [du(site.directory_of(pv)) for pv in pvs]
        site.until(lambda: [figures(controller, pv) for pv in pvs] == wanted or None, "they are not measured")
        capsys.readouterr()
        assert main([*words, "--url", f"http://127.0.0.1:{controller.daemon.web.port}"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["b-large", "c-middle", "a-small"]
    assert rows[0][2:6] == ["5Mi", "10Mi", "██████░░░░", "50%"] or rows[0][2] == "5.0Mi"
