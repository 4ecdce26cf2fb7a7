"""Tables for people, out of the JSON of /api/status.

Invariant: every row is one line; a terminal that is too narrow wraps it, as it wraps kubectl's. Cells that are folded
to two letters can neither be read nor copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfs_provisioner.config import rough_size as size

JsonObject = dict[str, Any]
_PHASE_STYLE = {"Ready": "green", "Degraded": "yellow", "Initializing": "yellow", "Diverged": "red", "Halted": "red"}

_BAR = 10  # cells


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        numeric = column in ("CAPACITY", "USED", "FREE", "RESERVED", "VOLUMES", "ARCHIVES", "REQUESTED", "FILES")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table


def _print(console: Console, table: Table) -> None:
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    console.width = width


def exports(console: Console, status: JsonObject) -> None:
    """Exports with their replicas, and what is wrong with them."""
    table = _table(
        "EXPORT", "PHASE", "ACTIVE", "LAG", "USED", "FREE", "FULL", "RESERVED", "CAPACITY", "VOLUMES", "ARCHIVES",
        "REPLICAS",
    )  # fmt: skip
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
            size(export["available"]),
            bar(console, export["used"], _total(export["used"], export["available"])),
            size(export["reserved"]),
            size(export["capacity"]),
            _count(export["volumes"]),
            _count(export["archives"]),
            replicas,
        )
    _print(console, table)
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


def _total(*sizes: int | None) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def bar(console: Console, part: int | None, whole: int | None) -> Text:
    """A share as a bar and a number. More than the whole is red and has a full bar; nothing but nothing has none."""
    if part is None or not whole:
        return Text("-")
    share = part / whole
    cells = _BAR if share >= 1 else min(_BAR - 1, math.ceil(share * _BAR))
    full, empty = ("█", "░") if console.encoding.startswith("utf") else ("#", ".")
    style = "red" if share > 1 else "yellow" if share >= 0.9 else ""
    return Text(f"{full * cells}{empty * (_BAR - cells)}{share:>5.0%}", style=style)


def by_use(rows: Iterable[JsonObject]) -> list[JsonObject]:
    """Volumes with the largest first, and those that were not measured yet last."""
    return sorted(rows, key=lambda r: (r["used"] is None, -(r["used"] or 0), r["namespace"], r["claim"]))


def _plain(*cells: str) -> Iterator[Text]:
    """Names that tenants choose are no markup: `[/x]` in one must not break the table of all."""
    return map(Text, cells)


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def volumes(console: Console, rows: list[JsonObject]) -> None:
    """One line a volume, in the order given."""
    table = _table(
        "NAMESPACE", "CLAIM", "USED", "REQUESTED", "USE", "FILES", "EXPORT", "DIRECTORY", "STATE", "LAG", "PV"
    )
    for row in rows:
        state = row["phase"] if row["state"] == "live" and row["phase"] else row["state"]
        table.add_row(
            *_plain(row["namespace"], row["claim"], _used(row), size(row["requested"])),
            bar(console, row["used"], row["requested"]),
            _count(row.get("inodes")),
            *_plain(row["export"], row["directory"], state, _seconds(row["lag"]), row["volume"]),
        )
    _print(console, table)
    _messages(console, rows)


def _used(row: JsonObject) -> str:
    """What was counted; `>`: there is more that could not be."""
    return f"{'>' if row.get('incomplete') else ''}{size(row.get('used'))}"


def _messages(console: Console, rows: list[JsonObject]) -> None:
    for row in rows:
        if row.get("message"):
            console.print(
                Text(f"{row['namespace']}/{row['claim']} ({row['volume']}): {row['message']}", style="yellow")
            )


def archives(console: Console, rows: list[JsonObject]) -> None:
    """One line an archive or retained directory."""
    table = _table("EXPORT", "NAME", "NAMESPACE", "CLAIM", "STATE", "SINCE", "USED", "FILES", "REQUESTED", "KEPT")
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
                _used(row),
                _count(row.get("inodes")),
                size(row["requested"]),
                kept,
            )
        )
    _print(console, table)
    _messages(console, rows)
