"""Where the GPU's time goes in a step. For one GPU.

    python benchmarks/random_llama.py 3b 3b
    UNSLOTH_COMPILE_DISABLE=1 python benchmarks/profile_step.py --model 3b --work 4x1:fixed 8x1:fixed

Works and contenders are those of compare.py; without `--contenders` the rows are computed in one piece and no layer is
recomputed. Prints a line of JSON for each: milliseconds of a step and how they divide. A product of matrices counts to
the adapters if one side is no more than their rank; `other` are kernels that read and write activations (norms, rotary
positions, SwiGLU, the loss, sums, casts) or dequantise weights, named in `largest_other`; `idle` is what is left.
The same steps run twice: with the profiler for the kernels, and without it, as it slows the host down, for the time.
"""

import argparse
import json
import os
from collections import Counter
from itertools import product
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.contenders import CONTENDERS
from unsloth_accel.bench.models import load
from unsloth_accel.bench.workload import Workload
from unsloth_accel.metrics.flops import TokenFlops
from unsloth_accel.metrics.peak_flops import peak_flops


WARMUP, STEPS = 3, 6
ADAPTER_RANK = 16
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"}
ATTENTION = ("flash", "fmha", "attention")


def divided(profiler: profile) -> tuple[Counter[str], Counter[str]]:
    """Milliseconds of a step by kind, and of the kind `other` by kernel."""
    kinds: Counter[str] = Counter()
    of_products: set[str] = set()
    for event in profiler.events():
        if event.name in PRODUCTS:
            sides = [side for shape in event.input_shapes for side in shape]
            kind = "products with adapters" if min(sides) <= ADAPTER_RANK else "products with weights"
            for kernel in event.kernels:
                of_products.add(kernel.name)
                kinds[kind] += kernel.duration / 1000 / STEPS
    other: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and event.name not in of_products and not event.is_user_annotation:
            milliseconds = event.time_range.elapsed_us() / 1000 / STEPS
            if any(part in event.name.lower() for part in ATTENTION):
                kinds["attention"] += milliseconds
            else:
                other[event.name[:90]] += milliseconds
    kinds["other"] = other.total()
    return kinds, other


def profiled(name: str, model: Any, tokenizer: Any, work: Workload, comparison: Comparison) -> dict[str, Any]:
    from transformers import TrainerCallback  # after Unsloth, which patches it

    from unsloth_accel.bench.training import train

    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True)

    class MeasuredSteps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARMUP, WARMUP + STEPS):
                torch.cuda.synchronize()
                profiler.start() if state.global_step == WARMUP else profiler.stop()

    figures = train(CONTENDERS[name], model, tokenizer, work, comparison).figures
    train(CONTENDERS[name], model, tokenizer, work, comparison, [MeasuredSteps()])
    kinds, other = divided(profiler)
    flops = figures["tokens"] / STEPS * TokenFlops.from_model(model).model
    peak = peak_flops(torch.cuda.get_device_name(), bf16=True)
    return {
        "work": str(work),
        "contender": name,
        "ms": figures["ms"],
        "mfu": round(flops / (figures["ms"] / 1000) / peak, 4),
        "divided_ms": {name: round(spent, 1) for name, spent in kinds.most_common()},
        "idle_ms": round(figures["ms"] - kinds.total(), 1),
        "ms_of_products_with_weights_at_peak": round(1000 * flops / peak, 1),
        "largest_other": {name: round(spent, 2) for name, spent in other.most_common(15)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ft", default="lora", choices=("lora", "qlora", "full"))
    parser.add_argument("--work", nargs="+", required=True, type=Workload.parse)
    parser.add_argument("--contenders", nargs="+", default=["planned"], choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--seq", type=int, default=2048)
    options = parser.parse_args()
    comparison = Comparison(
        model=options.model,
        finetuning=options.ft,
        works=tuple(options.work),
        contenders=tuple(options.contenders),
        warmup=WARMUP,
        steps=STEPS,
        sequence=options.seq,
        lora_rank=ADAPTER_RANK,
    )
    model, tokenizer = load("unsloth", comparison)
    what = {"model": os.path.basename(options.model), "finetuning": options.ft}
    where = {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
    for work, name in product(options.work, options.contenders):
        print(json.dumps(what | profiled(name, model, tokenizer, work, comparison) | where), flush=True)


if __name__ == "__main__":
    main()
