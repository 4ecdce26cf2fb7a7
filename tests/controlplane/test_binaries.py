"""Finding and building the programs, with a compiler that only pretends: the real build takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.controlplane import binaries

REPOSITORY = Path(__file__).resolve().parents[2]
A_TEST = "tests/controlplane/test_control_plane.py::test_secrets_are_readable_by_nobody_else"

#: Counts its runs, and makes what `go build -o DIR/ PACKAGE...` makes; slowly enough for a second run to come in.
COMPILER = """#!/bin/sh
echo "$@" >> "$RUNS"
while [ "$1" != -o ]; do shift; done
for name in server kube-apiserver kube-controller-manager kubectl kustomize; do
    echo "$name" > "$2$name"
    sleep 0.05
done
"""
FAILING_COMPILER = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
echo half > "$2/server"
echo "module lookup disabled" >&2
exit 1
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no assets, and a PATH without Go but with what the pretended compiler needs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "runs").touch()
    monkeypatch.setenv("NFS_PROVISIONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin" / "sleep").symlink_to("/bin/sleep")
    return tmp_path


def test_without_go_and_assets_the_reason_says_what_would_help(machine: Path) -> None:
    found = binaries.find()
    assert isinstance(found, binaries.Missing)
    assert "KUBEBUILDER_ASSETS" in found.reason
    assert not (machine / "cache").exists()


def test_two_runs_at_once_build_once(machine: Path) -> None:
    _install(machine, COMPILER)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: binaries.find(), range(2))
    assert first == second
    assert isinstance(first, binaries.Binaries)
    assert first.etcd.read_text() == "server\n"
    assert first.kustomize is not None
    assert first.kustomize.exists()
    assert len((machine / "runs").read_text().splitlines()) == 1
    assert [path for path in (machine / "cache").iterdir() if path.name.startswith(".")] == []


def test_a_failed_build_says_why_and_leaves_nothing_that_looks_built(machine: Path) -> None:
    _install(machine, FAILING_COMPILER)
    found = binaries.find()
    assert isinstance(found, binaries.Missing)
    assert "module lookup disabled" in found.reason
    assert isinstance(binaries.find(build=False), binaries.Missing)
    assert [path.suffix for path in (machine / "cache").iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_removed_by_the_next(machine: Path) -> None:
    _install(machine, COMPILER)
    abandoned = machine / "cache" / f".{binaries.cache_folder().name}.killed"
    abandoned.mkdir(parents=True)
    (abandoned / "server").touch()
    assert isinstance(binaries.find(), binaries.Binaries)
    assert not abandoned.exists()


def test_assets_are_used_first_and_a_build_supplies_what_they_lack(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = machine / "assets"
    assets.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    for name in ("etcd", "kube-apiserver", "kubectl"):
        (assets / name).touch(mode=0o755)
    (assets / "kube-controller-manager").touch(mode=0o644)  # not a program
    _install(machine, COMPILER)
    found = binaries.find()
    assert isinstance(found, binaries.Binaries)
    assert {path.parent for path in (found.etcd, found.kube_apiserver, found.kubectl)} == {assets}
    assert found.kube_controller_manager == binaries.cache_folder() / "kube-controller-manager"


def test_complete_assets_need_no_build(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = machine / "assets"
    assets.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl"):
        (assets / name).touch(mode=0o755)
    found = binaries.find()
    assert isinstance(found, binaries.Binaries)
    assert found.kube_controller_manager.parent == assets
    assert found.kustomize is None


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_a_machine_without_a_control_plane_skips_and_ci_fails(machine: Path, ci: str, outcome: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.controlplane.plugin", "-p", "no:cacheprovider", A_TEST]
    environment = os.environ | {
        "CI": ci,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NFS_PROVISIONER_CACHE": str(machine / "none"),
    }
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert outcome in ended.stdout
    assert "KUBEBUILDER_ASSETS" in ended.stdout


def _install(machine: Path, script: str) -> None:
    compiler = machine / "bin" / "go"
    compiler.write_text(script)
    compiler.chmod(0o755)
