"""Several ranks run `DataParallelRun` on a small model: `data_parallel_run.py OUT`; each rank writes OUT-<rank>.json.

Torch and Accelerate only. Where something is compared, the same model is trained by torch's DDP alone.
"""

import copy
import gc
import sys
import time
import weakref
from collections import Counter

import torch
import torch.distributed as dist
from start import RANK, WORLD_SIZE, failure, write_result
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unsloth_accel.ddp import chunks
from unsloth_accel.ddp.run import DataParallelRun


LAST = WORLD_SIZE - 1
BOTH = ("first", "second")


class TwoBranches(nn.Module):
    """The branches in `use` get a gradient; `never` gets none. Batch statistics are a buffer that DDP broadcasts."""

    def __init__(self, dtypes=(torch.float32, torch.float32)):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.first = nn.Linear(8, 4, dtype=dtypes[0])
        self.second = nn.Linear(8, 4, dtype=dtypes[1])
        self.never = nn.Linear(8, 4)

    def forward(self, rows, use=BOTH):
        rows = self.norm(rows)
        outputs = [getattr(self, name)(rows.to(getattr(self, name).weight.dtype)) for name in use]
        return {"loss": sum(output.float().pow(2).mean() for output in outputs), "rows": [rows]}


def wrap(find_unused_parameters=True, **options):
    torch.manual_seed(0)
    return DistributedDataParallel(TwoBranches(**options), find_unused_parameters=find_unused_parameters)


class Ours:
    """A wrapped model with a run, as long as the block lasts."""

    def __init__(self, deferred=True, members=(), **options):
        self.ddp = wrap(find_unused_parameters=not deferred, **options)
        self.run = DataParallelRun(self.ddp, deferred=deferred, members=members)

    def __enter__(self):
        return self.ddp, self.run

    def __exit__(self, *_):
        self.run.close()


def micro_batches(count):
    """Other rows on each rank, and of another length."""
    draw = torch.Generator().manual_seed(100 + RANK)
    return [torch.randn(3 + RANK + index, 8, generator=draw) for index in range(count)]


def accumulate(ddp, count, use=BOTH):
    *first, last = micro_batches(count)
    with ddp.no_sync():
        for rows in first:
            ddp(rows, use)["loss"].backward()
    ddp(last, use)["loss"].backward()
    return gradients(ddp)


def gradients(ddp):
    return {name: None if p.grad is None else p.grad.clone() for name, p in ddp.module.named_parameters()}


def weights(ddp):
    return torch.cat([p.detach().reshape(-1) for p in ddp.module.parameters()])


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
    alternating = ("first",) if RANK == 0 else BOTH
    found = {}
    for case, count, use in (("plain", 1, BOTH), ("accumulated", 3, BOTH), ("none on rank 0", 1, alternating)):
        for chunk_bytes in (2**20, 100):  # one chunk; several, and weights that travel where they lie
            chunks.CHUNK_BYTES = chunk_bytes
            with Ours() as (ddp, _):
                ours = accumulate(ddp, count, use)
            found[f"{case}, chunks of {chunk_bytes}"] = compare(ours, accumulate(wrap(), count, use))
    chunks.CHUNK_BYTES = 2**20
    return found


def two_precisions():
    """Each is averaged as torch's DDP averages it, in its own precision."""
    dtypes = (torch.bfloat16, torch.float32)
    with Ours(dtypes=dtypes) as (ddp, _):
        ours = accumulate(ddp, 1)
    kinds = {str(gradient.dtype) for gradient in ours.values() if gradient is not None}
    return {"dtypes": sorted(kinds), **compare(ours, accumulate(wrap(dtypes=dtypes), 1))}


class Member:
    columns = ("half", "token")

    def __init__(self):
        self.heard = []

    def report(self):
        return {"half": RANK + 0.5, "token": torch.tensor(2**30 + RANK)}

    def decide(self, ranks):
        return lambda: self.heard.append([dict(report.values) for report in ranks])


def reports():
    """In the first step the last rank comes late; in the second each tells how long it waited in the first."""
    member = Member()
    with Ours(members=[member]) as (ddp, run):
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
        loss = ddp(micro_batches(1)[0])["loss"]
        time.sleep(0.5 if RANK == LAST else 0.0)
        loss.backward()
        optimizer.step()
        ddp.state_dict()  # as a rank that saves alone
        read_at_once = len(run.step_reports)
        ddp(micro_batches(1)[0])["loss"].backward()
        read_by_the_next = len(run.step_reports)
        run.settle()
        return {
            "read": [read_at_once, read_by_the_next, len(run.step_reports)],
            "heard": member.heard,
            "waited": [report.wait_seconds for report in run.step_reports[1]],
            "failed": [report.failed for step in run.step_reports for report in step],
            "checksums": [[report.weights_checksum for report in step] for step in run.step_reports],
        }


