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


LINGER = 0.020  # seconds a request waits for company in a burst
BURST = 0.050  # seconds after the last answer in which the next request belongs to a burst
ENOUGH = 8  # items of a request: as many as there are workers, and few enough for its deadline on a slow disk


@dataclass(slots=True, eq=False)
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
        self._last = -BURST  # when the last request was answered
        self._shared = False  # and whether it carried more than one item

    def ask(self, item: T, at_once: int) -> R:
        """The answer for `item`; a request is sent while fewer than `at_once` are under way.

        Only where it is one at a time is company worth waiting for; elsewhere items of one request wait for each other.
        """
        place: _Place[T, R] = _Place(item, self._clock())
        taken: list[_Place[T, R]] = []
        with self._changed:
            self._waiting.append(place)
            self._changed.notify_all()
            while not place.answers and (
                place.sent
                or self._under_way >= at_once
                or place not in self._waiting[:ENOUGH]
                or (at_once == 1 and self._worth_waiting())
            ):
                self._changed.wait(LINGER)
            if not place.answers:
                most = ENOUGH if at_once == 1 else 1
                taken = [place, *(one for one in self._waiting if one is not place)][:most]
                self._waiting = [one for one in self._waiting if one not in taken]
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
        burst = now - self._last < BURST and (self._shared or len(self._waiting) > 1)
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
            self._last, self._shared = self._clock(), len(taken) > 1
            self._changed.notify_all()
