"""What the allocator is told, so that memory needed for a moment is not kept for ever. Only glibc's listens."""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # mallopt(3)


def one_arena() -> None:
    """One heap instead of one for each few threads; the interpreter's lock lets them allocate by turns anyway.

    Call it before the first thread starts.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return free pages to the system, after something that took many times what is needed from now on."""
    gc.collect()  # futures and what they brought are cycles
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
