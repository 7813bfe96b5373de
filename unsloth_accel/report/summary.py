"""The figures of a run, each with its unit and with what it means."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .run import Array, Run, nan_max
from .words import counted, duration, machine, model


@dataclass(frozen=True)
class Figure:
    """A number that can be compared.

    Args:
        name (`str`): What it is, in the words of the table.
        value (`float`): NaN where it is not known.
        text (`str`): The value with thousands separators and its unit.
        meaning (`str`): How it is computed.
    """

    name: str
    value: float
    text: str
    meaning: str


@dataclass(frozen=True)
class Kind:
    """How a figure is found and written."""

    name: str
    of: Callable[[Run], float]
    form: str
    meaning: str


def figures(run: Run) -> list[Figure]:
    """Every figure of a run, in the order of the table; not known are those that nothing measured."""
    found = []
    for kind in KINDS:
        value = kind.of(run)
        text = kind.form.format(value) if np.isfinite(value) else "not known"
        name = kind.name if run.start["gpu"] else kind.name.replace("GPU", "rank")
        found.append(Figure(name, value, text, kind.meaning))
    return found


def facts(run: Run) -> list[tuple[str, str]]:
    """What a run is, in words: model, machine, versions, plan."""
    versions = ", ".join(f"{name} {version}" for name, version in run.start["versions"].items())
    again = f", {counted(len(run.repeated), 'step')} computed again" if run.repeated else ""
    return [
        ("Model", model(run.start)),
        ("Trainer", run.start["trainer"]),
        ("Machine", machine(run.start)),
        ("Versions", versions),
        ("Steps", steps_done(run)),
        ("Rows in a step", f"{run.start['global_batch']:,}"),
        ("Gradients", str(run.start["gradient_sync"])),
        ("Plan", str(run.plans[-1])),
        ("Time", duration(run.seconds)),
        ("Restarts", f"{len(run.idle)}{again}"),
    ]


def steps_done(run: Run) -> str:
    """The last step whose outcome was kept, and of how many where that is less."""
    done, asked = int(run.steps.number[-1]), run.start["max_steps"]
    return f"{done:,}" if done >= asked else f"{done:,} of {asked:,}"


def warm(run: Run) -> npt.NDArray[np.bool_]:
    """Which steps count for speed: all but the first of each start, if there are others."""
    chosen = run.steps.warm > 0
    return chosen if chosen.any() else np.ones_like(chosen)


def tokens(run: Run) -> float:
    """The tokens of all ranks; a trainer that generates its rows counts none."""
    return float(run.steps.all_tokens.sum()) or np.nan


def tokens_per_second(run: Run) -> float:
    """The tokens of the warm steps, divided by their time."""
    chosen = warm(run)
    return float(run.steps.all_tokens[chosen].sum() / run.steps.seconds[chosen].sum()) or np.nan


def tokens_per_second_and_gpu(run: Run) -> float:
    """The same, divided by the ranks at work in each step."""
    steps, chosen = run.steps, warm(run)
    return float(steps.all_tokens[chosen].sum() / (steps.seconds * steps.ranks)[chosen].sum()) or np.nan


def median_step(run: Run) -> float:
    """The median duration of the warm steps, in milliseconds."""
    return float(np.median(run.steps.seconds[warm(run)]) * 1000)


def padding(run: Run) -> float:
    """The share of the computed tokens that is padding, in percent."""
    computed = np.nansum(run.steps.computed_tokens)
    return 100 * (1 - run.steps.all_tokens.sum() / computed) if computed else np.nan


def imbalance(run: Run) -> float:
    """The tokens of the rank with most in each step, divided by the mean of the ranks."""
    return float((nan_max(run.steps.tokens) * run.steps.ranks).sum()) / tokens(run)


def waiting(run: Run) -> float:
    """The share of the time that a rank waits, in percent, as the mean of the ranks."""
    waited = run.steps.wait_seconds
    measured = np.isfinite(waited)
    if not measured.any():
        return np.nan
    time = np.where(measured, run.steps.seconds[:, None], 0).sum()
    return 100 * float(np.nansum(waited) / time)


def peak_memory(run: Run) -> float:
    """The largest peak of any rank in any step, in GiB."""
    known = run.steps.fullest[np.isfinite(run.steps.fullest)]
    return float(known.max()) if known.size else np.nan


def mfu(run: Run) -> float:
    """Model FLOPs utilization of the warm steps, in percent."""
    return _utilization(run, run.steps.mfu)


def hfu(run: Run) -> float:
    """Hardware FLOPs utilization of the warm steps, in percent."""
    return _utilization(run, run.steps.hfu)


def _utilization(run: Run, values: Array) -> float:
    chosen = warm(run) & np.isfinite(values)
    if not chosen.any():
        return np.nan
    return 100 * float(np.average(values[chosen], weights=run.steps.seconds[chosen]))


def last_logged(name: str) -> Callable[[Run], float]:
    """The last value that the Trainer logged under `name`."""

    def last(run: Run) -> float:
        return float(run.logs[name][1][-1]) if name in run.logs else np.nan

    return last


def time_spent(run: Run) -> dict[str, float]:
    """Where the seconds from the first start to the last line went."""
    steps = run.steps
    first = steps.seconds[steps.warm == 0]
    parts = {
        "computing": 0.0,
        "waiting": float(np.nansum(steps.wait_seconds / steps.ranks[:, None])),
        "first steps": float(np.maximum(first - np.median(steps.seconds), 0).sum()),
        "lost steps": sum(run.repeated),
        "restarting": sum(run.idle),
    }
    parts["computing"] = float(steps.seconds.sum()) - parts["waiting"] - parts["first steps"]
    parts["between steps"] = max(0.0, run.seconds - sum(parts.values()))
    return parts


SPEED = "all steps but the first after each start, which compiles and allocates"
KINDS = [
    Kind("Tokens", tokens, "{:,.0f}", "without padding, of the steps that were kept"),
    Kind("Tokens/s", tokens_per_second, "{:,.0f}", f"without padding, on all ranks; {SPEED}"),
    Kind("Tokens/s per GPU", tokens_per_second_and_gpu, "{:,.0f}", "the same, divided by the ranks at work"),
    Kind("Step time", median_step, "{:,.0f} ms", f"the median; {SPEED}"),
    Kind("Waiting", waiting, "{:.1f} %", "the share of a step that a rank waits for the slowest, mean of the ranks"),
    Kind("Imbalance", imbalance, "{:.3f}", "the tokens of the rank with most, divided by the mean; 1 is even"),
    Kind("Padding", padding, "{:.1f} %", "the share of the computed tokens that is padding"),
    Kind("Peak memory", peak_memory, "{:.1f} GiB", "of the fullest rank, allocated by torch"),
    Kind("MFU", mfu, "{:.1f} %", "the model's FLOPs against the card's dense peak"),
    Kind("HFU", hfu, "{:.1f} %", "the same, with what is recomputed"),
    Kind("Training loss", last_logged("loss"), "{:.4f}", "the last that was logged"),
    Kind("Evaluation loss", last_logged("eval_loss"), "{:.4f}", "the last that was logged"),
]
