"""Which volume of a pair is passed when, and what is known of each. Pure: the clock's time comes as an argument.

Invariant: every volume that can be passed has its turn, because among those that are due the one that has waited
longest comes first, and none is due again at once. Lag is measured from the beginning of a pass that ended clean.
"""

from __future__ import annotations

import functools
import heapq
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from nfs_provisioner.export.standing import PairStanding, VolumeStanding
from nfs_provisioner.replication.breaker import Deletions

FIRST_PAUSE = 1.0  # seconds after a failed pass; doubles
LONGEST_PAUSE = 300.0
LEAST_PAUSE = 1.0  # seconds between two passes of one volume, however much happens in it
MOST_DIRECTORIES = 1000  # dirty ones; more are cheaper compared all together


@dataclass(frozen=True, slots=True)
class Kept:
    """A volume that the standby is to have. `ready`: both sides have its directory in the same place."""

    rev: int
    archived: bool = False
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Turn:
    """A pass to be made now. `only`: directories, relative to the volume's; None: everything. `deleted`, `entries`:
    how many went lately, and of how many (0: not known)."""

    pv: str
    rev: int
    only: frozenset[str] | None = None
    allowed: int = 0  # deletions that were confirmed
    deleted: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a pass ended. `failed`: it had to end before it was through."""

    clean: bool
    failed: bool = False
    waiting: int = 0
    unstable: int = 0
    skipped: int = 0
    foreign: int = 0  # entries that somebody else wrote on the standby
    deleted: int = 0  # entries that went, in this pass and in those before it that failed
    entries: int = 0  # of the source, as far as the pass looked
    message: str = ""


#: Most volumes are alike in these: one object for all of them.
_NONE: frozenset[str] = frozenset()
_same_kept: Callable[[Kept], Kept] = functools.lru_cache(maxsize=1024)(lambda kept: kept)
_same_ended: Callable[[Ended], Ended] = functools.lru_cache(maxsize=1024)(lambda ended: ended)


@dataclass(slots=True)
class _Volume:
    kept: Kept
    since: float  # when it was first heard of
    due: float = 0.0
    full_due: float = 0.0  # moment of the next comparison of everything
    dirty: frozenset[str] | None = _NONE  # None: everything
    began: float | None = None  # of the pass under way
    clean: float | None = None  # beginning of the last clean pass
    clean_wall: float = 0.0
    clean_rev: int = 0
    troubles: int = 0  # passes in a row that were not clean
    confirmed: int = 0
    ended: Ended = Ended(clean=False)
    deletions: Deletions = field(default_factory=Deletions)

    @property
    def done(self) -> bool:
        """An archive does not change any more: clean once, it is clean for good."""
        return self.kept.archived and self.clean is not None and self.clean_rev == self.kept.rev


class Pair:
    """Not thread-safe: its owner's lock is around it. Moments are of one monotonic clock."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._volumes: dict[str, _Volume] = {}
        self._never_clean: set[str] = set()
        self._queue: list[tuple[float, int, str]] = []  # may hold outdated entries: `due` of the volume decides

    # -- what there is ------------------------------------------------------------------------------------------------

    def keep(self, volumes: Mapping[str, Kept], now: float) -> None:
        """These are the volumes now; what is known of others is forgotten."""
        for pv in [pv for pv in self._volumes if pv not in volumes]:
            del self._volumes[pv]
            self._never_clean.discard(pv)
        for pv, kept in volumes.items():
            volume = self._volumes.get(pv)
            if volume is None:
                volume = self._volumes[pv] = _Volume(_same_kept(kept), now, full_due=now)
                self._never_clean.add(pv)
                self._set_due(pv, volume, now)
            elif volume.kept != kept:
                volume.kept = _same_kept(kept)
                self._set_due(pv, volume, math.inf if volume.done else min(volume.due, max(now, volume.full_due)))

    def learned(
        self, pv: str, age: float, rev: int, now: float, wall: float, *, doubtful: bool = False, foreign: int = 0
    ) -> None:
        """The standby says that its copy was clean `age` seconds ago. `doubtful`: it may have been written since, by a
        pass that did not end clean. `foreign`: what somebody else wrote there."""
        volume = self._volumes.get(pv)
        if volume is None or volume.clean is not None:
            return
        volume.clean, volume.clean_wall, volume.clean_rev = now - max(0.0, age), wall - max(0.0, age), rev
        self._never_clean.discard(pv)
        # Spread out over the interval at once: after a restart all volumes are as old as the restart took.
        volume.full_due = now if age >= self.interval or doubtful or foreign else now + self._offset(pv)
        volume.ended = Ended(clean=False, foreign=foreign)
        self._set_due(pv, volume, math.inf if volume.done else volume.full_due)

    def dirty(self, pv: str, directories: Iterable[str] | None, now: float) -> None:
        """Something changed there; None: nobody knows where."""
        volume = self._volumes.get(pv)
        if volume is None:
            return
        if directories is None:
            volume.dirty, volume.full_due = None, min(volume.full_due, now)
        elif volume.dirty is not None:
            volume.dirty = volume.dirty.union(directories)
            if len(volume.dirty) > MOST_DIRECTORIES:
                volume.dirty = None
        if volume.began is None and not volume.troubles:
            self._set_due(pv, volume, min(volume.due, max(now, self._rested(volume))))

    def confirm(self, pv: str, now: float) -> int:
        """A person wants the deletions that wait; how many, 0 when none do."""
        volume = self._volumes.get(pv)
        if volume is None or not (volume.ended.waiting or volume.ended.foreign):
            return 0
        volume.confirmed = volume.ended.waiting + volume.ended.foreign
        volume.full_due, volume.troubles = now, 0
        if volume.began is None:
            self._set_due(pv, volume, now)
        return volume.confirmed

    # -- whose turn it is ---------------------------------------------------------------------------------------------

    def next(self, now: float) -> Turn | None:
        """Whose turn it is; None while nobody's. It counts as begun."""
        if self.wait(now) > 0.0:
            return None
        _, _, pv = heapq.heappop(self._queue)
        volume = self._volumes[pv]
        full = now >= volume.full_due or volume.dirty is None or volume.clean is None or volume.ended.waiting > 0
        only = None if full or not volume.dirty else volume.dirty
        volume.dirty, volume.began = _NONE, now
        return Turn(pv, volume.kept.rev, only, volume.confirmed, *volume.deletions.within(now))

    def wait(self, now: float) -> float:
        """Seconds until it is somebody's turn."""
        while self._queue:
            due, _, pv = self._queue[0]
            volume = self._volumes.get(pv)
            if volume is not None and volume.due == due and volume.began is None and volume.kept.ready:
                return max(0.0, due - now)
            heapq.heappop(self._queue)  # `keep` and `ended` put it back
        return math.inf

    def ended(self, turn: Turn, ended: Ended, now: float, wall: float) -> None:
        """The pass is over. `wall` is Unix time now."""
        volume = self._volumes.get(turn.pv)
        if volume is None or volume.began is None:
            return
        began, volume.began = volume.began, None
        took = now - began
        volume.troubles = 0 if ended.clean else volume.troubles + 1
        if turn.only is not None and ended.waiting:  # many for a few directories: all of them together can tell
            ended = replace(ended, waiting=0, message="")
        if not ended.failed:  # a pass that was cut off has not looked at everything
            volume.ended = _same_ended(ended)
            volume.deletions.note(ended.deleted, ended.entries if turn.only is None else None, now)
            if turn.allowed and not ended.waiting:
                volume.deletions.confirmed()
            if turn.allowed or not (ended.waiting or ended.foreign):  # it was for once, and for what was seen then
                volume.confirmed = 0
        else:
            volume.ended = replace(volume.ended, clean=False, failed=True, message=ended.message)
        if not ended.clean:
            volume.dirty = None
            volume.full_due = now + self._pause(volume, ended, took)
        elif turn.only is None:
            volume.clean, volume.clean_wall, volume.clean_rev = began, wall - took, turn.rev
            self._never_clean.discard(turn.pv)
            volume.full_due = self._slot(turn.pv, began, now)
        due = volume.full_due
        if ended.clean and (volume.dirty is None or volume.dirty):
            due = min(due, max(now, now + self._rest(took)))
        self._set_due(turn.pv, volume, math.inf if volume.done else due)

    def _pause(self, volume: _Volume, ended: Ended, took: float) -> float:
        doubled = FIRST_PAUSE * 2.0 ** min(volume.troubles - 1, 16)
        longest = max(self.interval, LONGEST_PAUSE) if ended.failed else self.interval
        return min(longest, max(doubled, self._rest(took)))

    def _rest(self, took: float) -> float:
        """A volume that always has changes gets a third of one lane at most."""
        return min(self.interval, max(LEAST_PAUSE, 2 * took))

    def _rested(self, volume: _Volume) -> float:
        return -math.inf if volume.clean is None else volume.clean + LEAST_PAUSE

    def _slot(self, pv: str, began: float, now: float) -> float:
        """The next of this volume's own moments: they keep apart, whenever the passes happened to begin."""
        earliest = began + self.interval / 2
        offset = self._offset(pv)
        return max(now, math.ceil((earliest - offset) / self.interval) * self.interval + offset)

    def _offset(self, pv: str) -> float:
        return zlib.crc32(pv.encode()) / 2**32 * self.interval

    def _set_due(self, pv: str, volume: _Volume, due: float) -> None:
        volume.due = due
        if due != math.inf:
            heapq.heappush(self._queue, (due, zlib.crc32(pv.encode()), pv))
        if len(self._queue) > 4 * len(self._volumes) + 64:  # of entries that count no more
            self._queue = [(v.due, zlib.crc32(k.encode()), k) for k, v in self._volumes.items() if v.due != math.inf]
            heapq.heapify(self._queue)

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every volume had a clean pass."""
        return not self._never_clean

    def standing(self, now: float) -> PairStanding:
        """Of all volumes."""
        volumes = {pv: volume for pv, volume in self._volumes.items() if not volume.done}
        lag = 0.0
        last_clean: float | None = None
        for volume in volumes.values() if self.complete else ():
            lag = max(lag, now - _proven(volume))
            last_clean = min(last_clean or math.inf, volume.clean_wall)
        return PairStanding(
            lag=lag if self.complete else None,
            last_clean=last_clean,
            behind=max((now - _proven(volume) for volume in volumes.values()), default=0.0),
            unstable=sum(volume.ended.unstable for volume in self._volumes.values()),
            skipped=sum(volume.ended.skipped for volume in self._volumes.values()),
            waiting=tuple((pv, v.ended.waiting) for pv, v in sorted(volumes.items()) if v.ended.waiting),
        )

    def volume(self, pv: str, now: float) -> VolumeStanding | None:
        """Of one volume."""
        volume = self._volumes.get(pv)
        if volume is None:
            return None
        clean = volume.clean is not None
        lag = None if volume.clean is None else 0.0 if volume.done else now - volume.clean
        ended = volume.ended
        return VolumeStanding(
            lag, volume.clean_wall if clean else None, ended.waiting, ended.unstable, ended.skipped, ended.message
        )


def _proven(volume: _Volume) -> float:
    return volume.since if volume.clean is None else volume.clean
