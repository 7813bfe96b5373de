"""Draws docs/images/comparison.png, the speed of each contender over the reference's, from the files of compare.py."""

from itertools import groupby
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
from tables import compared

from unsloth_accel.bench.table import REFERENCE, by_contender, ratios, title


IMAGE = Path(__file__).parents[1] / "docs" / "images" / "comparison.png"


def speeds(results: list[dict]) -> dict[str, dict[str, list[float]]]:
    """By workload and contender: how many times as fast as the reference, round by round."""
    found = {}
    for _, group in groupby(sorted(results, key=title), key=title):
        works = list(group)
        runs = by_contender(works)
        found[_label(works[0])] = {
            name: [1 / ratio for ratio in ratios(own, runs[REFERENCE])] for name, own in runs.items()
        }
    return found


def _label(run: dict) -> str:
    """A title that fits beside the plot: without what is the same in most workloads."""
    held = f" of {run['card_gib']:g} GiB" if run["card_gib"] else ""
    what = f"{run['model']} {run['finetuning']} {run['work'].removesuffix(':padding-free')}, up to {run['sequence']}"
    return f"{what}, {run['world_size']} GPU{held}{', compiled' if run['compiled'] else ''}"


def draw(results: list[dict], image: Path) -> None:
    """A line for each workload, a mark for each contender: the median over the rounds, and from the slowest to the
    fastest one."""
    works = speeds(results)
    names = list(dict.fromkeys(name for contenders in works.values() for name in contenders if name != REFERENCE))
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.3 * len(works)), layout="constrained")
    for name in names:
        rounds = {line: of[name] for line, of in enumerate(works.values()) if name in of}
        middle = [median(speed) for speed in rounds.values()]
        slower = [median(speed) - min(speed) for speed in rounds.values()]
        faster = [max(speed) - median(speed) for speed in rounds.values()]
        axis.errorbar(middle, list(rounds), xerr=[slower, faster], fmt="o", capsize=2, label=name)
    axis.axvline(1, color="black", linestyle="--", linewidth=1, label=REFERENCE)
    axis.set_yticks(range(len(works)), list(works), fontsize="small")
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axis.minorticks_off()
    axis.set_xlabel(f"times as fast as {REFERENCE}")
    axis.legend(loc="lower right", fontsize="small")
    axis.grid(axis="x", alpha=0.3)
    image.parent.mkdir(exist_ok=True)
    figure.savefig(image, dpi=120)


if __name__ == "__main__":
    draw(compared(), IMAGE)
