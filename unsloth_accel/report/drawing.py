"""The parts that all charts share: where things are, lines, marks, SVG and PNG."""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .palette import EVENT_KINDS, light, with_variables
from .run import Array, Event


# Inches; the page shows an inch as 80 to 100 pixels. All charts have the same margins, so that axes are in line.
WIDTH, HEIGHT = 4.0, 2.3
LEFT, RIGHT, TOP, BOTTOM = 0.52, 0.22, 0.4, 0.25
PANEL_HEAD, PNG_HEAD = 0.2, 0.3

POINTS = 400  # more cannot be told apart at that width
FEW = 60  # so many can be shown as they are
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": light("line"),
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": light("muted"),
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "grid.color": light("grid"),
    "grid.linewidth": 0.8,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0.1,
    "legend.columnspacing": 1.1,
    "legend.frameon": False,
    "legend.handlelength": 1.1,
    "legend.handletextpad": 0.45,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: in the page's font, found by its search
    "svg.hashsalt": "unsloth-accel",  # the same chart gives the same file
    "text.color": light("ink"),
    "xtick.color": light("line"),
    "xtick.labelcolor": light("muted"),
    "xtick.major.size": 3,
    "ytick.color": light("line"),
    "ytick.labelcolor": light("muted"),
    "ytick.major.size": 0,
}


def draw(how: Callable[[Figure], None], title: str, height: float = HEIGHT) -> tuple[str, bytes]:
    """Draws a chart; returns it as SVG for the page, and as PNG with its title in it."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        how(figure)
        svg = _svg(figure, title)
        _add_title(figure, title)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=200, facecolor=light("card"))
    return svg, png.getvalue()


def _svg(figure: Figure, title: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every chart of a page
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return with_variables(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def _add_title(figure: Figure, title: str) -> None:
    height = figure.get_figheight()
    taller = height + PNG_HEAD
    margins = figure.subplotpars
    figure.set_figheight(taller)
    figure.subplots_adjust(top=margins.top * height / taller, bottom=margins.bottom * height / taller)
    figure.text(0.08, taller - 0.11, title, transform=figure.dpi_scale_trans, va="top", fontsize=10, fontweight="bold")


def panels(figure: Figure, names: Sequence[str] = ("",), right: float = RIGHT) -> list[Axes]:
    """Axes one below another that share their scales; several of them have their names above them."""
    height = figure.get_figheight()
    head = PANEL_HEAD if len(names) > 1 else 0
    inside = height - TOP - head - BOTTOM
    gap = (TOP / 2 + PANEL_HEAD) if len(names) > 1 else 0
    panel = (inside - gap * (len(names) - 1)) / len(names)
    figure.subplots_adjust(
        left=LEFT / WIDTH,
        right=1 - right / WIDTH,
        top=1 - (TOP + head) / height,
        bottom=BOTTOM / height,
        hspace=gap / panel,
    )
    found = figure.subplots(len(names), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, name in zip(found, names, strict=True):
        place_text(axes, name, (0, 1), (0, 14), fontweight="bold")
    return list(found)


def trend(axes: Axes, steps: Array, values: Array, colour: str, label: str = "") -> None:
    """A line; where there are many points, a bold one of their running median above a faint one."""
    steps, values = thin(steps, values)
    if len(steps) < FEW:
        form = "o-" if len(steps) < FEW / 4 else "-"
        axes.plot(steps, values, form, color=light(colour), markersize=3, label=label)
        return
    gap = (steps[-1] - steps[0]) / (len(steps) - 1)
    single = "each step" if gap < 1.5 else f"median of {gap:,.0f} steps"
    front: dict[str, Any] = {"color": light(colour), "zorder": 2 if colour == "other-run" else 3}
    axes.plot(steps, values, alpha=0.4, linewidth=0.7, label="" if label else single, **front)
    label = label or f"running median of {(2 * half_window(steps) + 1) * gap:,.0f}"
    axes.plot(steps, running(np.median, values), label=label, **front)


def thin(steps: Array, values: Array, reduce: Callable[[Array], float] = np.median) -> tuple[Array, Array]:
    """What was measured, at most POINTS of it: neighbours are put together, everywhere as many."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    size = -(-len(steps) // POINTS)
    if size <= 1:
        return steps, values
    starts = range(0, len(steps), size)
    at = [steps[start : start + size].mean() for start in starts]
    return np.array(at), np.array([reduce(values[start : start + size]) for start in starts])


