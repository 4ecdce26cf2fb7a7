"""Which NFSExports may not be used because another has their directory. Pure.

Two exports in one directory, or one inside the other's, would take each other's volumes for strangers and count the
same space twice. The older one goes on; of two that are equally old, the first by name. It does not matter whether the
older one is in use: who may be used must not change because a third one comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nfs_provisioner.config import ExportSpec, ReplicaSpec
from nfs_provisioner.config.fields import is_at_or_below


@dataclass(frozen=True, slots=True)
class Present:
    """An NFSExport that was understood. `created` is its creationTimestamp."""

    created: str
    spec: ExportSpec

    @property
    def age(self) -> tuple[str, str]:
        """Sorts the older first."""
        return self.created, self.spec.name


def refusals(exports: Iterable[Present]) -> dict[str, str]:
    """Name of each export that may not be used, and why."""
    older: list[Present] = []
    found: dict[str, str] = {}
    for export in sorted(exports, key=lambda one: one.age):
        why = next((why for other in older if (why := _overlap(export.spec, other.spec))), "")
        if why:
            found[export.spec.name] = why
        older.append(export)
    return found


def _overlap(younger: ExportSpec, older: ExportSpec) -> str:
    for index, mine in enumerate(younger.replicas):
        for theirs in older.replicas:
            how = _how(mine, theirs)
            if how:
                return (
                    f"NFSExport {younger.name}: spec.replicas[{index}].mountPath: {mine.mount_path!r} {how} "
                    f"{theirs.mount_path!r}, replica {theirs.name} of NFSExport {older.name}, which is older; two "
                    f"exports cannot share a directory: write another one, or delete NFSExport {older.name} first"
                )
    return ""


def _how(mine: ReplicaSpec, theirs: ReplicaSpec) -> str:
    if mine.mount_path == theirs.mount_path:
        return "is also"
    if is_at_or_below(mine.mount_path, theirs.mount_path):
        return "lies in"
    return "contains" if is_at_or_below(theirs.mount_path, mine.mount_path) else ""
