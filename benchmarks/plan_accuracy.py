"""What `unsloth-accel plan` would have said of runs that were measured: prints two tables of docs/planning.md.

    python benchmarks/plan_accuracy.py

The first runs are those of benchmarks/gradient_sync.py in benchmarks/results/. Their rows are drawn again, from the
same seeds, dealt to the ranks as each mode deals them, and the largest batch and the slowest rank of each step follow.
The second ones are those of benchmarks/compare.py with full rows, whose tokens need no drawing.
"""

import json
import random
import re
from pathlib import Path

import numpy as np
import torch
from tables import compared, machine, what

from unsloth_accel.bench.random_llama import WORDS, config, tokenizer
from unsloth_accel.bench.table import by_contender, by_workload
from unsloth_accel.bench.workload import Workload
from unsloth_accel.ddp.chunks import CHUNK_BYTES
from unsloth_accel.estimate.communication import Links, exposed_ms
from unsloth_accel.estimate.fitting import estimate
from unsloth_accel.estimate.recipe import Recipe
from unsloth_accel.estimate.step_time import RankWork, compute_ms
from unsloth_accel.metrics.peak_flops import peak_flops
from unsloth_accel.plan.assignment import assign_rows
from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.decoder import DecoderShape
from unsloth_accel.plan.lengths import RowLengths
from unsloth_accel.plan.memory import GIB, estimate_largest


RESULTS = Path(__file__).parent / "results"
FILES = ("planned_steps_2x_h200", "step_plan_2x_h200", "gradient_sync_2x_h200")
RANKS = 2
BALANCED, ONE_PIECE = ("balanced", "pieces", "planned", "auto"), ("pieces", "planned", "auto")
KEEPS_ALL = ("planned", "auto")
# What `plan="auto"` computes as written, before it begins with one piece and all layers.
STEPS_OF_SEARCH = 2
# What the constants were taken from: those of memory in another call with the same work, those of time in this line.
SEEN_MEMORY = {("3b", "4x1:fixed"), ("1b", "overlapped")}
SEEN_TIME = {("4x1:fixed", "planned"), ("2x4:lognormal", "varlen")}


def row_lengths(run: dict) -> RowLengths:
    """The rows of a run in the order in which its sampler drew them."""
    shape, kind = run["work"].split(":")
    rows, accumulation = map(int, shape.split("x"))
    draw = random.Random(1)

    def length() -> int:
        if kind == "fixed":
            return run["seq"] + 8
        return max(8, min(run["seq"], int(draw.lognormvariate(5.8, 0.9))))

    count = run["steps"] * rows * accumulation * RANKS
    texts = [" ".join(draw.choice(WORDS) for _ in range(length())) for _ in range(count)]
    tokens = [min(run["seq"], len(ids) + 1) for ids in tokenizer()(texts)["input_ids"]]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).numpy()  # as Accelerate's sampler
    return RowLengths.of_documents(np.array(tokens, np.int64)[order])


def deal(run: dict, step: RowLengths, cost: RowCost, rows: int, accumulation: int) -> list[list[list[int]]]:
    """For each rank its batches."""
    if run["mode"] not in BALANCED:
        batches = np.arange(len(step)).reshape(accumulation, RANKS, rows)
        return [batches[:, rank].tolist() for rank in range(RANKS)]
    plan = assign_rows(step, cost, RANKS, accumulation)
    return [[sum(rank, [])] for rank in plan] if run["mode"] in ONE_PIECE else plan