def running(how: Callable[[Array], float], values: Array) -> Array:
    """A mean or median over the neighbours of each point; at the ends over those there are."""
    half = half_window(values)
    return np.array([how(values[max(0, at - half) : at + half + 1]) for at in range(len(values))])


def half_window(values: Array) -> int:
    """A twentieth of all points are taken together, at least 5."""
    return max(2, len(values) // 40)


def mark(axes: Axes, events: Sequence[tuple[int, Event]]) -> None:
    """A dashed line for each event, with the number that it has in the table where there is room for it."""
    left, right = axes.get_xlim()
    room = (right - left) * 0.05
    labelled = right + room
    for step, same in groupby(reversed(events), key=lambda numbered: numbered[1].step):
        numbers, kinds = zip(*((number, event.kind) for number, event in same), strict=True)
        kind = min(kinds, key=EVENT_KINDS.index)
        axes.axvline(step, color=light(kind), linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.5)
        if step <= labelled - room:
            _badge(axes, step, _span(numbers), kind)
            labelled = step


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[-1]}-{numbers[0]}"


def _badge(axes: Axes, step: int, text: str, kind: str) -> None:
    place_text(
        axes,
        text,
        (step, 1),
        (0, 6),
        xycoords=axes.get_xaxis_transform(),
        ha="center",
        va="center",
        fontsize=6.5,
        fontweight="bold",
        color=light("card"),
        bbox={"boxstyle": "round,pad=0.28,rounding_size=0.65", "facecolor": light(kind), "edgecolor": "none"},
    )


def place_text(axes: Axes, text: str, corner: tuple[float, float], offset: tuple[float, float], **how: Any) -> None:
    """Text outside of the axes: so many points away from a corner, (0, 0) to (1, 1)."""
    form: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(text, corner, offset, **(form | how))


def steps_axis(axes: Axes, last: float) -> None:
    """The global step along the bottom."""
    axes.set_xlim(0, max(last, 1) * 1.015)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def name_steps(axes: Axes) -> None:
    """`step`, in line with the numbers of the steps."""
    place_text(axes, "step", (0, 0), (-9, -6.5), ha="right", va="top", color=light("muted"))


def value_axis(axes: Axes, values: Array | None = None) -> None:
    """Numbers along the side; from 0 where `values` are given, and few outliers cut off."""
    number(axes.yaxis)
    if values is not None:
        known = values[np.isfinite(values)]
        top = min(known.max() * 1.08, np.percentile(known, 99) * 1.5) if known.size else 1
        axes.set_ylim(0, top or 1)


def number(axis: Axis) -> None:
    """About five numbers, with thousands separators."""
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _with_separators(value, axis.get_majorticklocs())))


def _with_separators(value: float, ticks: Array) -> str:
    """`1,200`, `150k`, `1.5M`, or as many decimals as tell one tick from the next."""
    for least, unit, letter in ((1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if max(abs(ticks)) >= least:
            return f"{value / unit:g}{letter}" if value else "0"
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = max(0, -int(np.floor(np.log10(gap) + 1e-9)))
    decimals += gap * 10**decimals % 1 > 1e-6  # steps of 2.5
    return f"{value:,.{decimals}f}"


def legend(figure: Figure, axes: Axes) -> None:
    """The lines' names in one row above the chart."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        corner = (0.03, figure.get_figheight() - 0.04)  # in inches: it stays when a title is put above it
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=corner, bbox_transform=figure.dpi_scale_trans, ncols=9
        )


def shortened(name: str, most: int = 18) -> str:
    """The end of a long name, where names of runs differ."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
