"""Where the GPU's time goes in a step whose rows are computed in one piece with no layer recomputed. For one GPU.

    python benchmarks/random_llama.py 3b 3b
    UNSLOTH_COMPILE_DISABLE=1 python benchmarks/profile_step.py --model 3b --work 4x1:fixed 8x1:fixed

Prints a line of JSON for each work: milliseconds of a step and how they divide. A product of matrices is counted to
the adapters if one side is no more than their rank; `other` are kernels that read and write activations (norms, rotary
positions, SwiGLU, the loss, sums, casts), named in `largest_other`; `idle` is what is left of the step. The step
is timed in steps without the profiler, which slows the host down.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from typing import Any


from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import torch
from datasets import Dataset
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.contenders import CONTENDERS
from unsloth_accel.bench.models import load
from unsloth_accel.bench.training import arguments
from unsloth_accel.bench.workload import Workload
from unsloth_accel.metrics.flops import TokenFlops
from unsloth_accel.metrics.peak_flops import peak_flops


WARMUP, TIMED, PROFILED = 3, 8, 2
ADAPTER_RANK = 16
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"}
ATTENTION = ("flash", "fmha", "attention")


class StepProfile(TrainerCallback):
    """Times some steps, and then profiles some."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARMUP:
            torch.cuda.synchronize()
            self._began = time.perf_counter()
        if state.global_step == WARMUP + TIMED:
            torch.cuda.synchronize()
            self.milliseconds = 1000 * (time.perf_counter() - self._began) / TIMED
            self.profiler.start()
        if state.global_step == WARMUP + TIMED + PROFILED:
            torch.cuda.synchronize()
            self.profiler.stop()


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
                kinds[kind] += kernel.duration / 1000 / PROFILED
    other: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and event.name not in of_products and not event.is_user_annotation:
            milliseconds = event.time_range.elapsed_us() / 1000 / PROFILED
            if any(part in event.name.lower() for part in ATTENTION):
                kinds["attention"] += milliseconds
            else:
                other[event.name[:90]] += milliseconds
    kinds["other"] = other.total()
    return kinds, other


def profiled(model: Any, tokenizer: Any, work: Workload, comparison: Comparison) -> dict[str, Any]:
    planned, steps = CONTENDERS["planned"], comparison.warmup + comparison.steps
    rows = Dataset.from_dict({"text": work.texts(steps, 1, comparison.sequence)})
    callback = StepProfile()
    with tempfile.TemporaryDirectory() as folder:
        UnslothAcceleratedSFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=arguments(planned, work, comparison, folder),
            train_dataset=rows,
            callbacks=[callback],
            plugin=UnslothAcceleratorPlugin(**planned.plugin),
        ).train()
    kinds, other = divided(callback.profiler)
    tokens = work.rows * work.accumulation * comparison.sequence
    flops = tokens * TokenFlops.from_model(model).model
    peak = peak_flops(torch.cuda.get_device_name(), bf16=True)
    return {
        "work": str(work),
        "ms": round(callback.milliseconds, 1),
        "mfu": round(flops / (callback.milliseconds / 1000) / peak, 4),
        "divided_ms": {name: round(spent, 1) for name, spent in kinds.most_common()},
        "idle_ms": round(callback.milliseconds - kinds.total(), 1),
        "ms_of_products_with_weights_at_peak": round(1000 * flops / peak, 1),
        "largest_other": {name: round(spent, 2) for name, spent in other.most_common(15)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", nargs="+", type=Workload.parse, default=[Workload.parse("4x1:fixed")])
    parser.add_argument("--seq", type=int, default=2048)
    options = parser.parse_args()
    comparison = Comparison(
        model=options.model,
        works=tuple(options.work),
        contenders=(),
        warmup=WARMUP,
        steps=TIMED + PROFILED,
        sequence=options.seq,
        lora_rank=ADAPTER_RANK,
    )
    model, tokenizer = load("unsloth", comparison)
    for work in options.work:
        line = profiled(model, tokenizer, work, comparison)
        print(json.dumps(line | {"torch": torch.__version__, "device": torch.cuda.get_device_name()}), flush=True)


if __name__ == "__main__":
    main()
