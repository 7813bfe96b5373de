"""Draws docs/images/step_time.png and prints the README's table of speed: `python benchmarks/readme.py`."""

from pathlib import Path
from statistics import median
from typing import NamedTuple

from tables import compared, machine, times_as_fast

from unsloth_accel.bench.table import REFERENCE, by_contender, by_workload


IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "step_time.png"


class Work(NamedTuple):
    """What is compared with plain Unsloth on the same rows, in one call: the first one in the result files."""

    name: str
    machine: str
    work: str
    compiled: bool = False


NOTEBOOK, PADDED = "2x4:lognormal:padding-free", "2x4:lognormal:padded"
UNEVEN, FIXED = "8x1:lognormal:padding-free", "4x1:fixed:padding-free"
WORKS = [
    Work("2 rows x 4 micro-batches, uneven lengths", "2 x H100", NOTEBOOK),
    Work("the same, compiled", "2 x H100", NOTEBOOK, compiled=True),
    Work("2 rows x 4 micro-batches, uneven lengths", "4 x H200", NOTEBOOK),
    Work("the same, padded", "2 x H200", PADDED),
    Work("8 rows, uneven lengths", "2 x H200", UNEVEN),
    Work("8 rows, uneven lengths", "4 x H200", UNEVEN),
    Work("4 rows of 2048 tokens", "2 x H200", FIXED),
    Work("4 rows of 2048 tokens", "4 x H200", FIXED),
]


def measured(work: Work) -> tuple[list[dict], list[dict]]:
    """The rounds of plain Unsloth and of ours."""
    wanted = ("3b", "lora", work.work, work.machine, work.compiled)
    for runs in by_workload(compared()):
        first, contenders = runs[0], by_contender(runs)
        if (first["model"], first["finetuning"], first["work"], machine(first), first["compiled"]) == wanted:
            return contenders[REFERENCE], contenders["auto"]
    raise LookupError(f"No result file has {work}.")


def speed() -> str:
    """The median over the rounds, with each round in brackets."""
    head = "| on each GPU, in an optimizer step | GPUs | plain Unsloth | with this package | | peak GiB |"
    lines = [head, "|---|---|---|---|---|---|"]
    for work in WORKS:
        plain, ours = measured(work)
        memory = ", ".join(f"{max(run['peak_gib'] for run in runs):.1f}" for runs in (plain, ours))
        times = f"{_ms(plain)} | {_ms(ours)} | **{times_as_fast(ours, plain):.1f} x**"
        lines.append(f"| {work.name} | {work.machine} | {times} | {memory} |")
    return "\n".join(lines)


def _median(runs: list[dict]) -> float:
    return median(run["ms"] for run in runs)


def _ms(runs: list[dict]) -> str:
    rounds = ", ".join(f"{run['ms']:.0f}" for run in runs)
    return f"{_median(runs):.0f} ms ({rounds})"


def draw() -> None:
    """Two bars for each work."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, work in enumerate(WORKS):
        plain, ours = measured(work)
        for offset, runs, color in ((-0.2, plain, "0.6"), (0.2, ours, "tab:green")):
            axes.barh(number + offset, _median(runs), 0.36, color=color)
            times = "" if runs is plain else f"  ({times_as_fast(ours, plain):.1f} x as fast)"
            label = f"{_median(runs):.0f} ms{times}"
            axes.text(_median(runs) + 10, number + offset, label, va="center", fontsize=9)
    axes.set_yticks(range(len(WORKS)), [f"{work.name}\n{work.machine}" for work in WORKS])
    axes.invert_yaxis()
    axes.set_xlim(0, 1700)
    axes.set_xlabel("ms for an optimizer step, the same rows and the same loss")
    figure.suptitle("LoRA r=16 on a 3b Llama: plain Unsloth (grey) and unsloth-accel (green)", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    IMAGE.parent.mkdir(exist_ok=True)
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    draw()
    print(speed())
