"""The child of a pair from outside: passes side by side, one that stands still, and what becomes of a killed one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfs_provisioner.errors import LostLeadership, RefusedForSafety, RetryLater
from nfs_provisioner.replication.pairprocess import PairProcess
from nfs_provisioner.replication.pairtalk import Report, Request
from tests.unit.replication.twins import Twins

DEADLINE = 120.0


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    made = Twins(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def process(twins: Twins) -> Iterator[PairProcess]:
    made = PairProcess(
        "web", str(twins.root("a")), str(twins.root("b")), twins.lease, twins.raise_seq, lanes=2, standstill=DEADLINE
    )
    yield made
    made.stop()


def opened(process: PairProcess, twins: Twins) -> PairProcess:
    if process._child is not None:
        process._child.process.wait(DEADLINE)  # it was killed: on a busy machine its end takes more than a moment
    process.start()
    process.call("open", twins.expected, "00000001")
    return process


def passed(process: PairProcess, twins: Twins, pv: str) -> Report:
    record = twins.stores["a"].read(pv)
    assert record is not None
    report: Report = process.call("pass", Request(pv, record.rev))
    return report


def test_passes_go_on_side_by_side(process: PairProcess, twins: Twins) -> None:
    for pv in ("one", "two"):
        twins.make(pv)
        (twins.root("a") / pv / "file").write_text(pv)
    opened(process, twins)
    both = [threading.Thread(target=passed, args=(process, twins, pv)) for pv in ("one", "two")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(DEADLINE)
    assert [(twins.root("b") / pv / "file").read_text() for pv in ("one", "two")] == ["one", "two"]
    assert sorted(twins.raised) == [1, 2]


def test_h33_a_child_that_stands_still_is_killed_and_another_goes_on(process: PairProcess, twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    opened(process, twins)
    assert process.pid is not None
    process._standstill = 1.0
    os.kill(process.pid, signal.SIGSTOP)  # as a call on a server that hangs
    with pytest.raises(RetryLater, match="stands still for 1 s"):
        passed(process, twins, "pv")
    assert not process.up
    process._standstill = DEADLINE
    with pytest.raises(RetryLater, match="stands still"):
        passed(process, twins, "pv")
    assert passed(opened(process, twins), twins, "pv").clean


def test_h27_a_child_killed_in_a_pass_leaves_a_note_and_the_next_one_finishes(
    process: PairProcess, twins: Twins
) -> None:
    """Killed when it asks to raise the seq, the last thing before it writes; then once more, just after that."""
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    opened(process, twins)
    raise_seq = process._raise_seq

    def killed() -> int:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        return raise_seq()

    process._raise_seq = killed
    with pytest.raises(RetryLater, match="ended"):
        passed(process, twins, "pv")
    assert twins.noted("pv").base is None
    process._raise_seq = raise_seq
    assert passed(opened(process, twins), twins, "pv").clean
    assert twins.noted("pv").under_way is None
    assert [name for name in os.listdir(twins.control("b") / "work") if name.startswith("sync-")] == [
        name for name in os.listdir(twins.control("b") / "work") if "00000001-" in name and name.startswith("sync-")
    ]


def test_an_active_side_that_cannot_be_raised_is_not_copied_from(process: PairProcess, twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    opened(process, twins)

    def fails() -> int:
        raise RetryLater("the active is away")

    process._raise_seq = fails
    with pytest.raises(RetryLater, match="away"):
        passed(process, twins, "pv")
    assert not (twins.root("b") / "pv/file").exists()
    process._raise_seq = twins.raise_seq
    assert passed(process, twins, "pv").clean


def test_nothing_happens_without_the_lease(process: PairProcess, twins: Twins) -> None:
    twins.make("pv")
    (twins.root("a") / "pv/file").write_text("data")
    opened(process, twins)
    twins.lease.set(0.0)
    with pytest.raises(LostLeadership):
        passed(process, twins, "pv")
    assert not (twins.root("b") / "pv/file").exists()


def test_errors_keep_their_kind(process: PairProcess, twins: Twins) -> None:
    twins.make("pv")
    opened(process, twins)
    twins.rewrite("b", promotion="another")
    with pytest.raises(RefusedForSafety, match="promotion another") as caught:
        passed(process, twins, "pv")
    assert caught.value.reason == "ReplicaDoubted"


def test_after_the_end_nothing_is_started(process: PairProcess, twins: Twins) -> None:
    opened(process, twins)
    child = process._child
    process.stop()
    assert child is not None and child.process.wait(DEADLINE) == -signal.SIGKILL
    with pytest.raises(RetryLater, match="stopped"):
        process.start()
