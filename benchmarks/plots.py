"""Draws docs/images/comparison.png, real tokens per second by contender, from the result files of compare.py."""

from itertools import groupby
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
from tables import compared

from unsloth_accel.bench.table import title


IMAGE = Path(__file__).parents[1] / "docs" / "images" / "comparison.png"


def draw(results: list[dict], image: Path) -> None:
    """A group of bars for each workload: the median over the rounds, and from the slowest to the fastest one."""
    works = [list(runs) for _, runs in groupby(sorted(results, key=title), key=title)]
    figure, axes = plt.subplots(len(works), squeeze=False, figsize=(8, 1 + 2.2 * len(works)), layout="constrained")
    for axis, runs in zip(axes[:, 0], works, strict=True):
        names = list(dict.fromkeys(run["contender"] for run in runs))
        rates = [[run["tokens_per_s"] for run in runs if run["contender"] == name] for name in names]
        middle = [median(rounds) for rounds in rates]
        below = [value - min(rounds) for value, rounds in zip(middle, rates, strict=True)]
        above = [max(rounds) - value for value, rounds in zip(middle, rates, strict=True)]
        axis.barh(names, middle, xerr=[below, above], color="tab:blue", ecolor="black", capsize=2)
        axis.invert_yaxis()
        axis.set_title(title(runs[0]), fontsize="small", loc="left")
        axis.set_xlabel("real tokens/s of all GPUs")
    image.parent.mkdir(exist_ok=True)
    figure.savefig(image, dpi=120)


if __name__ == "__main__":
    draw(compared(), IMAGE)
