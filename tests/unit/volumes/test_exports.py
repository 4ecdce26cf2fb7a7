"""One export with the real children of its replicas: what is attached, what its status is worth, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nfs_provisioner.export.identity import Remembered
from nfs_provisioner.export.replica import LAST_WAIT
from nfs_provisioner.volumes.answers import answer
from nfs_provisioner.volumes.exports import SETTLE, Export
from nfs_provisioner.volumes.services import Seen
from tests.plugins.hang import HangingDirectory
from tests.plugins.packages import unavailable
from tests.unit.volumes.conftest import DEADLINE, Ground, eventually

WHY = "NFSExport web: spec.replicas[0].mountPath is another's"


def phase(export: Export) -> str:
    return export.status().phase


def children(export: Export) -> list[int]:
    return [pid for attachment in export.attachments() if (pid := attachment.replica.pid) is not None]


def members(export: Export) -> list[set[str]]:
    """As each replica has them on disk; they are noted when the pair is Ready already."""
    facts = [attachment.view().facts for attachment in export.attachments()]
    return [set(seen.identity.members) for seen in facts if seen is not None and seen.identity is not None]


def test_nothing_is_attached_for_a_refused_export_until_it_is_allowed(ground: Ground) -> None:
    export = ground.export(ground.spec(), refused=WHY)
    export.start()
    status = export.status()
    assert (status.phase, status.message, status.usable) == ("Halted", WHY, False)
    assert export.settled and not export.attachments()
    assert WHY in export.room().problem and not export.room().looking
    assert not list(Path(export.spec.replicas[0].mount_path).iterdir())
    export.refuse("")
    eventually(lambda: phase(export) == "Ready", "the export is not Ready once it is allowed")
    assert set(ground.ready) == {"web"}


def test_an_export_that_is_refused_later_lets_go_of_everything(ground: Ground) -> None:
    export = ground.export(ground.spec(replicas="ab"))
    export.start()
    eventually(lambda: phase(export) == "Ready", "the pair is not Ready")
    before = export.attachments()
    export.update(export.spec, export.seen, refused=WHY)
    assert all(not attachment.replica.up for attachment in before)
    assert not export.ready and not export.attachments()
    assert export.status().active == "a", "what the status says of the pair must not be lost"
    assert [replica.reachable for replica in export.status().replicas] == [False, False]
    answered = answer(export, f"accept --replica a epoch={export.epoch}")
    assert answered is not None and answered["result"] == "Refused" and WHY in answered["message"]


def test_a_known_pair_is_never_called_degraded_while_it_is_first_looked_at(ground: Ground) -> None:
    first = ground.export(ground.spec(replicas="ab"))
    first.start()
    eventually(lambda: phase(first) == "Ready", "the pair is not Ready")
    first.stop()
    known = first.status()
    seen = Seen(remembered=Remembered(known.active, known.epoch, known.promotion))
    told: list[str] = []
    next_leader = ground.export(first.spec, seen=seen)

    def publish(_name: str) -> None:
        if next_leader.settled:
            told.append(phase(next_leader))

    next_leader._services = replace(next_leader._services, on_status=publish)
    next_leader.start()
    eventually(lambda: told, "no status was worth telling")
    assert told[0] == "Ready"


def test_a_replica_that_cannot_be_looked_at_does_not_hold_back_the_status(ground: Ground) -> None:
    spec = ground.spec(replicas="ab")
    missing = replace(spec.replicas[1], mount_path=str(ground.root / "missing"))
    export = ground.export(replace(spec, replicas=(spec.replicas[0], missing)))
    export.start()
    eventually(lambda: export.settled, "the status waits for a replica that failed")
    assert phase(export) == "Initializing" and not export.status().replicas[1].reachable


def test_a_replica_that_is_left_out_does_not_hold_back_the_status(ground: Ground) -> None:
    spec = ground.spec(replicas="ab")
    for replica in spec.replicas:
        (Path(replica.mount_path) / "data").mkdir()
    export = ground.export(spec)
    export.start()
    eventually(lambda: export.settled, "the status waits for what nobody will attach")
    assert phase(export) == "Halted"


def test_who_vouches_for_a_replica_while_the_other_is_not_seen_yet_waits_and_is_not_refused(
    tmp_path: Path, ground: Ground
) -> None:
    """Right after a start: the request stands on the object for good, and would be answered for good."""
    spec = ground.spec(replicas="ab")
    (tmp_path / "backing-b").mkdir()
    with HangingDirectory(tmp_path / "backing-b", Path(spec.replicas[1].mount_path)) as slow:
        first = ground.export(spec)
        first.start()
        eventually(lambda: phase(first) == "Ready", "the pair is not Ready")
        eventually(lambda: members(first) == [{"a", "b"}] * 2, "nobody noted that b belongs to the pair")
        first.stop()
        slow.hang()
        request = Seen(request="accept --replica a epoch=0")
        export = Export(spec, request, replace(ground.services(), cluster="another"))
        ground.made.append(export)
        export.start()
        eventually(lambda: any(a.view().facts is not None for a in export.attachments()), "a is not looked at")
        assert answer(export, request.request) is None
        slow.release()
        eventually(lambda: phase(export) == "Ready", "the pair is not Ready")
        eventually(lambda: export.status().handled is not None, "the request is not answered")
        assert (export.status().handled or {})["result"] == "Done"


def test_an_export_without_inodes_takes_no_new_volume_and_says_so(ground: Ground) -> None:
    export = ground.export(ground.spec())
    root = Path(export.spec.replicas[0].mount_path)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=40", "none", str(root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        unavailable("mounts nothing")
    try:
        export.start()
        eventually(lambda: export.ready, "it is not ready")
        assert (export.room().problem, export.message) == ("", "")
        with contextlib.suppress(OSError):
            for number in itertools.count():
                (root / f"file-{number}").touch()
        eventually(lambda: "no inode left" in export.room().problem, "it takes volumes")
        assert "no inode left" in export.status().message and export.room().available > 0
        for path in root.glob("file-*"):
            path.unlink()
        eventually(lambda: not export.room().problem, "it takes none")
    finally:
        export.stop()
        subprocess.run(["umount", "-l", str(root)], check=True)


def test_the_status_waits_no_longer_than_its_deadline(ground: Ground) -> None:
    now = [0.0]
    ground.clock = lambda: now[0]
    export = ground.export(ground.spec())  # not started: nothing is heard of its replica
    assert not export.settled
    now[0] = SETTLE
    assert export.settled


def test_no_thread_and_no_child_of_a_stopped_export_is_left(ground: Ground) -> None:
    before = set(threading.enumerate())
    export = ground.export(ground.spec(replicas="ab"))
    export.start()
    eventually(lambda: phase(export) == "Ready", "the pair is not Ready")
    attachments = export.attachments()
    export.stop()
    eventually(lambda: set(threading.enumerate()) <= before, f"threads are left: {set(threading.enumerate()) - before}")
    assert all(not attachment.replica.up for attachment in attachments)
    assert not export.settled, "what is not looked at any more is nothing to tell"


def test_many_exports_that_hang_end_together_within_a_second(
    tmp_path: Path, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H14 for the end: one after the other, they would take a second each."""
    waited: list[float] = []
    wait = subprocess.Popen.wait

    def timed(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if threading.current_thread() is threading.main_thread():  # each replica's own thread waits, too
            waited.append(timeout or 0.0)
        return wait(process, timeout)

    with contextlib.ExitStack() as mounts:
        exports, hanging = [], []
        for name in ("one", "two", "three"):
            spec = ground.spec(name)
            backing = tmp_path / f"backing-{name}"
            backing.mkdir()
            mounted = mounts.enter_context(HangingDirectory(backing, Path(spec.replicas[0].mount_path)))
            export = ground.export(spec)
            export.start()
            eventually(lambda export=export: phase(export) == "Ready", f"{name} is not Ready")  # type: ignore[misc]
            exports.append(export)
            hanging.append(mounted)
        for mounted in hanging:
            mounted.hang(killable=False)
            mounted.wait_for_hung_call()
        began = time.monotonic()
        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "wait", timed)
            for export in exports:
                export.close()
            for export in exports:
                export.stop()
        took = time.monotonic() - began
        assert len(waited) == 3 and sum(waited) <= LAST_WAIT, f"three exports that hang were waited for {waited} s"
        assert took < DEADLINE, f"three exports that hang took {took:.1f} s to end"
        for mounted in hanging:
            mounted.release()
