"""Draws docs/images/step_time.png and prints the README's table of speed: `python benchmarks/readme.py`."""

import json
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "docs" / "images" / "step_time.png"


class Work(NamedTuple):
    """What is compared with plain Unsloth on the same rows, in one process."""

    name: str
    file: str
    work: str
    mode: str
    compiled: bool = False


AUTO, GIVEN = ("step_plan_2x_h200", "auto"), ("planned_steps_2x_h200", "planned")
WORKS = [
    Work("2 rows x 4 micro-batches, uneven lengths", AUTO[0], "2x4:lognormal", AUTO[1]),
    Work("the same, compiled", GIVEN[0], "2x4:lognormal", GIVEN[1], compiled=True),
    Work("8 rows, uneven lengths", GIVEN[0], "8x1:lognormal", GIVEN[1]),
    Work("4 rows of 2048 tokens", AUTO[0], "4x1:fixed", AUTO[1]),
]


def measured(work: Work) -> tuple[dict, dict]:
    """The results of plain Unsloth and of ours."""
    lines = (ROOT / "benchmarks" / "results" / f"{work.file}.jsonl").read_text().splitlines()
    runs = {
        run["mode"]: run
        for run in map(json.loads, lines)
        if (run.get("work"), run.get("compiled")) == (work.work, work.compiled)
    }
    return runs["varlen"], runs[work.mode]


def speed() -> str:
    """The median over the rounds, with each round in brackets."""
    head = "| on each GPU, in an optimizer step | plain Unsloth | with a step plan | | plan | peak GiB |"
    lines = [head, "|---|---|---|---|---|---|"]
    for work in WORKS:
        plain, ours = measured(work)
        ratio, plan = f"**{1 / ours['against']:.1f} x**", "auto" if work.mode == "auto" else "given"
        memory = f"{plain['peak_gib']:.1f}, {ours['peak_gib']:.1f}"
        lines.append(f"| {work.name} | {_ms(plain)} | {_ms(ours)} | {ratio} | {plan} | {memory} |")
    return "\n".join(lines)


def _ms(run: dict) -> str:
    return f"{run['step_ms']:.0f} ms ({', '.join(f'{value:.0f}' for value in run['step_ms_rounds'])})"


def draw() -> None:
    """Two bars for each work."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    for number, work in enumerate(WORKS):
        plain, ours = measured(work)
        for offset, run, color in ((-0.2, plain, "0.6"), (0.2, ours, "tab:green")):
            axes.barh(number + offset, run["step_ms"], 0.36, color=color)
            times = "" if run is plain else f"  ({1 / ours['against']:.1f} x as fast)"
            axes.text(run["step_ms"] + 10, number + offset, f"{run['step_ms']:.0f} ms{times}", va="center", fontsize=9)
    axes.set_yticks(range(len(WORKS)), [work.name for work in WORKS])
    axes.invert_yaxis()
    axes.set_xlim(0, 1500)
    axes.set_xlabel("ms for an optimizer step, the same rows and the same loss")
    figure.suptitle("LoRA r=16 on a 3b Llama, 2 x H200: plain Unsloth (grey) and unsloth-accel (green)", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    IMAGE.parent.mkdir(exist_ok=True)
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    draw()
    print(speed())
