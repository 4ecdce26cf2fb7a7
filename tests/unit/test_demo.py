"""The guided demo as a user starts it: it ends well, leaves nothing, and fails when what it shows is not so."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfs_provisioner.cli import main
from nfs_provisioner.demo import tour

COMMAND = (sys.executable, "-m", "nfs_provisioner", "demo", "--port", "0")
DEADLINE = 240.0
NOBODY = 65534


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its directory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_it_shows_the_life_of_a_claim_and_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    ran = subprocess.run((*COMMAND, "--once"), capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert ran.stderr == ""
    assert "\x1b" not in ran.stdout, "a pipe gets no colours"
    for shown in (
        r"Claim shop/photos was Bound \d+ ms after",
        r"from-web-0.txt: written by web-0",
        r"From 10Mi to 20Mi in \d+ ms",
        r"Warning ProvisioningFailed: .*label 'team'",
        r"archived-shop-photos-pvc-",
        r"restore-archive: archived-shop-photos-pvc-",
        r"killed with SIGKILL",
        r"web +Ready +a ",
        r"nfs_provisioner_export_volumes\{export=\"web\"\} 2",
        r"Everything above was checked",
    ):
        assert re.search(shown, ran.stdout), f"{shown} is not shown:\n{ran.stdout}"
    assert list(temporary.iterdir()) == []


def slowness() -> float:
    """How many times longer than alone a thread takes just now: others want the processors, too."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < 0.2:
        pass
    return max(1.0, (time.monotonic() - began) / 0.2)


def test_it_takes_well_under_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:  # where no disk stalls
        monkeypatch.setattr("tempfile.tempdir", memory)
        before, began = slowness(), time.monotonic()
        assert main(["demo", "--port", "0", "--once"]) == 0
        took = time.monotonic() - began
        assert took < 30 * max(before, slowness())
        assert os.listdir(memory) == []


def test_a_promise_that_does_not_hold_ends_it_with_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody takes a file out of the archive while it is being restored."""
    restore = tour._Tour.restore

    def after_a_theft(self: tour._Tour) -> None:
        (self._stage.root("a") / self._archived / "from-web-1.txt").unlink()
        restore(self)

    monkeypatch.setattr(tour._Tour, "restore", after_a_theft)
    assert main(["demo", "--port", "0", "--once"]) == 1
    printed = capsys.readouterr()
    assert "both files are in the restored volume, and it is not so" in printed.err
    assert "Everything above was checked" not in printed.out
    assert list(temporary.iterdir()) == []


def test_a_port_that_is_taken_is_said_before_anything_is_shown(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port), "--once"]) == 2
    printed = capsys.readouterr()
    assert str(port) in printed.err and "--port 0" in printed.err and printed.out == ""
    assert list(temporary.iterdir()) == []


def test_keep_leaves_everything_in_a_new_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "new" / "kept"
    assert main(["demo", "--port", "0", "--once", "--keep", str(kept)]) == 0
    assert str(kept) in capsys.readouterr().out
    assert (kept / "exports" / "web" / "a" / "teams" / "red" / "nameless").is_dir()
    assert main(["demo", "--port", "0", "--once", "--keep", str(kept)]) == 2, "it is used a second time"
    assert "not empty" in capsys.readouterr().err
    assert main(["recover", str(kept / "exports" / "web" / "a")]) == 0
    assert "photos-again" in capsys.readouterr().out


@pytest.fixture
def staying(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A demo that has shown everything and stays up, and the kubeconfig that it prints."""
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shown = ""
    try:
        for line in process.stdout:
            shown += line
            if "controller.log" in line:
                break
        found = re.search(r"KUBECONFIG=(\S+)", shown)
        assert found, shown
        yield process, Path(found.group(1))
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_stays_up_to_be_looked_at_until_it_is_told_to_end(
    staying: tuple[subprocess.Popen[str], Path],
    number: signal.Signals,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process, kubeconfig = staying
    assert main(["volumes", "--kubeconfig", str(kubeconfig)]) == 0
    assert "photos-again" in capsys.readouterr().out
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, "")
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test of it runs without root already")
def test_it_needs_no_root_and_no_writable_directory_around_it(temporary: Path) -> None:
    """As nobody, with the one capability that lets it read a Python installed below /root, in a read-only directory."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv (util-linux) drops the privileges"
    temporary.chmod(0o777)
    for above in temporary.parents[:2]:
        above.chmod(0o755)
    only = "-all,+dac_read_search"
    drop = (
        *(setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *(f"--bounding-set={only}", f"--inh-caps={only}", f"--ambient-caps={only}"),
    )
    tree = str(Path(tour.__file__).resolve().parents[2])
    ran = subprocess.run(
        (*drop, *COMMAND, "--once"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd="/proc/self/net",
        env={"TMPDIR": str(temporary), "PATH": "/usr/bin:/bin", "PYTHONPATH": tree, "HOME": "/nonexistent"},
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    assert list(temporary.iterdir()) == []
