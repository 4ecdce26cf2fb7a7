"""Whether a volume fits on an export, and which export it goes to. Pure: figures in, an export or a reason out.

New claims, clones, restores and growths are all decided here, by the same two rules: what is promised to all stays
below capacity x overcommit, and what is really free does not fall below the reserve. What was chosen is only taken
when the catalog has counted it (`Catalog.reserve`): figures grow old.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nfs_provisioner.config import ExportSpec, StorageClassSpec, rough_size
from nfs_provisioner.errors import Infeasible, RetryLater
from nfs_provisioner.volumes.decisions import AWAY, LOOK_AGAIN, QUIET
from nfs_provisioner.volumes.objects import Claim
from nfs_provisioner.volumes.selectors import matches


@dataclass(frozen=True, slots=True)
class Need:
    """What a volume needs, in bytes: `promise` more than is promised now, and `written` at once.

    `written` is None for what takes no new space, as a restore: then `spec.reserve` does not matter.
    """

    promise: int
    written: int | None = 0


class NoRoom(RetryLater):
    """It fits on none of `exports` now; whoever sees space appear on one of them knows by `need` whether it does."""

    def __init__(self, message: str, need: Need, exports: Sequence[str], *, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.need = need
        self.exports = tuple(exports)


@dataclass(frozen=True, slots=True)
class Room:
    """One export as a place for a new volume. Sizes in bytes; `problem` is set when it can take none now."""

    spec: ExportSpec
    capacity: int = 0
    available: int = 0
    reserved: int = 0
    problem: str = ""
    looking: bool = False  # the problem is only that the replicas were not looked at yet, a moment after the start
    held: int = 0  # of what is available: what clones that are being copied are still to write

    @property
    def limit(self) -> int:
        """What may be promised in all."""
        return int(self.capacity * self.spec.overcommit)

    @property
    def unreserved(self) -> int:
        """What may still be promised."""
        return self.limit - self.reserved

    @property
    def free(self) -> int:
        """What may still be written before the reserve is touched; negative when it was."""
        return self.available - self.held - self.spec.reserve.bytes_of(self.capacity)

    def fits(self, need: Need, *, promised: int = 0, written: int = 0) -> bool:
        """Whether there is room, after so much more has been promised and written."""
        if 0 < need.promise > self.unreserved - promised:
            return False  # what asks for no more than it has fits where too much is promised, too
        return need.written is None or need.written <= self.free - written


def choose_export(
    claim: Claim,
    storage_class: StorageClassSpec,
    rooms: Sequence[Room],
    need: Need | None = None,
    *,
    avoid: Collection[str] = (),
) -> Room:
    """The export for a new volume: among those that fit, the one with most unreserved space; ties by name.

    One of `avoid` only when no other fits.

    Infeasible when none of them can ever fit as things are written; RetryLater when one may, later: NoRoom when it is
    space that all of them lack.
    """
    need = need or Need(claim.requested)
    named = storage_class.parameters.exports
    missing = [name for name in named if all(room.spec.name != name for room in rooms)]
    candidates = [room for room in rooms if not named or room.spec.name in named]
    if missing and not candidates:
        there = ", ".join(sorted(room.spec.name for room in rooms)) or "none"
        raise Infeasible(
            f"StorageClass {storage_class.name}: parameter export names {missing[0]!r}, which does not exist; "
            f"NFSExports: {there}"
        )
    if not candidates:
        raise Infeasible("there is no NFSExport; create one (kubectl explain nfsexport.spec)")
    selected = [room for room in candidates if matches(claim.selector, room.spec.labels)]
    if not selected:
        raise Infeasible(
            f"no NFSExport of StorageClass {storage_class.name} has labels that match the claim's selector; "
            + "; ".join(f"{room.spec.name}: {labels_of(room.spec)}" for room in candidates)
        )
    usable = [room for room in selected if not room.problem]
    if not usable and any(room.looking for room in selected):
        raise RetryLater("the replicas are being looked at", after=LOOK_AGAIN, reason=QUIET)
    if not usable:
        away = "; ".join(f"export {room.spec.name}: {room.problem}" for room in selected)
        raise RetryLater(away, after=AWAY)
    fitting = [room for room in usable if room.fits(need)]
    if not fitting:
        raise no_room(usable, need)
    fitting = [room for room in fitting if room.spec.name not in avoid] or fitting
    return max(fitting, key=lambda room: (room.unreserved, tuple(-ord(c) for c in room.spec.name)))


def no_room(rooms: Sequence[Room], need: Need, *, reason: str | None = None) -> NoRoom:
    """The refusal, which says of each export how much is missing."""
    message = "; ".join(_lacks(room, need) for room in rooms)
    return NoRoom(message, need, [room.spec.name for room in rooms], reason=reason)


def _lacks(room: Room, need: Need) -> str:
    """How much is missing. One that lacks nothing any more was full a moment ago, and somebody has seen it."""
    parts = []
    if 0 < need.promise > room.unreserved:
        parts.append(
            f"lacks {rough_size(need.promise - room.unreserved)}: {rough_size(room.reserved)} of "
            f"{rough_size(room.limit)} are promised and {rough_size(need.promise)} are wanted"
        )
    if need.written is not None and need.written > room.free:
        kept = rough_size(room.spec.reserve.bytes_of(room.capacity))
        files = f" and the copied files take {rough_size(need.written)}" if need.written else ""
        held = f", {rough_size(room.held)} of them are for clones that are being copied" if room.held else ""
        parts.append(
            f"lacks {rough_size(need.written - room.free)} of really free space: {rough_size(room.available)} are "
            f"free{held}, {kept} are kept in reserve (spec.reserve){files}"
        )
    return f"export {room.spec.name} {' and '.join(parts) or 'was full a moment ago'}"


def labels_of(spec: ExportSpec) -> str:
    """An export's labels, for people."""
    return ", ".join(f"{key}={value}" for key, value in sorted(spec.labels.items())) or "no labels"
