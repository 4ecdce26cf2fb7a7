"""Why a pair does not follow: what waits for a person, and what waits for a cause to go. Pure, with a lock of its own.

Invariant: a reason goes only when a pass of the very volume that gave it came to its end, or the volume went.
"""

from __future__ import annotations

import threading
from collections.abc import Container

NAMED = 3


class Stops:
    """Reasons by volume; "" is the pair as a whole."""

    def __init__(self) -> None:
        self._refused: dict[str, str] = {}
        self._troubles: dict[str, str] = {}
        self._lock = threading.Lock()

    def refuse(self, pv: str, why: str) -> bool:
        """Nothing is copied until a person acted. Whether that is new."""
        with self._lock:
            new = pv not in self._refused
            self._refused[pv] = why
            return new

    def trouble(self, pv: str, why: str) -> None:
        """It goes on by itself, but not now."""
        with self._lock:
            self._troubles[pv] = why

    def opened(self) -> None:
        """Both sides could be opened and proven."""
        with self._lock:
            self._refused.pop("", None)
            self._troubles.pop("", None)

    def relent(self, pv: str) -> bool:
        """A pass of this volume came to its end: both sides are who they should be, and can be written. Whether there
        was a reason."""
        with self._lock:
            before = len(self._refused) + len(self._troubles)
            for reasons in (self._refused, self._troubles):
                reasons.pop("", None)
                reasons.pop(pv, None)
            return len(self._refused) + len(self._troubles) != before

    def keep(self, pvs: Container[str]) -> None:
        """These are the volumes now."""
        with self._lock:
            for reasons in (self._refused, self._troubles):
                for pv in [pv for pv in reasons if pv and pv not in pvs]:
                    del reasons[pv]

    def elsewhere(self, pv: str) -> str:
        """Why this volume's passes wait for a person who looks after another's."""
        with self._lock:
            why = {other: why for other, why in self._refused.items() if other}
        return "" if not why or pv in why else f"the pair is stopped: {next(iter(why.values()))}"

    @property
    def refused(self) -> str:
        """What waits for a person."""
        with self._lock:
            return "; ".join(list(self._refused.values())[:NAMED])

    @property
    def troubled(self) -> str:
        """What does not go on now; one stands for all, they have one cause."""
        with self._lock:
            return next(iter(self._troubles.values()), "")
