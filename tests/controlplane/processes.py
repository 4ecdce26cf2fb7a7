"""Child processes of the harness: started with a log file each, ended by their own pid and nobody else's.

Invariant: no child outlives this process, not even when it is killed (PR_SET_PDEATHSIG). The kernel ties that to the
thread that started the child, so start from a thread that lives as long as the child should.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: between fork and exec nothing may be imported
#: Below the ephemeral range (32768 and up), so that no outgoing connection takes a port between choosing and listening.
_PORTS = range(20000, 32000)


class StartupError(Exception):
    """A part of the control plane did not come up; the message ends with the last lines of its log."""


class Child:
    """One server process. Not thread-safe: one test drives it at a time."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The pid of the running process; an error when it is not running."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def add_flags(self, flags: Sequence[str]) -> None:
        """For the next start. A flag given twice counts the last time."""
        self._command += flags

    def start(self) -> None:
        if self._process is not None:
            raise RuntimeError(f"{self.name} is already running")
        parent = os.getpid()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the children in order
                preexec_fn=lambda: _die_with(parent),
            )

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self, *, grace: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds (0: at once). Stopping what is not running is a no-op."""
        if self._process is None:
            return
        if grace > 0 and self.running:
            self._process.send_signal(signal.SIGCONT)  # a paused process would sit on its SIGTERM
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.kill()
        self._process.wait()
        self._process = None

    def require_running(self) -> None:
        if self._process is None:
            raise StartupError(f"{self.name} is not running")
        if (code := self._process.poll()) is not None:
            raise StartupError(f"{self.name} exited with {code}; {self.log} ends with:\n{self.tail()}")

    def tail(self, size: int = 3000) -> str:
        text = self.log.read_bytes() if self.log.exists() else b""
        return text[-size:].decode(errors="replace")

    def wait_until(self, condition: Callable[[], bool], *, deadline: float, what: str) -> None:
        """Polls the condition until time.monotonic() reaches the deadline, or the process ends."""
        while not condition():
            self.require_running()
            if time.monotonic() > deadline:
                raise StartupError(f"{self.name}: {what} in time; {self.log} ends with:\n{self.tail()}")
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of 127.0.0.1 that nobody listened on a moment ago."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(_bound()).getsockname()[1] for _ in range(count)]


@contextlib.contextmanager
def _bound() -> Iterator[socket.socket]:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield candidate
            return
    raise StartupError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def _die_with(parent: int) -> None:
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
        os._exit(127)  # the parent is gone already: nobody would ever end this process
