"""`usage.json`: what comes back of what was written, and that nothing else is believed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.export.usagefile import USAGE_FILE, Figures, decode, encode
from nfs_provisioner.export.worker import LeaseEnd, Worker
from tests.unit.export.world import World, identity

FIGURES: Figures = {
    "pvc-1": (4096, 1, 1_800_000_000.25, False),
    "pvc-2": (0, 0, 0.0, True),
    'ä"\\\n漢': (2**63 - 1, 10**9, 1e9, False),
}


@pytest.mark.parametrize("figures", [{}, FIGURES])
def test_what_was_written_is_read(figures: Figures) -> None:
    assert decode(encode(figures)) == figures


def test_a_person_can_read_it() -> None:
    lines = encode(FIGURES).decode().splitlines()
    assert lines[1] == '"pvc-1": {"bytes": 4096, "inodes": 1, "at": 1800000000.25},'
    assert lines[2] == '"pvc-2": {"bytes": 0, "inodes": 0, "at": 0.0, "exceeded": true},'


GOOD = {"bytes": 1, "inodes": 1, "at": 1.0}
DAMAGED = [
    b"",
    b"\0" * 100,
    b"[]",
    b"7",
    b'{"version": 1}',
    b'{"version": 1, "volumes": []}',
    encode(FIGURES)[:-10],
    b"[" * 100_000,
    *(
        json.dumps({"version": version, "volumes": {"pv": entry}}).encode()
        for version, entry in [
            (2, GOOD),
            ("1", GOOD),
            (1, None),
            (1, {}),
            (1, GOOD | {"bytes": -1}),
            (1, GOOD | {"bytes": 1.5}),
            (1, GOOD | {"bytes": True}),
            (1, GOOD | {"inodes": "1"}),
            (1, GOOD | {"at": "now"}),
            (1, GOOD | {"at": float("nan")}),
            (1, GOOD | {"exceeded": 1}),
            (1, GOOD | {"at": 1e18}),  # no calendar has it
            (1, GOOD | {"at": 10**400}),
            (1, GOOD | {"at": -1.0}),
            (1, GOOD | {"bytes": 2**63}),  # no file system has it
            (1, GOOD | {"inodes": 10**400}),
        ]
    ),
]


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


@pytest.fixture
def worker(world: World, lease: LeaseEnd) -> Worker:
    made = Worker(str(world.root), lease)
    made.attach(identity(), made.inspect().identity, "term")
    return made


@pytest.fixture
def file(world: World) -> Path:
    return world.root / ".nfs-provisioner" / USAGE_FILE


def test_a_replica_remembers_and_a_damaged_memory_is_none(
    worker: Worker, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = worker.operations["read_usage"], worker.operations["write_usage"]
    assert read() == {}
    write(FIGURES)
    assert read() == FIGURES and file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(encode(FIGURES)[:-10])
    assert read() == {}
    assert "usage.json cannot be read" in capfd.readouterr().err
    write(FIGURES)
    assert read() == FIGURES
    file.unlink()
    os.mkfifo(file)
    assert read() == {}
    write({})
    assert read() == {} and file.is_file()


def test_a_memory_that_is_a_directory_is_none(worker: Worker, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.mkdir()
    assert worker.operations["read_usage"]() == {}
    assert "usage.json cannot be read" in capfd.readouterr().err


def test_h16_nothing_is_written_without_the_lease(worker: Worker, file: Path, lease: LeaseEnd) -> None:
    worker.operations["write_usage"](FIGURES)
    before = file.read_bytes()
    lease.set(time.clock_gettime(time.CLOCK_BOOTTIME))
    with pytest.raises(LostLeadership):
        worker.operations["write_usage"]({})
    assert file.read_bytes() == before
