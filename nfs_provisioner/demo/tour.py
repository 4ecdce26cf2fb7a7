"""`nfs-provisioner demo`: the life of a claim, shown and checked, on one machine.

Tells the story and checks every sentence of it before it is said: what does not hold ends the demo with exit code 1.
Shows what the controller itself says wherever it says it. Must not start or remove anything; that is stage.py.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from nfs_provisioner import tables
from nfs_provisioner.demo.stage import EXPORT, REPLICAS, SERVER_PATH, Stage, staged
from nfs_provisioner.errors import EXIT_DONE, NfsProvisionerError
from nfs_provisioner.kube.api import PV, PVC
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE

JsonObject = dict[str, Any]

_METRICS = (
    "controller_persistentvolumeclaim_provision_total",
    "controller_persistentvolumeclaim_provision_failed_total",
    "controller_persistentvolume_delete_total",
    "nfs_provisioner_export_volumes",
    "nfs_provisioner_export_archives",
    "nfs_provisioner_export_archive_bytes",
    "nfs_provisioner_replica_up",
    "nfs_provisioner_replication_lag_seconds",
    "nfs_provisioner_replication_copied_files_total",
    "nfs_provisioner_leader",
)


class Narrator:
    """Prints. Headings are dressed up on a terminal only; in a pipe there is plain text, one line a line."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self._console = Console() if self.terminal else Console(width=10_000, no_color=True, highlight=False)

    def step(self, title: str) -> None:
        """A heading."""
        if self.terminal:
            self._console.print()
            self._console.rule(f"[bold]{title}[/bold]", align="left")
        else:
            print(f"\n== {title}")

    def say(self, text: str) -> None:
        """One sentence."""
        self._console.print(text, markup=False, highlight=False)

    def show(self, *lines: str) -> None:
        """What something else said or holds."""
        for line in lines:
            self._console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)

    def table(self, draw: Callable[[Console], None]) -> None:
        """One of the tables that the command line prints."""
        draw(self._console)


def tour(*, port: int, keep: Path | None, once: bool) -> int:
    """Show everything; then stay up until Ctrl-C, or (`once`) end. NfsProvisionerError when a promise does not hold."""
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind then, either
    narrator = Narrator()
    try:
        with staged(port, keep) as stage:
            try:
                _Tour(stage, narrator).all()
            except NfsProvisionerError as error:
                error.message += f"\nthe end of the controller's log:\n{_tail(stage)}"
                raise
            if not once:
                _stay(stage, narrator)
    finally:
        signal.signal(signal.SIGTERM, ended)
    if keep is not None:
        narrator.say(f"Everything is left in {keep}.")
    return EXIT_DONE


def _tail(stage: Stage) -> str:
    return "\n".join((stage.directory / "controller.log").read_text().splitlines()[-20:])


def _stay(stage: Stage, narrator: Narrator) -> None:
    narrator.step("It is yours now")
    narrator.say("The API server and the controller stay up until Ctrl-C. To look around:")
    narrator.show(
        f"export KUBECONFIG={stage.kubeconfig}",
        "kubectl get pv,pvc,nfsx -A          (kubectl apply needs --validate=false here)",
        "nfs-provisioner volumes",
        f"curl {stage.url}/metrics       also /api/status, /healthz, /readyz",
        f"ls -la {stage.root(REPLICAS[0])}",
        f"tail {stage.directory / 'controller.log'}",
    )
    never = threading.Event()
    try:
        while stage.controller.is_alive():
            never.wait(1.0)  # not a join: one that Ctrl-C interrupts takes a running thread for ended (CPython 3.11)
    except KeyboardInterrupt:
        return
    raise NfsProvisionerError(f"the controller ended by itself:\n{_tail(stage)}")


def _check(holds: bool, promise: str) -> None:
    """Nothing is said that was not looked at."""
    if not holds:
        raise NfsProvisionerError(f"the demo expected that {promise}, and it is not so")


