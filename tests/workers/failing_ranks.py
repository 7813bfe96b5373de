"""What happens to all ranks when one goes wrong: `failing_ranks.py OUT CASE [CASE ...]`.

Each rank writes OUT-<rank>.json. The last one misbehaves, and where it has to leave with its own error it does so for
real. Torch and Accelerate only.
"""

import sys
import time

import torch
from start import RANK, WORLD_SIZE, write_result
from torch import nn

from unsloth_accel import UnslothAccelerator, UnslothAcceleratorPlugin
from unsloth_accel.ddp import run as run_module
from unsloth_accel.ranks.store import find_errors


LAST = WORLD_SIZE - 1


def prepare(accelerator, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))


def rows(step=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(10 * step + RANK))


def train_step(accelerator, model, optimizer, step=0, fails=None):
    with accelerator.accumulate(model):
        loss = model(rows(step)).pow(2).mean()
        if fails == "in forward" and RANK == LAST:
            raise ValueError(f"no row for rank {RANK}")
        accelerator.backward(loss)
        if fails == "after the reduction" and RANK == LAST:
            raise ValueError(f"no step for rank {RANK}")
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def outcome(function):
    began = time.monotonic()
    try:
        function()
    except Exception as error:  # the test judges
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - began}
    return {"error": None}


def in_forward():
    """A rank fails in the second step. The others have applied that step by the time they hear of it."""
    accelerator = UnslothAccelerator()
    model, optimizer = prepare(accelerator)
    train_step(accelerator, model, optimizer)
    before = weights(model).clone()

    def second():
        train_step(accelerator, model, optimizer, 1, fails="in forward")
        accelerator.wait_for_everyone()

    found = outcome(second)
    moved = (weights(model) - before).abs().max().item()
    saved = outcome(lambda: torch.save(model.module.state_dict(), "weights.pt"))
    nested = outcome(lambda: model.module[2].state_dict())
    if RANK != LAST:
        model.module.load_state_dict({name: torch.zeros_like(p) for name, p in model.module.named_parameters()})
    again = outcome(model.module.state_dict)
    published = [rank for rank, _ in find_errors()]
    next_accelerator = UnslothAccelerator()
    prepare(next_accelerator)
    next_accelerator.wait_for_everyone()
    left = [rank for rank, _ in find_errors()]
    return {**found, "moved": moved, "saved": saved, "nested": nested, "again": again, "published": [published, left]}


def with_two_models():
    """Nobody knows in which model's reduction the others wait."""
    accelerator = UnslothAccelerator()
    first, second = prepare(accelerator), prepare(accelerator, 1)
    train_step(accelerator, *first)
    train_step(accelerator, *second, fails="in forward")


def after_the_reduction():
    accelerator = UnslothAccelerator()
    model, optimizer = prepare(accelerator)
    train_step(accelerator, model, optimizer, fails="after the reduction")
    train_step(accelerator, model, optimizer, 1)


def in_the_reduction():
    """Out of memory while gradients are averaged, after the first chunk."""
    accelerator = UnslothAccelerator()
    model, optimizer = prepare(accelerator)

    class OutOfMemory(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.mul_:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB")
            return super().__torch_function__(function, types, args, kwargs or {})

    if RANK == LAST:
        (chunk,) = accelerator._runs[0]._trained.chunks
        accelerator._runs[0]._trained.chunks = [chunk._replace(flat=chunk.flat.as_subclass(OutOfMemory))]
    train_step(accelerator, model, optimizer)


def different_weights():
    """A weight of one rank is changed between two steps: the next reduction names the rank."""
    accelerator = UnslothAccelerator()
    model, optimizer = prepare(accelerator)
    train_step(accelerator, model, optimizer)
    if RANK == LAST:
        with torch.no_grad():
            model.module[0].weight[0, 0] += 2.0**-20

    def rest():
        train_step(accelerator, model, optimizer, 1)
        accelerator.wait_for_everyone()

    return outcome(rest)


def different_parameters():
    """One rank alone unfreezes a layer: it is told which, and the others do not wait for ever."""
    run_module.AGREEMENT_SECONDS = 3.0
    accelerator = UnslothAccelerator()
    model, optimizer = prepare(accelerator)
    model.module[2].requires_grad_(False)
    train_step(accelerator, model, optimizer)
    if RANK == LAST:
        model.module[2].requires_grad_(True)
    train_step(accelerator, model, optimizer, 1)


def different_models():
    accelerator = UnslothAccelerator(plugin=UnslothAcceleratorPlugin(gradient_sync="deferred"))
    model = nn.Linear(4, 1, bias=True)
    model.bias.requires_grad_(RANK != LAST)
    return outcome(lambda: accelerator.prepare(model))


if __name__ == "__main__":
    out, *cases = sys.argv[1:]
    write_result(out, {case: globals()[case]() for case in cases})
