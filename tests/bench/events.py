"""One changed file among many: how long until it is durable on the other side; ours beside lsyncd, by turns.

Both follow the same tree, and only one of them runs at a time. The clock starts when the writer has closed its file,
and stops when whoever reads the copy sees the new content and fsync(2) of it and its directory has returned. Prints
nothing but progress.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.kube.api import NAMESPACE, NFS_EXPORT, PVC, STORAGE_CLASS, Api, load
from tests.bench.burst import BenchError, percentile
from tests.bench.copies import FILES, SIZE
from tests.bench.stand import progress
from tests.bench.trees import GIB, command, disk, fill
from tests.plugins.controller import NAMESPACE as CONTROLLER_NAMESPACE
from tests.plugins.controller import Controller

CHANGES = 20  # a round
DELAY = 1  # seconds that lsyncd collects events
LONGEST_PAUSE = 0.4  # seconds between a change that arrived and the next
IDLE = 30.0  # seconds; the default interval of a pair, so that one comparison of everything is in it
DEADLINE = 120.0
PROVISIONER = "bench.example.com/nfs"
_CLAIMS = "bench"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Followed:
    """Seconds of each change of one round. `idle`: processors used while nothing changes, where it was measured."""

    lsyncd: tuple[float, ...]
    ours: tuple[float, ...]
    idle: float | None


def followed(home: Path, rounds: int) -> list[Followed]:
    """Rounds of lsyncd, then ours."""
    found = []
    with disk(home, 6 * GIB) as both, EmbeddedApiServer() as server:
        site = _Site(server, home / "events", both)
        with site.ours():
            source, standby = site.make_volume()
            fill(source / "tree", FILES, SIZE)
        for number in range(1, rounds + 1):
            with _lsyncd(home, source / "tree", both / "lsyncd") as _:
                lsyncd = _changes(source / "tree", both / "lsyncd")
            with site.ours() as controller:
                _until(lambda: site.caught_up(controller), "the pair is not in sync")
                ours = _changes(source / "tree", standby / "tree")
                idle = _idle(controller.pid) if number == 1 else None
            progress(f"one change {number}/{rounds}: lsyncd {_told(lsyncd)}; ours {_told(ours)}")
            found.append(Followed(lsyncd, ours, idle))
    return found


class _Site:
    """An embedded API server with a pair of directories of one disk, and the controller as it is shipped."""

    def __init__(self, server: EmbeddedApiServer, directory: Path, both: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._kubeconfig = server.write_kubeconfig(directory / "kubeconfig")
        self._mounts = both / "exports"
        self._roots = {name: self._mounts / "pair" / name for name in "ab"}
        for root in self._roots.values():
            root.mkdir(parents=True)
        for name in (CONTROLLER_NAMESPACE, _CLAIMS):
            self._api.create(NAMESPACE, {"metadata": {"name": name}})
        replicas = [
            {"name": name, "server": f"192.0.2.{number}", "path": "/srv/nfs", "mountPath": str(root)}
            for number, (name, root) in enumerate(self._roots.items(), 11)
        ]
        spec = {"replicas": replicas, "capacity": "10Gi", "reserve": "0%", "address": "nfs.example.com"}
        body = {"apiVersion": "nfs-provisioner.io/v1alpha1", "kind": "NFSExport", "metadata": {"name": "pair"}}
        self._api.create(NFS_EXPORT, {**body, "spec": spec})
        self._api.create(STORAGE_CLASS, {"metadata": {"name": "pair"}, "provisioner": PROVISIONER})

    @property
    def _api(self) -> Api:
        return load(str(self._kubeconfig))

    @contextmanager
    def ours(self) -> Iterator[Controller]:
        """The controller, leading, with the export Ready."""
        controller = Controller(
            self._directory / "controller",
            self._kubeconfig,
            provisioner=PROVISIONER,
            mount_root=self._mounts,
            log={"level": "warning"},
        )
        with controller.start():
            controller.wait_ready("pair")
            yield controller
            if (code := controller.stop()) != 0:
                raise BenchError(f"the controller ended with {code}: {controller.tail()}")

    def make_volume(self) -> tuple[Path, Path]:
        """Its directories on the active side and on the standby."""
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        body = {"metadata": {"name": "data"}, "spec": spec | {"storageClassName": "pair"}}
        self._api.create(PVC, body, _CLAIMS)
        _until(lambda: self._claim_phase() == "Bound", "the claim is not Bound")
        active, standby = self._roots.values()
        (name,) = (entry.name for entry in active.iterdir() if not entry.name.startswith("."))
        return active / name, standby / name

    def _claim_phase(self) -> str:
        return str(self._api.get(PVC, "data", _CLAIMS).get("status", {}).get("phase"))

    def caught_up(self, controller: Controller) -> bool:
        """Whether a clean pass of this controller's has ended, and there is nothing to copy any more."""
        controller.require_running()
        labels = {"export": "pair", "result": "clean"}
        return bool(controller.metric("nfs_provisioner_replication_passes_total", **labels))


@contextmanager
def _lsyncd(home: Path, source: Path, target: Path) -> Iterator[None]:
    """lsyncd in the foreground, once its first comparison has ended."""
    target.mkdir(exist_ok=True)
    config, log = home / "lsyncd.conf", home / "lsyncd.log"
    log.unlink(missing_ok=True)
    config.write_text(
        f"settings {{ nodaemon = true, logfile = {_lua(log)}, inotifyMode = 'CloseWrite or Modify' }}\n"
        f"sync {{ default.rsync, source = {_lua(source)}, target = {_lua(target)}, delay = {DELAY},\n"
        f"  rsync = {{ archive = true, hard_links = true, acls = true, xattrs = true,\n"
        f"             _extra = {{ '--numeric-ids' }} }} }}\n"
    )
    words = (command("lsyncd", "lsyncd"), str(config))
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:

            def ready() -> bool:
                text = log.read_text() if log.exists() else ""
                if process.poll() is not None:
                    raise BenchError(f"lsyncd ended with {process.returncode}: {text[-2000:]}")
                return "Startup of" in text and "finished" in text

            _until(ready, "lsyncd has not made its first comparison")
            yield
        finally:
            process.terminate()


def _changes(source: Path, target: Path) -> tuple[float, ...]:
    names = sorted(str(path.relative_to(source)) for path in source.iterdir())
    found = []
    for _ in range(CHANGES):
        name = f"{random.choice(names)}/f{random.randrange(1000):04}"
        content = os.urandom(SIZE)
        with open(source / name, "wb") as file:
            file.write(content)
        began = time.perf_counter()
        _until(lambda: _has(target / name, content), f"the change of {name} did not arrive")  # noqa: B023
        for path in (target / name, (target / name).parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        found.append(time.perf_counter() - began)
        time.sleep(random.uniform(0, LONGEST_PAUSE))  # or every change would meet the same moment of a timer
    return tuple(found)


def _has(path: Path, content: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes() == content
    return False


def _idle(group: int) -> float:
    """Processors that a process group uses."""
    before = _processor_time(group)
    time.sleep(IDLE)
    return (_processor_time(group) - before) / IDLE


def _processor_time(group: int) -> float:
    ticks = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"{what} after {DEADLINE:g} s")
        time.sleep(0.001)


def _lua(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _told(times: tuple[float, ...]) -> str:
    return f"p50 {percentile(times, 0.5):.3f} s, p99 {percentile(times, 0.99):.3f} s"
