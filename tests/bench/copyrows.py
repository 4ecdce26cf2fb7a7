"""The rows of the table that are about copies: rsync is what the others call the floor. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from tests.bench.burst import percentile
from tests.bench.copies import (
    DELAY_MS,
    DELAYED_FILES,
    FILES,
    MILLION,
    RENAMED_FILES,
    RENAMED_SIZE,
    SIZE,
    THREADS,
    Round,
)
from tests.bench.events import DELAY, Followed
from tests.bench.once import Pass
from tests.bench.report import Row

FIRST_GOAL, UNCHANGED_GOAL, DELAYED_GOAL, RENAMED_GOAL = 1.3, 2.0, 8.0, 20.0  # times as fast as rsync
MEMORY_GOAL = 300e6  # bytes
FOLLOWED_GOAL = 1.0  # seconds, p99

_DELAYED = (
    f"first pass of {DELAYED_FILES:,} files with {DELAY_MS} ms added to every file-system call, {THREADS} threads"
)


def first_rows(rounds: Sequence[Round]) -> list[Row]:
    what = (
        f"first pass of {FILES:,} files of {SIZE / 1000:g} kB, ext4 to ext4: rsync (then `sync -f`); ours ends durable"
    )
    return [_row(what, rounds, _whole, FIRST_GOAL)]


def unchanged_rows(rounds: Sequence[Round]) -> list[Row]:
    what = f"nothing changed, {FILES:,} files"
    return [
        _row(f"{what}: with the start of both processes", rounds, _whole, UNCHANGED_GOAL, durable=False),
        _row(f"{what}: our pass alone, as in a controller that runs", rounds, _alone, UNCHANGED_GOAL, durable=False),
    ]


def delayed_rows(rounds: Sequence[Round]) -> list[Row]:
    return [_row(_DELAYED, rounds, _whole, DELAYED_GOAL)]


def delayed_missing(why: str) -> list[Row]:
    return [Row(_DELAYED, "", "", f"not measured: {why}", _goal(DELAYED_GOAL), False)]


def renamed_rows(rounds: Sequence[Round]) -> list[Row]:
    sent = max(one.inside.copied_bytes for one in rounds if one.inside)
    gib = RENAMED_FILES * RENAMED_SIZE / (1 << 30)
    what = f"a directory of {gib:g} GiB renamed ({sent:,} bytes copied by ours): rsync (then `sync -f`)"
    return [
        _row(f"{what}, our pass alone", rounds, _alone, RENAMED_GOAL),
        _row(f"{what}, with the start of our process", rounds, _whole, RENAMED_GOAL),
    ]


def followed_rows(rounds: Sequence[Followed]) -> list[Row]:
    """Percentiles of all changes of all rounds: one round has too few for a p99."""
    lsyncd = tuple(seconds for one in rounds for seconds in one.lsyncd)
    ours = tuple(seconds for one in rounds for seconds in one.ours)
    idle = "; ".join(f"idle: {one.idle:.1%} of a processor" for one in rounds if one.idle is not None)
    p99 = percentile(ours, 0.99)
    return [
        Row(
            f"one changed file among {FILES:,}, events on ({len(ours)} changes): until durable on the standby, p50 (p99); "
            f"lsyncd, delay {DELAY} s",
            _latency(lsyncd),
            _latency(ours),
            idle,
            f"p99 under {FOLLOWED_GOAL:g} s",
            p99 < FOLLOWED_GOAL,
        )
    ]


def million_rows(passes: tuple[Pass, Pass], per_directory: int) -> list[Row]:
    first, again = passes
    peak = max(first.peak, again.peak)
    return [
        Row(
            f"memory of a pass over {MILLION:,} files, {per_directory:,} in a directory: peak RSS",
            "",
            f"{first.peak / 1e6:.0f} MB; nothing changed {again.peak / 1e6:.0f} MB",
            f"in {first.seconds:.0f} s; nothing changed {again.seconds:.1f} s",
            f"{MEMORY_GOAL / 1e6:.0f} MB",
            peak < MEMORY_GOAL,
        )
    ]


def _row(
    what: str, rounds: Sequence[Round], ours: Callable[[Round], float], goal: float, *, durable: bool = True
) -> Row:
    ratios = [one.rsync / ours(one) for one in rounds]
    middle = median(ratios)
    floor, compared = _seconds(median(one.rsync for one in rounds)), ""
    if durable:
        floor += f" ({_seconds(median(one.rsync_durable for one in rounds))})"
        compared = f"; durable {median(one.rsync_durable / ours(one) for one in rounds):.2f}"
    return Row(
        what,
        floor,
        _seconds(median(map(ours, rounds))),
        f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}){compared}",
        _goal(goal),
        middle >= goal,
    )


def _whole(one: Round) -> float:
    return one.ours


def _alone(one: Round) -> float:
    assert one.inside is not None
    return one.inside.seconds


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _latency(values: tuple[float, ...]) -> str:
    return f"{_seconds(percentile(values, 0.5))} ({_seconds(percentile(values, 0.99))})"


def _goal(goal: float) -> str:
    return f"{goal:g} times as fast"
