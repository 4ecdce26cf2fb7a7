"""What a pair says to people: why a volume's copy is not clean, and what can be done. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nfs_provisioner.replication.pair import Ended
from nfs_provisioner.replication.pairtalk import Report

NAMED = 3  # volumes or files named in a message


def stalled(export: str, pv: str, count: int) -> str:
    """What the breaker waits for."""
    return (
        f"volume {pv}: {count} deletions wait on the standby, more than deleteLimit allows. If they are meant: "
        f"nfs-provisioner confirm-deletions {export} {pv}"
    )


def foreign(export: str, pv: str, ended: Ended) -> str:
    """What a person should know of entries that somebody else wrote."""
    return (
        f"volume {pv}: somebody else writes to the standby: entries there that are newer than our last write: "
        f"{ended.foreign} ({ended.message}); nothing is copied until they are gone. See who it is; then move them "
        f"away, or let the next pass put them into trash: nfs-provisioner confirm-deletions {export} {pv}"
    )


def not_ours(names: Sequence[str]) -> str:
    """Which entries somebody else wrote."""
    return f"not ours: {', '.join(names[:NAMED])}"


def explained(report: Report) -> str:
    """Why the pass was not clean, or what it could not carry, in one line."""
    parts = [f"{path}: {why}" for path, why in (*report.errors[:NAMED], *report.skipped[:NAMED])]
    if report.foreign:
        parts.insert(0, not_ours(report.foreign))
    if report.different:
        parts.insert(
            0, f"same size and times, other content, kept on both sides: {', '.join(report.different[:NAMED])}"
        )
    if report.waiting:
        parts.append(f"{report.waiting} deletions wait for confirmation")
    if report.unstable_count:
        parts.append(
            f"{report.unstable_count} files changed while they were copied ({', '.join(report.unstable[:NAMED])})"
        )
    if report.deferred and not report.clean:
        parts.append(f"{report.deferred} deletions are looked at again")
    return "; ".join(parts)
