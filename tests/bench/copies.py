"""The measurements of whole passes, rsync and ours by turns. Prints nothing but progress.

A time is only taken when the copy was really made: where a first pass was measured, rsync reads both sides afterwards
and finds nothing to do. Caches are warm for both: the source was written, or read, a moment before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.burst import BenchError
from tests.bench.once import Pass
from tests.bench.stand import progress
from tests.bench.trees import GIB, RSYNC, command, disk, fill, require_equal, settle

FILES, SIZE = 100_000, 2000
DELAYED_FILES, DELAY_MS, THREADS = 2000, 1, 32
RENAMED_FILES, RENAMED_SIZE = 1024, 1 << 20
MILLION = 1_000_000

_SHIM = Path(__file__).with_name("delay.c")
_SHIM_FLAGS = ("-O2", "-fPIC", "-shared", "-fno-builtin", "-D_GNU_SOURCE")


class NoCompiler(BenchError):
    """The delay needs one."""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round, with the start of the process; `durable`: until `sync -f` after it has ended, too."""

    rsync: float
    rsync_durable: float
    ours: float
    inside: Pass | None = None


def first_passes(home: Path, rounds: int) -> list[Round]:
    """Into empty file systems."""
    found = []
    with disk(home, 3 * GIB) as source:
        fill(source / "tree", FILES, SIZE)
        for number in range(1, rounds + 1):
            with disk(home, 3 * GIB) as target:
                rsync, durable = rsync_pass(source / "tree", target / "tree")
            with disk(home, 3 * GIB) as target:
                ours = _sync(source / "tree", target / "tree")
                require_equal(source / "tree", target / "tree")
            found.append(_told("first pass", number, rounds, Round(rsync, durable, ours)))
    return found


def unchanged_passes(home: Path, rounds: int) -> list[Round]:
    """Of both on one target, which neither changes."""
    found = []
    with disk(home, 3 * GIB) as source, disk(home, 3 * GIB) as target:
        fill(source / "tree", FILES, SIZE)
        rsync_pass(source / "tree", target / "tree")
        for number in range(1, rounds + 1):
            rsync, durable = rsync_pass(source / "tree", target / "tree")
            ours = _sync(source / "tree", target / "tree")
            _, inside = timed_pass(source / "tree", target / "tree")
            if inside.copied_files:
                raise BenchError(f"{inside.copied_files} files were copied although nothing had changed")
            found.append(_told("nothing changed", number, rounds, Round(rsync, durable, ours, inside)))
    return found


def delayed_passes(home: Path, rounds: int) -> list[Round]:
    """First passes with each call on the two trees delayed. NoCompiler when the delay cannot be built."""
    found = []
    with disk(home, 2 * GIB) as both:
        fill(both / "source", DELAYED_FILES, SIZE, per_directory=100)
        delay = {
            "LD_PRELOAD": str(_shim(home)),
            "DELAY_BELOW": str(both.resolve()),
            "DELAY_NANOSECONDS": str(DELAY_MS * 1_000_000),
        }
        for number in range(1, rounds + 1):
            rsync, durable = rsync_pass(both / "source", both / f"rsync-{number}", delay)
            target = both / f"ours-{number}"
            ours, inside = timed_pass(both / "source", target, f"--threads={THREADS}", environment=delay)
            require_equal(both / "source", target)
            found.append(_told("delayed", number, rounds, Round(rsync, durable, ours, inside)))
    return found


def renamed_passes(home: Path, rounds: int) -> list[Round]:
    """A directory gets a new name in each round; each program has its own copy to follow with."""
    found = []
    with disk(home, 2 * GIB) as source, disk(home, 4 * GIB) as theirs, disk(home, 4 * GIB) as target:
        fill(source / "tree", RENAMED_FILES, RENAMED_SIZE, per_directory=RENAMED_FILES)
        state = f"--state={home / 'renamed.state'}"
        rsync_pass(source / "tree", theirs / "tree")
        timed_pass(source / "tree", target / "tree", state)
        name = source / "tree" / "d0000"
        for number in range(1, rounds + 1):
            name = name.rename(name.with_name(f"renamed-{number}"))
            settle(source)
            rsync, durable = rsync_pass(source / "tree", theirs / "tree")
            ours, inside = timed_pass(source / "tree", target / "tree", state)
            require_equal(source / "tree", target / "tree")
            found.append(_told("rename", number, rounds, Round(rsync, durable, ours, inside)))
    return found


def million(home: Path, per_directory: int) -> tuple[Pass, Pass]:
    """A first pass over so many files, and one that finds nothing changed."""
    with disk(home, 48 * GIB) as both:  # as many inodes as that brings
        fill(both / "source", MILLION, 16, per_directory=per_directory)
        progress(f"{MILLION:,} files are there")
        first, again = (timed_pass(both / "source", both / "target")[1] for _ in range(2))
    if first.copied_files != MILLION or again.copied_files:
        raise BenchError(f"{first.copied_files}, then {again.copied_files} files were copied of {MILLION}")
    progress(f"{MILLION:,} files: {first.seconds:.0f} s, {first.peak / 1e6:.0f} MB; again {again.seconds:.1f} s")
    return first, again


def rsync_version() -> str:
    """For the circumstances."""
    found = subprocess.run((command("rsync", "rsync"), "--version"), capture_output=True, text=True, check=True)
    return "rsync " + found.stdout.split()[2]


def rsync_pass(source: Path, target: Path, environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds until rsync ends, and until what it copied is durable."""
    target.mkdir(exist_ok=True)
    os.sync()  # of everything: images share one disk, and a sync of one waits for what another left
    began = time.perf_counter()
    _run(command("rsync", "rsync"), *RSYNC, f"{source}/", f"{target}/", environment=environment)
    ended = time.perf_counter() - began
    settle(target)
    return ended, time.perf_counter() - began


def _sync(source: Path, target: Path) -> float:
    target.mkdir(exist_ok=True)
    os.sync()  # of everything: images share one disk, and a sync of one waits for what another left
    began = time.perf_counter()
    _run(sys.executable, "-m", "nfs_provisioner", "sync", str(source), str(target))
    return time.perf_counter() - began


def timed_pass(
    source: Path, target: Path, *options: str, environment: Mapping[str, str] | None = None
) -> tuple[float, Pass]:
    """A pass in a process of its own: seconds with its start, and what it tells."""
    target.mkdir(exist_ok=True)
    os.sync()  # of everything: images share one disk, and a sync of one waits for what another left
    began = time.perf_counter()
    words = (sys.executable, "-m", "tests.bench.once", str(source), str(target), *options)
    found = _run(*words, environment=environment)
    return time.perf_counter() - began, Pass(*json.loads(found))


def _run(*words: str, environment: Mapping[str, str] | None = None) -> str:
    found = subprocess.run(
        words,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        raise BenchError(f"{' '.join(words)} exited with {found.returncode}: {(found.stdout + found.stderr)[-2000:]}")
    return found.stdout


def _shim(home: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("no C compiler (cc or gcc) for the delay")
    shim = home / "delay.so"
    _run(compiler, *_SHIM_FLAGS, "-o", str(shim), str(_SHIM), "-ldl")
    return shim


def _told(what: str, number: int, rounds: int, found: Round) -> Round:
    inside = f", the pass alone {found.inside.seconds:.2f} s" if found.inside else ""
    progress(
        f"{what} {number}/{rounds}: rsync {found.rsync:.2f} s, durable {found.rsync_durable:.2f} s; "
        f"ours {found.ours:.2f} s{inside}"
    )
    return found
