"""The table: medians of the rounds beside the goals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.burst import Result, percentile
from tests.bench.measure import IDLE_CLAIMS, Pair, Start

BOUND_GOAL, DELETED_GOAL = 0.85, 0.7  # of the floor
LATENCY_GOAL = 0.005  # seconds above the floor
MEMORY_GOAL = 150e6  # bytes
READY_GOAL = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    floor: str
    ours: str
    compared: str
    goal: str
    met: bool

    def __str__(self) -> str:
        met = "yes" if self.met else "no"
        return f"| {self.what} | {self.floor} | {self.ours} | {self.compared} | {self.goal} | {met} |"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = "| what | floor | ours | compared | goal | met |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(str, rows)])


def burst_rows(pairs: Sequence[Pair]) -> list[Row]:
    claims = pairs[0].ours.claims
    bound = _rate_row(
        f"{claims:,} claims at once, a pair of local directories: claims Bound per second (PVs made per second)",
        pairs,
        lambda result: result.bound_per_s,
        BOUND_GOAL,
        lambda results: f" ({median(result.volumes_per_s for result in results):.0f})",
    )
    deleted = _rate_row(
        "deleting them, policy archive: PVs gone per second (floor: DELETE alone)",
        pairs,
        lambda result: result.deleted_per_s or 0.0,
        DELETED_GOAL,
        lambda _results: "",
    )
    return [bound, deleted]


def idle_rows(pairs: Sequence[Pair]) -> list[Row]:
    differences = [_p50(pair.ours) - _p50(pair.floor) for pair in pairs]
    middle = median(differences)
    spread = f"{_milliseconds(min(differences))} to {_milliseconds(max(differences))}"
    return [
        Row(
            f"one claim on an idle cluster ({IDLE_CLAIMS} a round): claim created to PV created, p50 (p99)",
            _latency([pair.floor for pair in pairs]),
            _latency([pair.ours for pair in pairs]),
            f"{middle * 1000:+.1f} ms ({spread})",
            f"within {LATENCY_GOAL * 1000:g} ms",
            middle <= LATENCY_GOAL,
        )
    ]


def start_rows(starts: Sequence[Start], existing: int) -> list[Row]:
    pss, rss, peak = (median(sizes) for sizes in zip(*((s.pss, s.rss, s.peak) for s in starts), strict=True))
    workers = [median(sizes) for sizes in zip(*(sorted(s.workers) for s in starts), strict=True)]
    answering, ready = median(s.answering for s in starts), median(s.ready for s in starts)
    serving = median(s.serving for s in starts)
    with_workers = " + ".join(_megabytes(size) for size in workers)
    return [
        Row(
            f"memory with {existing:,} existing claims: PSS of the controller and its workers",
            "",
            f"{_megabytes(pss)} MB (workers {with_workers})",
            f"own process: RSS {_megabytes(rss)} MB, at most {_megabytes(peak)} MB",
            f"{_megabytes(MEMORY_GOAL)} MB",
            pss <= MEMORY_GOAL,
        ),
        Row(
            f"start with {existing:,} existing claims: until it leads with the export Ready",
            "",
            f"{ready:.1f} s",
            f"/readyz after {answering:.1f} s, a claim that waited Bound after {serving:.1f} s",
            f"{READY_GOAL:g} s",
            ready <= READY_GOAL,
        ),
    ]


def _rate_row(
    what: str,
    pairs: Sequence[Pair],
    rate: Callable[[Result], float],
    goal: float,
    more: Callable[[Sequence[Result]], str],
) -> Row:
    floor, ours = [pair.floor for pair in pairs], [pair.ours for pair in pairs]
    ratios = [rate(pair.ours) / rate(pair.floor) for pair in pairs]
    middle = median(ratios)
    return Row(
        what,
        f"{median(map(rate, floor)):.0f}{more(floor)}",
        f"{median(map(rate, ours)):.0f}{more(ours)}",
        f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"at least {goal:g}",
        middle >= goal,
    )


def _p50(result: Result) -> float:
    return percentile(result.volume_latencies, 0.5)


def _latency(results: Sequence[Result]) -> str:
    p99 = median(percentile(result.volume_latencies, 0.99) for result in results)
    return f"{_milliseconds(median(map(_p50, results)))} ms ({_milliseconds(p99)} ms)"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"
