"""The figure of `unsloth-accel plan --plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from .scaling import ScalingRow


_BELOW: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7}


def plot_scaling(rows: Sequence[ScalingRow], path: Path) -> None:
    """Draws how fast a rank is among others, relative to one alone.

    Args:
        rows (`Sequence[ScalingRow]`): From one rank on.
        path (`pathlib.Path`): The file, whose ending says the format.

    Raises:
        ConfigurationError: If matplotlib is not installed, or does not write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigurationError("`--plot` needs matplotlib. Run: pip install matplotlib") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    ranks, shares = [row.ranks for row in rows], [100 * row.efficiency for row in rows]
    axes.plot(ranks, shares, "o-")
    for row, share in zip(rows, shares, strict=True):
        axes.annotate(f"{row.tokens_per_second:,.0f}", (row.ranks, share), (0, -14), **_BELOW)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [f"{count:,}" for count in ranks])
    axes.margins(x=0.1)
    axes.set_ylim(0, 110)
    axes.set_xlabel("ranks (at each point: estimated tokens a second of all)")
    axes.set_ylabel("speed of a rank, % of one alone")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"`--plot` must be a file that can be written, as scaling.png: {error}") from error
