"""Seconds to build DDP around a LoRA model with and without its frozen weights, in one process.

Usage: accelerate launch --multi_gpu --num_processes N benchmarks/ddp_startup.py --size 8b

The two alternate (A B A B), because the speed of a machine drifts. "without" includes the checksum. The model has the
shapes of Llama and random weights; with a GPU they lie on it. Prints one JSON line from rank 0.
"""

import argparse
import json
import os
import statistics
import time


from unsloth_accel import UnslothAccelerator  # isort: skip
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM

from unsloth_accel.bench.random_llama import SHAPES, config
from unsloth_accel.ddp.ignored import ignored_by_ddp


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora_model(size, device):
    """A frozen Llama in bf16 and a LoRA adapter on all its linear layers."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config(size))
        return get_peft_model(model, LoraConfig(r=16, target_modules=LINEAR, task_type="CAUSAL_LM"))


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
    parser.add_argument("--size", choices=SHAPES, default="1b")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    options = parser.parse_args()
    accelerator = UnslothAccelerator()
    device = accelerator.device
    model = lora_model(options.size, device)

    def plain():
        DistributedDataParallel(model)

    def without_frozen():
        with ignored_by_ddp(model):
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
            "size": options.size,
            "frozen_mib": round(sum(p.nbytes for p in model.parameters() if not p.requires_grad) / 2**20),
            "with_frozen_s": round(stock, 4),
            "without_frozen_s": round(ours, 4),
            "ratio": round(stock / ours, 1),
            "ratios": [round(a / b, 1) for a, b in pairs],
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
