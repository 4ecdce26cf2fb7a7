"""The queue against a model of it that is too simple to be wrong, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from nfs_provisioner.kube.workqueue import WorkQueue

KEYS = st.sampled_from(["k1", "k2", "k3", "k4", "k5"])
LANES = st.sampled_from(["", "east", "west"])
DELAYS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])


def backoff(failures: int) -> float:
    return min(60.0, 0.5 * 2.0**failures)


@dataclass
class Wanted:
    """One key that has to be handed out: where, not before when, and behind which others."""

    lane: str
    due: float
    low: bool
    place: int


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.queue: WorkQueue[str] = WorkQueue(clock=lambda: self.now, backoff=backoff)
        self.wanted: dict[str, Wanted] = {}
        self.busy: set[str] = set()
        self.failures: dict[str, int] = {}
        self.places = 0

    def want(self, key: str, lane: str, due: float, low: bool) -> None:
        before = self.wanted.get(key)
        if before is not None:
            due, low = min(due, before.due), low and before.low
            if due <= self.now and before.due <= self.now:
                due = before.due  # Due is due: being wanted again does not change a key's place in the line.
            if (lane, due, low) == (before.lane, before.due, before.low):
                return
        self.places += 1
        # Whoever changes lane or priority stands behind those who are there.
        self.wanted[key] = Wanted(lane, max(due, self.now), low, self.places)

    @rule(key=KEYS, lane=LANES, low=st.booleans())
    def add(self, key: str, lane: str, low: bool) -> None:
        self.queue.add(key, lane, low=low)
        self.want(key, lane, self.now, low)

    @rule(key=KEYS, lane=LANES, seconds=DELAYS, low=st.booleans())
    def add_after(self, key: str, lane: str, seconds: float, low: bool) -> None:
        self.queue.add_after(key, seconds, lane, low=low)
        self.want(key, lane, self.now + seconds, low)

    @rule(key=KEYS, lane=LANES)
    def retry(self, key: str, lane: str) -> None:
        failures = self.failures.get(key, 0)
        assert self.queue.retry(key, lane) == backoff(failures)
        self.failures[key] = failures + 1
        self.want(key, lane, self.now + backoff(failures), False)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)

    @rule(lane=LANES)
    def get(self, lane: str) -> None:
        due = self.due(lane)
        got = self.queue.try_get(lane)
        if not due:
            assert got is None
            return
        assert got is not None
        assert got not in self.busy, "handed out twice at once"
        assert got in due, f"{got} was not due in lane {lane!r}"
        assert self.wanted[got].low is all(self.wanted[key].low for key in due), "a low key before a normal one"
        assert got == self.first(due), "not in the order they became due"
        del self.wanted[got]
        self.busy.add(got)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.queue.done(key)
        self.busy.remove(key)
        if key in self.wanted:
            self.places += 1
            self.wanted[key].place = self.places
            # It stands in line from now on, not from the moment it was wanted.
            self.wanted[key].due = max(self.wanted[key].due, self.now)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def depth_is_what_is_due(self) -> None:
        depth = self.queue.depth()
        assert {lane: n for lane, n in depth.items() if n} == {
            lane: len(self.due(lane)) for lane in ("", "east", "west") if self.due(lane)
        }

    def due(self, lane: str) -> list[str]:
        return [
            key
            for key, wanted in self.wanted.items()
            if key not in self.busy and wanted.lane == lane and wanted.due <= self.now
        ]

    def first(self, due: list[str]) -> str:
        normal = [key for key in due if not self.wanted[key].low] or due
        return min(normal, key=lambda key: (self.wanted[key].due, self.wanted[key].place))

    def teardown(self) -> None:
        """Nothing is lost: whatever is still wanted comes, and then nothing more."""
        for key in sorted(self.busy):
            self.queue.done(key)
        self.busy.clear()
        self.now += 10_000.0
        came = []
        for lane in ("", "east", "west"):
            while (got := self.queue.try_get(lane)) is not None:
                assert self.wanted[got].lane == lane
                came.append(got)
                self.queue.done(got)
        assert sorted(came) == sorted(self.wanted)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
