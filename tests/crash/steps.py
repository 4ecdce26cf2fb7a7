"""Cuts an operation of a Store off at its n-th change of the file system, as a power cut or a SIGKILL would.

The calls are made on a real directory, in this process: every function of `os` that changes something is counted,
and from the chosen one on each raises PowerCut (which nothing in the product catches), so that no clean-up code can
run. A write that is cut off writes half. fsync is counted but not carried out: what it is for is not tested here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

#: Everything that changes a file system. `open` counts when it creates.
MUTATING = (
    "mkdir",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "write",
    "fsync",
    "fchown",
    "fchmod",
    "chmod",
    "chown",
    "link",
    "symlink",
    "utime",
    "truncate",
    "ftruncate",
    "open",
)
#: What only looks; counted apart.
READING = ("stat", "fstat", "listdir", "scandir")


class PowerCut(BaseException):
    """Nothing after this moment happened."""


class Power:
    """Counts the changes made by the thread that `supply`s it, and goes off at the chosen one."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        self.looks = 0
        self.after: Callable[[str], None] = lambda name: None  # called after each change: somebody else acts meanwhile
        self._cut_at: int | None = None
        self._fail_at: int | None = None
        self._off = False

    def cut(self, at: int) -> None:
        """Go off at change number `at`, counted from now."""
        self.restore()
        self._cut_at = at

    def fail(self, at: int) -> None:
        """Let change number `at`, counted from now, fail with EIO; the ones after it work."""
        self.restore()
        self._fail_at = at

    def restore(self) -> None:
        """Work again, and count from zero."""
        self.changes, self.looks = [], 0
        self._cut_at = self._fail_at = None
        self._off = False

    @contextlib.contextmanager
    def supply(self) -> Iterator[Power]:
        """Replace the functions of `os` for the calling thread."""
        thread = threading.get_ident()
        real = {name: getattr(os, name) for name in (*MUTATING, *READING)}
        for name in MUTATING:
            setattr(os, name, self._changing(name, real[name], thread))
        for name in READING:
            setattr(os, name, self._looking(real[name], thread))
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _changing(self, name: str, real: Callable[..., Any], thread: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            creates = name != "open" or arguments[1] & os.O_CREAT
            if threading.get_ident() != thread or not creates:
                return real(*arguments, **named)
            if self._off:
                raise PowerCut(name)
            number = len(self.changes)
            self.changes.append(name)
            if number == self._cut_at:
                self._off = True
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise PowerCut(f"{name}, change {number}")
            if number == self._fail_at:
                raise OSError(errno.EIO, f"{name}, change {number}, was made to fail")
            result = None if name == "fsync" else real(*arguments, **named)
            self.after(name)
            return result

        return call

    def _looking(self, real: Callable[..., Any], thread: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() == thread:
                self.looks += 1
            return real(*arguments, **named)

        return call
