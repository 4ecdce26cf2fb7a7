"""The controller beside the embedded API server, for figures about the controller alone and for more claims than etcd
takes in the time: each in processes of its own, with a pair of directories on a fresh ext4.

Starts and ends them, makes claims, and looks. Invariant: memory and scrapes are looked at when both replicas hold a
directory for every claim, or the figures say how many of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.burst import BenchError
from tests.bench.measure import children, memory, wait_until_calm
from tests.bench.stand import CLAIMS_NAMESPACE, PROVISIONER, REPLICAS, Export, progress
from tests.bench.trees import GIB, disk
from tests.contract.client import Client, Credentials
from tests.plugins.controller import NAMESPACE, Controller

SCRAPES = 5
SETTLED = 1200.0  # seconds for the standby to have every directory, and then for every volume to have a figure
CALM = 60.0  # seconds for the controller to become calm
MEASURED = 30.0  # seconds for the next volume to have a figure
_EXPORT = "growth"
_USED, _REQUESTED = b"\nnfs_provisioner_volume_used_bytes{", b"\nnfs_provisioner_volume_requested_bytes{"


@dataclass(frozen=True, slots=True)
class Scrape:
    """`seconds` of each of some scrapes, in order; of the last: bytes, and volumes that had a figure."""

    seconds: tuple[float, ...]
    size: int
    used: int

    @property
    def median(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True, slots=True)
class Claims:
    """Of so many claims at once: seconds until all were Bound, bytes of the controller and its workers afterwards."""

    claims: int
    bound: float
    pss: int
    own: int  # PSS of the controller's own process
    followed: int  # directories that the standby had by then
    scrape: Scrape


def grown(home: Path, claims: int, *, settled: float = SETTLED) -> Claims:
    """Make `claims` at once and look at the controller that has them, when the standby has followed and every volume was
    measured; each is waited for `settled` seconds at the most."""
    with (
        disk(home, 48 * GIB) as mounts,
        _server(home) as credentials,
        _controller(home, mounts, credentials) as running,
    ):
        bound = _burst(home / "kubeconfig", claims, running)
        progress(f"{claims:,} claims Bound after {bound:.1f} s")
        followed = _followed(mounts, claims, settled)
        with contextlib.suppress(BenchError):  # with very many volumes there is always something to compare
            wait_until_calm(running, CALM)
        scrape = _scrapes(running, claims, settled)
        workers = sum(memory(pid)[0] for pid in children(running.pid))
        own = memory(running.pid)[0]
    found = Claims(claims, bound, own + workers, own, followed, scrape)
    progress(
        f"{claims:,} claims: PSS {found.pss / 1e6:.0f} MB (own process {own / 1e6:.0f} MB), scrape {scrape.median:.3f} s, "
        f"{scrape.size / 1e6:.1f} MB, {scrape.used:,} volumes with a figure, "
        f"{followed:,} on the standby"
    )
    return found


@contextlib.contextmanager
def _server(home: Path) -> Iterator[Credentials]:
    kubeconfig = home / "kubeconfig"
    words = (sys.executable, "-m", "nfs_provisioner.demo.apiserver", f"--kubeconfig={kubeconfig}")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("http"):
                raise BenchError("the embedded API server did not start")
            yield Credentials.read(kubeconfig)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def _controller(home: Path, mounts: Path, credentials: Credentials) -> Iterator[Controller]:
    api = Client(credentials)
    for name in (NAMESPACE, CLAIMS_NAMESPACE):
        api.post("/api/v1/namespaces", {"metadata": {"name": name}}).ok()
    export = Export(_EXPORT, mounts)
    api.post("/apis/nfs-provisioner.io/v1alpha1/nfsexports", export.body()).ok()
    parameters = {"export": _EXPORT, "onDelete": "archive"}
    body = {"metadata": {"name": _EXPORT}, "provisioner": PROVISIONER, "parameters": parameters}
    api.post("/apis/storage.k8s.io/v1/storageclasses", body).ok()
    api.close()
    with Controller(
        home / "controller",
        home / "kubeconfig",
        provisioner=PROVISIONER,
        mount_root=mounts,
        log={"level": "warning"},
    ).start() as controller:
        yield controller.wait_ready(_EXPORT)
        if controller.exit_code is not None:
            raise BenchError(f"the controller ended with {controller.exit_code}: {controller.tail()}")


def _burst(kubeconfig: Path, claims: int, running: Controller) -> float:
    """Seconds from the first request until the last claim was Bound."""
    words = [sys.executable, "-m", "tests.bench.burst", str(kubeconfig), _EXPORT, "--keep", "--summary"]
    words += [f"--namespace={CLAIMS_NAMESPACE}", f"--claims={claims}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while True:
                if running.exit_code is not None:
                    raise BenchError(f"the controller ended with {running.exit_code}: {running.tail()}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    found, errors = process.communicate(timeout=1.0)
                    break
        finally:
            process.kill()
    if process.returncode != 0:
        raise BenchError(f"{' '.join(words[1:])} exited with {process.returncode}: {errors.strip()[-2000:]}")
    rate: float = json.loads(found)["bound_per_s"]
    return claims / rate


def _followed(mounts: Path, claims: int, settled: float) -> int:
    """Directories on the standby: all, unless that takes too long."""
    end = time.monotonic() + settled
    while True:
        active, standby = (_directories(mounts / _EXPORT / replica) for replica in REPLICAS)
        if active != claims:
            raise BenchError(f"the active replica holds {active:,} directories for {claims:,} claims")
        if standby == claims or time.monotonic() > end:
            return standby
        time.sleep(1.0)


def _directories(root: Path) -> int:
    return sum(not name.startswith(".") for name in os.listdir(root))


def _scrapes(running: Controller, claims: int, settled: float) -> Scrape:
    """Over HTTP, from here, with all of the body; once every volume has a figure of its usage, or none gets one any
    more, or after `settled` seconds."""
    most, patience = -1, time.monotonic() + MEASURED
    end = time.monotonic() + settled
    while most < claims and time.monotonic() < min(end, patience):
        if (count := _scrape(running)[1].count(_USED)) > most:
            most, patience = count, time.monotonic() + MEASURED
        time.sleep(1.0)
    seconds, body = [], b""
    for _ in range(SCRAPES):
        taken, body = _scrape(running)
        seconds.append(taken)
    if (found := body.count(_REQUESTED)) != claims:
        raise BenchError(f"a scrape tells of {found:,} volumes of {claims:,}")
    return Scrape(tuple(seconds), len(body), body.count(_USED))


def _scrape(running: Controller) -> tuple[float, bytes]:
    began = time.perf_counter()
    with urllib.request.urlopen(f"{running.url}/metrics", timeout=60.0) as response:
        body: bytes = response.read()
    return time.perf_counter() - began, body
