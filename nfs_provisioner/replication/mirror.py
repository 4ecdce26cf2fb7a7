"""Keeps a standby's directories, archives and deletions equal to its active's, by comparing records.

One thread per pair. Before the standby is written, the active's seq is raised; the standby takes it over when the
steps up to it are done. So an active that was rolled back is behind its standby, and is noticed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.standby import Step
from nfs_provisioner.replication.levels import compare

log = logging.getLogger(__name__)

LONGEST_GATHERING = 30.0  # seconds; as long as the standby is behind, its partner has the only copy
GATHER = 0.5  # seconds in which changes are gathered, so that a burst costs the standby a few synced batches
BATCH = 200  # steps a request; each must end well within its deadline
BATCH_DEADLINE = 60.0  # seconds
FULL_COMPARISON = 60.0  # seconds, also when nothing was heard of
LONGEST_PAUSE = 30.0


class Mirror:
    """The active's catalog is read, the standby is written. `busy` says that claims are waiting: then it waits too."""

    def __init__(
        self,
        export: str,
        catalog: Catalog,
        active: Attachment,
        standby: Attachment,
        standby_records: list[VolumeRecord],
        *,
        busy: Callable[[], bool] = lambda: False,
        on_compared: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_compared` is called after each comparison that went through, from the mirror's thread."""
        self._export = export
        self._catalog = catalog
        self._active = active
        self._standby = standby
        self._records = {record.pv: record for record in standby_records}
        self._busy = busy
        self._on_compared = on_compared
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._message = ""
        self._thread = threading.Thread(target=self._run, name=f"mirror-{export}", daemon=True)

    @property
    def message(self) -> str:
        """What does not go on by itself; empty when all is well."""
        return self._message

    def start(self) -> None:
        """Begin with a comparison of everything."""
        self._changed.set()
        self._thread.start()

    def stop(self) -> None:
        """End; steps that were sent are finished by the standby's own worker or not at all."""
        self._stopped.set()
        self._changed.set()

    def wake(self) -> None:
        """A record of the active changed."""
        self._changed.set()

    def acknowledged(self, pv: str) -> bool:
        """Whether the standby holds nothing under this name any more."""
        record = self._records.get(pv)
        return record is None or not record.holds_directory

    def follows(self, record: VolumeRecord) -> bool:
        """Whether the standby has this volume's directory in the same place, under the same record."""
        mine = self._records.get(record.pv)
        same = mine is not None and (mine.rev, mine.directory, mine.tree) == (record.rev, record.directory, record.tree)
        return same and mine is not None and mine.state is record.state

    def _run(self) -> None:
        pause = FULL_COMPARISON
        while not self._stopped.is_set():
            self._changed.wait(pause)
            self._changed.clear()
            self._gather()
            if self._stopped.is_set():
                return
            try:
                self._compare()
                self._on_compared()
                pause = LONGEST_PAUSE if self._message else FULL_COMPARISON
            except LostLeadership:
                return
            except NfsProvisionerError as error:
                # The standby went away: its attachment notices by itself, and a new mirror starts with its return.
                log.info("export %s: the standby does not follow now: %s", self._export, error.message)
                pause = LONGEST_PAUSE
            except Exception:  # the last resort: a thread that ended would leave the standby behind for ever
                log.exception("export %s: unexpected error in following; going on", self._export)
                pause = LONGEST_PAUSE

    def _gather(self) -> None:
        """Let a burst pass: the claims come first, and one batch is cheaper than many."""
        for _ in range(int(LONGEST_GATHERING / GATHER)):
            if self._stopped.wait(GATHER) or not self._busy():
                return

    def _compare(self) -> None:
        difference = compare(self._catalog.all(), self._records)
        failures: list[str] = []
        steps = list(difference.steps)
        for start in range(0, len(steps), BATCH):
            if self._stopped.is_set():
                return
            failures += self._take(steps[start : start + BATCH])
        strangers = ""
        if difference.strangers:
            strangers = (
                f"the standby has {len(difference.strangers)} volumes that the active does not know "
                f"({', '.join(difference.strangers[:3])}, ...); they are kept"
            )
        self._message = "; ".join([*failures[:3], *([strangers] if strangers else [])])

    def _take(self, steps: list[Step]) -> list[str]:
        seq = int(self._active.replica.call("raise_seq"))
        self._active.note_seq(seq)
        names = [step.record.pv for step in steps if step.kind != "forget"]
        now: dict[str, VolumeRecord | None] = self._active.replica.call("read_many", names, deadline=BATCH_DEADLINE)
        full = [current for step in steps if (current := _with_manifests(step, now.get(step.record.pv))) is not None]
        results = self._standby.replica.call("follow", full, seq, deadline=BATCH_DEADLINE)
        self._standby.note_seq(seq)
        failures = []
        for step, result in zip(full, results, strict=True):
            if isinstance(result, str):
                failures.append(result)
                continue
            if step.kind == "forget":
                self._records.pop(step.record.pv, None)
                continue
            self._records[step.record.pv] = result
            if step.kind == "move" and step.donor not in (None, step.record.pv):
                left = self._records[step.donor or ""]
                self._records[left.pv] = left.advanced(state=State.DELETED, successor=step.record.pv)
        return failures


def _with_manifests(step: Step, now: VolumeRecord | None) -> Step | None:
    """The step with the whole record; None when the record moved on meanwhile: the next comparison has it."""
    if step.kind == "forget":
        return step
    if now is None or now.rev != step.record.rev:
        return None
    return replace(step, record=now)
