"""Which volumes of an export are passed by themselves. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from nfs_provisioner.export.records import State, VolumeRecord

#: States in which a volume's directory lies still; in others it is on its way, being made, or gone.
PASSED = frozenset({State.LIVE, State.ARCHIVED, State.RETAINED, State.ORPHANED})


def outermost(records: Mapping[str, VolumeRecord]) -> dict[str, str]:
    """PV -> the PV whose pass takes care of it: volumes taken over may share a directory, or lie in another's.

    Only those that are not passed by themselves.
    """
    first: dict[str, str] = {}
    for pv in sorted(records):
        first.setdefault(records[pv].directory, pv)
    within: dict[str, str] = {}
    for pv, record in records.items():
        holder, above = first[record.directory], record.directory
        while "/" in above:
            above = above.rpartition("/")[0]
            holder = first.get(above, holder)
        if holder != pv:
            within[pv] = holder
    return within


def lies_still(record: VolumeRecord) -> bool:
    """Whether nobody writes there any more."""
    return record.state is State.ARCHIVED