def overlapped():
    """DDP's reducer averages, and the reports are exchanged besides."""
    with Ours(deferred=False) as (ddp, run):
        ours = accumulate(ddp, 2)
        run.settle()
        return {"reports": len(run.step_reports[0]), **compare(ours, accumulate(wrap(), 2))}


def collectives(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return dict(Counter(event.name for event in profile.events() if event.name.startswith("c10d::")))


def counted():
    """What the ranks exchange, with all weights in one chunk."""

    def step(ddp):
        ddp(micro_batches(1)[0], (*BOTH, "never"))["loss"].backward()

    def local(ddp):
        with ddp.no_sync():
            step(ddp)

    ours = Ours()
    with ours as (ddp, _):
        step(ddp)
        counts = {"no_sync": collectives(lambda: local(ddp)), "synced": collectives(lambda: step(ddp))}
        counts["buffers before the next"] = collectives(lambda: step(ddp))
    ddp.zero_grad()
    step(ddp)
    counts["closed"] = collectives(lambda: step(ddp))
    alone = wrap(find_unused_parameters=False)
    step(alone)
    counts["torch alone"] = collectives(lambda: step(alone))
    return counts


def batch_statistics():
    """After three steps, in training and evaluation, the buffers are those of torch's DDP."""
    found = []
    with Ours() as (ddp, _):
        for model in (ddp, wrap(find_unused_parameters=False)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for rows in micro_batches(3):
                model(rows, (*BOTH, "never"))["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                model(micro_batches(1)[0])
            found.append([buffer.tolist() for _, buffer in model.module.named_buffers()])
    return found


def freed():
    """A run that is closed keeps nothing of the model; a deep copy of a model in a run is a model of its own."""
    with Ours() as (ddp, run):
        ddp(micro_batches(1)[0])["loss"].backward()
        clone = copy.deepcopy(ddp)
        for copied in (clone.module, clone):
            copied(micro_batches(1)[0], (*BOTH, "never"))["loss"].backward()
        after_copy = [run.reductions_begun, run.has_local_gradients]
    watched = weakref.ref(ddp.module)
    del ddp, run, clone, copied
    gc.collect()
    return {"reductions and local gradients after the copy's": after_copy, "alive": watched() is not None}


def begun_again():
    """A second run of a model whose first nobody has closed."""
    model = TwoBranches()

    def train():
        ddp = DistributedDataParallel(model)
        run = DataParallelRun(ddp, deferred=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ddp(micro_batches(1)[0])["loss"].backward()
        optimizer.step()
        return run

    first = train()
    error = failure(train)
    first.close()
    return error


def overlapped_refrozen():
    """A branch is trained from the second step on, or no longer, in the run in which that changes and in the next."""
    found = {}
    for case, trained, searches in (("unfrozen", False, True), ("frozen", True, False), ("searched", True, True)):
        model = TwoBranches()
        model.second.requires_grad_(trained)
        ddp = DistributedDataParallel(model, find_unused_parameters=searches)
        run = DataParallelRun(ddp, deferred=False)
        ddp(micro_batches(1)[0], (*BOTH, "never"))["loss"].backward()
        model.second.requires_grad_(not trained)
        step = failure(lambda: ddp(micro_batches(1)[0], (*BOTH, "never"))["loss"].backward())  # noqa: B023
        run.close()
        found[case] = [step, failure(lambda: DataParallelRun(ddp, deferred=False).close())]  # noqa: B023
    return found


def joined():
    """Rank r has 2 + r batches. The ranks that are done answer DDP's reducer, which is in charge as long."""
    found = []
    with Ours() as (ddp, run):
        for model in (ddp, wrap(find_unused_parameters=False)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with model.join():
                for rows in micro_batches(2 + RANK):
                    model(rows, (*BOTH, "never"))["loss"].backward()
                    optimizer.step()
                    optimizer.zero_grad()
            found.append(weights(model))
        return {"difference": (found[0] - found[1]).abs().max().item(), "reports": len(run.step_reports)}


def two_backwards():
    """In one step, as of FGM: what the ranks report second takes the place of the first."""
    with Ours() as (ddp, run):
        for rows in micro_batches(2):
            ddp(rows)["loss"].backward()
        run.settle()
        return len(run.step_reports)


CASES = (
    joined,
    two_backwards,
    averages,
    two_precisions,
    reports,
    overlapped,
    overlapped_refrozen,
    counted,
    batch_statistics,
    freed,
    begun_again,
)

if __name__ == "__main__":
    dist.init_process_group("gloo")
    write_result(sys.argv[1], {case.__name__: case() for case in CASES})
    dist.destroy_process_group()
