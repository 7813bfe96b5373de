"""How evenly the step plan spreads rows over ranks, and what planning costs; prints a line of JSON for each case.

    python benchmarks/plan_rows.py > benchmarks/results/plan_rows_cpu.jsonl

A simulation: the cost of rows is that of a 3b Llama, the lengths are drawn. Imbalance is the sum over steps of the
slowest rank's cost, divided by the sum of the ranks' mean. No plan with the same rows in a step is below the bound.
Planning is a whole epoch of what each rank iterates over; its memory is what the process grows by.
"""

import json
import multiprocessing
import resource
import time

import numpy as np
from torch.utils.data import BatchSampler, RandomSampler
from transformers import LlamaConfig

from unsloth_accel.plan.assignment import assign_rows, rank_costs
from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.lengths import RowLengths
from unsloth_accel.plan.sampler import BalancedBatchSampler


LLAMA_3B = LlamaConfig(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    vocab_size=128256,
)
SHORTEST, LONGEST = 8, 2048
ROWS, STEPS = 60_000, 120
# Ranks, micro-batches, rows of a micro-batch.
SHAPES = [(2, 1, 2), (4, 1, 2), (8, 1, 2), (4, 1, 4), (4, 1, 8), (4, 4, 2), (8, 4, 2), (64, 1, 8)]
PADDED_SHAPES = [(4, 1, 8), (8, 4, 2)]
PLANNED_ROWS = 1_000_000
PLANNED_SHAPES = [(1024, 8, 2), (1024, 8, 8), (8, 4, 2)]


def log_normal(rows):
    return np.random.default_rng(1).lognormal(5.8, 0.9, rows)


def pareto(rows):
    return 64 * (1 + np.random.default_rng(2).pareto(1.2, rows))


def lengths_of(draw, rows):
    return RowLengths.of_documents(np.clip(draw(rows), SHORTEST, LONGEST).astype(np.int64))


def in_order(ranks, slots, rows):
    """As Accelerate deals: micro-batch s of rank r is number s * ranks + r."""
    batches = np.arange(ranks * slots * rows).reshape(slots, ranks, rows)
    return [batches[:, rank].tolist() for rank in range(ranks)]


def least_maximum(costs, ranks):
    """What the costliest rank has at least: the mean, the costliest row, two of the ranks + 1 costliest rows."""
    costliest = np.sort(costs)[::-1]
    return max(costs.sum() / ranks, costliest[0], costliest[ranks - 1 : ranks + 1].sum())


def imbalance(draw, shape, padded=False):
    ranks, slots, rows = shape
    cost = RowCost.from_config(LLAMA_3B, padded)
    lengths = lengths_of(draw, ROWS)
    step_rows = ranks * slots * rows
    plain, ours, merged, bound, plain_mean, our_mean = [], [], [], [], [], []
    for start in range(0, min(STEPS * step_rows, ROWS - step_rows + 1), step_rows):
        step = lengths[start : start + step_rows]
        before = rank_costs(in_order(*shape), step, cost)
        after = rank_costs(assign_rows(step, cost, ranks, slots), step, cost)
        plain.append(max(before))
        ours.append(max(after))
        plain_mean.append(sum(before) / ranks)
        our_mean.append(sum(after) / ranks)
        merged.append(max(rank_costs(assign_rows(step, cost, ranks, slots, slots=1), step, cost)))
        bound.append(least_maximum(cost.of_rows(step), ranks))
    figures = {"plain": sum(plain) / sum(plain_mean), "balanced": sum(ours) / sum(our_mean)}
    figures["time_over_plain"] = sum(ours) / sum(plain)
    if not padded:  # where the costs of rows add up, whatever shares a batch
        figures["balanced_one_batch"] = sum(merged) / sum(our_mean)
        figures["bound"] = sum(bound) / sum(our_mean)
    case = {"lengths": draw.__name__, "ranks": ranks, "slots": slots, "rows": rows, "padded": padded}
    return case | {name: round(value, 4) for name, value in figures.items()}


def planning(shape):
    """In a process of its own, because memory that was once in use is not given back."""
    ranks, slots, rows = shape
    lengths = lengths_of(log_normal, PLANNED_ROWS)
    inner = BatchSampler(RandomSampler(range(PLANNED_ROWS)), rows, drop_last=False)
    before, start = peak_mib(), time.process_time()
    sampler = BalancedBatchSampler(inner, lengths, RowCost.from_config(LLAMA_3B), ranks, slots)
    batches = sum(1 for _ in sampler)
    seconds = time.process_time() - start
    return {
        "planned_rows": PLANNED_ROWS,
        "ranks": ranks,
        "slots": slots,
        "rows": rows,
        "batches": batches,
        "cpu_s": round(seconds, 2),
        "ms_per_step": round(1000 * seconds / -(-PLANNED_ROWS // (ranks * slots * rows)), 3),
        "peak_mib": peak_mib() - before,
    }


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    for draw in (log_normal, pareto):
        for shape in SHAPES:
            print(json.dumps(imbalance(draw, shape)), flush=True)
        for shape in PADDED_SHAPES:
            print(json.dumps(imbalance(draw, shape, padded=True)), flush=True)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for shape in PLANNED_SHAPES:
            print(json.dumps(pool.apply(planning, (shape,))), flush=True)


if __name__ == "__main__":
    main()
