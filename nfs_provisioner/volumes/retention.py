"""When an archive has been kept long enough. Pure, but for the clock that it is given.

Never on the word of one clock (H56): an archive goes only when it is due by this machine's clock, by the file server's,
and after this leader has seen it as an archive for its whole retention (an hour at most) on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from nfs_provisioner.export.records import VolumeRecord

LONGEST_WATCH = 3600.0  # seconds


class Retention:
    """Remembers since when each archive was seen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}

    def due(self, archives: Iterable[VolumeRecord], wall: float) -> list[VolumeRecord]:
        """Archives whose retention is over at Unix time `wall`, and that were seen for long enough."""
        now = self._clock()
        kept = {record.pv: record for record in archives if record.policy.archive_retention is not None}
        self._seen = {pv: self._seen.get(pv, now) for pv in kept}
        return [
            record
            for pv, record in kept.items()
            if now - self._seen[pv] >= min(record.policy.archive_retention or 0.0, LONGEST_WATCH)
            and self.over(record, wall)
        ]

    @staticmethod
    def over(record: VolumeRecord, wall: float) -> bool:
        """Whether the retention is over at Unix time `wall`, of whatever clock."""
        keep = record.policy.archive_retention
        return keep is not None and wall - moment(record.since) >= keep


def moment(since: str) -> float:
    """Unix time of a record's last change of state."""
    return datetime.fromisoformat(since).timestamp()


def age(record: VolumeRecord) -> float:
    """Seconds since the record's last change of state, by this machine's clock; negative when that went back."""
    return datetime.now(UTC).timestamp() - moment(record.since)
