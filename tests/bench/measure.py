"""The measurements: what is done in one round, and the figures of all rounds. Prints nothing but progress.

Each round does the floor, then the product, so that both see the same minute of the machine; a ratio is made of the two
figures of one round, and the median of the ratios is what counts. A figure is only taken when the work was really done:
each claim Bound, each PV gone, each directory an archive on both replicas.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.burst import BenchError, Result, percentile
from tests.bench.stand import CLAIMS_NAMESPACE, FLOOR_CLASS, REPLICAS, Export, Stand, progress
from tests.plugins.controller import Controller

IDLE_CLAIMS = 60
IDLE_RATE = 5.0  # claims a second
AT_ONCE = 1000  # claims; ten times as many would have the binder, whose client was made fast, choke the API server
STANDBY_DEADLINE = 300.0  # seconds
READY_DEADLINE = 300.0
CALM = 2.0  # seconds without work after which memory is looked at
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: the floor's figures and ours."""

    floor: Result
    ours: Result


@dataclass(frozen=True, slots=True)
class Start:
    """One start with existing claims: seconds from the start of the process, bytes once it is calm."""

    answering: float  # until /readyz is 200: the caches are filled
    ready: float  # until it leads and the export is Ready
    serving: float  # until a claim that waited for the start is Bound
    pss: int  # of the controller and its workers
    rss: int  # of the controller's own process
    peak: int  # the most that its own process ever had
    workers: tuple[int, ...]  # PSS of each


def bursts(stand: Stand, rounds: int, claims: int) -> list[Pair]:
    """`claims` at once, then all of them deleted."""
    with stand.floor():
        stand.burst(FLOOR_CLASS, min(claims, 100))  # the servers' first requests are slower than all later ones
    return [_round(stand, number, rounds, "burst", claims, 0.0) for number in range(1, rounds + 1)]


def idle(stand: Stand, rounds: int) -> list[Pair]:
    """Single claims, each on a cluster that does nothing else."""
    return [_round(stand, number, rounds, "idle", IDLE_CLAIMS, IDLE_RATE) for number in range(1, rounds + 1)]


def _round(stand: Stand, number: int, rounds: int, name: str, claims: int, rate: float) -> Pair:
    with stand.floor():
        floor = stand.burst(FLOOR_CLASS, claims, rate=rate)
    progress(f"{name} {number}/{rounds}: floor {_told(floor)}")
    export = stand.add_export(f"{name}-{number}")
    with stand.ours(export) as controller:
        ours = stand.burst(export.name, claims, rate=rate, alive=lambda: stand.require_running(controller))
        began = time.monotonic()
        _wait_for_archives(export, claims)
        progress(f"{name} {number}/{rounds}: ours  {_told(ours)}; standby equal {time.monotonic() - began:.1f} s later")
        stand.remove_export(export)
    return Pair(floor, ours)


def _told(result: Result) -> str:
    p50, p99 = (percentile(result.volume_latencies, share) * 1000 for share in (0.5, 0.99))
    return (
        f"{result.volumes_per_s:.0f} PV/s, {result.bound_per_s:.0f} Bound/s, {result.deleted_per_s:.0f} deleted/s, "
        f"claim to PV p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    )


def _wait_for_archives(export: Export, claims: int) -> None:
    """On the active replica at once; on the standby when it has followed."""
    if export.archives("a") != claims:
        raise BenchError(f"{export.archives('a')} of {claims} directories are archives")
    end = time.monotonic() + STANDBY_DEADLINE
    while (found := export.archives("b")) != claims:
        if time.monotonic() > end:
            raise BenchError(f"{found} of {claims} directories are archives on the standby")
        time.sleep(0.1)


def starts(stand: Stand, rounds: int, existing: int) -> list[Start]:
    """Make `existing` claims with the product itself, then start it anew, again and again."""
    export = stand.add_export("existing")
    with stand.ours(export) as controller:
        for made in range(0, existing, AT_ONCE):
            count = min(AT_ONCE, existing - made)
            stand.burst(export.name, count, keep=True, alive=lambda: stand.require_running(controller))
            progress(f"memory: {made + count} of {existing} claims exist")
        end = time.monotonic() + STANDBY_DEADLINE
        while any(len(export.entries(replica)) != existing for replica in REPLICAS):
            if time.monotonic() > end:
                raise BenchError(f"the replicas do not hold {existing} directories each")
            time.sleep(0.2)
    return [_start(stand, export, number, rounds) for number in range(1, rounds + 1)]


def _start(stand: Stand, export: Export, number: int, rounds: int) -> Start:
    waiting = f"waiting-{number}"
    claims = f"/api/v1/namespaces/{CLAIMS_NAMESPACE}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}}
    body = {"metadata": {"name": waiting}, "spec": spec | {"storageClassName": export.name}}
    stand.api.post(claims, body).ok()
    with stand.controller(f"controller-existing-{number}") as controller:
        began = time.monotonic()
        controller.start()
        controller.until(lambda: controller.http("/readyz")[0] == 200, "/readyz is not 200", READY_DEADLINE)
        answering = time.monotonic() - began
        controller.wait_ready(export.name, seconds=READY_DEADLINE)
        ready = time.monotonic() - began
        stand.api.eventually(f"{claims}/{waiting}", lambda claim: claim["status"]["phase"] == "Bound", READY_DEADLINE)
        serving = time.monotonic() - began
        wait_until_calm(controller)
        workers = tuple(memory(pid)[0] for pid in children(controller.pid))
        own = memory(controller.pid)
        found = Start(answering, ready, serving, own[0] + sum(workers), own[1], own[2], workers)
        if (code := controller.stop()) != 0:
            raise BenchError(f"the controller ended with {code}: {controller.tail()}")
    progress(
        f"start {number}/{rounds}: /readyz {answering:.1f} s, Ready {ready:.1f} s, "
        f"waiting claim Bound {serving:.1f} s; "
        f"PSS {found.pss / 1e6:.0f} MB (workers {' + '.join(f'{size / 1e6:.0f}' for size in workers)}), "
        f"own RSS {found.rss / 1e6:.0f} MB, peak {found.peak / 1e6:.0f} MB"
    )
    return found


def wait_until_calm(controller: Controller, patience: float = READY_DEADLINE) -> None:
    """Until all processes together use less than a twentieth of a processor for a while."""
    end = time.monotonic() + patience
    while True:
        pids = [controller.pid, *children(controller.pid)]
        before = sum(_processor_time(pid) for pid in pids)
        time.sleep(CALM)
        if sum(_processor_time(pid) for pid in pids) - before < CALM / 20:
            return
        if time.monotonic() > end:
            raise BenchError(f"the controller is still busy after {patience:g} s")


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children(pid: int) -> list[int]:
    """Pids of the processes that this one started: of a controller, all its workers."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def memory(pid: int) -> tuple[int, int, int]:
    """PSS, RSS and peak RSS of a process, in bytes."""
    sizes: dict[str, int] = {}
    for file in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            name, _, value = line.partition(":")
            with contextlib.suppress(ValueError):
                sizes[name] = int(value.removesuffix("kB")) * 1024
    return sizes["Pss"], sizes["Rss"], sizes["VmHWM"]
