"""Draws docs/images/comparison.png, the speed of each contender over the reference's, from the files of compare.py."""

from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
from tables import compared, machine, what

from unsloth_accel.bench.table import REFERENCE, by_contender, by_workload, ratios


IMAGE = Path(__file__).parents[1] / "docs" / "images" / "comparison.png"


def speeds(results: list[dict]) -> list[tuple[str, dict[str, list[float]]]]:
    """For each workload, by contender: how many times as fast as the reference, round by round."""
    found = []
    for works in by_workload(results):
        runs = by_contender(works)
        if REFERENCE in runs:
            own = {name: [1 / ratio for ratio in ratios(own, runs[REFERENCE])] for name, own in runs.items()}
            found.append((f"{what(works[0])}, {machine(works[0])}", own))
    return found


def draw(results: list[dict], image: Path) -> None:
    """A line for each workload, a mark for each contender: the median over the rounds, and from the slowest to the
    fastest one."""
    works = speeds(results)
    names = list(dict.fromkeys(name for _, contenders in works for name in contenders if name != REFERENCE))
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.3 * len(works)), layout="constrained")
    for name in names:
        rounds = {line: of[name] for line, (_, of) in enumerate(works) if name in of}
        middle = [median(speed) for speed in rounds.values()]
        slower = [median(speed) - min(speed) for speed in rounds.values()]
        faster = [max(speed) - median(speed) for speed in rounds.values()]
        axis.errorbar(middle, list(rounds), xerr=[slower, faster], fmt="o", capsize=2, label=name)
    axis.axvline(1, color="black", linestyle="--", linewidth=1, label=REFERENCE)
    axis.set_yticks(range(len(works)), [label for label, _ in works], fontsize="small")
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axis.minorticks_off()
    axis.set_xlabel(f"times as fast as {REFERENCE}")
    figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    axis.grid(axis="x", alpha=0.3)
    image.parent.mkdir(exist_ok=True)
    figure.savefig(image, dpi=120)


if __name__ == "__main__":
    draw(compared(), IMAGE)
