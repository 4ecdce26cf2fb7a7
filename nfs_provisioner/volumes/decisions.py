"""What to do about one volume, and why. Pure: no clock, no I/O; caches and records in, one decision out.

One volume is one PV name, `pvc-<claim uid>` for those we make, whatever changed about it: its claim, its PV or its
record. The rules are levels: calling `decide` again at any moment, on any state that a crash left, gives the step that
is due. Data is given up only on an observed Released PV of policy Delete (or on a tombstone): absence decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nfs_provisioner.config import ClassParameters
from nfs_provisioner.errors import Infeasible, NfsProvisionerError, RetryLater
from nfs_provisioner.export.records import Policy, State, VolumeRecord
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE, Claim, Volume

#: Reason of what nobody needs to hear: it is over in a moment, and the end of it brings the claim back.
QUIET = "Quiet"
LOOK_AGAIN = 5.0  # seconds
AWAY = 60.0  # seconds; an export that comes back brings the claims back, so this is only for what nobody thought of

_MODES = frozenset({"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"})
_GOING = frozenset({State.ARCHIVING, State.DELETING})


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is known about one volume.

    `claim` is the claim that the PV belongs to or would be made for; `record` and `export` are where its directory is
    recorded; `last_policy` is the reclaim policy of the PV when it was last seen.
    """

    name: str
    claim: Claim | None = None
    volume: Volume | None = None
    record: VolumeRecord | None = None
    export: str | None = None
    last_policy: str = ""
    looking: bool = False  # some export was not looked at yet, a moment after the start