def predict(run: dict) -> dict:
    """The peak in GiB and the milliseconds of a step."""
    rows, accumulation = map(int, run["work"].split(":")[0].split("x"))
    model = config(run["model"])
    shape = DecoderShape.from_config(model)
    recipe = Recipe(shape, 16, None if run["ft"] == "full" else run["rank"], run["seq"], rows, accumulation)
    kept = shape.layers if run["mode"] in KEEPS_ALL else 0
    lengths, size = row_lengths(run), rows * accumulation * RANKS
    steps = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    plans = [deal(run, step, RowCost.from_config(model), rows, accumulation) for step in steps]
    dealt = list(zip(plans, steps, strict=True))
    timed = dealt[run["steps"] // 3 :]
    dealt = dealt[STEPS_OF_SEARCH * (run["mode"] == "auto") :]
    largest = max(int(step.tokens[batch].sum()) for plan, step in dealt for rank in plan for batch in rank)
    times = [max(_rank_ms(recipe, run, rank, step, kept) for rank in plan) for plan, step in timed]
    return {"tokens": largest, "kept": kept, "peak": _peak(recipe, run, largest, kept), "ms": sum(times) / len(times)}


def _rank_ms(recipe: Recipe, run: dict, batches: list[list[int]], step: RowLengths, kept: int) -> float:
    """Batch by batch, because the host is the limit in some and the GPU in others."""
    peak = peak_flops(run["gpu"], bf16=True)
    works = [RankWork(float(step.tokens[b].sum()), float(step.squares[b].sum()), 1, kept) for b in batches]
    compute = sum(compute_ms(recipe, work, peak) for work in works)
    return compute + exposed_ms(recipe.gradient_bytes, RANKS, Links(), compute)


def _peak(recipe: Recipe, run: dict, tokens: int, kept: int) -> float:
    """With the benchmark's own copy of the trained weights. Plain DDP has buckets besides the gradients."""
    held = {"varlen": recipe.gradient_bytes, "overlapped": 0}
    reduction = held.get(run["mode"], min(recipe.gradient_bytes, CHUNK_BYTES)) / GIB
    bucketed = run["mode"] == "overlapped"
    estimate = estimate_largest(recipe.shape, tokens, kept, 16, recipe.lora_rank, reduction, bucketed)
    return estimate.peak + recipe.gradient_bytes / GIB


def table() -> str:
    """Each uncompiled run: largest batch, peak and step time, estimated and measured."""
    runs = [
        json.loads(line) | {"file": name}
        for name in FILES
        for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()
    ]
    lines = [
        "| run | tokens of a batch | layers kept | peak GiB | measured | error | ms/step | measured | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        if "work" in run and not run["compiled"]:
            lines.append(_line(run, predict(run)))
    return "\n".join(lines)


def _line(run: dict, said: dict) -> str:
    seen_memory = any({model, kind} <= {run["model"], run["work"], run["mode"]} for model, kind in SEEN_MEMORY)
    seen_time = run["file"] == FILES[0] and (run["work"], run["mode"]) in SEEN_TIME
    cells = [
        f"{run['model']} {run['ft']}, {run['work']}, {run['mode']}",
        f"{said['tokens']:,}",
        str(said["kept"]),
        f"{said['peak']:.2f}",
        f"{run['peak_gib']:.2f}",
        f"{said['peak'] / run['peak_gib'] - 1:+.1%}{' (seen)' * seen_memory}",
        f"{said['ms']:.0f}",
        f"{run['step_ms']:.0f}",
        f"{said['ms'] / run['step_ms'] - 1:+.0%}{' (seen)' * seen_time}",
    ]
    return f"| {' | '.join(cells)} |"


def compared_peaks() -> str:
    """The peak of each uncompiled contender of ours with full rows, estimated and measured."""
    lines = [
        "| run | GPUs | contender | tokens of a batch | layers kept | peak GiB | measured | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for works in by_workload(run for run in compared() if ":fixed" in run["work"] and not run["compiled"]):
        for contender, runs in by_contender(works).items():
            if contender in ("keep", "overlapped", "auto"):
                lines.append(_compared_line(runs))
    return "\n".join(lines)


def _compared_line(runs: list[dict]) -> str:
    run, plan = runs[0], runs[0]["plan"] or ""
    work = Workload.parse(run["work"])
    rank = None if run["finetuning"] == "full" else run["lora_rank"]
    bits = 4 if run["finetuning"] == "qlora" else 16
    shape = DecoderShape.from_config(config(run["model"]))
    recipe = Recipe(shape, bits, rank, run["sequence"], work.rows, work.accumulation)
    pieces, kept = map(int, re.findall(r"(\d+) (?:piece|layers not)", plan)) if plan else (work.accumulation, 0)
    tokens = work.rows * work.accumulation * run["sequence"] // pieces
    said, measured = estimate(recipe, run["world_size"], tokens, kept).peak, max(one["peak_gib"] for one in runs)
    cells = [what(run), machine(run), run["contender"], f"{tokens:,}", f"{kept}", f"{said:.2f}", f"{measured:.2f}"]
    return f"| {' | '.join(cells)} | {said / measured - 1:+.1%} |"


if __name__ == "__main__":
    print(table(), compared_peaks(), sep="\n\n")