def _du(directory: Path) -> int:
    """Bytes on disk, hard links once."""
    found = {entry.st_ino: entry.st_blocks for path in (directory, *directory.rglob("*")) if (entry := path.lstat())}
    return 512 * sum(found.values())


class _Tour:
    """The steps, in order. Each needs what the ones before it made."""

    def __init__(self, stage: Stage, narrator: Narrator) -> None:
        self._stage = stage
        self._tell = narrator
        self._photos: JsonObject = {}
        self._photo_inode = 0
        self._archived = ""

    def all(self) -> None:
        """Every step."""
        began = time.monotonic()
        self.start()
        self.provision()
        self.share()
        self.standby()
        self.expand()
        self.refuse()
        self.archive()
        self.restore()
        self.lose_a_worker()
        self.look()
        self._tell.step("Done")
        self._tell.say(f"Everything above was checked while it was shown. It took {time.monotonic() - began:.1f} s.")

    def _bound(self, name: str, **options: Any) -> tuple[JsonObject, float]:
        """Create a claim and wait: its PV, and the milliseconds from the request until it was seen to be Bound."""
        began = time.monotonic()
        self._stage.claim(name, **options)
        volume = self._stage.bound(name)
        return volume, (time.monotonic() - began) * 1000

    def start(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("A cluster administrator describes an export: a pair of NFS servers")
        tell.say("An embedded API server and the controller run on this machine; they speak HTTP, as in a cluster.")
        tell.say("No NFS server runs here: two directories stand for what the two servers would export.")
        stage.wait(stage.status, "the controller does not lead")
        began = time.monotonic()
        stage.make_export()
        stage.make_class("nfs")
        stage.make_class("by-team", pathPattern="teams/${.PVC.labels.team}/${.PVC.name}")
        stage.wait(stage.ready_status, f"NFSExport {EXPORT} is not Ready")
        tell.show(*(f"replica {name}: {stage.root(name)}" for name in REPLICAS))
        tell.say(f"NFSExport {EXPORT} is Ready after {(time.monotonic() - began) * 1000:.0f} ms.")

    def provision(self) -> None:
        tell = self._tell
        tell.step("A claim becomes a volume")
        volume, milliseconds = self._bound("photos")
        directory = self._stage.directory_of(volume)
        _check(directory.is_dir(), f"the directory {directory} is there when the claim is Bound")
        nfs = volume["spec"]["nfs"]
        _check(nfs["path"].startswith(f"{SERVER_PATH}/shop-photos-pvc-"), "the directory is named after its claim")
        tell.say(f"Claim shop/photos was Bound {milliseconds:.0f} ms after it was created.")
        tell.show(f"PV {volume['metadata']['name']}", f"mounts {nfs['server']}:{nfs['path']}")
        self._photos = volume

    def share(self) -> None:
        tell, directory = self._tell, self._stage.directory_of(self._photos)
        tell.step("Two writers share it (ReadWriteMany)")
        for pod in ("web-0", "web-1"):
            (directory / f"from-{pod}.txt").write_text(f"written by {pod}\n")
        tell.say("Two pods would mount it on two nodes; here two files are written where the mounts would lead.")
        tell.show(*self._files(directory))
        _check(len(self._files(directory)) == 2, "both files are in one directory")
        self._photo_inode = (directory / "from-web-0.txt").stat().st_ino

    def _files(self, directory: Path) -> list[str]:
        return [f"{path.name}: {path.read_text().strip()}" for path in sorted(directory.iterdir())]

    def standby(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("The standby has the same directories, and the same files")
        theirs = stage.directory_of(self._photos, REPLICAS[1])
        stage.wait(theirs.is_dir, f"the standby does not have {theirs}")
        tell.say("Replica b follows by comparing records, also after it was away:")
        tell.show(*self._names(REPLICAS[0]), *self._names(REPLICAS[1]))
        _check(self._names(REPLICAS[0])[1:] == self._names(REPLICAS[1])[1:], "both replicas have the same directories")
        began = time.monotonic()
        stage.wait(
            lambda: self._copied(theirs, stage.directory_of(self._photos)), "the standby does not have the files"
        )
        tell.say("And it copies what is in them, in passes that compare both sides:")
        tell.show(*self._files(theirs))
        arrived = time.monotonic() - began
        ours = stage.directory_of(self._photos) / "from-web-0.txt"
        times = [path.stat().st_mtime_ns for path in (ours, theirs / ours.name)]
        _check(times[0] == times[1], "the copy has the same time, to the nanosecond")
        written = time.time()
        lag = stage.wait(lambda: self._lag_since(written), "the status does not tell a lag")
        tell.say(
            f"They arrived after {arrived:.1f} s. The copy is clean as of {lag:.1f} s ago: "
            "that is the LAG of `nfs-provisioner status`."
        )

    def _copied(self, theirs: Path, ours: Path) -> bool:
        """With what is in them: a pass may have come upon one that was being written."""
        return self._files(theirs) == self._files(ours)

    def _lag_since(self, moment: float) -> float | None:
        """The lag of the pair, once a clean pass began after this moment."""
        now = time.time()
        status = self._stage.status()
        lag: float | None = None if status is None else status["exports"][0]["lag"]
        return lag if lag is not None and now - lag > moment else None

    def _names(self, replica: str) -> list[str]:
        root = self._stage.root(replica)
        return [f"{replica}:", *(f"  {path.name}/" for path in sorted(root.iterdir()) if not path.name.startswith("."))]

    def expand(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("The claim grows")
        began = time.monotonic()
        wanted = {"spec": {"resources": {"requests": {"storage": "20Mi"}}}}
        stage.api.patch(PVC, "photos", wanted, namespace="shop")

        def grown() -> bool:
            return bool(stage.api.get(PVC, "photos", "shop")["status"]["capacity"]["storage"] == "20Mi")

        stage.wait(grown, "claim shop/photos has not grown")
        size = stage.api.get(PV, self._photos["metadata"]["name"])["spec"]["capacity"]["storage"]
        _check(size == "20Mi", f"the PV says 20Mi and not {size}")
        tell.say(f"From 10Mi to 20Mi in {(time.monotonic() - began) * 1000:.0f} ms, PV and claim alike.")

    def refuse(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("A claim that would end up in the wrong place is refused")
        tell.say(
            "StorageClass by-team has pathPattern teams/${.PVC.labels.team}/${.PVC.name}; this claim has no such label."
        )
        stage.claim("nameless", storage_class="by-team")
        event = stage.event("nameless", "ProvisioningFailed", "team")  # it names the label
        tell.show(f"{event['type']} {event['reason']}: {event['message']}")
        teams = stage.root(REPLICAS[0]) / "teams"
        _check(not teams.exists(), "nothing was made for the refused claim")
        tell.say("Nothing was made for it. With the label, it goes on at once:")
        stage.api.patch(PVC, "nameless", {"metadata": {"labels": {"team": "red"}}}, namespace="shop")
        volume = stage.bound("nameless")
        _check(stage.directory_of(volume) == teams / "red" / "nameless", "the directory is where the pattern says")
        tell.show(f"mounts {volume['spec']['nfs']['server']}:{volume['spec']['nfs']['path']}")

    def archive(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("Deleting a claim archives its directory")
        began = time.monotonic()
        stage.api.delete(PVC, "photos", namespace="shop")
        stage.gone(self._photos)
        milliseconds = (time.monotonic() - began) * 1000
        status = stage.wait(lambda: self._status_with_archives(1), "the archive is not in the status")
        self._archived = status["archives"][0]["name"]
        kept = stage.root(REPLICAS[0]) / self._archived
        _check(not stage.directory_of(self._photos).exists(), "the directory is gone under its old name")
        _check(len(self._files(kept)) == 2, "both files are in the archive")
        tell.say(f"The claim and its PV were gone {milliseconds:.0f} ms later; the data is one rename away:")
        tell.show(*(f"{self._archived}/{line}" for line in self._files(kept)))

    def _status_with_archives(self, count: int) -> JsonObject | None:
        status = self._stage.status()
        return status if status is not None and len(status["archives"]) == count else None

    def restore(self) -> None:
        tell = self._tell
        tell.step("The archive becomes a new claim's volume")
        volume, milliseconds = self._bound("photos-again", size="20Mi", annotations={RESTORE_ARCHIVE: self._archived})
        directory = self._stage.directory_of(volume)
        tell.show(f"metadata.annotations: {{{RESTORE_ARCHIVE}: {self._archived}}}")
        tell.say(f"Claim shop/photos-again was Bound after {milliseconds:.0f} ms, and everything is in it:")
        tell.show(*self._files(directory))
        _check(len(self._files(directory)) == 2, "both files are in the restored volume")
        same = (directory / "from-web-0.txt").stat().st_ino == self._photo_inode
        _check(same, "the restored files are the files that were archived")
        tell.say("They are the same files: they were moved, not copied.")

    def lose_a_worker(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("A process is killed in the middle")
        before = stage.wait(lambda: stage.worker(REPLICAS[0]), "replica a has no worker process")
        tell.say("One child process per replica does every file-system call, so that a dead server hangs nothing else.")
        os.kill(before, signal.SIGKILL)
        _, milliseconds = self._bound("after-the-crash")
        after = stage.wait(lambda: stage.worker(REPLICAS[0], besides=before), "replica a has no new worker process")
        stage.wait(stage.ready_status, f"NFSExport {EXPORT} is not Ready again")
        tell.say(
            f"Replica a's (pid {before}) was killed with SIGKILL and a claim created at once: a new one (pid {after}) "
            f"took over, and the claim was Bound after {milliseconds:.0f} ms."
        )

    def _followed(self) -> JsonObject | None:
        """The status, once every volume had its clean pass."""
        status = self._status_with_archives(1)
        return status if status is not None and status["exports"][0]["lag"] is not None else None

    def _measured(self) -> JsonObject | None:
        """The status, once every volume takes what `du` says of its directory."""
        status = self._followed()
        if status is None:
            return None
        root = self._stage.root(REPLICAS[0])
        right = all(volume["used"] == _du(root / volume["directory"]) for volume in status["volumes"])
        return status if right else None

    def look(self) -> None:
        stage, tell = self._stage, self._tell
        tell.step("What people see: nfs-provisioner status, volumes, archives")
        stage.api.delete(PVC, "after-the-crash", namespace="shop")
        stage.wait(lambda: self._status_with_archives(1), "the second archive is not in the status")
        stage.wait(self._followed, "the standby does not follow again")
        status = stage.wait(self._measured, "USED is not what du says")
        claims = {volume["claim"] for volume in status["volumes"]}
        _check(claims == {"nameless", "photos-again"}, f"two volumes are left, and not {sorted(claims)}")
        tell.table(lambda console: tables.exports(console, status))
        tell.table(lambda console: tables.volumes(console, tables.by_use(status["volumes"])))
        tell.say("USED is what `du` counts, to the block: the passes that keep the standby equal measure on their way.")
        tell.table(lambda console: tables.archives(console, status["archives"]))
        tell.step("What Prometheus sees: /metrics")
        samples = stage.metrics()
        shown = {name: value for name, value in samples.items() if name.split("{")[0] in _METRICS}
        tell.show(*(f"{name} {value:g}" for name, value in shown.items()))
        made = sum(v for name, v in shown.items() if name.startswith(_METRICS[0]))
        _check(made == 4, f"four volumes were counted, and not {made:g}")
