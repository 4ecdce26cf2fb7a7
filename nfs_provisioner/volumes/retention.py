"""When an archive has been kept long enough. Pure, but for the clocks that it is given.

Never on the word of one clock (H56): an archive goes only when it is due by this machine's clock and by the file
server's, after this leader has seen it as an archive for its whole retention (an hour at most) on the monotonic clock,
and without the time by which either clock jumped forward since this process looked at it first. On a local disk both
clocks are the kernel's, so that only the monotonic one can tell. What no clock here can tell is a time that was wrong
when the process began, and is still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from nfs_provisioner.export.records import VolumeRecord

LONGEST_WATCH = 3600.0  # seconds


class Steady:
    """A wall clock without its jumps forward: as it was first seen and went on from there, or as it is when that is
    less. One that was set back is believed, and what it gains after that is a jump again."""

    def __init__(self) -> None:
        self._ahead: float | None = None  # of the monotonic clock, at the least so far

    @property
    def seen(self) -> bool:
        """Whether it was ever looked at."""
        return self._ahead is not None

    def at(self, now: float, reading: float) -> float:
        """What is to be believed when the monotonic clock says `now` and the wall clock `reading`."""
        ahead = reading - now
        self._ahead = ahead if self._ahead is None else min(ahead, self._ahead)
        return now + self._ahead


class Retention:
    """Remembers since when each archive was seen, and what the clocks said at first. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._mine, self._servers = Steady(), Steady()
        self._seen: dict[tuple[str, str], float] = {}  # by PV and `since`: another archive is another one to watch
        self._mine.at(clock(), wall())  # as early as can be: a jump before the first archive is one, too

    def begin_anew(self) -> None:
        """The catalog was filled, perhaps from another server, whose clock was not looked at yet."""
        self._servers = Steady()

    def due(
        self, archives: Iterable[VolumeRecord], server_time: Callable[[], float]
    ) -> tuple[list[VolumeRecord], list[VolumeRecord]]:
        """Archives whose retention is over; and those that are kept although it is over by this machine's clock.

        The server is asked for its clock where there is something to keep watch over, and then only when it matters.
        """
        now, wall = self._clock(), self._wall()
        mine = self._mine.at(now, wall)
        kept = {_archive(record): record for record in archives if record.policy.archive_retention is not None}
        self._seen = {archive: self._seen.get(archive, now) for archive in kept}
        watched = [r for archive, r in kept.items() if now - self._seen[archive] >= min(_keep(r), LONGEST_WATCH)]
        claimed = [record for record in watched if wall - moment(record.since) >= _keep(record)]
        if not claimed and (self._servers.seen or not kept):
            return [], []
        reading = server_time()
        servers = self._servers.at(self._clock(), reading)

        def over(record: VolumeRecord) -> bool:
            """What was watched for all its time is as old as that, whatever a clock said at first."""
            watch = now - self._seen[_archive(record)]
            ages = (reading - moment(record.since), *(max(t - moment(record.since), watch) for t in (mine, servers)))
            return min(ages) >= _keep(record)

        return [record for record in claimed if over(record)], [record for record in claimed if not over(record)]


def _archive(record: VolumeRecord) -> tuple[str, str]:
    return record.pv, record.since


def _keep(record: VolumeRecord) -> float:
    return record.policy.archive_retention or 0.0


def moment(since: str) -> float:
    """Unix time of a record's last change of state."""
    return datetime.fromisoformat(since).timestamp()


def age(record: VolumeRecord) -> float:
    """Seconds since the record's last change of state, by this machine's clock; negative when that went back."""
    return datetime.now(UTC).timestamp() - moment(record.since)
