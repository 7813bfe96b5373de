"""Several ranks reduce gradients in one step: `gradient_sync.py OUT`; each rank writes OUT-<rank>.json. Torch only.

Every case builds the same small model twice, for torch's DDP alone and for DDP with a `StepReduction`.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unsloth_accel import PeerError
from unsloth_accel.ddp.reduction import StepReduction


RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
LAST = WORLD_SIZE - 1


class TwoBranches(nn.Module):
    """The branch in `use` gets a gradient; `never` gets none. The buffer is one that DDP broadcasts in forward."""

    def __init__(self, dtypes=(torch.float32, torch.float32)):
        super().__init__()
        self.first = nn.Linear(8, 4, dtype=dtypes[0])
        self.second = nn.Linear(8, 4, dtype=dtypes[1])
        self.never = nn.Linear(8, 4)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, rows, use):
        outputs = [getattr(self, name)(rows.to(getattr(self, name).weight.dtype)) for name in use]
        return sum(output.float().pow(2).mean() for output in outputs) * self.scale


def wrap(find_unused_parameters=True, **options):
    torch.manual_seed(0)
    return DistributedDataParallel(TwoBranches(**options), find_unused_parameters=find_unused_parameters)


def micro_batches(count):
    """Other rows on each rank, and of another length."""
    draw = torch.Generator().manual_seed(100 + RANK)
    return [torch.randn(3 + RANK + index, 8, generator=draw) for index in range(count)]


def torch_alone(model, use, accumulation=1):
    *first, last = micro_batches(accumulation)
    with model.no_sync():
        for rows in first:
            model(rows, use).backward()
    model(last, use).backward()
    return gradients(model)


def deferred(model, use, accumulation=1, **row):
    reduction = StepReduction(model, deferred=True)
    for rows in micro_batches(accumulation):
        model(rows, use).backward()
    local = gradients(model)
    reduction.run(**row)
    reduction.rows()
    return gradients(model), local


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.module.named_parameters()}


def compare(ours, expected):
    """The largest difference, relative to the largest gradient, and which parameters have none."""
    present = [name for name in expected if expected[name] is not None and ours[name] is not None]
    return {
        "difference": max(
            ((ours[n].double() - expected[n].double()).abs().max() / expected[n].double().abs().max()).item()
            for n in present
        ),
        "none": [sorted(name for name in side if side[name] is None) for side in (ours, expected)],
    }


def averages():
    both = ["first", "second"]
    alternating = ["first"] if RANK == 0 else both
    return {
        "plain": compare(deferred(wrap(), both)[0], torch_alone(wrap(), both)),
        "accumulated": compare(deferred(wrap(), both, 3)[0], torch_alone(wrap(), both, 3)),
        "none on rank 0": compare(deferred(wrap(), alternating)[0], torch_alone(wrap(), alternating)),
    }


def mean_in_fp32(gradient):
    every = [torch.empty(gradient.shape) for _ in range(WORLD_SIZE)]
    dist.all_gather(every, gradient.float().contiguous())
    return (torch.stack(every) / WORLD_SIZE).sum(0)


def mixed_precision():
    """One flat reduction of bf16 and fp32 gradients: exact in fp32, rounded once."""
    ours, local = deferred(wrap(dtypes=(torch.bfloat16, torch.float32)), ["first", "second"])
    exact = {name: mean_in_fp32(gradient) for name, gradient in local.items() if gradient is not None}
    return {
        "dtypes": {name: str(gradient.dtype) for name, gradient in ours.items() if gradient is not None},
        "bf16 is the rounded mean": all(
            torch.equal(ours[name], mean.bfloat16()) for name, mean in exact.items() if name.startswith("first")
        ),
        "fp32": max((ours[n] - mean).abs().max().item() for n, mean in exact.items() if n.startswith("second")),
    }


def rows_of_every_rank():
    """In the first step the last rank comes late; in the second each tells how long it waited in the first."""
    reduction = StepReduction(wrap(), deferred=True, num_numbers=3)
    time.sleep(0.5 if RANK == LAST else 0.0)
    reduction.run(torch.tensor(10 + RANK), [RANK + 0.5, -1.0])
    first = reduction.rows()
    reduction.run(1000 + RANK, [7.0])
    return [first, reduction.rows()]


def collectives(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return dict(Counter(event.name for event in profile.events() if event.name.startswith("c10d::")))


def counted():
    rows, both = micro_batches(1)[0], ["first", "second", "never"]

    def step(model):
        model(rows, both).backward()

    alone = wrap(find_unused_parameters=False)
    step(alone)  # DDP broadcasts buffers before each forward but the first
    counts = {"torch alone": collectives(lambda: step(alone))}
    model = wrap(find_unused_parameters=False)
    reduction = StepReduction(model, deferred=True)
    counts["first micro-batch"] = collectives(lambda: step(model))
    counts["second micro-batch"] = collectives(lambda: step(model))
    counts["reduction"] = collectives(reduction.run)
    reduction.close()
    model.zero_grad()
    step(model)
    counts["closed"] = collectives(lambda: step(model))
    return counts


def overlapped():
    """DDP's reducer averages, and the rows are exchanged besides."""
    model, both = wrap(), ["first", "second"]
    reduction = StepReduction(model, deferred=False)
    found = torch_alone(model, both)
    reduction.run(RANK + 1)
    return {"rows": reduction.rows(), **compare(gradients(model), found)}


def fails(reduction):
    try:
        raise ValueError(f"no row for rank {RANK}")
    except ValueError:
        reduction.announce_failure()
        raise


def failing_rank():
    """The last rank fails in the middle of a step, and none of the others may wait for it."""
    model = wrap()
    reduction = StepReduction(model, deferred=True, num_numbers=2)
    model(micro_batches(1)[0], ["first"]).backward()
    began = time.monotonic()
    try:
        if RANK == LAST:
            fails(reduction)
        reduction.run(5, [1.0])
        reduction.rows()
    except (PeerError, ValueError) as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
    return {"error": None}


CASES = (averages, mixed_precision, rows_of_every_rank, counted, overlapped, failing_rank)

if __name__ == "__main__":
    dist.init_process_group("gloo")
    results = {case.__name__: case() for case in CASES}
    Path(f"{sys.argv[1]}-{RANK}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
