"""The controller's end of one replica: starts its child process, sends requests, and gives up on it in time.

Nothing here touches a file of the export. A request that is not answered by its deadline means that the server (or the
path to it) hangs: the child is killed, every waiting request fails with RetryLater, and the owner attaches again
later. A child in an uninterruptible call is left to the kernel; nobody waits for it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, NoReturn

from nfs_provisioner.errors import RetryLater
from nfs_provisioner.export.worker import LeaseEnd, unpack_error

log = logging.getLogger(__name__)

CALL_DEADLINE = 10.0  # seconds; longer than an NFS server's reboot pauses would block claims for no gain
WORKER_COMMAND = (sys.executable, "-m", "nfs_provisioner.export.worker")


class Replica:
    """One replica's child process. Thread-safe. `observe(operation, seconds)` is told of each answered request."""

    def __init__(
        self,
        name: str,
        path: str,
        lease: LeaseEnd,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        observe: Callable[[str, float], None] = lambda operation, seconds: None,
        on_down: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.name = name
        self.path = path
        self._lease = lease
        self._command = command
        self._observe = observe
        self._on_down = on_down
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, Future[Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self.down = "not started"

    @property
    def pid(self) -> int | None:
        """Of the child, for diagnosis."""
        return self._process.pid if self._process else None

    @property
    def up(self) -> bool:
        """Whether there is a child that answers as far as anybody knows."""
        return not self.down

    def start(self) -> None:
        """Start a new child (ending the old one)."""
        self.stop("restarted")
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), str(self._lease.fd), self.path],
                pass_fds=(theirs.fileno(), self._lease.fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        # A stopped child reads nothing: a send must not wait for it longer than a call may.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(CALL_DEADLINE), 0))
        connection = Connection(os.dup(ours.fileno()))
        with self._lock:
            self._process, self._connection, self._socket, self.down = process, connection, ours, ""
        threading.Thread(target=self._read, args=(connection,), name=f"replica-{self.name}", daemon=True).start()

    def call(self, operation: str, *arguments: Any, deadline: float = CALL_DEADLINE) -> Any:
        """Do `operation` in the child. Raises what it raised, or RetryLater when there is no answer in `deadline` s."""
        began = monotonic()
        future: Future[Any] = Future()
        with self._lock:
            if self._connection is None:
                raise RetryLater(f"replica {self.name} ({self.path}): {self.down}")
            number = next(self._numbers)
            self._pending[number] = future
            connection = self._connection
        try:
            with self._sending:
                connection.send((number, operation, arguments))
            result = future.result(timeout=deadline)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._give_up_waiting(connection, operation, deadline)
            self._fail(connection, f"its worker takes no requests ({error})")
            raise RetryLater(f"replica {self.name} ({self.path}): its worker takes no requests ({error})") from error
        finally:
            self._pending.pop(number, None)
        self._observe(operation, monotonic() - began)
        return result

    def _give_up_waiting(self, connection: Connection, operation: str, deadline: float) -> NoReturn:
        message = f"no answer to {operation!r} for {deadline:g} s: the server hangs or is out of reach"
        self._fail(connection, message)
        raise RetryLater(f"replica {self.name} ({self.path}): {message}") from None

    def _read(self, connection: Connection) -> None:
        while True:
            try:
                number, result, packed = connection.recv()
            except (EOFError, OSError):
                self._fail(connection, "its worker ended")
                connection.close()
                return
            future = self._pending.get(number)
            if future is None:
                continue
            try:
                if packed is not None:
                    future.set_exception(unpack_error(packed))
                else:
                    future.set_result(result)
            except InvalidStateError:
                continue  # its caller gave up in this very moment

    def _fail(self, connection: Connection, message: str) -> None:
        with self._lock:
            if self._connection is not connection:
                return
            self._connection, self.down = None, message
            pending, self._pending = self._pending, {}
            process, waker = self._process, self._socket
        if process is not None:
            process.kill()
        if waker is not None:
            with contextlib.suppress(OSError):
                waker.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads
            waker.close()
        for future in pending.values():
            if not future.done():
                future.set_exception(RetryLater(f"replica {self.name} ({self.path}): {message}"))
        self._on_down(message)

    def stop(self, why: str = "stopped") -> None:
        """End the child. Does not wait for one that hangs in the kernel."""
        with self._lock:
            connection, process = self._connection, self._process
        if connection is not None:
            self._fail(connection, why)
        if process is not None:
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                log.warning(
                    "the worker %d of replica %s hangs in a system call; left to the kernel", process.pid, self.name
                )
