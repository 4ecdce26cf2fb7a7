"""Whose turn it is to be measured, and what becomes of the figures."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import Policy, State, VolumeRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.usagefile import Figures
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.volumes.measuring import EVERY, PASSES_SKIPPED, SPREAD, STILL_EVERY, Measuring, Rota, wait_for
from nfs_provisioner.volumes.services import Partner, Services
from nfs_provisioner.volumes.usage import Ledger
from tests.unit.export.world import volume
from tests.unit.volumes.conftest import DEADLINE, eventually

WALL = 1_800_000_000.0
LATEST = EVERY * (1 + SPREAD)


def since(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def live(pv: str = "pv") -> VolumeRecord:
    return replace(volume(pv, f"dir-{pv}"), state=State.LIVE, since=since(WALL - 1e6))


def archived(moment: float, pv: str = "pv") -> VolumeRecord:
    return replace(live(pv), state=State.ARCHIVED, directory=f"archived-{pv}", since=since(moment))


WAITS = [
    (live(), None, 0.0),
    (live(), WALL - 100, EVERY - 100),
    (live(), WALL - EVERY, 0.0),
    (live(), WALL - 1e6, 0.0),
    (live(), WALL + 1, 0.0),  # the clock went back: nobody knows how old it is
    (archived(WALL - 50), None, 0.0),
    (archived(WALL - 50), WALL - 60, 0.0),  # measured before it was an archive
    (archived(WALL - 50), WALL - 49.5, 0.0),  # perhaps before: records have whole seconds
    (archived(WALL - 50), WALL - 40, STILL_EVERY - 40),
    (archived(WALL - 1e6), WALL - STILL_EVERY, 0.0),
]


@pytest.mark.parametrize(("record", "at", "wait"), WAITS)
def test_how_long_a_volume_waits(record: VolumeRecord, at: float | None, wait: float) -> None:
    usage = None if at is None else Usage(1, 1, at)
    assert wait_for(record, usage, WALL, EVERY, STILL_EVERY) == pytest.approx(wait)


class Day:
    """A rota over a catalog, and time that passes when a test says so."""

    def __init__(self, *records: VolumeRecord, passed: bool = False) -> None:
        self.catalog = Catalog()
        self.ledger = Ledger(self.catalog)
        self.ledger.fill({})
        self.rota = Rota(self.ledger)
        self.now = 5000.0
        self.passed = passed
        for record in records:
            self.catalog.put(record)
        self.look()

    @property
    def wall(self) -> float:
        return WALL + self.now - 5000.0

    def look(self) -> None:
        self.rota.keep(self.catalog.all(), self.now, self.wall, passed=self.passed)

    def turns(self, *, measure: bool = True) -> list[str]:
        """Everybody whose turn it is now."""
        found = []
        while (pv := self.rota.next(self.catalog.get, self.now, self.wall, passed=self.passed)) is not None:
            found.append(pv)
            assert len(found) < 100, "the same again and again"
            if measure:
                self.ledger.note(pv, Usage(1, 1, self.wall))
        return found


def test_everybody_once_an_interval_and_not_all_together_again() -> None:
    names = [f"pv-{number}" for number in range(20)]
    day = Day(*map(live, names))
    assert sorted(day.turns()) == sorted(names)
    day.now += EVERY - 1
    assert day.turns() == []
    again: list[list[str]] = []
    while day.now < 5000 + LATEST + 1:
        day.now += 10
        day.look()
        again.append(day.turns())
    assert sorted(pv for some in again for pv in some) == sorted(names)
    assert max(map(len, again)) < 8, "they were not spread out"


def test_one_that_cannot_be_measured_waits_for_its_next_turn() -> None:
    day = Day(live())
    assert day.turns(measure=False) == ["pv"]
    day.now += EVERY - 1
    assert day.turns(measure=False) == []
    day.now += LATEST
    assert day.turns(measure=False) == ["pv"]


def test_new_ones_come_at_once_and_those_that_went_never() -> None:
    day = Day(live("old"), live("gone"))
    day.turns()
    day.catalog.put(live("new"))
    day.catalog.drop("gone")
    day.look()
    assert day.turns() == ["new"]
    day.now += 2 * EVERY
    assert sorted(day.turns()) == ["new", "old"]


def test_an_archive_is_measured_when_it_has_become_one_and_then_once_a_day() -> None:
    day = Day(live())
    day.turns()
    day.now += LATEST + 1
    day.catalog.put(archived(day.wall))
    day.look()
    day.now += 2
    assert day.turns() == ["pv"]
    day.now += STILL_EVERY - 10
    assert day.turns() == []
    day.now += 20
    assert day.turns() == ["pv"]


def test_a_volume_is_not_measured_sooner_because_it_became_an_archive() -> None:
    day = Day(live())
    day.turns()
    day.now += 2
    day.catalog.put(archived(day.wall))
    day.look()
    assert day.turns() == []
    day.now += LATEST
    assert day.turns() == ["pv"]


def test_what_passes_report_is_left_to_them() -> None:
    day = Day(live("passed"), live("within"), passed=True)
    end = day.now + PASSES_SKIPPED * EVERY
    while day.now < end - 30:
        assert day.turns() == []
        day.now += 30
        day.ledger.note("passed", Usage(1, 1, day.wall))
        day.look()
    day.now = end + 1
    assert day.turns() == ["within"]


def test_figures_from_before_a_restart_count() -> None:
    day = Day()
    day.catalog.put(live())
    day.ledger.note("pv", Usage(1, 1, day.wall - 100))
    day.look()
    assert day.turns() == []
    day.now += EVERY - 100
    assert day.turns() == ["pv"]


class Scripted:
    """An export whose replica answers what the test says, and remembers what it was asked."""

    name = "web"
    partner: Partner | None = None

    def __init__(self, *records: VolumeRecord) -> None:
        self.catalog = Catalog()
        for record in records:
            self.catalog.put(record)
        self.usage = Ledger(self.catalog)
        self.ready = True
        self.walks: dict[str, list[Usage | Exception | None]] = {}
        self.file: Figures | Exception = {}
        self.asked: list[tuple[Any, ...]] = []

    def call(self, operation: str, *arguments: Any, deadline: float = 10.0) -> Any:
        self.asked.append((operation, *arguments))
        if operation == "read_usage":
            answer: Any = self.file
        elif operation == "write_usage":
            answer = None
            self.file = arguments[0]
        else:
            answer = self.walks[arguments[0]].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def operations(self) -> list[str]:
        return [asked[0] for asked in list(self.asked)]


@contextmanager
def measuring(export: Scripted, **options: Any) -> Iterator[Measuring]:
    lease = LeaseEnd()
    services = Services(
        cluster="cluster", lease=lease, term=lambda: "1", partner=lambda *_: cast(Any, None), on_ready=lambda _: None,
        on_status=lambda _: None, on_event=lambda *_: None, **({"measure_every": 0.05} | options),
    )  # fmt: skip
    made = Measuring(export, services)
    made.begin_anew()
    try:
        yield made
    finally:
        made.stop()
        made.join(DEADLINE)
        os.close(lease.fd)


def test_a_walk_is_asked_for_until_it_is_done_and_one_that_fails_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    export = Scripted(live("bad"), live("good"))
    found = Usage(4096, 2, time.time())
    export.walks["bad"] = [RefusedForSafety("another directory")] * 1000
    export.walks["good"] = [None, None, *[found] * 1000]
    with measuring(export) as made:
        eventually(lambda: export.usage.get("good") == found, "it is not measured")
        eventually(lambda: len(export.walks["bad"]) < 999, "the other is not tried again")
        assert made.trouble("bad") == "what it takes cannot be measured: another directory"
        export.walks["bad"] = [found] * 1000
        eventually(lambda: made.trouble("bad") == "", "the trouble is over, and still told")
        assert made.trouble("good") == ""
    assert isinstance(export.file, dict) and export.file["good"] == (4096, 2, found.at, False)
    assert caplog.text.count("bad: what it takes cannot be measured: another directory") == 1


def test_what_cannot_be_read_time_and_again_is_told_once_and_one_failure_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    export = Scripted(live("bad"), live("late"))
    export.walks["bad"] = [RetryLater("Input/output error")] * 1000
    export.walks["late"] = [RetryLater("it hangs"), *[Usage(1, 1, time.time())] * 1000]
    with measuring(export) as made:
        eventually(lambda: len(export.walks["bad"]) < 997, "it is not tried again")
        eventually(lambda: len(export.walks["late"]) < 999, "it is not tried again")
        assert "Input/output error" in made.trouble("bad") and made.trouble("late") == ""
        export.catalog.drop("bad")
        eventually(lambda: made.trouble("bad") == "", "it is told of a volume that is gone")
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and "Input/output error" in told[0]


@pytest.mark.parametrize(("count", "says"), [(1, "a directory is closed"), (3, "3 directories are closed")])
def test_a_figure_that_is_too_small_is_told_with_why(caplog: pytest.LogCaptureFixture, count: int, says: str) -> None:
    export = Scripted(live())
    export.walks["pv"] = [Usage(1, 1, time.time(), count)] * 1000
    with measuring(export) as made:
        eventually(lambda: len(export.walks["pv"]) < 998, "it is not measured")
        assert says in made.trouble("pv")
    assert caplog.text.count(says) == 1


def test_nothing_is_written_before_the_file_was_read() -> None:
    export = Scripted(live())
    export.file = RetryLater("the server hangs")
    with measuring(export, measure_every=600.0) as made:
        eventually(lambda: "read_usage" in export.operations(), "it is not read")
        made.note("pv", Usage(1, 1, 1.0))
        made.wake()
        eventually(lambda: export.operations().count("read_usage") > 1, "it is not read again")
    assert "write_usage" not in export.operations()


def test_claims_come_first() -> None:
    export = Scripted(live())
    waiting = threading.Event()
    waiting.set()
    export.walks = {"pv": [Usage(1, 1, time.time())] * 1000}
    asked: list[None] = []

    def busy() -> bool:
        asked.append(None)
        return waiting.is_set()

    with measuring(export, busy=busy):
        eventually(lambda: len(asked) > 3, "nobody asks whether claims wait")
        assert "usage" not in export.operations()
        waiting.clear()
        eventually(lambda: export.usage.get("pv") is not None, "it is not measured")


def test_an_end_writes_what_is_not_written_yet() -> None:
    export = Scripted(replace(live(), requested=5, policy=Policy(quota="soft")))
    told: list[str] = []
    export.walks = {"pv": [Usage(4, 1, time.time())]}
    with measuring(export, measure_every=600.0, on_exceeded=lambda record, _: told.append(record.pv)) as made:
        eventually(lambda: export.usage.get("pv") is not None, "it is not measured")
        eventually(lambda: "write_usage" in export.operations(), "it is not written")
        made.note("pv", Usage(6, 1, time.time() + 1))
    assert told == ["pv"] and isinstance(export.file, dict) and export.file["pv"][:2] == (6, 1) and export.file["pv"][3]
