"""Requests of many threads, sent together: what comes while one is under way goes with the next.

A request that comes alone waits for nothing. In a burst each waits a moment for company: eight that share their syncs
cost 0.4 ms of processor time each, alone 1.0 ms (ext4, two cores; `python -m tests.bench` shows it in the deletions).
Knows nothing of files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


LINGER = 0.020
BURST = 0.050
ENOUGH = 8


@dataclass(slots=True)
class _Place(Generic[T, R]):
    item: T
    since: float
    sent: bool = False
    answers: tuple[R | Exception, ...] = ()  # none yet, or one


class Gathering(Generic[T, R]):
    """`send` takes items and answers for each, in their order; an error of `send` itself is every waiter's."""

    def __init__(self, send: Callable[[list[T]], list[R | Exception]], clock: Callable[[], float] = monotonic) -> None:
        self._send = send
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[_Place[T, R]] = []
        self._under_way = 0
        self._last = -BURST

    def ask(self, item: T, at_once: int) -> R:
        """The answer for `item`; a request is sent while fewer than `at_once` are under way."""
        place: _Place[T, R] = _Place(item, self._clock())
        taken: list[_Place[T, R]] = []
        with self._changed:
            self._waiting.append(place)
            self._changed.notify_all()
            while not place.answers and (place.sent or self._under_way >= at_once or self._worth_waiting()):
                self._changed.wait(LINGER)
            if not place.answers:
                taken, self._waiting = self._waiting, []
                self._under_way += 1
                for one in taken:
                    one.sent = True
        if taken:
            self._carry(taken)
        answer = place.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _worth_waiting(self) -> bool:
        """Whether more is about to come: a burst is under way, and the first of these came just now."""
        now = self._clock()
        burst = now - self._last < BURST
        return burst and len(self._waiting) < ENOUGH and now - self._waiting[0].since < LINGER

    def _carry(self, taken: list[_Place[T, R]]) -> None:
        answers: list[R | Exception]
        try:
            answers = self._send([place.item for place in taken])
        except Exception as error:  # noqa: BLE001 - everybody who waits gets it
            answers = [error] * len(taken)
        with self._changed:
            for place, answer in zip(taken, answers, strict=True):
                place.answers = (answer,)
            self._under_way -= 1
            self._last = self._clock()
            self._changed.notify_all()
