"""Draws the figures of docs/step_plan.md: `python benchmarks/plan_figures.py` (needs matplotlib).

The tokens of each rank are those of the simulation in plan_rows.py; the times are in benchmarks/results.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plan_rows import LLAMA_3B, in_order, lengths_of, log_normal

from unsloth_accel.plan.assignment import assign_rows
from unsloth_accel.plan.cost import RowCost


ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "benchmarks" / "results" / "plan_on_gpus_2x_h100.jsonl"
RANKS, ROWS, STEPS = 4, 8, 6
TUNED = "plan=auto;gib=6;steps=34"


def tokens_of_ranks():
    """For each step: the tokens of each rank, as rows come and balanced."""
    lengths, cost = lengths_of(log_normal, RANKS * ROWS * STEPS), RowCost.from_config(LLAMA_3B, padded=False)
    steps = []
    for start in range(0, RANKS * ROWS * STEPS, RANKS * ROWS):
        rows = lengths[np.arange(start, start + RANKS * ROWS)]
        plans = in_order(RANKS, 1, ROWS), [sum(batches, []) for batches in assign_rows(rows, cost, RANKS, 1, 1)]
        steps.append([[int(rows.tokens[plan].sum()) for plan in ranks] for ranks in plans])
    return steps


def draw_tokens(file):
    steps = np.array(tokens_of_ranks())  # steps x 2 x ranks
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), sharey=True, layout="constrained")
    for index, (axis, title) in enumerate(zip(axes, ("as the rows come", "balanced"), strict=True)):
        for rank in range(RANKS):
            axis.bar(np.arange(STEPS) + (rank - 1.5) / 5, steps[:, index, rank], width=0.18, label=f"rank {rank}")
        axis.set(title=title, xlabel="step", xticks=range(STEPS))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("tokens")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=RANKS, loc="outside lower center")
    figure.savefig(file, dpi=150)


def draw_candidates(file):
    runs = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    plan = next(run["plan"] for run in runs if run.get("case") == TUNED)
    tried = plan["candidates"]
    figure, axis = plt.subplots(figsize=(8, 1.8), layout="constrained")
    names = [
        f"{one['pieces']} piece{'s' * (one['pieces'] > 1)}, {one['layers_kept']} of {plan['layers']} layers kept"
        for one in tried
    ]
    milliseconds = [one["microseconds"] * plan["tokens"] / 1000 for one in tried]
    bars = axis.barh(
        names, milliseconds, color=["C2" if one["pieces"] == plan["plan"]["pieces"] else "C7" for one in tried]
    )
    axis.bar_label(bars, fmt="%.0f", padding=3)
    axis.invert_yaxis()
    axis.set_xlabel(f"ms for a step of {plan['tokens']:,} tokens a rank")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    draw_tokens(IMAGES / "rank_tokens.png")
    draw_candidates(IMAGES / "plan_candidates.png")
