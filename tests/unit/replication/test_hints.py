"""Hints from the child of a pair: they arrive, and what cannot be watched is left alone."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

from nfs_provisioner.errors import RefusedForSafety
from nfs_provisioner.replication.hints import Hints, tell
from nfs_provisioner.replication.watcher import Dirty, Watcher

DEADLINE = 60.0


class Pair:
    def __init__(self, root: Path, most: int | None = None) -> None:
        self.root = root
        self.told: queue.Queue[tuple[str, Dirty]] = queue.Queue()
        self.opened: queue.Queue[str] = queue.Queue()
        self.ours, theirs = Pipe()
        self.child = threading.Thread(target=tell, args=(theirs, Watcher(self._volume, most)), daemon=True)
        self.child.start()
        self.hints = Hints(self.ours, lambda pv, dirty: self.told.put((pv, dirty)), "web")

    @contextlib.contextmanager
    def _volume(self, pv: str) -> Iterator[int]:
        self.opened.put(pv)
        if pv == "gone":
            raise RefusedForSafety("not there")
        fd = os.open(self.root / pv, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def writes_until_told(self, pv: str) -> Dirty:
        """Write again and again: when the watch begins is not told."""
        end, number = time.monotonic() + DEADLINE, 0
        while time.monotonic() < end:
            (self.root / pv / f"file{number}").write_text("x")
            number += 1
            with contextlib.suppress(queue.Empty):
                told, dirty = self.told.get(timeout=0.05)
                if told == pv:
                    return dirty
        raise AssertionError("no hint")


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Pair]:
    def make(**options: int) -> Pair:
        for name in ("one", "two"):
            (tmp_path / name / "sub").mkdir(parents=True)
        return Pair(tmp_path, **options)

    return make


def test_a_change_is_told_and_only_of_what_is_watched(pair: Callable[..., Pair]) -> None:
    made = pair()
    made.hints.watch(["one", "gone"])
    assert made.writes_until_told("one") == frozenset({""})
    made.hints.watch(["two"])
    assert made.writes_until_told("two") == frozenset({""})
    (made.root / "one" / "unwatched").write_text("x")
    (made.root / "two" / "sub" / "file").write_text("x")
    told: set[str] = set()
    while "sub" not in told:
        pv, dirty = made.told.get(timeout=DEADLINE)
        assert pv == "two" and dirty is not None
        told |= dirty


def test_h23_a_volume_with_too_many_directories_is_left_to_the_comparison(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    made = pair(most=1)
    with caplog.at_level("INFO"):
        made.hints.watch(["one"])
        end = time.monotonic() + DEADLINE
        while "1 volumes cannot be watched" not in caplog.text:
            assert time.monotonic() < end, caplog.text
            time.sleep(0.01)
    heard, put = set[str](), made.told.put
    made.told.put = lambda hint, *rest: (heard.add(hint[0]), put(hint, *rest))[1]  # type: ignore[func-returns-value,method-assign]
    (made.root / "one" / "file").write_text("x")
    (made.root / "flat").mkdir()
    made.hints.watch(["flat", "one"])
    assert made.writes_until_told("flat") == frozenset({""}), "the watches that were taken are not given back"
    assert heard == {"flat"}


def test_the_child_ends_with_its_connection(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    child = threading.Thread(target=tell, args=(theirs, Watcher(lambda pv: contextlib.nullcontext(0))), daemon=True)
    child.start()
    ours.close()
    child.join(DEADLINE)
    assert not child.is_alive()
