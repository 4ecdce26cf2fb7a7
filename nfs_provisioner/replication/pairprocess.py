"""The controller's end of a pair's child process: starts it, sends passes, and gives it up when one stands still.

Nothing here touches a file of the export. A pass has no deadline: a large one takes hours. It must move, though: where
its counter stands still for a minute, a server hangs, and the child is killed; every pass under way then fails.
"""

from __future__ import annotations

import logging
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

from nfs_provisioner.errors import NfsProvisionerError, RetryLater
from nfs_provisioner.export.worker import LeaseEnd, pack_error, unpack_error
from nfs_provisioner.replication.hints import Hints
from nfs_provisioner.replication.pairtalk import Beat
from nfs_provisioner.replication.watcher import Dirty

log = logging.getLogger(__name__)

STANDSTILL = 60.0  # seconds without progress after which a pass counts as hung
LAST_WAIT = 1.0  # seconds after which a child that was killed is known to hang in the kernel
_LOOK = 1.0  # seconds between looks at the counter
PAIR_COMMAND = (sys.executable, "-m", "nfs_provisioner.replication.pairwork")


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    free: queue.LifoQueue[tuple[int, Connection]] = field(default_factory=queue.LifoQueue)
    ended: str = ""


class PairProcess:
    """Thread-safe. `raise_seq` is called, on the calling thread, when a pass is about to write."""

    def __init__(
        self,
        name: str,
        active: str,
        standby: str,
        lease: LeaseEnd,
        raise_seq: Callable[[], int],
        *,
        lanes: int,
        on_dirty: Callable[[str, Dirty], None] = lambda pv, directories: None,
        command: Sequence[str] = PAIR_COMMAND,
        standstill: float = STANDSTILL,
    ) -> None:
        self.name = name
        self._paths = active, standby
        self._lease = lease
        self._raise_seq = raise_seq
        self._lanes = lanes
        self._command = command
        self._standstill = standstill
        self._beat = Beat()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._on_dirty = on_dirty
        self._hints: Hints | None = None
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether there is a child that moves as far as anybody knows."""
        return self._child is not None and not self._child.ended

    @property
    def pid(self) -> int | None:
        """Of the child, for diagnosis."""
        child = self._child
        return None if child is None else child.process.pid

    def start(self) -> None:
        """Start a new child (ending the old one). RetryLater after `stop`."""
        self._end("restarted")
        if self._closed:
            raise RetryLater(f"pair {self.name}: stopped")
        before = self._child
        if before is not None and before.process.poll() is None:  # or there would be one more with each try
            raise RetryLater(f"pair {self.name}: {before.ended}; it was killed, and still hangs in the kernel")
        pairs = [socket.socketpair() for _ in range(self._lanes + 1)]  # the last one for hints
        theirs = [pair[1].fileno() for pair in pairs]
        inherited = (self._lease.fd, self._beat.fd)
        try:
            process = subprocess.Popen(
                [*self._command, ",".join(map(str, theirs)), *map(str, inherited), *self._paths],
                pass_fds=(*theirs, *inherited),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            for ours, other in pairs:
                ours.close()
                other.close()
            raise RetryLater(f"pair {self.name}: its worker cannot be started: {error.strerror}") from error
        child = _Child(process)
        for slot, (ours, other) in enumerate(pairs):
            other.close()
            connection = Connection(ours.detach())
            if slot < self._lanes:
                child.free.put((slot, connection))
            else:
                self._hints = Hints(connection, self._on_dirty, self.name)
        with self._lock:
            self._child = child
            closed = self._closed
        if closed:  # meanwhile, by somebody who could not know of it
            self._end("stopped")
            raise RetryLater(f"pair {self.name}: stopped")

    def watch(self, volumes: Iterable[str]) -> None:
        """Hear of changes in these volumes on the active side, a disk of this machine."""
        if self._hints is not None:
            self._hints.watch(volumes)

    def call(self, operation: str, *arguments: Any) -> Any:
        """Do `operation` in the child. Raises what it raised, or RetryLater when the child ended or stands still."""
        child = self._child
        if child is None or child.ended:
            raise RetryLater(f"pair {self.name}: {child.ended if child else 'not started'}")
        slot, connection = child.free.get()
        try:
            connection.send((operation, arguments))
            kind, result, packed = self._answer(child, slot, connection, operation)
            while kind == "raise_seq":
                connection.send(self._seq())
                kind, result, packed = self._answer(child, slot, connection, operation)
        except (EOFError, OSError) as error:
            connection.close()
            self._end_child(child, f"its worker ended ({type(error).__name__})")
            raise RetryLater(f"pair {self.name}: {child.ended}") from error
        child.free.put((slot, connection))
        if packed is not None:
            raise unpack_error(packed)
        return result

    def _answer(self, child: _Child, slot: int, connection: Connection, operation: str) -> Any:
        seen, since = self._beat.count(slot), monotonic()
        while not connection.poll(min(_LOOK, self._standstill)):
            count = self._beat.count(slot)
            if count != seen:
                seen, since = count, monotonic()
            if child.ended:
                raise EOFError
            if monotonic() - since >= self._standstill:
                self._end_child(
                    child, f"{operation!r} stands still for {self._standstill:g} s: a server hangs or is out of reach"
                )
                raise EOFError
        return connection.recv()

    def _seq(self) -> tuple[int, tuple[str, str, str] | None]:
        try:
            return self._raise_seq(), None
        except NfsProvisionerError as error:
            return 0, pack_error(error, self.name)

    def _end(self, why: str) -> None:
        child = self._child
        if child is None:
            return
        self._end_child(child, why)
        try:
            child.process.wait(timeout=LAST_WAIT)
        except subprocess.TimeoutExpired:
            log.warning("worker %d of pair %s hangs in the kernel, and is left to it", child.process.pid, self.name)

    def _end_child(self, child: _Child, why: str) -> None:
        """Kill it; who waits for it sees its end. The first reason is the one that is told."""
        with self._lock:
            if child.ended:
                return
            child.ended = why
        child.process.kill()
        while True:
            try:
                child.free.get_nowait()[1].close()
            except queue.Empty:
                break

    def close(self) -> None:
        """End the child for good, without waiting for it."""
        with self._lock:
            self._closed, child = True, self._child
        if child is not None:
            self._end_child(child, "stopped")

    def stop(self) -> None:
        """End the child for good; one that hangs in the kernel is left to it after a second."""
        self.close()
        self._end("stopped")
        self._beat.close()
