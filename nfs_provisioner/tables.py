"""Tables for people, out of the JSON of /api/status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfs_provisioner.config import rough_size as size

JsonObject = dict[str, Any]
_PHASE_STYLE = {"Ready": "green", "Degraded": "yellow", "Initializing": "yellow", "Diverged": "red", "Halted": "red"}


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        numeric = column in ("CAPACITY", "USED", "FREE", "RESERVED", "VOLUMES", "ARCHIVES", "REQUESTED")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table


def exports(console: Console, status: JsonObject) -> None:
    """Exports with their replicas, and what is wrong with them."""
    table = _table(
        "EXPORT", "PHASE", "ACTIVE", "LAG", "USED", "RESERVED", "CAPACITY", "FREE", "VOLUMES", "ARCHIVES", "REPLICAS"
    )
    for export in status["exports"]:
        replicas = ", ".join(
            f"{r['name']} {r['role']}{'' if r['reachable'] else ' UNREACHABLE'}" for r in export["replicas"]
        )
        table.add_row(
            export["name"],
            Text(export["phase"], style=_PHASE_STYLE.get(export["phase"], "")),
            export["active"] or "-",
            _seconds(export["lag"]),
            size(export["used"]),
            size(export["reserved"]),
            size(export["capacity"]),
            size(export["available"]),
            str(export["volumes"]),
            str(export["archives"]),
            replicas,
        )
    console.print(table)
    for export in status["exports"]:
        if export["mirror"]:
            console.print(
                f"{export['name']}: a mirror: PVs name the active replica's own server, so it cannot be switched"
            )
        if export["message"]:
            console.print(Text(f"{export['name']}: {export['message']}", style="yellow"))
        if export["unmanaged"]:
            count = export["unmanaged"]
            what = "1 entry at its root belongs" if count == 1 else f"{count} entries at its root belong"
            console.print(f"{export['name']}: {what} to no volume; left alone")
    if not status["exports"]:
        console.print("There is no NFSExport yet: kubectl explain nfsexport.spec")


def _seconds(lag: float | None) -> str:
    """How long ago; nothing where there is no copy, or none yet."""
    if lag is None:
        return "-"
    return f"{lag:.0f}s" if lag < 600 else f"{lag / 60:.0f}m" if lag < 36000 else f"{lag / 3600:.0f}h"


def _plain(*cells: str) -> Iterator[Text]:
    """Names that tenants choose are no markup: `[/x]` in one must not break the table of all."""
    return map(Text, cells)


def volumes(console: Console, rows: list[JsonObject]) -> None:
    """One line a volume."""
    table = _table("NAMESPACE", "CLAIM", "EXPORT", "DIRECTORY", "REQUESTED", "STATE", "LAG", "PV")
    for row in rows:
        state = row["phase"] if row["state"] == "live" and row["phase"] else row["state"]
        table.add_row(
            *_plain(
                row["namespace"],
                row["claim"],
                row["export"],
                row["directory"],
                size(row["requested"]),
                state,
                _seconds(row["lag"]),
                row["volume"],
            )
        )
    console.print(table)
    for row in rows:
        if row["message"]:
            console.print(
                Text(f"{row['namespace']}/{row['claim']} ({row['volume']}): {row['message']}", style="yellow")
            )


def archives(console: Console, rows: list[JsonObject]) -> None:
    """One line an archive or retained directory."""
    table = _table("EXPORT", "NAME", "NAMESPACE", "CLAIM", "STATE", "SINCE", "REQUESTED", "KEPT")
    for row in rows:
        kept = "for ever" if row["retention"] is None else f"{row['retention'] / 86400:g} days"
        table.add_row(
            *_plain(
                row["export"],
                row["name"],
                row["namespace"],
                row["claim"],
                row["state"],
                row["since"],
                size(row["requested"]),
                kept,
            )
        )
    console.print(table)
