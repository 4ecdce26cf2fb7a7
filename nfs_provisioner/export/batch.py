"""Several changes carried out in step, so that they share what costs most: waiting for the disk.

A change is a generator that yields, wherever it may only go on once something is durable, the function that makes it
so. Knows nothing of records or directories. Invariant: no change goes on before its own sync has returned, and a sync
that several wait for begins after the last of them asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")

Sync = Callable[[], None]
Change = Generator[Sync, None, T]
"""Yields syncs, returns its result, raises what stopped it (OSError of a sync included)."""


def run(change: Change[T]) -> T:
    """One change, by itself."""
    result = run_together([change])[0]
    if isinstance(result, Exception):
        raise result
    return result


def run_together(changes: Sequence[Change[T]]) -> list[T | Exception]:
    """All changes, step by step; for each its result or its error. One that fails does not stop the others."""
    results: dict[int, T | Exception] = {}
    waiting: dict[int, Exception | None] = dict.fromkeys(range(len(changes)))
    while waiting:
        asked: dict[Sync, list[int]] = {}
        for number, failed in waiting.items():
            try:
                sync = changes[number].throw(failed) if failed is not None else next(changes[number])
                asked.setdefault(sync, []).append(number)
            except StopIteration as end:
                results[number] = end.value
            except Exception as error:  # noqa: BLE001 - it is this change's result; the caller tells whose it was
                results[number] = error
        waiting = {}
        for sync, numbers in asked.items():
            waiting |= dict.fromkeys(numbers, _failure(sync))
    return [results[number] for number in range(len(changes))]


def _failure(sync: Sync) -> Exception | None:
    try:
        sync()
    except Exception as error:  # noqa: BLE001 - thrown into the changes that waited for this sync
        return error
    return None
