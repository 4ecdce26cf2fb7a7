"""The breaker: how many of a volume's entries may go from the standby before a person is asked. Pure.

Invariant: what went in portions is judged together. In memory only: a restarted controller begins a new window.
"""

from __future__ import annotations

from dataclasses import dataclass

ALWAYS_DELETED = 1000  # entries: so many may go, however small the volume
WINDOW = 3600.0
"""Seconds in which deletions count together: longer than an `rm -r` of a large volume takes, and short enough that a
volume whose files come and go all day is not taken for one that is emptied."""
PART = 60.0  # seconds whose deletions are one figure: so few are kept for each volume


def may_delete(deletions: int, entries: int, share: float, allowed: int = 0, before: int = 0) -> bool:
    """Whether so many of a volume's entries may go. `allowed`: how many a person confirmed. `before`: what went in the
    window, at whose beginning there were `entries`."""
    return deletions <= allowed or before + deletions <= max(ALWAYS_DELETED, share * entries)


@dataclass(slots=True)
class _Part:
    began: float
    entries: int | None  # of the volume, before these deletions; None: not known
    deleted: int = 0


class Deletions:
    """Of one volume, within the window. Moments are of one monotonic clock."""

    __slots__ = ("_entries", "_parts")

    def __init__(self) -> None:
        self._parts: list[_Part] = []  # as many as the window has minutes at the most
        self._entries: int | None = None

    def note(self, deleted: int, entries: int | None, now: float) -> None:
        """A pass deleted so many. `entries`: what the volume has now; None: the pass has not seen all of it."""
        before = self._entries if entries is None else entries + deleted
        if deleted:
            if not self._parts or now >= self._parts[-1].began + PART:
                self._parts.append(_Part(now, before))
            self._parts[-1].deleted += deleted
        if entries is None:
            self._entries = None if before is None else max(0, before - deleted)
            return
        self._entries, gone = entries, 0
        for part in reversed(self._parts):
            gone += part.deleted
            if part.entries is None:
                part.entries = entries + gone

    def confirmed(self) -> None:
        """A person has seen what goes: a new window begins."""
        self._parts.clear()

    def within(self, now: float) -> tuple[int, int]:
        """How many went in the window, and of how many; 0 when that is not known."""
        while self._parts and self._parts[0].began + PART + WINDOW <= now:
            del self._parts[0]
        first = self._parts[0].entries if self._parts else None
        return sum(part.deleted for part in self._parts), max(first or 0, self._entries or 0)
