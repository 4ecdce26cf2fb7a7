"""`python -m tests.bench`: measures provisioning beside the floor on a real control plane, copies beside rsync, and
accounting beside du; one table on stdout.

Nothing is asserted: machines are shared and noisy, and only a person can say what a figure is worth. Exit code 1 when
something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nfs_provisioner import __version__
from tests.bench import (
    accountrows,
    accounts,
    copies,
    copyrows,
    embedded,
    events,
    growth,
    measure,
    plots,
    report,
    trees,
)
from tests.bench.burst import BenchError
from tests.bench.stand import Stand, progress
from tests.controlplane import binaries
from tests.controlplane.controlplane import ControlPlane
from tests.controlplane.processes import StartupError
from tests.plugins.controller import Ended

CLUSTER_PARTS = ("claims", "idle", "memory")  # what needs a control plane
COPY_PARTS = ("copies", "unchanged", "delayed", "renamed", "events", "million")
ACCOUNT_PARTS = ("usage", "scrape")
USUAL = (*CLUSTER_PARTS, *COPY_PARTS, *ACCOUNT_PARTS)
GROWTH = "growth"  # takes as long as all others together, and draws into docs/: only when asked for
PARTS = (*USUAL, GROWTH)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", choices=PARTS, action="append", help=f"measure this alone; may be repeated (all but {GROWTH})"
    )
    parser.add_argument("--rounds", type=_positive, default=5, help="each figure is the median of so many (5)")
    parser.add_argument("--claims", type=_positive, default=1000, help="claims in the burst (1000)")
    parser.add_argument("--existing", type=_positive, default=10_000, help="claims that a start finds (10000)")
    parser.add_argument("--keep", action="store_true", help="leave the directory with logs and exports")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="nfs-provisioner-bench-"))
    try:
        print(_run(arguments, directory))
    except (
        BenchError,
        StartupError,
        AssertionError,
        Ended,
    ) as error:  # AssertionError: what clients and waits of tests raise
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            progress(f"kept: {directory}")
        else:
            shutil.rmtree(directory)
    return 0


def _run(arguments: argparse.Namespace, directory: Path) -> str:
    parts = arguments.only or USUAL
    if "events" in parts:
        trees.command("lsyncd", "lsyncd")  # what is missing is told before minutes are spent
    if GROWTH in parts:
        plots.require()
    rows: list[report.Row] = []
    versions = []
    if set(parts) & set(CLUSTER_PARTS):
        found, version = _on_a_cluster(arguments, directory, parts)
        rows += found
        versions.append(version)
    if set(parts) & set(COPY_PARTS):
        rows += _copies(arguments.rounds, directory, parts)
        versions.append(copies.rsync_version())
    if "usage" in parts:
        rows += accountrows.usage_rows(accounts.usage(directory, arguments.rounds))
    if "scrape" in parts:
        rows += accountrows.scrape_rows(embedded.grown(directory, accountrows.SCRAPED))
    if GROWTH in parts:
        rows += growth.rows(directory)
    return f"{_circumstances(arguments, versions)}\n\n{report.table(rows)}"


def _on_a_cluster(
    arguments: argparse.Namespace, directory: Path, parts: Collection[str]
) -> tuple[list[report.Row], str]:
    """The rows, and the versions of the servers."""
    if isinstance(binaries.find(build=False), binaries.Missing):
        progress("building the control plane, once for this machine; this takes some minutes")
    rows: list[report.Row] = []
    with ControlPlane.start(directory / "control-plane") as plane:
        stand = Stand(plane, directory)
        if "claims" in parts:
            rows += report.burst_rows(measure.bursts(stand, arguments.rounds, arguments.claims))
        if "idle" in parts:
            rows += report.idle_rows(measure.idle(stand, arguments.rounds))
        if "memory" in parts:
            rows += report.start_rows(measure.starts(stand, arguments.rounds, arguments.existing), arguments.existing)
        return rows, stand.versions


def _copies(rounds: int, directory: Path, parts: Collection[str]) -> list[report.Row]:
    rows: list[report.Row] = []
    if "copies" in parts:
        rows += copyrows.first_rows(copies.first_passes(directory, rounds))
    if "unchanged" in parts:
        rows += copyrows.unchanged_rows(copies.unchanged_passes(directory, rounds))
    if "delayed" in parts:
        try:
            rows += copyrows.delayed_rows(copies.delayed_passes(directory, rounds))
        except copies.NoCompiler as error:
            rows += copyrows.delayed_missing(str(error))
    if "renamed" in parts:
        rows += copyrows.renamed_rows(copies.renamed_passes(directory, rounds))
    if "events" in parts:
        rows += copyrows.followed_rows(events.followed(directory, rounds))
    if "million" in parts:
        for per_directory in (1000, copies.MILLION):
            rows += copyrows.million_rows(copies.million(directory, per_directory), per_directory)
    return rows


def _circumstances(arguments: argparse.Namespace, versions: Sequence[str]) -> str:
    """What a reader needs to judge the figures, or to get them again."""
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`: medians, rounds: {arguments.rounds} (least to most), "
        f"floor (of copies: rsync, lsyncd) and ours by turns.\n"
        f"{os.cpu_count()} cores {platform.machine()}, Linux {platform.release()}, "
        f"{', '.join((f'nfs-provisioner {__version__}', python, *versions))}."
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
