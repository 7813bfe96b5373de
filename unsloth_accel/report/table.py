"""The figures side by side, for the page and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .run import Run
from .summary import facts, figures


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        name (`str`): What is told.
        cells (`tuple[str, ...]`): Of each run.
        ratio (`str`): The first run's value divided by the other's; empty for one run, or where there is none.
        meaning (`str`): How the value is computed; empty for words.
    """

    name: str
    cells: tuple[str, ...]
    ratio: str
    meaning: str


def rows(runs: Sequence[Run]) -> list[Row]:
    """What the runs are in words, then their figures; left out is what no run knows."""
    words = [
        Row(same[0][0], tuple(value for _, value in same), "", "")
        for same in zip(*(facts(run) for run in runs), strict=True)
    ]
    numbers = [
        Row(same[0].name, tuple(each.text for each in same), _ratio([each.value for each in same]), same[0].meaning)
        for same in zip(*(figures(run) for run in runs), strict=True)
        if any(np.isfinite(each.value) for each in same)
    ]
    return words + numbers


def _ratio(values: Sequence[float]) -> str:
    if len(values) < 2 or not np.isfinite(values).all() or values[1] == 0:
        return ""
    ratio = values[0] / values[1]
    return f"{ratio:.2f} ×" if ratio >= 0.1 else f"{ratio:.2g} ×"


def markdown(runs: Sequence[Run]) -> str:
    """The table as GitHub shows it, and below it what a reader must know of the data."""
    compared = len(runs) > 1
    heads = ["", *(run.name for run in runs), *(["ratio"] if compared else [])]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    lines += [[row.name, *row.cells, *([row.ratio] if compared else [])] for row in rows(runs)]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    return "\n\n".join([text, *notes]) + "\n"
