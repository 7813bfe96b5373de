"""The charts of a report, and how to read each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import plots
from .drawing import HEIGHT, draw, shortened
from .plan import Plan
from .run import Event, Run
from .words import counted


RUN_COLOURS = ("this-run", "other-run")


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page.

    Args:
        name (`str`): Of its PNG file.
        title (`str`): What is shown.
        unit (`str`): In what.
        note (`str`): How to read it.
        svg (`str`): With CSS variables for colours.
        png (`bytes`): In the light colours, with the title.
    """

    name: str
    title: str
    unit: str
    note: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Kind:
    """A chart that can be drawn of runs that know something of it."""

    name: str
    title: str
    unit: str
    note: str
    draw: plots.Draw
    known: Callable[[Run], bool]
    panels: bool = False


def _counts_tokens(run: Run) -> bool:
    return bool(run.steps.all_tokens.any())


def _logs_loss(run: Run) -> bool:
    return "loss" in run.logs or bool(plots.evaluation_losses(run))


KINDS = [
    Kind("loss", "Loss", "", "As the Trainer logged it; the dots are evaluations.", plots.loss, _logs_loss),
    Kind("throughput", "Throughput", "tokens/s", "Of all ranks, without padding.", plots.throughput, _counts_tokens),
    Kind("step_time", "Step time", "ms", "Evaluating and saving are not in it.", plots.step_time, lambda run: True),
    Kind(
        "memory",
        "Peak memory",
        "GiB",
        "The most that torch had allocated so far, on the fullest rank.",
        plots.memory,
        lambda run: bool(np.isfinite(run.steps.fullest).any()),
    ),
    Kind(
        "utilization",
        "FLOPs utilization",
        "% of the dense peak",
        "MFU counts what the model needs, HFU also what is computed twice and padding.",
        plots.utilization,
        lambda run: bool(np.isfinite(run.steps.mfu).any()),
    ),
    Kind(
        "tokens",
        "Tokens of each rank",
        "a step",
        "Running means. The wider the band, the more uneven the ranks within a step.",
        plots.tokens,
        _counts_tokens,
        panels=True,
    ),
    Kind(
        "waiting",
        "Waiting of each rank",
        "% of the step",
        "Running means. The rank that waits least is the one that the others wait for.",
        plots.waiting,
        lambda run: bool(np.isfinite(run.steps.wait_seconds).any()),
        panels=True,
    ),
    Kind(
        "time",
        "Time",
        "from start to end",
        "First steps: what those after a start take longer. Between steps: evaluating, saving.",
        plots.time,
        lambda run: True,
        panels=True,
    ),
]
AFTER_CANDIDATES = ("tokens", "waiting", "time")  # they are tall where runs are compared, and fill a row


def draw_charts(runs: Sequence[Run]) -> list[Chart]:
    """Every chart that one of the runs has numbers for."""
    shown = [
        plots.Shown(run, colour, shortened(run.name) if len(runs) > 1 else "", events)
        for run, colour, events in zip(runs, RUN_COLOURS[: len(runs)], number_events(runs), strict=True)
    ]
    kinds = [kind for kind in KINDS if any(kind.known(run) for run in runs)]
    return [
        *(_drawn(kind, shown) for kind in kinds if kind.name not in AFTER_CANDIDATES),
        *(_candidates(each) for each in shown if _measured(each.run)),
        *(_drawn(kind, shown) for kind in kinds if kind.name in AFTER_CANDIDATES),
    ]


def number_events(runs: Sequence[Run]) -> list[list[tuple[int, Event]]]:
    """Of each run, what happened between start and end, numbered through all runs."""
    numbered: list[list[tuple[int, Event]]] = []
    for run in runs:
        between = [event for event in run.events if event.kind not in ("start", "end")]
        numbered.append(list(enumerate(between, start=1 + sum(map(len, numbered)))))
    return numbered


def _drawn(kind: Kind, shown: Sequence[plots.Shown]) -> Chart:
    height = HEIGHT * (1.6 if kind.panels and len(shown) > 1 else 1)
    svg, png = draw(lambda figure: kind.draw(figure, shown), _with_unit(kind.title, kind.unit), height)
    return Chart(kind.name, kind.title, kind.unit, kind.note, svg, png)


def _with_unit(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


def _measured(run: Run) -> Plan | None:
    """The last plan that was found by measuring."""
    return next((plan for plan in reversed(run.plans) if plan.candidates), None)


def _candidates(each: plots.Shown) -> Chart:
    plan = _measured(each.run)
    assert plan is not None
    unit = "µs a token"
    name, title = (f"plan_{each.colour}", f"Step plan of {each.name}") if each.name else ("plan", "Step plan")
    svg, png = draw(lambda figure: plots.candidates(figure, plan, each.colour), _with_unit(title, unit))
    ways = counted(len(plan.candidates), "way")
    note = f"{ways} to compute a step, measured while training; the coloured one was taken."
    return Chart(name, title, unit, note, svg, png)
