"""Draws growth: logarithmic panels beside each other, with a line of what is linear. Needs the extra `plots`.

Must not measure. Invariant: every line has the guide that starts in its first point, so that whoever grows faster than
linear is seen above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.bench.burst import BenchError

_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by everybody


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    lines: Sequence[Line]


def require() -> None:
    """BenchError when pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise BenchError("matplotlib is missing: make .venv/.dev, or pip install 'nfs-provisioner[plots]'")


def draw(path: Path, what: str, panels: Sequence[Panel]) -> None:
    """A PNG without the time of its making: equal figures make an equal file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for number, (colour, line) in enumerate(zip(_COLOURS, panel.lines, strict=False)):
            axes.loglog(line.x, line.y, "o-", color=colour, label=line.name)
            guide = [line.y[0] * x / line.x[0] for x in line.x]
            axes.loglog(line.x, guide, ":", color=colour, linewidth=1, alpha=0.7)
            for x, y in zip(line.x, line.y, strict=True):
                above = 6 if number == 0 else -13
                axes.annotate(f"{y:.3g}", (x, y), (0, above), textcoords="offset points", ha="center", fontsize=8)
        axes.plot([], [], ":", color="grey", linewidth=1, label="linear from the first point")
        axes.set(title=panel.title, xlabel=what, ylabel=panel.unit)
        axes.set_xticks(panel.lines[0].x, [_count(x) for x in panel.lines[0].x])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12, y=0.15)
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=8, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _count(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:g}M"
    return f"{number / 1e3:g}k" if number >= 1e3 else f"{number:g}"
