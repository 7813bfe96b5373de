"""What each chart draws, of one run or of two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .drawing import (
    RIGHT,
    legend,
    mark,
    name_steps,
    number,
    panels,
    place_text,
    running,
    steps_axis,
    thin,
    trend,
    value_axis,
)
from .palette import RANKS, light
from .plan import Plan
from .run import Array, Event, Run, nan_max
from .summary import time_spent, warm
from .words import duration


@dataclass(frozen=True)
class Shown:
    """A run in a chart: its colour, its name if there is another one, and its events as the page numbers them."""

    run: Run
    colour: str
    name: str
    events: Sequence[tuple[int, Event]]


Draw = Callable[[Figure, Sequence[Shown]], None]
MOST_CANDIDATES = 9


def loss(figure: Figure, shown: Sequence[Shown]) -> None:
    """Training loss as a line, evaluation loss as dots."""
    (axes,) = panels(figure)
    for each in shown:
        if "loss" in each.run.logs:
            trend(axes, *each.run.logs["loss"], each.colour, each.name or "training")
        for name, (steps, values) in evaluation_losses(each.run).items():
            colour, label = (each.colour, "") if each.name else ("evaluation", name)
            axes.plot(steps, values, "o--", color=light(colour), markersize=3.2, linewidth=1, label=label)
    value_axis(axes)
    _finish(figure, [axes], shown)


def evaluation_losses(run: Run) -> dict[str, tuple[Array, Array]]:
    """By what the legend calls it: `evaluation`, or the name of the data set where there are several."""
    found = {}
    for key, series in run.logs.items():
        if key == "eval_loss":
            found["evaluation"] = series
        elif key.startswith("eval_") and key.endswith("_loss"):
            found[key.removeprefix("eval_").removesuffix("_loss")] = series
    return found


def throughput(figure: Figure, shown: Sequence[Shown]) -> None:
    """Tokens a second of all ranks; on the right what that is for each, if all steps had as many ranks."""
    ranks = np.unique(np.concatenate([each.run.steps.ranks for each in shown]))
    per_rank = len(ranks) == 1 and ranks[0] > 1
    (axes,) = panels(figure, right=0.5 if per_rank else RIGHT)
    rates = [each.run.steps.all_tokens / each.run.steps.seconds for each in shown]
    _trends(axes, shown, rates)
    value_axis(axes, _warm(shown, rates))
    if per_rank:
        _second_scale(axes, float(ranks[0]), "per GPU" if shown[0].run.start["gpu"] else "per rank")
    _finish(figure, [axes], shown)


def _second_scale(axes: Axes, ranks: float, name: str) -> None:
    side = axes.secondary_yaxis("right", functions=(partial(np.multiply, 1 / ranks), partial(np.multiply, ranks)))
    number(side.yaxis)
    side.tick_params(length=0)
    side.spines["right"].set_visible(False)
    place_text(axes, name, (1, 1), (34, 9), ha="right", color=light("muted"))


def step_time(figure: Figure, shown: Sequence[Shown]) -> None:
    """Milliseconds a step."""
    (axes,) = panels(figure)
    times = [each.run.steps.seconds * 1000 for each in shown]
    _trends(axes, shown, times)
    value_axis(axes, _warm(shown, times))
    _finish(figure, [axes], shown)


def memory(figure: Figure, shown: Sequence[Shown]) -> None:
    """The peak of the fullest rank. Where points are put together, the largest of them is kept."""
    (axes,) = panels(figure)
    peaks = [each.run.steps.fullest for each in shown]
    for each, peak in zip(shown, peaks, strict=True):
        if not np.isfinite(peak).any():
            continue
        steps, values = thin(each.run.steps.number, peak, np.max)
        rank = int(np.nanargmax(np.nanmax(each.run.steps.peak_memory_gib, axis=0)))
        axes.plot(steps, values, color=light(each.colour), label=each.name or f"rank {rank}, the fullest")
        if not each.name:
            axes.fill_between(steps, values, color=light(each.colour), alpha=0.12, linewidth=0)
    value_axis(axes, np.concatenate(peaks))
    _finish(figure, [axes], shown)


def utilization(figure: Figure, shown: Sequence[Shown]) -> None:
    """MFU; of one run also HFU."""
    (axes,) = panels(figure)
    shares = [each.run.steps.mfu * 100 for each in shown]
    if len(shown) == 1:
        steps = shown[0].run.steps
        shares.append(steps.hfu * 100)
        trend(axes, steps.number, shares[0], "this-run", "MFU")
        trend(axes, steps.number, shares[1], "other-run", "HFU")
    else:
        _trends(axes, shown, shares)
    value_axis(axes, np.concatenate(shares))
    _finish(figure, [axes], shown)


def tokens(figure: Figure, shown: Sequence[Shown]) -> None:
    """Tokens a step of each rank, and how far apart the ranks are in a step; a panel for each run."""
    found = panels(figure, [each.name for each in shown])
    tops = []
    for axes, each in zip(found, shown, strict=True):
        steps = each.run.steps
        tops.append(_band(axes, steps.number, steps.tokens))
        _ranks(axes, steps.number, steps.tokens)
    value_axis(found[0], np.concatenate(tops))
    _finish(figure, found, shown)


def waiting(figure: Figure, shown: Sequence[Shown]) -> None:
    """The share of the step that each rank waits; a panel for each run."""
    found = panels(figure, [each.name for each in shown])
    tops = []
    for axes, each in zip(found, shown, strict=True):
        steps, shares = each.run.steps, each.run.steps.waiting * 100
        if shares.shape[1] > RANKS:
            tops.append(_band(axes, steps.number, shares))
        tops.append(_ranks(axes, steps.number, shares))
    value_axis(found[0], np.concatenate(tops))
    _finish(figure, found, shown)


def time(figure: Figure, shown: Sequence[Shown]) -> None:
    """Where the time of the run went, from start to end."""
    (axes,) = panels(figure)
    spent = [time_spent(each.run) for each in shown]
    names = [name for name in spent[0] if any(each[name] > 0 for each in spent)]
    thickness = 0.64 / len(shown)
    for at, (each, parts) in enumerate(zip(shown, spent, strict=True)):
        places = np.arange(len(names)) + (at - (len(shown) - 1) / 2) * thickness
        bars = axes.barh(places, [parts[name] for name in names], thickness * 0.94, color=light(each.colour))
        bars.set_label(each.name)
        total = sum(parts.values())
        texts = [f"{duration(parts[name])}, {parts[name] / total:.0%}" if parts[name] else "" for name in names]
        axes.bar_label(bars, texts, padding=4, color=light("muted"), fontsize=7.5 if each.name else 8.5)
    _as_list(figure, axes, names, 1.6 * max(max(parts.values()) for parts in spent))
    legend(figure, axes)


def candidates(figure: Figure, plan: Plan, colour: str) -> None:
    """A bar for each way to compute a step that was measured, the fastest on top."""
    (axes,) = panels(figure)
    measured = plan.candidates[:MOST_CANDIDATES]
    times = [each.microseconds for each in measured]
    bars = axes.barh(
        np.arange(len(measured)), times, 0.64, color=[light(colour if each.chosen else "line") for each in measured]
    )
    axes.bar_label(bars, [f"{time:,.1f}" for time in times], padding=4, color=light("muted"))
    _as_list(figure, axes, [each.name.removesuffix(" layers kept") + " kept" for each in measured], 1.2 * max(times))


def _as_list(figure: Figure, axes: Axes, names: Sequence[str], end: float) -> None:
    """Bars with their names on the left, no axis, as thick as if there were five of them at least."""
    figure.subplots_adjust(left=1.25 / figure.get_figwidth(), bottom=0.04, top=1 - 0.2 / figure.get_figheight())
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(max(len(names), 5) - 0.5, -0.5)
    axes.set_xlim(0, end or 1)
    axes.tick_params(axis="y", labelcolor=light("ink"))
    axes.grid(visible=False)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _trends(axes: Axes, shown: Sequence[Shown], values: Sequence[Array]) -> None:
    for each, value in zip(shown, values, strict=True):
        trend(axes, each.run.steps.number, value, each.colour, each.name)


def _warm(shown: Sequence[Shown], values: Sequence[Array]) -> Array:
    """The axis is made for these; the first step after a start would make the others flat."""
    return np.concatenate([value[warm(each.run)] for each, value in zip(shown, values, strict=True)])


def _band(axes: Axes, steps: Array, table: Array) -> Array:
    """Between the means of the least and of the most in a step; returns the upper edge."""
    at, high = thin(steps, nan_max(table), np.mean)
    _, low = thin(steps, -nan_max(-table), np.mean)
    low, high = running(np.mean, low), running(np.mean, high)
    label = "" if RANKS // 2 < table.shape[1] <= RANKS else "least to most"  # no room beside so many ranks
    axes.fill_between(at, low, high, color=light("other-run"), alpha=0.25, linewidth=0, label=label)
    return high


def _ranks(axes: Axes, steps: Array, table: Array) -> Array:
    """The running mean of each rank, of many that of their median; returns the last line."""
    ranks = table.shape[1]
    names = [f"rank {rank}" if rank == 0 or ranks <= RANKS // 2 else str(rank) for rank in range(ranks)]
    if ranks > RANKS:
        known = np.isfinite(table).any(axis=1)
        steps, table = steps[known], np.nanmedian(table[known], axis=1, keepdims=True)
        names = [f"median of {ranks:,} ranks"]
    lines = []
    for at, (name, values) in enumerate(zip(names, table.T, strict=True)):
        places, means = thin(steps, values, np.mean)
        lines.append(running(np.mean, means))
        axes.plot(places, lines[-1], color=light(f"rank-{at}"), label=name, clip_on=False)
    return np.concatenate(lines)


def _finish(figure: Figure, found: Sequence[Axes], shown: Sequence[Shown]) -> None:
    """The steps below the lowest panel, events in all, the legend above."""
    last = max(each.run.steps.number[-1] for each in shown)
    for at, axes in enumerate(found):
        steps_axis(axes, last)
        for each in shown if len(found) == 1 else shown[at : at + 1]:
            mark(axes, each.events)
    name_steps(found[-1])
    legend(figure, found[0])
