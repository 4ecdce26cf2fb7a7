"""What the allocator is told, so that memory needed for a moment is not kept for ever. Only glibc's listens."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # mallopt(3)
_AT_ONCE = 256  # futures; each takes two kilobytes

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_arena() -> None:
    """One heap instead of one for each few threads; the interpreter's lock lets them allocate by turns anyway.

    Call it before the first thread starts.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return free pages to the system, after something that took many times what is needed from now on."""
    gc.collect()  # futures and what they brought are cycles
    trim()


def trim() -> None:
    """Return the free pages that there are; takes a millisecond."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def few_at_once(pool: Executor, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """As `pool.map`, which makes the futures of all items before the first of them is done."""
    for start in range(0, len(items), _AT_ONCE):
        yield from pool.map(work, items[start : start + _AT_ONCE])
