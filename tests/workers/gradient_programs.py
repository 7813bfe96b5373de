"""Random training programs: `gradient_programs.py OUT FIRST COUNT`; each rank writes OUT-<rank>.json.

A program is what a user's loop may do, right or wrong. It runs under `UnslothAccelerator` and under Accelerate's own
class with DDP, on the same rows. Torch and Accelerate only.
"""

import gc
import random
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from start import RANK, WORLD_SIZE, write_result
from torch import nn
from torch.utils.checkpoint import checkpoint

from unsloth_accel import UnslothAccelerator, UnslothAcceleratorPlugin


class Layers(nn.Module):
    """The second layer is checkpointed, reentrant or not, and its weight is used twice."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 1)

    def forward(self, rows):
        first, second, third = self.layers
        hidden = torch.tanh(first(rows))
        if not hidden.requires_grad:  # else a reentrant checkpoint gives its weights no gradient at all
            hidden = hidden.detach().requires_grad_()
        hidden = checkpoint(lambda x: torch.tanh(second(second(x))), hidden, use_reentrant=self.reentrant)
        return {"out": [self.head(torch.tanh(third(hidden)))]}


def write_program(seed):
    """A list of operations: two or three optimizer steps, each of one to three backwards."""
    draw = random.Random(seed)
    program = []
    for _ in range(draw.randint(2, 3)):
        if draw.random() < 0.2:
            program.append((draw.choice(["freeze", "unfreeze"]), draw.randrange(2)))
        if draw.random() < 0.2:
            program.append(("evaluate",))
        count = draw.randint(1, 3)
        for index in range(count):
            # Most programs are right: all but the last backward under no_sync, through the wrapped model.
            local = index < count - 1 if draw.random() < 0.85 else draw.random() < 0.5
            bypass = draw.random() < 0.05
            program.append(("backward", draw.randint(1, 2), local, bypass, draw.choice(["accelerator", "loss"])))
        if draw.random() < 0.5:
            program.append(("clip",))
        program.append(("step",))
        if draw.random() < 0.9:
            program.append(("zero_grad", draw.random() < 0.7))
    return program


class Loop:
    """One run of a program."""

    def __init__(self, accelerator, seed):
        torch.manual_seed(seed)
        self.accelerator, self.seed, self.forwards = accelerator, seed, 0
        # Reentrant, DDP's hooks fire twice and it raises; what is computed is the same.
        model = Layers(reentrant=seed % 2 == 0 and isinstance(accelerator, UnslothAccelerator))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def run(self, program):
        for operation, *arguments in program:
            getattr(self, operation)(*arguments)

    def loss(self, model):
        self.forwards += 1
        draw = torch.Generator().manual_seed(1000 * self.seed + 10 * self.forwards + RANK)
        return model(torch.randn(3 + RANK, 6, generator=draw))["out"][0].pow(2).mean()

    def backward(self, forwards, local, bypass, by):
        model = self.model.module if bypass else self.model
        with self.accelerator.no_sync(self.model) if local else torch.enable_grad():
            loss = sum(self.loss(model) for _ in range(forwards))
            if by == "accelerator":
                self.accelerator.backward(loss)
            else:
                loss.backward()

    def freeze(self, layer):
        self.model.module.layers[layer].requires_grad_(False)

    def unfreeze(self, layer):
        self.model.module.layers[layer].requires_grad_(True)

    def evaluate(self):
        self.model.eval()
        with torch.no_grad():
            self.loss(self.model)
        self.model.train()

    def clip(self):
        self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)

    def step(self):
        self.optimizer.step()

    def zero_grad(self, set_to_none):
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def weights(self):
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()]).double()


def apart(weights):
    """The largest difference of any rank's weights to rank 0's."""
    every = [torch.empty_like(weights) for _ in range(WORLD_SIZE)]
    dist.all_gather(every, weights)
    return max((other - every[0]).abs().max().item() for other in every)


def run(accelerator, program, seed):
    loop = Loop(accelerator, seed)
    error = None
    try:
        loop.run(program)
    except RuntimeError as failed:  # what either class raises for a program it refuses; the test judges
        error = f"{type(failed).__name__}: {failed}"
    weights = loop.weights()
    accelerator.free_memory()
    return {"error": error, "apart": apart(weights)}, weights


def compare(seed, ours, stock):
    program = write_program(seed)
    result, weights = run(ours, program, seed)
    expected, stock_weights = run(stock, program, seed)
    difference = (weights - stock_weights).abs().max().item() / stock_weights.abs().max().item()
    return {"seed": seed, "program": program, "ours": result, "stock": expected, "difference": difference}


def main(out, first, count):
    gc.freeze()  # `free_memory` collects; what was imported need not be looked through each time
    ours = UnslothAccelerator(plugin=UnslothAcceleratorPlugin(gradient_sync="deferred"))
    stock = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    write_result(out, [compare(seed, ours, stock) for seed in range(int(first), int(first) + int(count))])


if __name__ == "__main__":
    main(*sys.argv[1:])