Act = Literal[
    "idle",
    "provision",
    "undo",
    "make-live",
    "give-up",
    "release",  # take the finalizer off a PV that needs it no more
    "hold",  # put the finalizer on
    "remake",  # a PV deleted before it was bound: let it go and post it again
    "repost",  # a Lost claim gets its PV back
    "grow",
    "follow",  # the PV was bound to another claim by a person
    "disown",  # the PV is gone and nobody said so: orphaned (or retained, if the policy was Retain)
    "adopt",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is due, in one sentence why. `error` is set when the object asks for what cannot be done."""

    act: Act
    why: str
    error: NfsProvisionerError | None = None
    on_delete: str = ""


def decide(situation: Situation, *, adopt_from: frozenset[str] = frozenset()) -> Decision:
    """The step that is due."""
    if situation.volume is None:
        return _without_volume(situation)
    if situation.volume.provisioned_by in adopt_from:
        return _foreign(situation.volume)
    return _with_volume(situation, situation.volume)


def _without_volume(s: Situation) -> Decision:
    record, claim = s.record, s.claim
    if record is not None and record.state in _GOING:
        return Decision("give-up", f"{record.state} was begun before a restart", on_delete=_finishing(record))
    if claim is not None and claim.phase == "Lost" and claim.volume == s.name:
        return _lost(record, claim)
    wanted = claim is not None and not claim.deleting and not claim.volume
    if wanted and claim is not None:
        if record is not None and record.claim.uid != claim.uid:
            return Decision("idle", f"the name {s.name} is recorded for another claim, {record.claim}")
        if record is None or record.state in (State.CREATING, State.RESTORING, State.LIVE, State.ORPHANED):
            return Decision("provision", "the claim waits for its volume", error=unsupported(claim))
    if record is None:
        return Decision("idle", "nothing to do")
    if record.state in (State.CREATING, State.RESTORING):
        return Decision("undo", "the claim went away before its volume was finished")
    if record.state is State.LIVE:
        kept = "by its policy Retain" if s.last_policy == "Retain" else "and nobody said that its data may go"
        return Decision("disown", f"the PV is gone, {kept}")
    return Decision("idle", f"{record.state}, without a PV")


def _lost(record: VolumeRecord | None, claim: Claim) -> Decision:
    if record is None or record.state in (*_GOING, State.ARCHIVED, State.DELETED):
        return Decision("idle", f"claim {claim} is Lost and no record of {claim.volume} is left to give it back")
    if record.claim.uid != claim.uid:
        return Decision("idle", f"claim {claim} is Lost; {claim.volume} is recorded for another claim, {record.claim}")
    return Decision("repost", "the claim is Lost and its directory is still here: it gets its PV back")


def _with_volume(s: Situation, volume: Volume) -> Decision:
    record = s.record
    if volume.deleting and volume.phase in ("Pending", "Available"):
        if (
            s.claim is not None
            and not s.claim.deleting
            and volume.claim is not None
            and volume.claim.uid == s.claim.uid
        ):
            return Decision("remake", "the PV was deleted before it was bound: it goes, and is posted again")
        return Decision("release", "the PV was deleted before it was bound, and its claim is gone")
    if volume.phase == "Released":
        return _released(s, volume)
    if volume.phase not in ("Bound", "Available"):
        return Decision("idle", f"the PV is {volume.phase}")
    if record is not None and record.state in (State.CREATING, State.RESTORING, State.ORPHANED, State.RETAINED):
        return Decision("make-live", f"the PV exists; the record still says {record.state}")
    if volume.deleting:
        return Decision("idle", "the PV is being deleted, but its claim lives: its data is not touched (H58)")
    if record is None:
        return Decision("idle", f"no record of {s.name} on any export that can be read now")
    if record.state in _GOING:
        return Decision("idle", f"the record says {record.state} although the PV is {volume.phase}; left to a person")
    if volume.policy == "Delete" and not volume.owned:
        return Decision("hold", "reclaim policy Delete: the PV waits for us before it goes")
    if volume.policy != "Delete" and volume.owned:
        return Decision("release", f"reclaim policy {volume.policy}: the PV need not wait for us")
    if volume.phase == "Bound" and volume.claim is not None and volume.claim != record.claim and volume.claim.uid:
        return Decision("follow", f"the PV is bound to {volume.claim} now")
    return _growth(s, volume)


def _released(s: Situation, volume: Volume) -> Decision:
    record = s.record
    if volume.policy != "Delete":
        if volume.owned:
            return Decision("release", f"reclaim policy {volume.policy}: the PV need not wait for us")
        return Decision("idle", f"Released, and kept by its policy {volume.policy}")
    if s.claim is not None and volume.claim is not None and s.claim.uid == volume.claim.uid:
        return Decision("idle", f"Released, but its claim {s.claim} is still here; waiting for the caches to agree")
    if record is None and s.looking:
        later = RetryLater("the replicas are being looked at", after=LOOK_AGAIN, reason=QUIET)
        return Decision("idle", "Released; the exports are being looked at", error=later)
    if record is None:
        return Decision(
            "idle",
            "Released, but no export that can be read now has a record of it",
            error=RetryLater(
                f"no NFSExport that can be read now has a record of {volume.name} ({volume.server}:{volume.path}); "
                "its directory is not touched. If the export is gone for good, take the finalizer off the PV.",
                reason="VolumeFailedDelete",
            ),
        )
    if record.state in (State.CREATING, State.RESTORING):
        return Decision("make-live", f"Released already; the record still says {record.state}")
    if record.state in (State.ARCHIVED, State.DELETED):
        if not volume.owned:
            return Decision("idle", f"{record.state}: the PV goes")
        return Decision("release", f"{record.state}: only the finalizer is left")
    if record.state is State.RETAINED and volume.deleting:
        return Decision("release", "retained: only the finalizer is left")
    if volume.claim is None or record.claim.uid not in ("", volume.claim.uid):
        return Decision(
            "idle",
            "Released, but recorded for another claim",
            error=Infeasible(
                f"{volume.name} was bound to claim uid {volume.claim.uid if volume.claim else '-'}, but its "
                f"directory is recorded for {record.claim} with uid {record.claim.uid}: it is not touched. "
                "Archive it by hand, and take the finalizer off the PV.",
                reason="VolumeFailedDelete",
            ),
        )
    if not volume.owned and not volume.deleting:
        return Decision("hold", "Released, policy Delete: the PV waits for us before it goes")
    return Decision("give-up", f"Released, policy Delete: {record.policy.on_delete}", on_delete=record.policy.on_delete)


def _growth(s: Situation, volume: Volume) -> Decision:
    claim = s.claim
    if claim is None or claim.phase != "Bound" or claim.deleting or volume.phase != "Bound":
        return Decision("idle", f"{volume.phase}, as recorded")
    if claim.requested > volume.capacity:
        return Decision("grow", f"claim {claim} asks for {claim.requested} bytes, the PV has {volume.capacity}")
    if claim.resizing or (claim.capacity is not None and claim.requested > claim.capacity):
        return Decision("grow", "a growth was begun and not finished")
    if s.record is not None and s.record.requested != volume.capacity:
        return Decision("grow", "the PV grew and the record does not say so yet")
    return Decision("idle", "Bound, as recorded")


def _foreign(volume: Volume) -> Decision:
    if volume.phase != "Bound" or volume.deleting:
        return Decision(
            "idle", f"made by {volume.provisioned_by} and {volume.phase}: only bound volumes are taken over"
        )
    return Decision("adopt", f"made by {volume.provisioned_by}, which adoptFrom names")


def _finishing(record: VolumeRecord) -> str:
    return "archive" if record.state is State.ARCHIVING else "delete"


def unsupported(claim: Claim) -> Infeasible | None:
    """What no NFS volume can give; binding something else silently would be worse than refusing (H60)."""
    if claim.volume_mode != "Filesystem":
        return Infeasible(f"volumeMode {claim.volume_mode} cannot be had on NFS; set volumeMode: Filesystem")
    if claim.attributes_class:
        return Infeasible(
            f"volumeAttributesClassName {claim.attributes_class!r} means nothing to an NFS export; remove it"
        )
    if claim.data_source is not None and not claim.clone_from:
        return Infeasible(
            f"dataSource {str(claim.data_source)!r} is not supported; the claim would get an empty volume. Remove it, "
            "or name a PersistentVolumeClaim of the same namespace, or restore an archive with the annotation "
            f"{RESTORE_ARCHIVE}"
        )
    if claim.clone_from and claim.annotations.get(RESTORE_ARCHIVE):
        return Infeasible(
            f"the claim asks for a copy of claim {claim.clone_from!r} and, with the annotation {RESTORE_ARCHIVE}, for "
            "an archive; remove one of them"
        )
    unknown = [mode for mode in claim.access_modes if mode not in _MODES]
    if unknown:
        return Infeasible(f"access mode {unknown[0]!r} is unknown; use one of {', '.join(sorted(_MODES))}")
    return None


def frozen_policy(parameters: ClassParameters) -> Policy:
    """The part of a class that goes into the volume's record."""
    return Policy(
        on_delete=parameters.on_delete,
        archive_retention=parameters.archive_retention,
        directory_mode=parameters.directory_mode,
        uid=parameters.uid,
        gid=parameters.gid,
        quota=parameters.quota,
    )
