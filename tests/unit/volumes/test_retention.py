"""When archives are purged, and what clocks that jump, or differ, make of that (H56)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nfs_provisioner.export.records import Policy, State, VolumeRecord
from nfs_provisioner.volumes.retention import LONGEST_WATCH, Retention
from tests.unit.export.world import volume

WALL = 1_800_000_000.0
HOUR, DAY = 3600.0, 86_400.0
YEAR = 365 * DAY
KEEP = 30 * DAY


def archived(at: float, keep: float | None = KEEP) -> VolumeRecord:
    since = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return replace(
        volume("pv", "archived-pv"), state=State.ARCHIVED, since=since, policy=Policy(archive_retention=keep)
    )


class Clocks:
    """A machine's clocks and a file server's. `ahead` and `server_ahead` are what they are wrong by."""

    def __init__(self, *, ahead: float = 0.0, server_ahead: float = 0.0) -> None:
        self.passed = 0.0
        self.ahead, self.server_ahead = ahead, server_ahead
        self.asked = 0
        self.start()

    def start(self) -> None:
        """A new process."""
        self.retention = Retention(lambda: 5000.0 + self.passed, lambda: WALL + self.passed + self.ahead)

    def jump(self, seconds: float) -> None:
        """Both at once: a local disk's are one clock."""
        self.ahead += seconds
        self.server_ahead += seconds

    def server_time(self) -> float:
        self.asked += 1
        return WALL + self.passed + self.server_ahead

    def purged(self, record: VolumeRecord) -> bool:
        return self.retention.due([record], self.server_time)[0] == [record]

    def doubted(self, record: VolumeRecord) -> bool:
        return self.retention.due([record], self.server_time)[1] == [record]

    def purged_after(self, record: VolumeRecord, longest: float) -> float | None:
        """Seconds until it is, looking now and then."""
        begun = self.passed
        while self.passed - begun <= longest:
            if self.purged(record):
                return self.passed - begun
            self.passed += HOUR / 4
        return None


def test_an_archive_is_purged_when_its_time_is_over_and_none_before() -> None:
    clocks = Clocks()
    assert clocks.purged_after(archived(WALL), 2 * KEEP) == KEEP
    assert not Clocks().purged(archived(WALL - 2 * KEEP, None)), "it was to be kept for ever"


def test_an_old_archive_waits_for_the_watch_after_a_restart_and_not_for_its_whole_time_again() -> None:
    clocks = Clocks()
    record = archived(WALL - KEEP + 10 * HOUR)
    assert clocks.purged_after(record, 5 * HOUR) is None
    clocks.start()
    assert clocks.purged_after(record, KEEP) == pytest.approx(5 * HOUR, abs=HOUR / 2)
    clocks.start()
    assert clocks.purged_after(record, KEEP) == LONGEST_WATCH
    assert Clocks().purged_after(archived(WALL - YEAR, keep=60.0), HOUR) == HOUR / 4, "its time is shorter than a watch"


@pytest.mark.parametrize("seen", [0.0, 2 * HOUR, 10 * DAY])
def test_h56_one_jump_of_the_machines_clock_purges_nothing_on_a_local_disk(seen: float) -> None:
    clocks = Clocks()
    record = archived(WALL)
    assert clocks.purged_after(record, seen) is None
    clocks.jump(YEAR)
    assert clocks.doubted(record) or clocks.passed < LONGEST_WATCH
    assert clocks.purged_after(record, 2 * KEEP) == pytest.approx(KEEP - seen, abs=HOUR), "it is kept for ever"


def test_h56_nor_a_jump_before_the_first_archive_was_seen_or_the_catalog_was_filled_anew() -> None:
    clocks = Clocks()
    clocks.passed = HOUR
    clocks.jump(YEAR)
    record = archived(WALL)
    assert clocks.purged_after(record, 2 * HOUR) is None
    clocks.retention.begin_anew()
    assert clocks.purged_after(record, 2 * HOUR) is None


def test_a_catalog_that_is_filled_again_and_again_does_not_begin_the_watch_anew() -> None:
    """As when a server comes and goes; and when the machine had no time of its own at first."""
    clocks = Clocks(ahead=-50 * YEAR)
    record = archived(WALL)
    assert not clocks.purged(record)
    clocks.ahead = 0.0
    for _ in range(40):
        assert clocks.purged_after(record, KEEP / 50) is None
        clocks.retention.begin_anew()
    assert clocks.purged_after(record, KEEP) == pytest.approx(KEEP * 0.2, abs=DAY)
    again = replace(record, since=archived(WALL + clocks.passed).since)
    clocks.jump(YEAR)
    assert not clocks.purged(again), "another archive of the same volume counts as watched as long as that one"


def test_h56_nor_a_second_jump_after_the_first_was_set_right() -> None:
    clocks = Clocks(ahead=YEAR, server_ahead=YEAR)  # wrong from the beginning, which nothing here can tell
    record = archived(WALL)
    assert not clocks.purged(record)
    clocks.jump(-YEAR)
    assert clocks.purged_after(record, 2 * HOUR) is None
    clocks.jump(YEAR)
    assert clocks.purged_after(record, 2 * HOUR) is None


def test_h56_neither_side_purges_on_its_own_word() -> None:
    record = archived(WALL - DAY)
    machine = Clocks(ahead=YEAR)
    assert machine.purged_after(record, 2 * HOUR) is None
    assert machine.doubted(record)
    assert Clocks(server_ahead=YEAR).purged_after(record, 2 * HOUR) is None


def test_h56_a_servers_jump_does_not_confirm_a_machines_clock_that_was_always_wrong() -> None:
    clocks = Clocks(ahead=YEAR)
    record = archived(WALL - DAY)
    assert clocks.purged_after(record, 2 * HOUR) is None
    clocks.server_ahead = YEAR
    assert clocks.purged_after(record, 2 * HOUR) is None


def test_h56_a_clock_that_was_behind_at_the_start_delays_and_forbids_nothing() -> None:
    clocks = Clocks(ahead=-YEAR)
    assert not clocks.purged(archived(WALL - 10 * DAY))
    clocks.ahead = 0.0
    assert clocks.purged_after(archived(WALL), 2 * KEEP) == KEEP


def test_the_server_is_asked_only_when_it_matters() -> None:
    clocks = Clocks()
    for _ in range(10):
        clocks.retention.due([archived(WALL, None)], clocks.server_time)
    assert clocks.asked == 0
    assert clocks.purged_after(archived(WALL), KEEP - HOUR) is None
    assert clocks.asked == 1
