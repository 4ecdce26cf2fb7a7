"""Soft quotas: when a volume is over what its claim requested, and what its owner is told. Pure."""

from __future__ import annotations

from nfs_provisioner.config import format_quantity, rough_size
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.usage import Usage

#: Share of what was requested that usage must fall below before going over it is news again.
AGAIN_BELOW = 0.95
_ROOM = 1.2  # of what is used: the growth that is suggested
_UNITS = (1 << 30, 1 << 20, 1 << 10)


def applies(record: VolumeRecord) -> bool:
    """Whether somebody asked for a quota, and there is a claim to tell."""
    return record.policy.quota == "soft" and record.state is State.LIVE and record.requested > 0


def exceeded(used: int, requested: int, before: bool) -> bool:
    """Whether a volume counts as over its quota, when it did (or did not) `before` this figure."""
    if used > requested:
        return True
    return before and used >= AGAIN_BELOW * requested


def message(record: VolumeRecord, usage: Usage) -> str:
    """For the claim's owner: the figures, and what can be done."""
    used, requested = rough_size(usage.bytes), rough_size(record.requested)
    if used == requested:
        used, requested = f"{usage.bytes} bytes", f"{record.requested} bytes"
    claim, size = record.claim, format_quantity(_suggested(usage.bytes))
    patch = f'{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}'
    return (
        f"the files of this claim take {used}, more than the {requested} that it requested ({usage.inodes} entries). "
        "Nothing stops them from growing on at the cost of others on the export: delete some, or ask for more, for "
        f"example with kubectl -n {claim.namespace} patch pvc {claim.name} -p '{patch}'"
    )


def _suggested(used: int) -> int:
    """A round size with some room."""
    wanted = int(used * _ROOM) + 1
    unit = next((unit for unit in _UNITS if wanted >= 4 * unit), 1 << 10)
    return -(-wanted // unit) * unit
