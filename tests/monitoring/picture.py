"""Draws the dashboard's panels as plots: `python -m tests.monitoring.picture [docs/dashboard.png]`, in five minutes.

A controller on the embedded API server leads some minutes of life (claims with files, one that outgrows its request, a
burst, failures, archives, a replica that is away and comes back) while a Prometheus scrapes it; then every panel's
queries are asked over that time, as Grafana would. Needs matplotlib and Debian's prometheus.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.monitoring.dashboard import ROWS, Panel
from tests.monitoring.files import ROOT, filled
from tests.monitoring.life import Life, port
from tests.monitoring.prometheus import Prometheus

COLUMNS = 4
STEP = 2.0  # seconds between two points
MOST_LINES = 8  # a panel with more shows the largest
MOST_BARS = 6
PEOPLE = 12  # claims that come one by one
BURST = 40
MI = 1 << 20


#: Of Grafana's units: divisors from the largest, and what to write at the axis.
UNITS: dict[str, list[tuple[float, str]]] = {
    "short": [(1, "")],
    "bytes": [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes")],
    "Bps": [(2**20, "MiB/s"), (2**10, "KiB/s"), (1, "bytes/s")],
    "percentunit": [(0.01, "%")],
    "s": [(1, "s"), (0.001, "ms")],
}


@dataclass(frozen=True, slots=True)
class Line:
    """Its name, and (second, value) of each moment at which it was known."""

    name: str
    points: list[tuple[float, float]]

    @property
    def top(self) -> float:
        return max(value for _, value in self.points)

    def broken(self, factor: float) -> tuple[list[float], list[float]]:
        """To be drawn: it ends where nothing was known."""
        made: tuple[list[float], list[float]] = ([], [])
        before = self.points[0][0]
        for at, value in self.points:
            if at - before > 1.5 * STEP:
                made[0].append(before + STEP)
                made[1].append(math.nan)
            made[0].append(at)
            made[1].append(value / factor)
            before = at
        return made


@dataclass(frozen=True, slots=True)
class Seen:
    """A life as it went: Unix times."""

    begin: float
    end: float
    away: tuple[float, float]


def main(target: Path) -> None:
    """Live, scrape, draw."""
    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory(prefix="nfs-provisioner-picture-") as directory, EmbeddedApiServer() as server:
        life = Life(server, Path(directory) / "site")
        with life.controller() as controller, Prometheus(Path(directory), port(controller)) as prometheus:
            seen = live(life)
            draw(prometheus, seen, target)


def live(life: Life) -> Seen:
    """About five minutes; each step at its time, so that the plots can be read."""
    begin = time.time()

    def at(second: float) -> None:
        time.sleep(max(0.0, begin + second - time.time()))

    volumes = []
    for number in range(PEOPLE):
        at(15 + 5 * number)
        life.claim(f"site-{number}", f"{8 + 2 * number}Mi")
        volumes.append(life.bound(f"site-{number}"))
        life.write(volumes[-1], "start", MI * (2 + number % 5))
    for number in range(12):
        at(80 + 5 * number)
        life.write(volumes[0], f"log-{number}", MI)  # outgrows its 8 MiB
        life.write(volumes[7], f"upload-{number}", MI)
    at(145)
    for number in range(BURST):
        life.claim(f"burst-{number}", "1Mi")
    life.claim("nameless", storage_class="broken")
    for number in range(BURST):
        life.bound(f"burst-{number}")
    at(175)
    for number in range(BURST):
        life.delete_claim(f"burst-{number}")
    life.delete_claim("site-4")
    at(195)
    gone = time.time()
    with life.away("b"):
        for number in range(10):
            at(200 + 5 * number)
            life.write(volumes[7], f"meanwhile-{number}", MI // 2)
    back = time.time()
    (life.directory_of(volumes[0]) / "log-0").unlink()
    at(300)
    return Seen(begin, time.time(), (gone, back))


def draw(prometheus: Prometheus, seen: Seen, target: Path) -> None:
    """One plot a panel, row by row as on the dashboard."""
    lines = sum(-(-len(row) // COLUMNS) for row in ROWS.values())
    pyplot.rcParams.update({"font.size": 7, "axes.titlesize": 8, "legend.fontsize": 5.5, "lines.linewidth": 1})
    figure, grid = pyplot.subplots(lines, COLUMNS, figsize=(15, 2.15 * lines), squeeze=False)
    line = 0
    for title, row in ROWS.items():
        for place in range(-(-len(row) // COLUMNS) * COLUMNS):
            axes = grid[line + place // COLUMNS][place % COLUMNS]
            if place < len(row):
                _plot(axes, prometheus, row[place], seen)
            else:
                axes.set_axis_off()
        grid[line][0].annotate(
            title, (0, 1.22), xycoords="axes fraction", fontsize=11, fontweight="bold", annotation_clip=False
        )
        line += -(-len(row) // COLUMNS)
    figure.suptitle(
        "nfs-provisioner: five minutes of a pair, scraped by Prometheus. Grey: replica b is away. "
        "Seconds on the horizontal axis.",
        y=0.995,
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985), h_pad=1.6)
    figure.savefig(target, dpi=80)
    pyplot.close(figure)
    Image.open(target).convert("RGB").quantize(48).save(target, optimize=True)


def _plot(axes: Axes, prometheus: Prometheus, panel: Panel, seen: Seen) -> None:
    lines = []
    for query in panel.queries:
        expression = filled(query.expr, "20s", "2s")
        for labels, points in prometheus.query_range(expression, seen.begin, seen.end, STEP):
            known = [(at - seen.begin, value) for at, value in points if not math.isnan(value)]
            if known:
                lines.append(Line(_named(query.legend, labels), known))
    most = MOST_BARS if panel.kind == "bargauge" else MOST_LINES
    shown = sorted(lines, key=lambda line: line.top, reverse=True)[:most]
    axes.set_title(panel.title + (f" ({most} of {len(lines)})" if len(lines) > most else ""), loc="left")
    axes.axvspan(seen.away[0] - seen.begin, seen.away[1] - seen.begin, color="0.9", lw=0)
    axes.set_xlim(0, seen.end - seen.begin)
    (_bars if panel.kind == "state-timeline" else _curves)(axes, shown, panel.unit)


def _bars(axes: Axes, lines: list[Line], _unit: str) -> None:
    """What was true when."""
    for number, line in enumerate(lines):
        true = [(at, STEP) for at, value in line.points if value > 0]
        axes.broken_barh(true, (number - 0.35, 0.7), color=f"C{number}")
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.set_ylim(-0.6, max(2.0, len(lines)) - 0.4)


def _curves(axes: Axes, lines: list[Line], unit: str) -> None:
    top = max((line.top for line in lines), default=1.0) or 1.0
    factor, name = next((f, n) for f, n in UNITS[unit] if top >= f or f == UNITS[unit][-1][0])
    for line in lines:
        axes.plot(*line.broken(factor), label=line.name, drawstyle="steps-post")
    axes.set_ylim(0, top / factor * (1.15 + 0.13 * -(-len(lines) // (1 if len(lines) < 4 else 2))))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel(name)
    if lines:
        axes.legend(loc="upper left", frameon=False, ncols=1 if len(lines) < 4 else 2)


def _named(legend: str, labels: dict[str, str]) -> str:
    """What Grafana makes of a legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/dashboard.png")
