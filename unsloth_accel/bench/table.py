"""The results of a comparison as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any


Result = Mapping[str, Any]

REFERENCE = "varlen"
# What has to be the same for runs to be comparable; the call, because machines differ from one to the next.
_WORK = (
    "model",
    "finetuning",
    "lora_rank",
    "sequence",
    "work",
    "world_size",
    "device",
    "card_gib",
    "compiled",
    "call",
)
_COLUMNS = "contender", "ms/step (rounds)", "time over reference (rounds)", "tokens/s", "MFU", "peak GiB", "imbalance"


def tables(results: Iterable[Result]) -> str:
    """A table for each workload, under a line that says what was trained and on what.

    Args:
        results (`Iterable[Mapping]`): What `compare` returned, or the lines of a result file.

    Returns:
        `str`: Markdown.
    """
    return "\n\n".join(f"{title(runs[0])}:\n\n{table(runs)}{_plans(runs)}" for runs in by_workload(results))


def by_workload(results: Iterable[Result]) -> list[list[Result]]:
    """Those that may be compared with one another: of the same work, on the same device, in one call.

    Args:
        results (`Iterable[Mapping]`): What `compare` returned, or the lines of result files.

    Returns:
        `list[list[Mapping]]`: Sorted by model and work.
    """
    return [list(group) for _, group in groupby(sorted(results, key=_work), _work)]


def table(results: Sequence[Result]) -> str:
    """The contenders of one workload, each against the reference: the one of that name, else the first.

    Times and ratios are medians over the rounds; a ratio is taken round by round. Memory and the difference of the
    loss to the reference's, relative and over all steps, are the largest of all rounds.

    Args:
        results (`Sequence[Mapping]`): Of one workload.

    Returns:
        `str`: A Markdown table.
    """
    runs = by_contender(results)
    reference = runs.get(REFERENCE) or next(iter(runs.values()))
    rows = [[name, *_cells(own, reference)] for name, own in runs.items()]
    head = [*_COLUMNS, f"loss to {reference[0]['contender']}'s"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def by_contender(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each contender, in the order in which they come.

    Args:
        results (`Sequence[Mapping]`): Of one workload.

    Returns:
        `dict[str, list[Mapping]]`: By name.
    """
    runs: dict[str, list[Result]] = {}
    for one in results:
        runs.setdefault(one["contender"], []).append(one)
    return runs


def _plans(results: Sequence[Result]) -> str:
    """What those found that looked for a plan."""
    plans = {one["contender"]: one["plan"] for one in results if one["plan"] is not None}
    return "".join(f"\n\n`{name}` found: {plan}." for name, plan in plans.items())


def title(result: Result) -> str:
    """What was trained and on what, in words."""
    what = "full" if result["finetuning"] == "full" else f"{result['finetuning']} r={result['lora_rank']}"
    compiled = "compiled" if result["compiled"] else "not compiled"
    held = "" if result["card_gib"] is None else f" held to {result['card_gib']:g} GiB"
    device = f"{result['world_size']} x {result['device']}{held}"
    rows = f"{result['work']} up to {result['sequence']} tokens"
    return f"{result['model']} {what}, {rows}, {device}, {compiled}"


def ratios(runs: Sequence[Result], reference: Sequence[Result]) -> list[float]:
    """The time of a step against the reference's in the same round.

    Args:
        runs (`Sequence[Mapping]`): Of one contender.
        reference (`Sequence[Mapping]`): Of another one.

    Returns:
        `list[float]`: One for each round that both have.
    """
    theirs = {one["round"]: one["ms"] for one in reference}
    return [one["ms"] / theirs[one["round"]] for one in runs if one["round"] in theirs]


def loss_difference(runs: Sequence[Result], reference: Sequence[Result]) -> float:
    """The largest relative one of any step and round.

    Args:
        runs (`Sequence[Mapping]`): Of one contender.
        reference (`Sequence[Mapping]`): Of another one.

    Returns:
        `float`: 0 where all losses are the same.
    """
    theirs = reference[0]["loss"]
    pairs = [pair for one in runs for pair in zip(one["loss"], theirs, strict=True)]
    return float(max(abs(own - other) / abs(other) for own, other in pairs))


def _cells(runs: Sequence[Result], reference: Sequence[Result]) -> list[str]:
    times, shares = [one["ms"] for one in runs], ratios(runs, reference)
    mfu = [one["mfu"] for one in runs if one["mfu"] is not None]
    return [
        f"{median(times):.0f} ({', '.join(f'{ms:.0f}' for ms in times)})",
        f"{median(shares):.3f} ({', '.join(f'{share:.3f}' for share in shares)})",
        f"{median(one['tokens_per_s'] for one in runs):,.0f}",
        f"{100 * median(mfu):.1f} %" if mfu else "",
        f"{max(one['peak_gib'] for one in runs):.2f}",
        f"{median(one['imbalance'] for one in runs):.3f}",
        f"{loss_difference(runs, reference):.0e}",
    ]


def _work(result: Result) -> tuple[str, ...]:
    return tuple(str(result[key]) for key in _WORK)
