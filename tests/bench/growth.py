"""How cost grows, as two pictures and a table: `python -m tests.bench.growth`.

Claims on the embedded API server (time to Bound for all, memory, a scrape), and files in one tree (a first pass, one
that finds nothing changed, usage). Each point is one measurement on file systems of its own: what counts is the slope
over decades, beside which the noise of a machine is small.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import accounts, copies, embedded, plots
from tests.bench.burst import BenchError
from tests.bench.plots import Line, Panel
from tests.bench.report import Row, table
from tests.bench.stand import progress
from tests.bench.trees import GIB, disk, fill
from tests.plugins.controller import Ended

CLAIMS = (1000, 10_000, 100_000)
FILES = (10_000, 100_000, 1_000_000)
DOCS = Path(__file__).resolve().parents[2] / "docs"
PER_DIRECTORY = 100
ROUNDS = 3  # of usage
LINEAR = 1.3  # times as much as what is linear: still called that, of single measurements


@dataclass(frozen=True, slots=True)
class Tree:
    """Seconds, of so many files: passes, `du`, our whole look, and our look after some files changed. `rsync`: a first
    one of its, until it is durable, as ours is."""

    files: int
    first: float
    rsync: float
    unchanged: float
    du: float
    whole: float
    changed: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--only", choices=("claims", "files"), help="draw this picture alone")
    parser.add_argument("--claims", type=int, nargs="+", default=CLAIMS, metavar="COUNT")
    parser.add_argument("--files", type=int, nargs="+", default=FILES, metavar="COUNT")
    settled = "seconds that the standby has to follow, and then volumes to be measured (%(default)g)"
    parser.add_argument("--settled", type=float, default=embedded.SETTLED, help=settled)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the pictures go (docs/)")
    arguments = parser.parse_args()
    parts = [arguments.only] if arguments.only else ["claims", "files"]
    directory = Path(tempfile.mkdtemp(prefix="nfs-provisioner-bench-"))
    try:
        plots.require()  # what is missing is told before minutes are spent
        print(
            table(rows(directory, arguments.docs, parts, arguments.claims, arguments.files, settled=arguments.settled))
        )
    except (BenchError, AssertionError, Ended) as error:  # AssertionError: what clients and waits of tests raise
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory)
    return 0


def rows(
    home: Path,
    docs: Path = DOCS,
    parts: Sequence[str] = ("claims", "files"),
    claims: Sequence[int] = CLAIMS,
    files: Sequence[int] = FILES,
    *,
    settled: float = embedded.SETTLED,
) -> list[Row]:
    """Measure, draw, and tell."""
    found: list[Row] = []
    if "claims" in parts:
        made = []
        for count in claims:
            progress(f"growth: {count:,} claims")
            (place := home / f"claims-{count}").mkdir()
            made.append(embedded.grown(place, count, settled=settled))
        panels = _claims_panels(made)
        plots.draw(docs / "growth-claims.png", "claims, on the embedded API server", panels)
        found += _rows("claims", panels)
    if "files" in parts:
        panels = _files_panels([_tree(home, count) for count in files])
        plots.draw(docs / "growth-files.png", f"files, {PER_DIRECTORY:,} in a directory, ext4 to ext4", panels)
        found += _rows("files", panels)
    return found


def _tree(home: Path, count: int) -> Tree:
    progress(f"growth: {count:,} files")
    with disk(home, 48 * GIB) as both:
        source = both / "active" / "tree"
        fill(source, count, 16, per_directory=PER_DIRECTORY)
        first, again = (copies.timed_pass(source, both / "target")[1] for _ in range(2))
        if (first.copied_files, again.copied_files) != (count, 0):
            raise BenchError(f"{first.copied_files}, then {again.copied_files} files were copied of {count}")
        (both / "rsync").mkdir()
        rsync = copies.rsync_pass(source, both / "rsync")[1]
        found = accounts.accounted(both / "active", ROUNDS)
    du, changed = (median(taken) for taken in zip(*((one.du, one.ours) for one in found.rounds), strict=True))
    progress(
        f"{count:,} files: {first.seconds:.1f} s, rsync {rsync:.1f} s; again {again.seconds:.2f} s; all of usage {found.whole:.2f} s"
    )
    return Tree(count, first.seconds, rsync, again.seconds, du, found.whole, changed)


def _claims_panels(made: Sequence[embedded.Claims]) -> list[Panel]:
    x = [one.claims for one in made]
    return [
        Panel("all Bound", "s", [Line("from the first request", x, [one.bound for one in made])]),
        Panel(
            "memory (PSS)",
            "MB",
            [
                Line("controller and its workers", x, [one.pss / 1e6 for one in made]),
                Line("controller alone", x, [one.own / 1e6 for one in made]),
            ],
        ),
        Panel("a scrape", "s", [Line("/metrics", x, [one.scrape.median for one in made])]),
    ]


def _files_panels(trees: Sequence[Tree]) -> list[Panel]:
    x = [one.files for one in trees]
    return [
        Panel(
            "a pass",
            "s",
            [
                Line("first", x, [one.first for one in trees]),
                Line("rsync", x, [one.rsync for one in trees]),
                Line("nothing changed", x, [one.unchanged for one in trees]),
            ],
        ),
        Panel(
            "usage",
            "s",
            [
                Line("a whole look", x, [one.whole for one in trees]),
                Line("du", x, [one.du for one in trees]),
                Line(f"after {accounts.CHANGED} changed files", x, [one.changed for one in trees]),
            ],
        ),
    ]


def _rows(what: str, panels: Sequence[Panel]) -> list[Row]:
    """One for each line that is ours: the last value compared with what the one before it makes one expect."""
    found = []
    for panel in panels:
        for line in panel.lines:
            if line.name in ("du", "rsync"):
                continue
            growths = [
                (ys / y) / (xs / x) for x, xs, y, ys in zip(line.x, line.x[1:], line.y, line.y[1:], strict=False)
            ]
            counts = ", ".join(f"{x:,}" for x in line.x)
            found.append(
                Row(
                    f"{counts} {what}: {panel.title}, {line.name}",
                    "",
                    ", ".join(f"{y:.3g}" for y in line.y) + f" {panel.unit}",
                    "of linear, step by step: " + ", ".join(f"{growth:.2f}" for growth in growths),
                    f"linear (at most {LINEAR:g})",
                    max(growths, default=1.0) <= LINEAR,
                )
            )
    return found


if __name__ == "__main__":
    sys.exit(main())
