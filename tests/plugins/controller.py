"""The controller as it is shipped: `python -m nfs_provisioner run` in processes of its own, to be killed and stopped.

Responsible for one controller's configuration file, process group, log and HTTP. Knows no Kubernetes object. Invariant:
when `stop` or `kill` returns, or when the tests die in any way, neither the controller nor a worker of it is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.controlplane.processes import free_ports

Json = dict[str, Any]

#: Outlasts every stall of the machine and every outage that a test makes: a controller that ends because its lease
#: does is right, and no help. After a SIGKILL somebody gives it back (`Site.give_lease_back`), or waits for its end.
LASTING_LEASE = {"leaseDuration": "100s", "renewDeadline": "80s", "retryPeriod": "500ms"}
#: For a test that pauses a leader, or takes its token away, for longer than that.
ENDLESS_LEASE = {"leaseDuration": "600s", "renewDeadline": "500s", "retryPeriod": "500ms"}
#: Short enough to see it pass, as long as a test can wait: who is to keep it has to renew it meanwhile.
SHORT_LEASE = {"leaseDuration": "30s", "renewDeadline": "25s", "retryPeriod": "500ms"}
NAMESPACE = "nfs-provisioner"
DEADLINE = 120.0

_ROOT_OF_TREE = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: between fork and exec nothing may be imported
_SAMPLE = re.compile(r"(?m)^([a-z_]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


class Ended(Exception):
    """The controller ended although nobody asked it to; the message ends with its log."""


class Controller:
    """One controller process; `start` and `kill` as often as a test likes. Not thread-safe."""

    def __init__(
        self,
        directory: Path,
        kubeconfig: Path,
        *,
        provisioner: str,
        mount_root: Path,
        bind: str = "127.0.0.1",
        lease: Mapping[str, object] | None = None,
        **settings: object,
    ) -> None:
        """`lease` and `settings` go into the configuration as they are; the lease lies in the shipped namespace."""
        directory.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = kubeconfig
        self.config_file = directory / "config.yaml"
        self.log_file = directory / "controller.log"
        (self.port,) = free_ports(1)
        self.url = f"http://{bind}:{self.port}"
        self.config: Json = {
            "apiVersion": "nfs-provisioner.io/v1alpha1",
            "kind": "ProvisionerConfig",
            "provisioner": provisioner,
            "http": {"bind": bind, "port": self.port},
            "mountRoot": str(mount_root),
            "leaderElection": {"namespace": NAMESPACE, **(lease or {})},
            "log": {"level": "debug"},
            **settings,
        }
        self.configure()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """SIGTERM first, so that the lease is given back and the next controller need not wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DEADLINE)
        self.kill()

    def configure(self, **settings: object) -> None:
        """Write the configuration file, with these settings changed."""
        self.config |= settings
        self.config_file.write_text(yaml.safe_dump(self.config))

    # -- the process --------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it; returns at once."""
        assert self._process is None, "it runs already"
        parent = os.getpid()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                (
                    *(sys.executable, "-m", "nfs_provisioner", "run"),
                    *("--config", str(self.config_file), "--kubeconfig", str(self.kubeconfig)),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=_ROOT_OF_TREE,
                start_new_session=True,  # one process group with its workers, so that all can be killed at one moment
                preexec_fn=lambda: _die_with(parent),
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of the process that was started last; None while it runs."""
        assert self._process is not None, "it was not started, or its end was seen already"
        return self._process.poll()

    def workers(self, path: Path | None = None) -> list[int]:
        """Pids of its workers; only of those for the replica at `path`, if given."""
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                is_worker = b"nfs_provisioner.replication.measuring" in words and parent == self.pid
                if is_worker and (path is None or os.fsencode(path) in words):
                    found.append(int(process.name))
        return found

    def stop(self) -> int:
        """SIGTERM, as a kubelet does; returns the exit code."""
        assert self._process is not None, "it does not run"
        self.signal(signal.SIGCONT)
        self._process.terminate()
        code = self.wait()
        return code

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for it to end by itself; returns the exit code."""
        assert self._process is not None, "it does not run"
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the controller did not end in {seconds:g} s:\n{self.tail()}") from None
        self.kill()
        return code

    def kill(self) -> None:
        """SIGKILL to it and all its workers at one moment, as a machine that fails does. Harmless when it is not running."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """To the whole group: SIGSTOP is a machine that pauses, SIGCONT one that goes on."""
        os.killpg(self.pid, number)

    def require_running(self) -> None:
        """Raises Ended when it is not: nothing that is waited for will come any more."""
        if (code := self.exit_code) is not None:
            raise Ended(f"the controller ended with {code}:\n{self.tail()}")

    # -- what it says -------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def tail(self, size: int = 6000) -> str:
        return self.log[-size:]

    def http(self, path: str, timeout: float = 30.0) -> tuple[int, str]:
        """GET; code and body. Code 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def status(self) -> Json:
        code, body = self.http("/api/status")
        assert code == 200, f"/api/status answered {code}: {body}"
        found: Json = json.loads(body)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` that carry `labels`."""
        return sum(value for found, value in self.samples(name) if labels.items() <= found.items())

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Every sample of one metric, with its labels."""
        code, body = self.http("/metrics")
        assert code == 200, f"/metrics answered {code}: {body}"
        return [
            (dict(_LABEL.findall(labels)), float(value))
            for found, labels, value in _SAMPLE.findall(body)
            if found == name
        ]

    @property
    def leads(self) -> bool:
        return self.http("/api/status")[0] == 200

    def wait_leading(self, seconds: float = DEADLINE) -> Self:
        self.until(lambda: self.leads, "it does not lead", seconds)
        return self

    def wait_ready(self, *exports: str, seconds: float = DEADLINE) -> Self:
        """Wait until it leads and these exports are Ready."""
        self.wait_leading(seconds)
        self.until(lambda: set(exports) <= self._phases("Ready"), f"{exports} are not Ready", seconds)
        return self

    def _phases(self, wanted: str) -> set[str]:
        return {export["name"] for export in self.status()["exports"] if export["phase"] == wanted}

    def until(self, condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
        """Poll the condition; the failure shows the end of the log. Fails at once when the process ended.

        An AssertionError in the condition counts as not yet: /metrics may be late with its answer.
        """
        end = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            try:
                if condition():
                    return
                why = ""
            except AssertionError as error:
                why = f" ({error})"
            self.require_running()
            assert began < end, f"{what} after {seconds:g} s{why}:\n{self.tail()}"
            time.sleep(0.05)


def _die_with(parent: int) -> None:
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
        os._exit(127)  # the parent is gone already: nobody would ever end this process
