"""Seconds to build DDP around a LoRA model with and without its frozen weights, in one process.

Usage: accelerate launch --num_processes N benchmarks/ddp_startup.py --parameters 200

The two alternate (A B A B), because the speed of a machine drifts. "without" includes the checksum. The weights are
random and need no download; with a GPU they lie on it. Prints one JSON line from rank 0.
"""

import argparse
import json
import os
import statistics
import time


from unsloth_accel import UnslothAccelerator  # isort: skip
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unsloth_accel.fixes.frozen_weights import left_out_of_ddp


WIDTH, RANK = 2048, 16


class Layer(nn.Module):
    """A frozen square weight in bf16 and its LoRA pair."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)


def seconds(build, device):
    """Of the slowest rank, the device's work included."""
    dist.barrier()
    began = time.perf_counter()
    build()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    taken = torch.tensor(time.perf_counter() - began, device=device)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return taken.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=200, help="frozen parameters in millions")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    options = parser.parse_args()
    accelerator = UnslothAccelerator()
    device = accelerator.device
    torch.manual_seed(0)
    layers = max(1, round(options.parameters * 1e6 / WIDTH**2))
    model = nn.ModuleList([Layer() for _ in range(layers)]).to(device)

    def plain():
        DistributedDataParallel(model)

    def without_frozen():
        with left_out_of_ddp(model):
            DistributedDataParallel(model)

    for build in (plain, without_frozen):  # the first ones connect the ranks and import what they need
        build()
    pairs = [(seconds(plain, device), seconds(without_frozen, device)) for _ in range(options.repeats)]
    stock, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    if accelerator.is_main_process:
        result = {
            "ranks": accelerator.num_processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
            "torch": torch.__version__,
            "frozen_mib": round(sum(layer.base.weight.nbytes for layer in model) / 2**20),
            "with_frozen_s": round(stock, 4),
            "without_frozen_s": round(ours, 4),
            "ratio": round(stock / ours, 1),
            "ratios": [round(a / b, 1) for a, b in pairs],
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
