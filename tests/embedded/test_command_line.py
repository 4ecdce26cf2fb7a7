"""The verbs that talk to a controller, on one that runs: exit codes, formats, and requests that are answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfs_provisioner.cli import main
from nfs_provisioner.demo.proxy import TARGET
from nfs_provisioner.kube.api import NAMESPACE, NFS_EXPORT, SERVICE
from nfs_provisioner.volumes import requests
from nfs_provisioner.volumes.objects import REQUEST
from tests.embedded.site import Site

Json = dict[str, Any]


@pytest.fixture
def running(site: Site) -> Iterator[Site]:
    """A bound claim `kept`, an archive of claim `gone`, and the controller behind its Service."""
    for name in ("kept", "gone"):
        site.claim(name)
    site.api.create(NAMESPACE, {"metadata": {"name": "nfs-provisioner"}})
    with site.controller() as controller:
        pv = site.bound("gone")
        (site.directory_of(pv) / "file").write_text("data")
        site.bound("kept")
        site.delete_claim("gone")
        site.gone(pv)
        target = f"127.0.0.1:{controller.daemon.web.port}"
        service = {"metadata": {"name": "nfs-provisioner", "annotations": {TARGET: target}}}
        spec = {"spec": {"ports": [{"name": "http", "port": 8080}]}}
        site.api.create(SERVICE, service | spec, "nfs-provisioner")
        site.until(lambda: site.export_status("web").get("epoch"), "the status has no epoch")
        yield site


class Ran:
    """What one command did."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        capsys.readouterr()
        self.code = main([*words, "--kubeconfig", str(site.kubeconfig)])
        self.out, self.err = capsys.readouterr()

    @property
    def rows(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines() if line.strip() and "─" not in line]


def test_tables_in_a_pipe_have_one_line_a_row_and_no_colours(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for words, head, first in (
        (["status"], "EXPORT", "web"),
        (["volumes"], "NAMESPACE", "shop"),
        (["archives"], "EXPORT", "web"),
        (["archives", "list"], "EXPORT", "web"),
    ):
        ran = Ran(running, capsys, *words)
        assert ran.code == 0 and ran.err == ""
        assert [row[0] for row in ran.rows[:2]] == [head, first], ran.out
        assert "\x1b" not in ran.out


def test_json_and_yaml_say_the_same(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    def said(verb: str, how: str, read: Callable[[str], Json]) -> Json:
        found = read(Ran(running, capsys, verb, "-o", how).out)
        for export in found["exports"] if verb == "status" else []:
            del export["available"], export["used"]  # what is free on the disk moves on
        return found

    def around(verb: str) -> tuple[Json, Json] | None:
        """Both, when nothing was measured and nothing else happened in between."""
        before, as_yaml = said(verb, "json", json.loads), said(verb, "yaml", yaml.safe_load)
        return (before, as_yaml) if said(verb, "json", json.loads) == before else None

    for verb in ("status", "volumes", "archives"):
        as_json, as_yaml = running.until(lambda verb=verb: around(verb), "it is another each time")  # type: ignore[misc]
        assert as_json == as_yaml
    (volume,) = json.loads(Ran(running, capsys, "volumes", "-o", "json").out)
    assert (volume["namespace"], volume["claim"], volume["phase"], volume["state"]) == ("shop", "kept", "Bound", "live")
    (archive,) = json.loads(Ran(running, capsys, "archives", "-o", "json").out)
    assert (archive["claim"], archive["state"]) == ("gone", "archived")


def test_volumes_of_one_namespace(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(json.loads(Ran(running, capsys, "volumes", "-n", "shop", "-o", "json").out)) == 1
    assert json.loads(Ran(running, capsys, "volumes", "-n", "other", "-o", "json").out) == []


def test_an_unknown_export_is_wrong_usage_and_names_those_there_are(
    running: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["status", "nope"], ["archives", "purge", "nope", "x"], ["accept", "nope", "--replica", "a"]):
        ran = Ran(running, capsys, *words)
        assert ran.code == 2 and "'nope'" in ran.err and ran.out == "", words
    assert "web" in Ran(running, capsys, "status", "nope").err


def test_a_purge_deletes_the_archive_for_good(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (archive,) = json.loads(Ran(running, capsys, "archives", "-o", "json").out)
    ran = Ran(running, capsys, "archives", "purge", "web", archive["name"])
    assert ran.code == 0 and archive["name"] in ran.out
    assert not (running.root / archive["name"]).exists()
    assert json.loads(Ran(running, capsys, "archives", "-o", "json").out) == []


def test_a_dry_run_prints_the_request_and_writes_nothing(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (archive,) = json.loads(Ran(running, capsys, "archives", "-o", "json").out)
    for words in (
        ["archives", "purge", "web", archive["name"], "--dry-run"],
        ["accept", "web", "--replica", "a", "--dry-run"],
    ):
        ran = Ran(running, capsys, *words)
        assert ran.code == 0 and ran.out.startswith(f"kubectl annotate --overwrite nfsexport web '{REQUEST}=")
    assert REQUEST not in (running.api.get(NFS_EXPORT, "web")["metadata"].get("annotations") or {})
    assert (running.root / archive["name"] / "file").exists()


def test_what_the_controller_cannot_do_ends_with_two(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(running, capsys, "archives", "purge", "web", "no-such-archive")
    assert ran.code == 2 and "no-such-archive" in ran.err
    ran = Ran(running, capsys, "accept", "web", "--replica", "z")
    assert ran.code == 2 and "'z'" in ran.err


def test_what_is_refused_for_safety_ends_with_three(
    running: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch rises between reading it and asking."""
    (archive,) = json.loads(Ran(running, capsys, "archives", "-o", "json").out)
    compose = requests.compose
    monkeypatch.setattr(requests, "compose", lambda verb, name, epoch, at: compose(verb, name, epoch + 1, at))
    ran = Ran(running, capsys, "archives", "purge", "web", archive["name"])
    assert ran.code == 3 and "epoch" in ran.err
    assert (running.root / archive["name"] / "file").exists()


def test_another_machine_asks_a_url(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    service = running.api.get(SERVICE, "nfs-provisioner", "nfs-provisioner")
    capsys.readouterr()
    assert main(["volumes", "-o", "json", "--url", f"http://{service['metadata']['annotations'][TARGET]}/"]) == 0
    assert [row["claim"] for row in json.loads(capsys.readouterr().out)] == ["kept"]


def test_a_cluster_without_the_controller_is_a_failure(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(site, capsys, "status")
    assert ran.code == 1 and "nfs-provisioner" in ran.err and ran.out == ""


def test_a_kubeconfig_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing")
    assert main(["status", "--kubeconfig", missing]) == 2
    assert missing in capsys.readouterr().err
