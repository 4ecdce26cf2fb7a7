"""Keeps one replica attached: starts its child, looks at it, attaches it when its identity was proven, polls it.

One thread, so that a server that hangs holds up nothing but this. Decides nothing about identity: it reports what it
saw (`view`) and does what it is `assign`ed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RetryLater
from nfs_provisioner.export.identity import View
from nfs_provisioner.export.records import Identity, VolumeRecord
from nfs_provisioner.export.replica import CONNECTIONS, Replica
from nfs_provisioner.export.root import Abilities, Facts, Space

log = logging.getLogger(__name__)

POLL = 10.0  # seconds between looks at a replica that is well
FIRST_PAUSE = 1.0  # seconds before the first new try; doubles
LONGEST_PAUSE = 30.0
NOT_LOOKED_AT = "not looked at yet"
LOAD_DEADLINE = 120.0  # seconds; 100,000 records over NFS


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an attached replica holds."""

    records: list[VolumeRecord]
    problems: list[str]


class Attachment:
    """One replica of an export. `on_change(attachment, loaded)` is called from its thread after each change."""

    def __init__(
        self,
        replica: Replica,
        term: Callable[[], str],
        on_change: Callable[[Attachment, Loaded | None], None],
        *,
        poll: float = POLL,
        on_space: Callable[[Attachment], None] = lambda attachment: None,
    ) -> None:
        """`on_space(attachment)` is called from its thread after each look at the file system's size."""
        self.replica = replica
        self.name = replica.name
        self.space: Space | None = None
        self.abilities: Abilities | None = None
        self.attached: Identity | None = None
        self._term = term
        self._on_change = on_change
        self._on_space = on_space
        self._poll = poll
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._facts: Facts | None = None
        self._message = NOT_LOOKED_AT
        self._assigned: Identity | None = None
        self._set_aside = False  # an assignment was taken back: what was opened under it must not be used any more
        self._thread = threading.Thread(target=self._run, name=f"attach-{self.name}", daemon=True)

    def start(self) -> None:
        """Begin looking."""
        self._thread.start()

    def stop(self) -> None:
        """End the child and the thread; does not wait for a hung server."""
        self._stopped = True
        self._wake.set()
        self.replica.stop()

    def look_again(self) -> None:
        """Do now what would be done at the next poll."""
        self._wake.set()

    def doubt(self) -> None:
        """Somebody found another identity there than the one that was proven: look at everything anew."""
        with self._lock:
            self._set_aside = True
        self._wake.set()

    @property
    def message(self) -> str:
        """Why the replica cannot be used; empty when it can."""
        return self._message

    def view(self) -> View:
        """What is known. An identity that was assigned counts as being there: it is about to be."""
        with self._lock:
            facts = self._facts
            if facts is not None and self._assigned is not None:
                facts = replace(facts, identity=self._assigned)
            return View(self.name, facts, self._message)

    def assign(self, identity: Identity | None) -> None:
        """Attach with this identity, or (None) leave the replica alone."""
        with self._lock:
            if (identity is None) == (self._assigned is None):
                return  # nothing new; members are noted by set_members, seq by note_seq
            self._assigned = identity
            self._set_aside = self._set_aside or identity is None
        self._wake.set()

    def note_seq(self, seq: int) -> None:
        """The replica's seq was raised."""
        with self._lock:
            if self._assigned is not None:
                self._assigned = replace(self._assigned, seq=seq)

    def note_members(self, members: dict[str, str]) -> None:
        """The replica's list of members was written."""
        with self._lock:
            if self._assigned is not None:
                self._assigned = replace(self._assigned, members=members)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopped:
            try:
                self._step()
                if self.attached is not None:  # to answer is not enough: a read-only disk does that, too
                    pause = FIRST_PAUSE
                wait = self._poll
            except NfsProvisionerError as error:
                if isinstance(error, LostLeadership) or self._stopped:
                    return
                self._lost(error)
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
            except Exception as error:  # the last resort: a thread that ended would never attach again
                log.exception("replica %s: unexpected error; going on", self.name)
                self._lost(RetryLater(f"unexpected {type(error).__name__}: {error}"))
                wait = LONGEST_PAUSE
            self._wake.wait(wait)
            self._wake.clear()

    def _step(self) -> None:
        with self._lock:
            assigned, aside = self._assigned, self._set_aside
        if aside or self._facts is None or assigned is None or not self.replica.up:
            self._inspect()
        elif self.attached is None:
            self._attach(assigned)
        else:
            self.space = self.replica.call("space")
            self._on_space(self)

    def _inspect(self) -> None:
        with self._lock:
            aside, self._set_aside = self._set_aside, False
        if aside or not self.replica.up:  # what still runs in the old child must not meet descriptors of the next look
            try:
                self.replica.start()
            except OSError as error:  # no memory, no process or no descriptor left: it may be better later
                raise RetryLater(f"replica {self.name}: its worker cannot be started: {error.strerror}") from error
        facts: Facts = self.replica.call("inspect")
        # On a disk of this machine what is asked meanwhile shares the next request's syncs, which costs a third of
        # the processor time. Over a network each step waits for its round trip: side by side is faster.
        self.replica.together = 1 if facts.local else CONNECTIONS
        with self._lock:
            changed = aside or facts != self._facts or bool(self._message) or self.attached is not None
            if changed:  # what was assigned meanwhile was decided on other facts
                self._facts, self._message, self.attached, self._assigned = facts, "", None, None
        if changed:
            self._on_change(self, None)

    def _attach(self, identity: Identity) -> None:
        assert self._facts is not None
        self.abilities = self.replica.call("attach", identity, self._facts.identity, self._term())
        records, problems = self.replica.call("load", deadline=LOAD_DEADLINE)
        self.space = self.replica.call("space")
        with self._lock:
            self.attached, self._message = identity, ""
        log.info("replica %s (%s) attached: %d records", self.name, self.replica.path, len(records))
        self._on_change(self, Loaded(records, problems))

    def _lost(self, error: NfsProvisionerError) -> None:
        self.replica.stop(error.message)
        with self._lock:
            known = self._message == error.message and self._facts is None
            self._facts, self._message = None, error.message
            self.attached, self._assigned, self.space = None, None, None
        if not known:
            log.warning("replica %s: %s", self.name, error.message)
            self._on_change(self, None)
