"""`usage.json`: what was measured last of every volume, and which of them are over their quota.

Runs in the child process of the replica; encoding and decoding are pure. The file is a memory, not a promise: one that
is damaged counts as none, because everything in it can be measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from nfs_provisioner.errors import RefusedForSafety
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export.records import CONTROL_DIRECTORY, LATEST
from nfs_provisioner.export.root import Root

USAGE_FILE = "usage.json"
VERSION = 1
_LARGEST = 256 << 20  # bytes; some two million volumes
_ENDLESS = 1 << 63  # no file system says so

Figures = dict[str, tuple[int, int, float, bool]]
"""PV -> bytes, inodes, Unix time of the measurement, over its quota. Plain: two processes send it to each other."""


def read(root: Root) -> Figures:
    """What was written last; nothing when there is none, or it cannot be understood."""
    try:
        data = fs.read_file(root.control, USAGE_FILE, limit=_LARGEST)
        return {} if data is None else decode(data)
    except (OSError, ValueError, RefusedForSafety) as error:
        where = f"{root.path}/{CONTROL_DIRECTORY}/{USAGE_FILE}"
        print(f"{where} cannot be read ({error}); every volume is measured again", file=sys.stderr, flush=True)
        return {}


def write(root: Root, figures: Figures) -> None:
    """Replace it, durably and in one step."""
    root.write_control(USAGE_FILE, encode(figures))


def encode(figures: Figures) -> bytes:
    """One line a volume."""
    volumes = (
        json.dumps(pv, ensure_ascii=False) + ": " + json.dumps(_entry(*figure)) for pv, figure in figures.items()
    )
    text = f'{{"version": {VERSION}, "volumes": {{\n' + ",\n".join(volumes) + "\n}}\n"
    return text.encode("utf-8", "surrogatepass")


def _entry(size: int, inodes: int, at: float, exceeded: bool) -> Mapping[str, Any]:
    return {"bytes": size, "inodes": inodes, "at": at, **({"exceeded": True} if exceeded else {})}


def decode(data: bytes) -> Figures:
    """ValueError when it is anything but what `encode` makes."""
    try:
        raw = json.loads(data)
        if raw["version"] != VERSION:
            raise ValueError(f"version {raw['version']!r} is not {VERSION}")
        return {pv: _figure(entry) for pv, entry in raw["volumes"].items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _figure(entry: Mapping[str, Any]) -> tuple[int, int, float, bool]:
    size, inodes, at, exceeded = entry["bytes"], entry["inodes"], entry["at"], entry.get("exceeded", False)
    counts = type(size) is int and type(inodes) is int and 0 <= size < _ENDLESS and 0 <= inodes < _ENDLESS
    if not counts or type(at) not in (int, float) or not 0 <= at <= LATEST or type(exceeded) is not bool:
        raise ValueError(f"{entry!r} is not a figure")
    return size, inodes, float(at), exceeded
