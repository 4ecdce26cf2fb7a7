"""What a machine lacks is skipped by a developer and demanded by CI."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.plugins import packages


@pytest.fixture(params=["", "true"])
def ci(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("CI", request.param)
    return bool(request.param)


def refusal(ci: bool) -> type[BaseException]:
    return pytest.fail.Exception if ci else pytest.skip.Exception


@pytest.mark.usefixtures("ci")
def test_what_is_there_is_no_obstacle(tmp_path: Path) -> None:
    packages.require("sh", str(tmp_path), debian=["rsync"])
    assert Path(packages.find("sh")).is_absolute()


def test_a_missing_command_is_named_with_its_package(ci: bool) -> None:
    with pytest.raises(refusal(ci), match=r"lacks no-such-command, /no/such/file \(Debian: rsync"):
        packages.require("sh", "no-such-command", "/no/such/file", debian=["rsync"])


def test_root_is_demanded(ci: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(refusal(ci), match="needed for mounting"):
        packages.require_root("mounting")


def test_packages_that_the_list_does_not_have_are_an_error_everywhere() -> None:
    with pytest.raises(ValueError, match="does not list no-such-package"):
        packages.require("sh", debian=["no-such-package"])


def test_the_list_is_readable_and_installing_twice_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"nfs-ganesha", "libnfs-utils"} <= packages.listed()
    script = packages.LIST.parent / "install-packages"
    query = ("dpkg-query", "--show", "--showformat", "${db:Status-Status}\n", *packages.listed())
    packages.require("dpkg-query")
    installed = subprocess.run(query, capture_output=True, text=True, check=False)
    if installed.returncode != 0 or set(installed.stdout.split()) != {"installed"}:
        packages.unavailable("lacks packages; `tests/install-packages` installs them")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no sbin: root's tools are not needed
    done = subprocess.run((str(script),), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
