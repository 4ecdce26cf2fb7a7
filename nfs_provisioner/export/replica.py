"""The controller's end of one replica: starts its child process, sends requests, and gives up on it in time.

Nothing here touches a file of the export. A request that is not answered by its deadline means that the server (or the
path to it) hangs: the child is killed, every waiting request fails with RetryLater, and the owner attaches again
later. A child in an uninterruptible call is left to the kernel; nobody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from nfs_provisioner.errors import NfsProvisionerError, RetryLater
from nfs_provisioner.export.gathering import Gathering
from nfs_provisioner.export.worker import LeaseEnd, unpack_error

log = logging.getLogger(__name__)

CALL_DEADLINE = 10.0  # seconds; longer than an NFS server's reboot pauses would block claims for no gain
LAST_WAIT = 1.0  # seconds after which a child that was killed is known to hang in the kernel
CONNECTIONS = 10  # requests under way at once: the default number of workers, and two for looking and following
WORKER_COMMAND = (sys.executable, "-m", "nfs_provisioner.export.worker")


@dataclass(slots=True)
class _Child:
    """One child and the connections to it; each is used by one request at a time, so nobody has to sort answers."""

    process: subprocess.Popen[bytes]
    sockets: list[socket.socket]
    free: queue.LifoQueue[Connection] = field(default_factory=queue.LifoQueue)
    ended: str = ""
    killed: float = 0.0  # moment, on the monotonic clock


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
    ) -> None:
        self.name = name
        self.path = path
        self._lease = lease
        self._command = command
        self._observe = observe
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self._gatherings: dict[str, Gathering[Any, Any]] = {}
        self.together = CONNECTIONS  # requests of one kind under way from which on others are gathered
        self.down = "not started"

    @property
    def pid(self) -> int | None:
        """Of the child, for diagnosis."""
        child = self._child
        return None if child is None else child.process.pid

    @property
    def up(self) -> bool:
        """Whether there is a child that answers as far as anybody knows."""
        return not self.down

    def start(self) -> None:
        """Start a new child (ending the old one). RetryLater after `close`."""
        self.stop("restarted")
        self._refuse_if_closed()
        pairs = [socket.socketpair() for _ in range(CONNECTIONS)]
        theirs = [pair[1].fileno() for pair in pairs]
        process = subprocess.Popen(
            [*self._command, ",".join(map(str, theirs)), str(self._lease.fd), self.path],
            pass_fds=(*theirs, self._lease.fd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        child = _Child(process, [pair[0] for pair in pairs])
        for ours, other in pairs:
            other.close()
            # A stopped child reads nothing: a send must not wait for it longer than a call may.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(CALL_DEADLINE), 0))
            child.free.put(Connection(os.dup(ours.fileno())))
        with self._lock:
            closed = self._closed
            if not closed:
                self._child, self.down = child, ""
        if closed:  # meanwhile, by somebody who could not know of it
            self._end(child, "stopped")
            self._refuse_if_closed()

    def call(self, operation: str, *arguments: Any, deadline: float = CALL_DEADLINE) -> Any:
        """Do `operation` in the child. Raises what it raised, or RetryLater when there is no answer in `deadline` s."""
        began = monotonic()
        child = self._child
        if child is None or child.ended:
            raise RetryLater(f"replica {self.name} ({self.path}): {self.down}")
        try:
            connection = child.free.get(timeout=deadline)
        except queue.Empty:
            # Every connection waits for an answer; whoever waits longest gives the child up.
            raise RetryLater(f"replica {self.name} ({self.path}): it is busy for {deadline:g} s now") from None
        try:
            connection.send((operation, arguments))
            if not connection.poll(max(0.0, deadline - (monotonic() - began))):
                self._give_up_on(
                    child, f"no answer to {operation!r} for {deadline:g} s: the server hangs or is out of reach"
                )
            result, packed = connection.recv()
        except (EOFError, OSError) as error:
            connection.close()
            return self._give_up_on(child, f"its worker ended ({type(error).__name__})")
        child.free.put(connection)
        self._observe(operation, monotonic() - began)
        if packed is not None:
            raise self._named(unpack_error(packed))
        return result

    def call_each(self, operation: str, item: Any) -> Any:
        """Like `call`, for operations that take a list of items and answer for each: what threads ask at the same
        time may go as one request."""
        gathering = self._gatherings.setdefault(operation, Gathering(lambda items: self.call_all(operation, items)))
        return gathering.ask(item, self.together)

    def call_all(self, operation: str, items: list[Any], *, deadline: float = CALL_DEADLINE) -> list[Any]:
        """`operation` with a list of items: for each its result, or the error that was its own."""
        answers = self.call(operation, items, deadline=deadline)
        return [self._named(one) if isinstance(one, NfsProvisionerError) else one for one in answers]

    def _named(self, error: NfsProvisionerError) -> NfsProvisionerError:
        """With the replica's name, for people who do not know where the controller mounts it."""
        if error.message.startswith(f"{self.path}:"):
            message = f"replica {self.name} ({self.path}){error.message.removeprefix(self.path)}"
            return type(error)(message, reason=error.reason)
        return error

    def _give_up_on(self, child: _Child, message: str) -> None:
        self._end(child, message)
        raise RetryLater(f"replica {self.name} ({self.path}): {child.ended}")

    def _end(self, child: _Child, message: str) -> None:
        """Kill the child; requests that wait for it wake up and fail. The first reason is the one that is told."""
        with self._lock:
            if child.ended:
                return
            child.ended, child.killed = message, monotonic()
            if self._child is child:
                self.down = message
        child.process.kill()
        for end in child.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads
            end.close()
        while True:
            try:
                child.free.get_nowait().close()
            except queue.Empty:
                break

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RetryLater(f"replica {self.name} ({self.path}): stopped")

    def close(self) -> None:
        """End the child for good, without waiting: many may end together before `stop` waits for each."""
        with self._lock:
            self._closed, child = True, self._child
        if child is not None:
            self._end(child, "stopped")

    def stop(self, why: str = "stopped") -> None:
        """End the child. Waits until a second after it was killed, and leaves one that still is there to the kernel."""
        child = self._child
        if child is None:
            return
        self._end(child, why)
        try:
            child.process.wait(timeout=max(0.0, child.killed + LAST_WAIT - monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("worker %d of replica %s hangs in the kernel, and is left to it", child.process.pid, self.name)
