"""Tables for people, out of the JSON of /api/status."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

JsonObject = dict[str, Any]
_PHASE_STYLE = {"Ready": "green", "Degraded": "yellow", "Initializing": "yellow", "Diverged": "red", "Halted": "red"}


def size(number: int | None) -> str:
    """A size with three digits at the most; `-` when it is not known."""
    if number is None:
        return "-"
    value, units = float(number), ("B", "Ki", "Mi", "Gi", "Ti", "Pi")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{value:.0f}{unit}" if value >= 10 or value == int(value) else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        numeric = column in ("CAPACITY", "USED", "FREE", "RESERVED", "VOLUMES", "ARCHIVES", "REQUESTED")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table


def exports(console: Console, status: JsonObject) -> None:
    """Exports with their replicas, and what is wrong with them."""
    table = _table(
        "EXPORT", "PHASE", "ACTIVE", "USED", "RESERVED", "CAPACITY", "FREE", "VOLUMES", "ARCHIVES", "REPLICAS"
    )
    for export in status["exports"]:
        replicas = ", ".join(
            f"{r['name']} {r['role']}{'' if r['reachable'] else ' UNREACHABLE'}" for r in export["replicas"]
        )
        table.add_row(
            export["name"],
            Text(export["phase"], style=_PHASE_STYLE.get(export["phase"], "")),
            export["active"] or "-",
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
            console.print(
                f"{export['name']}: {export['unmanaged']} entries at its root belong to no volume; they are left alone"
            )
    if not status["exports"]:
        console.print("There is no NFSExport yet: kubectl explain nfsexport.spec")


def volumes(console: Console, rows: list[JsonObject]) -> None:
    """One line a volume."""
    table = _table("NAMESPACE", "CLAIM", "EXPORT", "DIRECTORY", "REQUESTED", "STATE", "PV")
    for row in rows:
        state = row["phase"] if row["state"] == "live" and row["phase"] else row["state"]
        table.add_row(
            row["namespace"],
            row["claim"],
            row["export"],
            row["directory"],
            size(row["requested"]),
            state,
            row["volume"],
        )
    console.print(table)


def archives(console: Console, rows: list[JsonObject]) -> None:
    """One line an archive or retained directory."""
    table = _table("EXPORT", "NAME", "NAMESPACE", "CLAIM", "STATE", "SINCE", "REQUESTED", "KEPT")
    for row in rows:
        kept = "for ever" if row["retention"] is None else f"{row['retention'] / 86400:g} days"
        table.add_row(
            row["export"],
            row["name"],
            row["namespace"],
            row["claim"],
            row["state"],
            row["since"],
            size(row["requested"]),
            kept,
        )
    console.print(table)
